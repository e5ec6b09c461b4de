// The CUDA features that the kernels use: blocks of threads, shared arrays, barriers and nothing else, so that the same
// sources also run on CPU threads (tests/cuda_on_cpu.h).

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

// Block-wide reduction of one value per thread in a fixed order; every thread gets the result.
template <typename T, typename Combine>
__device__ T reduce(T value, Combine combine) {
  __shared__ T partial[THREADS];
  int me = threadIdx.x;
  partial[me] = value;
  __syncthreads();
  for (int half = THREADS / 2; half; half /= 2) {
    if (me < half) partial[me] = combine(partial[me], partial[me + half]);
    __syncthreads();
  }
  T result = partial[0];
  __syncthreads();
  return result;
}

template <typename T>
__device__ T reduce_sum(T value) {
  return reduce(value, [](T a, T b) { return a + b; });
}

template <typename T>
__device__ T reduce_max(T value) {
  return reduce(value, [](T a, T b) { return a < b ? b : a; });
}
