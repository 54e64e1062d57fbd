// The threads of one call, which take the work in pieces.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace personaplex {

struct Range {
  int begin, end;
};

// What a call's threads have done, together. All of them run the same phases in the same order; a phase is over once
// all of its pieces are computed, whoever computed them. So a thread that the system has put aside delays the others
// by its own piece at most; it skips the phases it has missed.
class Progress {
 public:
  // The calling thread's `phase` begins: false if it is over.
  bool is_open(uint32_t phase) const { return phase_of(next_.load(std::memory_order_acquire)) == phase; }

  // Takes some of the `count` units of a phase, many while many are left: [begin, end), empty if there are none left.
  Range take(uint32_t phase, int count, int least, int threads) {
    uint64_t now = next_.load(std::memory_order_acquire);
    for (;;) {
      const int begin = int(now & kUnits);
      if (phase_of(now) != phase || begin >= count) return {count, count};
      const int left = count - begin, taken = std::min(left, std::max(least, left / (2 * threads)));
      if (next_.compare_exchange_weak(now, now + uint64_t(taken), std::memory_order_acq_rel))
        return {begin, begin + taken};
    }
  }

  // Notes that `units` of a phase are computed; the last ones end it.
  void finish(uint32_t phase, int units, int count) {
    if (done_.fetch_add(units, std::memory_order_acq_rel) + units < count) return;
    done_.store(0, std::memory_order_relaxed);
    next_.store(uint64_t(phase + 1) << kUnitBits);
    if (sleepers_.load() == 0) return;
    { std::lock_guard<std::mutex> lock(mutex_); }
    woken_.notify_all();
  }

  // Returns once a phase is over: a while of spinning, then asleep, so that others may use the core.
  void wait(uint32_t phase) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < kLooks; ++i) {
        if (!is_open(phase)) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    woken_.wait(lock, [&] { return phase_of(next_.load()) != phase; });
    --sleepers_;
  }

 private:
  static constexpr int kUnitBits = 32, kLooks = 64;
  static constexpr uint64_t kUnits = 0xFFFFFFFF;
  static constexpr std::chrono::microseconds kSpin{100};

  static uint32_t phase_of(uint64_t next) { return uint32_t(next >> kUnitBits); }

  static void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alignas(64) std::atomic<uint64_t> next_{0};  // the phase, and how many of its units are taken
  alignas(64) std::atomic<int> done_{0};       // of its units
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable woken_;
};

// One thread's place in the team. Work is split by outputs, never by sums, so results depend neither on the size nor on
// who computes what.
class Team {
 public:
  Team() = default;
  Team(int index, int size, Progress* progress) : index(index), size(size), progress_(progress) {}

  const int index = 0, size = 1;

  // Runs piece(range) for all of `count` things, whole multiples of `unit` at a time, on whichever threads are free;
  // returns once all are done. Each thread that takes part calls prepare() first, for what it needs for itself.
  // `least`: units of a piece, so many that taking one costs nothing beside it.
  template <class Prepare, class Piece>
  void each(int count, int unit, int least, Prepare prepare, Piece piece) const {
    if (count <= 0) return;
    if (size == 1) {
      prepare();
      piece(Range{0, count});
      return;
    }
    const uint32_t phase = phase_++;
    if (!progress_->is_open(phase)) return;
    const int units = (count + unit - 1) / unit;
    prepare();
    for (;;) {
      const Range taken = progress_->take(phase, units, least, size);
      if (taken.begin == taken.end) break;
      piece(Range{taken.begin * unit, std::min(count, taken.end * unit)});
      progress_->finish(phase, taken.end - taken.begin, units);
    }
    progress_->wait(phase);
  }

  template <class Piece>
  void each(int count, int unit, int least, Piece piece) const {
    each(count, unit, least, [] {}, piece);
  }

  // Runs f() on one thread; returns once it is done.
  template <class F>
  void once(F f) const {
    each(1, 1, 1, [&](Range) { f(); });
  }

 private:
  Progress* progress_ = nullptr;
  mutable uint32_t phase_ = 0;  // of this thread
};

// Runs f(team) on every thread; on this one alone without OpenMP.
template <class F>
inline void run_team([[maybe_unused]] int threads, F f) {
#ifdef _OPENMP
  if (threads > 1) {
    Progress progress;
#pragma omp parallel num_threads(threads)
    f(Team(omp_get_thread_num(), omp_get_num_threads(), &progress));
    return;
  }
#endif
  f(Team());
}

}  // namespace personaplex
