// Parallel loops on the threads of an OpenMP runtime that the process has already loaded.
//
// The library does not link OpenMP: a second runtime next to the framework's would start a second thread pool. The
// loader passes in the entry points it finds; without them everything runs on the calling thread.

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

const int64_t GRAIN = 1 << 14;  // elements that are worth waking a thread for

// How many threads `parallel` uses for a number of tasks.
inline int threads_for(int64_t tasks) {
  if (!llmctl_ops_threads.parallel || tasks < 2) return 1;
  int max = llmctl_ops_threads.max_threads();
  return tasks < max ? (int)tasks : (max < 1 ? 1 : max);
}

template <class Body>
struct ParallelFor {
  const Body* body;
  int64_t tasks;
  int64_t next;
};

template <class Body>
void run_tasks(void* data) {
  ParallelFor<Body>* loop = (ParallelFor<Body>*)data;
  int thread = llmctl_ops_threads.thread_num();
  for (;;) {
    int64_t task = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED);
    if (task >= loop->tasks) return;
    (*loop->body)(task, thread);
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
  ParallelFor<Body> loop = {&body, tasks, 0};
  llmctl_ops_threads.parallel(run_tasks<Body>, &loop, (unsigned)threads, 0);
}

// Calls body(begin, end, thread) for ranges of at least `grain` of `count` items.
template <class Body>
inline void parallel_ranges(int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  int64_t ranges = (count + grain - 1) / grain;
  int64_t max = 4 * (int64_t)threads_for(ranges);
  if (ranges > max) ranges = max;
  int64_t size = (count + ranges - 1) / ranges;
  parallel(ranges, [&](int64_t range, int thread) {
    int64_t begin = range * size, end = begin + size < count ? begin + size : count;
    if (begin < end) body(begin, end, thread);
  });
}

}  // namespace
