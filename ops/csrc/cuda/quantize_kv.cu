// Quantizes keys or values to int8 into a KV cache. The scale of a head is max |x| / 127, or NaN if a value is not
// finite.

#include <math.h>
#include <stdint.h>

#include "launch.h"

namespace {

// One thread per head of a token: x [tokens, heads, head_dim] is written to the slots of codes [slots, heads,
// head_dim].
template <typename T>
__global__ void __launch_bounds__(THREADS) quantize_heads(const T* x, const int64_t* slot, int64_t count, int64_t heads,
                                                          int64_t head_dim, int8_t* codes, float* scales) {
  int64_t head = (int64_t)blockIdx.x * THREADS + threadIdx.x;
  if (head >= count) return;
  const T* from = x + head * head_dim;
  int64_t target = slot[head / heads] * heads + head % heads;
  float max = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < head_dim; ++i) {
    float magnitude = fabsf((float)from[i]);
    finite = finite && magnitude <= 3e38f;
    max = magnitude > max ? magnitude : max;
  }
  float inverse = max > 1e-30f ? 127.0f / max : 0.0f;
  for (int64_t i = 0; i < head_dim; ++i)
    codes[target * head_dim + i] = finite ? (int8_t)lrintf((float)from[i] * inverse) : 1;
  scales[target] = finite ? max / 127.0f : NAN;
}

template <typename T>
int quantize_kv(const void* x, const int64_t* slot, int64_t tokens, int64_t heads, int64_t head_dim, int8_t* codes,
                float* scales, void* stream) {
  int64_t count = tokens * heads;
  if (!count) return 0;
  LAUNCH(quantize_heads<T>, (unsigned)((count + THREADS - 1) / THREADS), THREADS, stream, (const T*)x, slot, count,
         heads, head_dim, codes, scales);
  return LAUNCHED();
}

}  // namespace

// Returns a CUDA error code. kind: 0 = float32, 1 = float16, 2 = bfloat16.
EXPORT_CUDA int llmctl_ops_cuda_quantize_kv(const void* x, int32_t kind, const int64_t* slot, int64_t tokens,
                                            int64_t heads, int64_t head_dim, int8_t* codes, float* scales,
                                            void* stream) {
  if (kind == 0) return quantize_kv<float>(x, slot, tokens, heads, head_dim, codes, scales, stream);
  if (kind == 1) return quantize_kv<__half>(x, slot, tokens, heads, head_dim, codes, scales, stream);
  return quantize_kv<__nv_bfloat16>(x, slot, tokens, heads, head_dim, codes, scales, stream);
}
