// Work shared among the threads of an OpenMP runtime that the process has loaded already.
//
// The library is not linked with OpenMP: a second runtime beside the framework's would make a second pool of threads.
// The loader hands over the entry points it finds; without them everything runs on the calling thread.

#pragma once

#include <stdint.h>

extern "C" {

typedef void (*GompParallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
typedef int (*OmpInt)(void);

struct Threads {
  GompParallel parallel;
  OmpInt max_threads;
  OmpInt thread_num;
  OmpInt num_threads;
};

extern struct Threads llmctl_ops_threads __attribute__((visibility("hidden")));
}

namespace {

const int64_t PIECE = 1 << 14;  // elements that are worth a thread's while

// How many threads `parallel` uses for a number of tasks.
inline int threads_for(int64_t tasks) {
  if (!llmctl_ops_threads.parallel || tasks < 2) return 1;
  int most = llmctl_ops_threads.max_threads();
  return tasks < most ? (int)tasks : (most < 1 ? 1 : most);
}

template <class Body>
struct Job {
  const Body* body;
  int64_t tasks;
  int64_t next;
};

template <class Body>
void take_tasks(void* data) {
  Job<Body>* job = (Job<Body>*)data;
  int thread = llmctl_ops_threads.thread_num();
  for (;;) {
    int64_t task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (task >= job->tasks) return;
    (*job->body)(task, thread);
  }
}

// Calls body(task, thread) for every task below `tasks`; a free thread takes the next one.
template <class Body>
inline void parallel(int64_t tasks, const Body& body) {
  int threads = threads_for(tasks);
  if (threads == 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task, 0);
    return;
  }
  Job<Body> job = {&body, tasks, 0};
  llmctl_ops_threads.parallel(take_tasks<Body>, &job, (unsigned)threads, 0);
}

// Calls body(begin, end, thread) for pieces of at least `least` of `count` items.
template <class Body>
inline void parallel_ranges(int64_t count, int64_t least, const Body& body) {
  if (count <= 0) return;
  if (least < 1) least = 1;
  int64_t pieces = (count + least - 1) / least;
  int64_t most = 4 * (int64_t)threads_for(pieces);
  if (pieces > most) pieces = most;
  int64_t size = (count + pieces - 1) / pieces;
  parallel(pieces, [&](int64_t piece, int thread) {
    int64_t begin = piece * size, end = begin + size < count ? begin + size : count;
    if (begin < end) body(begin, end, thread);
  });
}

}  // namespace
