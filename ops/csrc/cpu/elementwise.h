// Operators on rows: norms, bias, RoPE, SwiGLU, GELU; forward and backward.

#pragma once

#include <math.h>

#include "gelu.h"
#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

INLINE int64_t rows_per_grain(int64_t width) { return width > 0 ? (GRAIN + width - 1) / width : 1; }

// A row of partial sums for each thread, initially zero.
struct RowSums {
  int64_t threads, width, step;
  float* all;  // null = no memory

  RowSums(int64_t rows, int64_t width_)
      : threads(threads_for(rows)), width(width_), step(width_ / 16 * 16 + 32), all(aligned<float>(threads * step)) {
    if (all) memset(all, 0, (size_t)(threads * step) * sizeof(float));
  }
  ~RowSums() { free(all); }
  RowSums(const RowSums&) = delete;

  float* of(int thread) { return all + thread * step; }

  void reduce(float* out) {
    for (int64_t i = 0; i < width; ++i) {
      float total = 0.0f;
      for (int64_t thread = 0; thread < threads; ++thread) total += all[thread * step + i];
      out[i] = total;
    }
  }
};

}  // namespace

// out = x * scale * weight with scale = 1 / sqrt(mean(x^2) + eps), for each row; `scale` [rows] may be null.
EXPORT int NAME(rms_norm_forward)(const float* x, const float* weight, float* out, float* scale, int64_t rows,
                                  int64_t width, float eps) {
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = x + r * width;
      float* to = out + r * width;
      Vec squares = {};
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec v = load_n(from + i, n);
        squares += v * v;
      });
      float factor = 1.0f / sqrtf(reduce_sum(squares) / (float)width + eps);
      if (scale) scale[r] = factor;
      for_vectors(width, [&](int64_t i, int64_t n) {
        store_n(to + i, load_n(from + i, n) * broadcast(factor) * load_n(weight + i, n), n);
      });
    }
  });
  return 0;
}

// With u = x * scale and g = grad * weight: grad_x = scale * (g - u * mean(g * u)), grad_weight = sum over rows of grad
// * u.
EXPORT int NAME(rms_norm_backward)(const float* x, const float* weight, const float* scale, const float* grad,
                                   float* grad_x, float* grad_weight, int64_t rows, int64_t width) {
  RowSums sums(rows, width);
  if (!sums.all) return 1;
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int thread) {
    float* total = sums.of(thread);
    for (int64_t r = begin; r < end; ++r) {
      const float *from = x + r * width, *grad_row = grad + r * width;
      float* to = grad_x + r * width;
      Vec products = {}, factor = broadcast(scale[r]);
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec u = load_n(from + i, n) * factor, g = load_n(grad_row + i, n);
        products += g * load_n(weight + i, n) * u;
        store_n(total + i, load_n(total + i, n) + g * u, n);
      });
      Vec mean = broadcast(reduce_sum(products) / (float)width);
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec u = load_n(from + i, n) * factor;
        store_n(to + i, factor * (load_n(grad_row + i, n) * load_n(weight + i, n) - u * mean), n);
      });
    }
  });
  sums.reduce(grad_weight);
  return 0;
}

// out = (x - mean) * scale * weight + bias with scale = 1 / sqrt(variance + eps); `moments` [rows, 2] gets mean and
// scale, may be null.
EXPORT int NAME(layer_norm_forward)(const float* x, const float* weight, const float* bias, float* out, float* moments,
                                    int64_t rows, int64_t width, float eps) {
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = x + r * width;
      float* to = out + r * width;
      Vec total = {}, squares = {};
      for_vectors(width, [&](int64_t i, int64_t n) { total += load_n(from + i, n); });
      float mean = reduce_sum(total) / (float)width;
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec centered =
            n == WIDTH ? load(from + i) - broadcast(mean) : load_partial(from + i, n, mean) - broadcast(mean);
        squares += centered * centered;
      });
      float factor = 1.0f / sqrtf(reduce_sum(squares) / (float)width + eps);
      if (moments) moments[2 * r] = mean, moments[2 * r + 1] = factor;
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec u = (load_n(from + i, n) - broadcast(mean)) * broadcast(factor);
        store_n(to + i, u * load_n(weight + i, n) + load_n(bias + i, n), n);
      });
    }
  });
  return 0;
}

// With u = (x - mean) * scale and g = grad * weight: grad_x = scale * (g - mean(g) - u * mean(g * u)); the gradients of
// weight and bias are sums over rows of grad * u and grad.
EXPORT int NAME(layer_norm_backward)(const float* x, const float* weight, const float* moments, const float* grad,
                                     float* grad_x, float* grad_weight, float* grad_bias, int64_t rows, int64_t width) {
  RowSums weights(rows, width), biases(rows, width);
  if (!weights.all || !biases.all) return 1;
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int thread) {
    float *weight_sums = weights.of(thread), *bias_sums = biases.of(thread);
    for (int64_t r = begin; r < end; ++r) {
      const float *from = x + r * width, *grad_row = grad + r * width;
      float* to = grad_x + r * width;
      Vec products = {}, inner = {}, mean = broadcast(moments[2 * r]), factor = broadcast(moments[2 * r + 1]);
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec u = (load_n(from + i, n) - mean) * factor, g = load_n(grad_row + i, n);
        Vec gw = g * load_n(weight + i, n);
        inner += gw;
        products += gw * u;
        store_n(weight_sums + i, load_n(weight_sums + i, n) + g * u, n);
        store_n(bias_sums + i, load_n(bias_sums + i, n) + g, n);
      });
      Vec mean_gu = broadcast(reduce_sum(products) / (float)width),
          mean_g = broadcast(reduce_sum(inner) / (float)width);
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec u = (load_n(from + i, n) - mean) * factor;
        Vec gw = load_n(grad_row + i, n) * load_n(weight + i, n);
        store_n(to + i, factor * (gw - mean_g - u * mean_gu), n);
      });
    }
  });
  weights.reduce(grad_weight);
  biases.reduce(grad_bias);
  return 0;
}

// out = x + bias for each row.
EXPORT int NAME(add_bias)(const float* x, const float* bias, float* out, int64_t rows, int64_t width) {
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      for_vectors(width, [&](int64_t i, int64_t n) {
        store_n(out + r * width + i, load_n(x + r * width + i, n) + load_n(bias + i, n), n);
      });
  });
  return 0;
}

// out = sum of the rows: the gradient of a bias.
EXPORT int NAME(sum_rows)(const float* x, float* out, int64_t rows, int64_t width) {
  RowSums sums(rows, width);
  if (!sums.all) return 1;
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int thread) {
    float* total = sums.of(thread);
    for (int64_t r = begin; r < end; ++r)
      for_vectors(width, [&](int64_t i, int64_t n) {
        store_n(total + i, load_n(total + i, n) + load_n(x + r * width + i, n), n);
      });
  });
  sums.reduce(out);
  return 0;
}

// RoPE, neox layout: out = x cos + (-high, low) sin, where low and high are the halves of a head. `backward` rotates by
// the transposed matrix, which is the gradient. x [batch, tokens, heads, head_dim], cos and sin [batch or 1, tokens,
// head_dim].
EXPORT int NAME(rope)(const float* x, const float* cosine, const float* sine, float* out, int64_t batch, int64_t tokens,
                      int64_t heads, int64_t head_dim, int64_t angle_batch, int64_t backward) {
  int64_t half = head_dim / 2;
  parallel_ranges(batch * tokens, rows_per_grain(heads * head_dim), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t angle = (angle_batch == 1 ? row % tokens : row) * head_dim;
      const float *cos_low = cosine + angle, *cos_high = cos_low + half;
      const float *sin_low = sine + angle, *sin_high = sin_low + half;
      for (int64_t head = row * heads; head < (row + 1) * heads; ++head) {
        const float *low = x + head * head_dim, *high = low + half;
        float *to_low = out + head * head_dim, *to_high = to_low + half;
        for_vectors(half, [&](int64_t i, int64_t n) {
          Vec a = load_n(low + i, n), b = load_n(high + i, n);
          Vec c = load_n(cos_low + i, n), d = load_n(cos_high + i, n);
          Vec e = load_n(sin_low + i, n), f = load_n(sin_high + i, n);
          store_n(to_low + i, backward ? a * c + b * f : a * c - b * e, n);
          store_n(to_high + i, backward ? b * d - a * e : b * d + a * f, n);
        });
      }
    }
  });
  return 0;
}

// out = gate * sigmoid(gate) * up. Rows are `stride` apart; without `up` a row holds gate and then up.
EXPORT int NAME(swiglu_forward)(const float* gate, const float* up, float* out, int64_t rows, int64_t width,
                                int64_t stride) {
  if (!up) up = gate + width;
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec g = load_n(gate + r * stride + i, n);
        Vec silu = g / (broadcast(1.0f) + exp(-g));
        store_n(out + r * width + i, silu * load_n(up + r * stride + i, n), n);
      });
    }
  });
  return 0;
}

EXPORT int NAME(swiglu_backward)(const float* gate, const float* up, const float* grad, float* grad_gate,
                                 float* grad_up, int64_t rows, int64_t width, int64_t stride) {
  if (!up) up = gate + width, grad_up = grad_gate + width;
  parallel_ranges(rows, rows_per_grain(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for_vectors(width, [&](int64_t i, int64_t n) {
        Vec g = load_n(gate + r * stride + i, n), u = load_n(up + r * stride + i, n);
        Vec dy = load_n(grad + r * width + i, n);
        Vec sigmoid = broadcast(1.0f) / (broadcast(1.0f) + exp(-g)), silu = g * sigmoid;
        store_n(grad_up + r * stride + i, dy * silu, n);
        store_n(grad_gate + r * stride + i, dy * u * (sigmoid + silu * (broadcast(1.0f) - sigmoid)), n);
      });
    }
  });
  return 0;
}

// out = x/2 (1 + tanh(c (x + a x^3))) = x sigmoid(2 c (x + a x^3)).
EXPORT int NAME(gelu_tanh_forward)(const float* x, float* out, int64_t size) {
  parallel_ranges(size, GRAIN, [&](int64_t begin, int64_t end, int) {
    for_vectors(end - begin, [&](int64_t i, int64_t n) {
      Vec v = load_n(x + begin + i, n);
      Vec inner = v * (broadcast(GELU_SLOPE) + broadcast(GELU_SLOPE * GELU_CUBE) * v * v);
      store_n(out + begin + i, v / (broadcast(1.0f) + exp(-inner)), n);
    });
  });
  return 0;
}

EXPORT int NAME(gelu_tanh_backward)(const float* x, const float* grad, float* grad_x, int64_t size) {
  parallel_ranges(size, GRAIN, [&](int64_t begin, int64_t end, int) {
    for_vectors(end - begin, [&](int64_t i, int64_t n) {
      Vec v = load_n(x + begin + i, n), cube = broadcast(GELU_SLOPE * GELU_CUBE) * v * v;
      Vec s = broadcast(1.0f) / (broadcast(1.0f) + exp(-(v * (broadcast(GELU_SLOPE) + cube))));
      Vec slope = s + v * s * (broadcast(1.0f) - s) * (broadcast(GELU_SLOPE) + broadcast(3.0f) * cube);
      store_n(grad_x + begin + i, load_n(grad + begin + i, n) * slope, n);
    });
  });
  return 0;
}
