// The threads of one call, and their shares of the work.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

namespace personaplex {

struct Range {
  int begin, end;
};

// One thread's place in the team. Work is split by outputs, never by sums, so results do not depend on the size.
struct Team {
  int index = 0, size = 1;

  // This thread's share of `count` things, in whole multiples of `unit`.
  Range share(int count, int unit = 1) const {
    int units = (count + unit - 1) / unit;
    int begin = int(int64_t(units) * index / size) * unit, end = int(int64_t(units) * (index + 1) / size) * unit;
    return {begin < count ? begin : count, end < count ? end : count};
  }

  bool first() const { return index == 0; }

  void wait() const {
#ifdef _OPENMP
    if (size > 1) {
#pragma omp barrier
    }
#endif
  }
};

// Runs f(team) on every thread; on this one alone without OpenMP.
template <class F>
inline void run_team([[maybe_unused]] int threads, F f) {
#ifdef _OPENMP
  if (threads > 1) {
#pragma omp parallel num_threads(threads)
    f(Team{omp_get_thread_num(), omp_get_num_threads()});
    return;
  }
#endif
  f(Team{});
}

}  // namespace personaplex
