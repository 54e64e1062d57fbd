// Many short phases on many threads: every unit is computed once, and after all units of the phase before.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "team.h"

int main(int, char** arguments) {
  const int threads = std::atoi(arguments[1]), phases = std::atoi(arguments[2]);
  std::vector<int> before(64, 0), after(64, 0);
  int prepared = 0, wrong = 0;
  personaplex::run_team(threads, [&](const personaplex::Team& team) {
    for (int phase = 0; phase < phases; ++phase) {
      const int count = 1 + phase % 61, unit = 1 + phase % 3;
      team.each(count, unit, 1 + phase % 2, [&](personaplex::Range piece) {
        if (phase % 97 == team.index) std::this_thread::sleep_for(std::chrono::microseconds(300));
        if (piece.begin % unit != 0) ++wrong;
        for (int i = piece.begin; i < piece.end; ++i) ++before[i];
      });
      team.once([&] {
        ++prepared;
        for (int i = 0; i < 64; ++i) {
          after[i] += i < count;
          wrong += before[i] != after[i];
        }
      });
    }
  });
  std::printf("%d %d\n", wrong, prepared);
}
