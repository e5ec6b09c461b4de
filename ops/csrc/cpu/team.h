// The threads of one parallel region that work through several phases together, with barriers between them.
//
// A decoder step is one region: opening one for each of its several hundred products would cost more than some of them.

#pragma once

#include <sched.h>
#include <stdint.h>

#include "parallel.h"

namespace {

// Barrier state of a team; each counter has a cache line of its own.
struct Barrier {
  alignas(64) int32_t arrived = 0;
  alignas(64) int32_t phase = 0;
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
      __atomic_store_n(&barrier->phase, phase + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int64_t spins = 0; __atomic_load_n(&barrier->phase, __ATOMIC_ACQUIRE) == phase; ++spins) {
      if (spins < SPINS)
        pause();
      else
        sched_yield();  // the thread that has not arrived may need this processor
    }
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

// Calls body(team) on every thread of a team of at most `max_threads`.
template <class Body>
inline void parallel_region(int64_t max_threads, const Body& body) {
  Region<Body> region = {&body, {}};
  int threads = threads_for(max_threads);
  if (threads == 1) {
    Team team = {0, 1, &region.barrier};
    body(team);
    return;
  }
  llmctl_ops_threads.parallel(enter_region<Body>, &region, (unsigned)threads, 0);
}

}  // namespace
