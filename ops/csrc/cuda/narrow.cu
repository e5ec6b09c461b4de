// Writing keys or values into a cache that holds them in 8 bits: codes in units of the largest of a head / 127.

#include "launch.h"

namespace {

// One thread takes a head of a place; x [places, heads, width] goes to the slots of codes [slots, heads, width].
template <typename T>
__global__ void __launch_bounds__(THREADS) narrow_heads(const T* x, const int64_t* slot, int64_t count, int64_t heads, int64_t width, int8_t* codes,
                             float* units) {
  int64_t head = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (head >= count) return;
  const T* from = x + head * width;
  int64_t target = slot[head / heads] * heads + head % heads;
  float most = 0.0f;
  bool number = true;
  for (int64_t i = 0; i < width; ++i) {
    float magnitude = fabsf((float)from[i]);
    number = number && magnitude <= 3e38f;
    most = magnitude > most ? magnitude : most;
  }
  float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
  for (int64_t i = 0; i < width; ++i) codes[target * width + i] = number ? (int8_t)lrintf((float)from[i] * inverse) : 1;
  units[target] = number ? most / 127.0f : NAN;
}

template <typename T>
int narrow(const void* x, const int64_t* slot, int64_t places, int64_t heads, int64_t width, int8_t* codes, float* units,
           void* stream) {
  int64_t count = places * heads;
  if (!count) return 0;
  LAUNCH(narrow_heads<T>, (unsigned)((count + THREADS - 1) / THREADS), THREADS, stream, (const T*)x, slot, count, heads, width,
         codes, units);
  return LAUNCHED();
}

}  // namespace

// kind: 0 = float32, 1 = float16, 2 = bfloat16.
EXPORT_CUDA int llmctl_ops_cuda_narrow(const void* x, int32_t kind, const int64_t* slot, int64_t places, int64_t heads,
                                       int64_t width, int8_t* codes, float* units, void* stream) {
  if (kind == 0) return narrow<float>(x, slot, places, heads, width, codes, units, stream);
  if (kind == 1) return narrow<__half>(x, slot, places, heads, width, codes, units, stream);
  return narrow<__nv_bfloat16>(x, slot, places, heads, width, codes, units, stream);
}
