// The threads of one parallel region that work through several phases together, with barriers between them.
//
// A decoder step is one region: opening one for each of its several hundred products would cost more than some of them.
// A thread that waits spins for as long as a phase of a small model takes, then sleeps: on a busy machine the thread that has
// not arrived may need this processor, and a thread that yields keeps it.

#pragma once

#include <sched.h>
#include <stdint.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "parallel.h"

namespace {

inline int64_t nanoseconds() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

// Barrier state of a team; each counter has a cache line of its own.
struct Barrier {
  alignas(64) int32_t arrived = 0;
  alignas(64) int32_t phase = 0;
  int32_t sleepers = 0;
  int64_t slept = 0;  // nanoseconds, of all threads
  alignas(64) int64_t next = 0;
};

struct Team {
  int thread, threads;
  Barrier* barrier;

  // Returns when every thread of the team has arrived, and sees what they wrote before; a new phase begins.
  void wait() {
    if (threads == 1) {
      barrier->next = 0;
      return;
    }
    int32_t phase = __atomic_load_n(&barrier->phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == threads) {
      // The other threads wait below and take no task.
      barrier->arrived = 0;
      barrier->next = 0;
      // In this order: a thread that goes to sleep meanwhile is counted, or sees that the phase has changed.
      __atomic_store_n(&barrier->phase, phase + 1, __ATOMIC_SEQ_CST);
      if (__atomic_load_n(&barrier->sleepers, __ATOMIC_SEQ_CST)) wake();
      return;
    }
    for (int64_t spins = 0; spins < SPINS; ++spins) {
      if (__atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE) != phase) return;
      pause();
    }
    int64_t begin = nanoseconds();
    __atomic_fetch_add(&barrier->sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE) == phase) sleep(phase);
    __atomic_fetch_sub(&barrier->sleepers, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&barrier->slept, nanoseconds() - begin, __ATOMIC_RELAXED);
  }

  // The next task of this phase that no thread has taken, from 0 on; the caller knows how many there are.
  int64_t take() {
    if (threads == 1) return barrier->next++;
    return __atomic_fetch_add(&barrier->next, 1, __ATOMIC_RELAXED);
  }

  // This thread's even share of `count` items, in multiples of `unit`.
  void range(int64_t count, int64_t unit, int64_t* begin, int64_t* end) const {
    int64_t units = (count + unit - 1) / unit;
    *begin = units * thread / threads * unit;
    *end = units * (thread + 1) / threads * unit;
    if (*end > count) *end = count;
    if (*begin > count) *begin = count;
  }

 private:
  static const int64_t SPINS = 4096;

  // Until the phase is another than this one, or earlier.
  void sleep(int32_t phase) const {
#if defined(__linux__)
    syscall(SYS_futex, &barrier->phase, FUTEX_WAIT_PRIVATE, phase, nullptr, nullptr, 0);
#else
    sched_yield();
#endif
  }

  void wake() const {
#if defined(__linux__)
    syscall(SYS_futex, &barrier->phase, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
};

template <class Body>
struct Region {
  const Body* body;
  Barrier barrier;
};

template <class Body>
void enter_region(void* data) {
  Region<Body>* region = (Region<Body>*)data;
  // The runtime may give fewer threads than were asked for.
  Team team = {llmctl_ops_threads.thread_num(), llmctl_ops_threads.num_threads(), &region->barrier};
  (*region->body)(team);
}

// Calls body(team) on every thread of a team of at most `max_threads`; returns the nanoseconds that threads slept in it.
template <class Body>
inline int64_t parallel_region(int64_t max_threads, const Body& body) {
  Region<Body> region = {&body, {}};
  int threads = threads_for(max_threads);
  if (threads == 1) {
    Team team = {0, 1, &region.barrier};
    body(team);
    return 0;
  }
  llmctl_ops_threads.parallel(enter_region<Body>, &region, (unsigned)threads, 0);
  return region.barrier.slept;
}

// How many threads a region gets, by what became of those before. On a busy machine a thread that waits for another one
// waits until the system runs that one, which may take longer than all of the work: then one thread computes alone, and
// from time to time a region shows whether the machine is still busy.
struct TeamSize {
  int64_t alone = 0, pause = 0;  // regions that one thread computes from now on, and how many the last time
  static const int64_t LEAST = 16, MOST = 4096;

  template <class Body>
  void run(int64_t max_threads, const Body& body) {
    if (alone) {
      --alone;
      parallel_region(1, body);
      return;
    }
    int64_t begin = nanoseconds(), slept = parallel_region(max_threads, body);
    int64_t others = threads_for(max_threads) - 1;
    if (2 * slept > others * (nanoseconds() - begin)) {
      pause = pause < LEAST ? LEAST : pause < MOST ? 2 * pause : MOST;
      alone = pause;
    } else {
      pause /= 2;
    }
  }
};

}  // namespace
