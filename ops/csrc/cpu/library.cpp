// Functions that do not depend on the instruction set: version, struct sizes, processor, threads.

#include <stdint.h>
#include <string.h>

#include "parallel.h"
#include "sampler_row.h"
#include "structs.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

extern "C" {
struct Threads llmctl_ops_threads = {0, 0, 0, 0};
}

// Version of the exported functions and their signatures; the loader refuses any other.
EXPORT int llmctl_ops_interface() { return 9; }

// sizeof of a struct that callers fill, by name; 0 = there is no such struct. The loader compares it with its ctypes
// mirror.
EXPORT int64_t llmctl_ops_struct_size(const char* name) {
  static const struct {
    const char* name;
    int64_t size;
  } SIZES[] = {{"Linear", sizeof(Linear)},        {"Norm", sizeof(Norm)},   {"LoraDelta", sizeof(LoraDelta)},
               {"Layer", sizeof(Layer)},          {"Model", sizeof(Model)}, {"Step", sizeof(Step)},
               {"SamplerRow", sizeof(SamplerRow)}};
  for (const auto& entry : SIZES)
    if (!strcmp(entry.name, name)) return entry.size;
  return 0;
}

// The best instruction set of this processor: 0 portable, 1 avx2, 2 avx512, 3 avx512vnni.
EXPORT int llmctl_ops_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
      !__builtin_cpu_supports("f16c"))
    return 0;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return 1;
  return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
#else
  return 0;
#endif
}

// Sets the entry points of the OpenMP runtime that the process uses; null = compute on the calling thread only.
EXPORT void llmctl_ops_use_threads(GompParallel parallel, OmpInt max_threads, OmpInt thread_num, OmpInt num_threads) {
  llmctl_ops_threads.parallel = max_threads && thread_num && num_threads ? parallel : 0;
  llmctl_ops_threads.max_threads = max_threads;
  llmctl_ops_threads.thread_num = thread_num;
  llmctl_ops_threads.num_threads = num_threads;
}
