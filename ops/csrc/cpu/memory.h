// Buffers aligned to a cache line.

#pragma once

#include <stdint.h>
#include <stdlib.h>

namespace {

// An array of `count` values, to be released with `free`; null if there is no memory.
template <class T>
inline T* aligned(int64_t count) {
  void* memory = nullptr;
  return posix_memalign(&memory, 64, (size_t)(count > 0 ? count : 1) * sizeof(T)) ? nullptr : (T*)memory;
}

inline __attribute__((always_inline)) int64_t round_up(int64_t count, int64_t unit) {
  return (count + unit - 1) / unit * unit;
}

}  // namespace
