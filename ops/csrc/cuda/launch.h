// What kernels for GPUs are written with: blocks of threads, shared arrays and barriers, and nothing else, so that the same
// sources can be run by threads of a CPU (tests/cuda_on_cpu.h).

#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, (cudaStream_t)(stream)>>>(__VA_ARGS__)
#define LAUNCHED() ((int)cudaGetLastError())
const int THREADS = 512;
#endif

#define EXPORT_CUDA extern "C" __attribute__((visibility("default")))

// The sum or the largest of a value of each thread, in a fixed order; every thread gets it.
template <typename T, typename Join>
__device__ T joined(T value, Join join) {
  __shared__ T held[THREADS];
  int me = threadIdx.x;
  held[me] = value;
  __syncthreads();
  for (int half = THREADS / 2; half; half /= 2) {
    if (me < half) held[me] = join(held[me], held[me + half]);
    __syncthreads();
  }
  T result = held[0];
  __syncthreads();
  return result;
}

template <typename T>
__device__ T total_of(T value) {
  return joined(value, [](T a, T b) { return a + b; });
}

template <typename T>
__device__ T most_of(T value) {
  return joined(value, [](T a, T b) { return a < b ? b : a; });
}
