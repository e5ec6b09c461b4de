// Runs CUDA kernels on CPU threads: included before them, it defines the names that the CUDA compiler would.
//
// The blocks of a launch run one after the other, so that shared arrays can be static; atomics and barriers are those of the
// compiler and the system. A block has few threads, since each is a thread of the system.

#pragma once

#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#include <thread>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(threads)
#define __shared__ static

struct Place {
  unsigned x;
};
static thread_local Place threadIdx, blockIdx;
static pthread_barrier_t barrier;
const int THREADS = 4;

inline void __syncthreads() { pthread_barrier_wait(&barrier); }
inline int atomicAdd(int* to, int value) { return __atomic_fetch_add(to, value, __ATOMIC_RELAXED); }

typedef _Float16 __half;
struct __nv_bfloat16 {
  uint16_t bits;
  operator float() const {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
  }
};

template <typename Body>
void launch(unsigned blocks, int threads, Body body) {
  pthread_barrier_init(&barrier, nullptr, threads);
  std::vector<std::thread> team;
  for (int t = 0; t < threads; ++t)
    team.emplace_back([&, t] {
      threadIdx.x = t;
      for (unsigned b = 0; b < blocks; ++b) {
        blockIdx.x = b;
        body();
        pthread_barrier_wait(&barrier);
      }
    });
  for (auto& one : team) one.join();
  pthread_barrier_destroy(&barrier);
}

#define LAUNCH(kernel, blocks, threads, stream, ...) launch(blocks, threads, [&] { kernel(__VA_ARGS__); })
#define LAUNCHED() 0
