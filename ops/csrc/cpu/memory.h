// Buffers that begin at a line of the cache.

#pragma once

#include <stdint.h>
#include <stdlib.h>

namespace {

// Room for `count` values, which `free` gives back; null where there is none.
template <class T>
inline T* aligned(int64_t count) {
  void* memory = nullptr;
  return posix_memalign(&memory, 64, (size_t)(count > 0 ? count : 1) * sizeof(T)) ? nullptr : (T*)memory;
}

}  // namespace
