// The threads of one parallel region that work through several phases together, with barriers between them.
//
// A step of a decoder is one region: opening one for each of its several hundred products would cost more than some of them.

#pragma once

#include <sched.h>

#include "parallel.h"

namespace {

// What the threads of a team share; each number has a line of the cache of its own.
struct Meeting {
  alignas(64) int32_t arrived = 0;
  alignas(64) int32_t phase = 0;
  alignas(64) int64_t next = 0;
};

struct Team {
  int thread, threads;
  Meeting* meeting;

  // Returns when every thread of the team is here, and sees what they wrote before; a new phase begins.
  void wait() {
    if (threads == 1) {
      meeting->next = 0;
      return;
    }
    int32_t phase = __atomic_load_n(&meeting->phase, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&meeting->arrived, 1, __ATOMIC_ACQ_REL) == threads) {
      // Everyone else is below and takes no task.
      meeting->arrived = 0;
      meeting->next = 0;
      __atomic_store_n(&meeting->phase, phase + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int64_t turns = 0; __atomic_load_n(&meeting->phase, __ATOMIC_ACQUIRE) == phase; ++turns) {
      if (turns < SPINS)
        pause();
      else
        sched_yield();  // the one that is waited for may need this processor
    }
  }

  // The next task that no thread of the team has taken in this phase, from 0 on; the caller knows how many there are.
  int64_t take() {
    if (threads == 1) return meeting->next++;
    return __atomic_fetch_add(&meeting->next, 1, __ATOMIC_RELAXED);
  }

  // This thread's even part of `count` items, in pieces of `unit`.
  void part(int64_t count, int64_t unit, int64_t* begin, int64_t* end) const {
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
struct Gathering {
  const Body* body;
  Meeting meeting;
};

template <class Body>
void join_team(void* data) {
  Gathering<Body>* gathering = (Gathering<Body>*)data;
  // The runtime may give fewer threads than were asked for.
  Team team = {llmctl_ops_threads.thread_num(), llmctl_ops_threads.num_threads(), &gathering->meeting};
  (*gathering->body)(team);
}

// Calls body(team) on every thread of a team of at most `most`.
template <class Body>
inline void gather(int64_t most, const Body& body) {
  Gathering<Body> gathering = {&body, {}};
  int threads = threads_for(most);
  if (threads == 1) {
    Team team = {0, 1, &gathering.meeting};
    body(team);
    return;
  }
  llmctl_ops_threads.parallel(join_team<Body>, &gathering, (unsigned)threads, 0);
}

}  // namespace
