// Operators on rows: norms, rotary positions, the gate of a feed-forward layer.

#pragma once

#include <math.h>

#include "memory.h"
#include "parallel.h"
#include "simd.h"

namespace {

const float GELU_SLOPE = 1.5957691216057308f, GELU_CUBE = 0.044715f;  // 2 sqrt(2 / pi)

INLINE int64_t rows_in_a_piece(int64_t width) { return width > 0 ? (PIECE + width - 1) / width : 1; }

// A row of sums for each thread, zero at first.
struct Sums {
  int64_t threads, width, step;
  float* all;  // null = no memory

  Sums(int64_t rows, int64_t width_)
      : threads(threads_for(rows)), width(width_), step(width_ / 16 * 16 + 32), all(aligned<float>(threads * step)) {
    if (all) memset(all, 0, (size_t)(threads * step) * sizeof(float));
  }
  ~Sums() { free(all); }
  Sums(const Sums&) = delete;

  float* of(int thread) { return all + thread * step; }

  void add_up(float* out) {
    for (int64_t i = 0; i < width; ++i) {
      float total = 0.0f;
      for (int64_t thread = 0; thread < threads; ++thread) total += all[thread * step + i];
      out[i] = total;
    }
  }
};

}  // namespace

// out = x * scale * weight, scale = 1 / sqrt(mean(x^2) + eps), for each row; `scale` [rows] may be null.
EXPORT int NAME(rms_norm_forward)(const float* x, const float* weight, float* out, float* scale, int64_t rows,
                                  int64_t width, float eps) {
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = x + r * width;
      float* to = out + r * width;
      Vec squares = {};
      vectors(width, [&](int64_t i, int64_t n) {
        Vec v = load_some(from + i, n);
        squares += v * v;
      });
      float factor = 1.0f / sqrtf(sum(squares) / (float)width + eps);
      if (scale) scale[r] = factor;
      vectors(width, [&](int64_t i, int64_t n) {
        store_some(to + i, load_some(from + i, n) * set(factor) * load_some(weight + i, n), n);
      });
    }
  });
  return 0;
}

// With u = x * scale and g = grad * weight: grad_x = scale * (g - u * mean(g * u)), grad_weight = sum over rows of grad * u.
EXPORT int NAME(rms_norm_backward)(const float* x, const float* weight, const float* scale, const float* grad,
                                   float* grad_x, float* grad_weight, int64_t rows, int64_t width) {
  Sums sums(rows, width);
  if (!sums.all) return 1;
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int thread) {
    float* total = sums.of(thread);
    for (int64_t r = begin; r < end; ++r) {
      const float *from = x + r * width, *given = grad + r * width;
      float* to = grad_x + r * width;
      Vec products = {}, factor = set(scale[r]);
      vectors(width, [&](int64_t i, int64_t n) {
        Vec unit = load_some(from + i, n) * factor, g = load_some(given + i, n);
        products += g * load_some(weight + i, n) * unit;
        store_some(total + i, load_some(total + i, n) + g * unit, n);
      });
      Vec mean = set(sum(products) / (float)width);
      vectors(width, [&](int64_t i, int64_t n) {
        Vec unit = load_some(from + i, n) * factor;
        store_some(to + i, factor * (load_some(given + i, n) * load_some(weight + i, n) - unit * mean), n);
      });
    }
  });
  sums.add_up(grad_weight);
  return 0;
}

// out = (x - mean) * scale * weight + bias, scale = 1 / sqrt(variance + eps); `moments` [rows, 2] has mean and scale, or null.
EXPORT int NAME(layer_norm_forward)(const float* x, const float* weight, const float* bias, float* out, float* moments,
                                    int64_t rows, int64_t width, float eps) {
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = x + r * width;
      float* to = out + r * width;
      Vec total = {}, squares = {};
      vectors(width, [&](int64_t i, int64_t n) { total += load_some(from + i, n); });
      float mean = sum(total) / (float)width;
      vectors(width, [&](int64_t i, int64_t n) {
        Vec apart = n == WIDTH ? load(from + i) - set(mean) : load_part(from + i, n, mean) - set(mean);
        squares += apart * apart;
      });
      float factor = 1.0f / sqrtf(sum(squares) / (float)width + eps);
      if (moments) moments[2 * r] = mean, moments[2 * r + 1] = factor;
      vectors(width, [&](int64_t i, int64_t n) {
        Vec unit = (load_some(from + i, n) - set(mean)) * set(factor);
        store_some(to + i, unit * load_some(weight + i, n) + load_some(bias + i, n), n);
      });
    }
  });
  return 0;
}

// With u = (x - mean) * scale and g = grad * weight: grad_x = scale * (g - mean(g) - u * mean(g * u)); the gradients of
// weight and bias are sums over rows of grad * u and grad.
EXPORT int NAME(layer_norm_backward)(const float* x, const float* weight, const float* moments, const float* grad,
                                     float* grad_x, float* grad_weight, float* grad_bias, int64_t rows,
                                     int64_t width) {
  Sums weights(rows, width), biases(rows, width);
  if (!weights.all || !biases.all) return 1;
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int thread) {
    float *of_weight = weights.of(thread), *of_bias = biases.of(thread);
    for (int64_t r = begin; r < end; ++r) {
      const float *from = x + r * width, *given = grad + r * width;
      float* to = grad_x + r * width;
      Vec products = {}, inner = {}, mean = set(moments[2 * r]), factor = set(moments[2 * r + 1]);
      vectors(width, [&](int64_t i, int64_t n) {
        Vec unit = (load_some(from + i, n) - mean) * factor, g = load_some(given + i, n);
        Vec weighted = g * load_some(weight + i, n);
        inner += weighted;
        products += weighted * unit;
        store_some(of_weight + i, load_some(of_weight + i, n) + g * unit, n);
        store_some(of_bias + i, load_some(of_bias + i, n) + g, n);
      });
      Vec along = set(sum(products) / (float)width), level = set(sum(inner) / (float)width);
      vectors(width, [&](int64_t i, int64_t n) {
        Vec unit = (load_some(from + i, n) - mean) * factor;
        Vec weighted = load_some(given + i, n) * load_some(weight + i, n);
        store_some(to + i, factor * (weighted - level - unit * along), n);
      });
    }
  });
  weights.add_up(grad_weight);
  biases.add_up(grad_bias);
  return 0;
}

// out = x + bias for each row.
EXPORT int NAME(add_bias)(const float* x, const float* bias, float* out, int64_t rows, int64_t width) {
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r)
      vectors(width, [&](int64_t i, int64_t n) {
        store_some(out + r * width + i, load_some(x + r * width + i, n) + load_some(bias + i, n), n);
      });
  });
  return 0;
}

// out = sum of the rows, the gradient of a bias.
EXPORT int NAME(sum_rows)(const float* x, float* out, int64_t rows, int64_t width) {
  Sums sums(rows, width);
  if (!sums.all) return 1;
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int thread) {
    float* total = sums.of(thread);
    for (int64_t r = begin; r < end; ++r)
      vectors(width, [&](int64_t i, int64_t n) {
        store_some(total + i, load_some(total + i, n) + load_some(x + r * width + i, n), n);
      });
  });
  sums.add_up(out);
  return 0;
}

// Turns each head by its position's angles, element i with element i + half: out = x cos + (-high, low) sin; `back` turns
// by the transposed matrix, which is the gradient. x [batch, new, heads, width], cos and sin [batch or 1, new, width].
EXPORT int NAME(rope)(const float* x, const float* cosine, const float* sine, float* out, int64_t batch, int64_t new_,
                      int64_t heads, int64_t width, int64_t angle_rows, int64_t back) {
  int64_t half = width / 2;
  parallel_ranges(batch * new_, rows_in_a_piece(heads * width), [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t place = (angle_rows == 1 ? row % new_ : row) * width;
      const float *cos_low = cosine + place, *cos_high = cos_low + half;
      const float *sin_low = sine + place, *sin_high = sin_low + half;
      for (int64_t head = row * heads; head < (row + 1) * heads; ++head) {
        const float *low = x + head * width, *high = low + half;
        float *to_low = out + head * width, *to_high = to_low + half;
        vectors(half, [&](int64_t i, int64_t n) {
          Vec a = load_some(low + i, n), b = load_some(high + i, n);
          Vec c = load_some(cos_low + i, n), d = load_some(cos_high + i, n);
          Vec e = load_some(sin_low + i, n), f = load_some(sin_high + i, n);
          store_some(to_low + i, back ? a * c + b * f : a * c - b * e, n);
          store_some(to_high + i, back ? b * d - a * e : b * d + a * f, n);
        });
      }
    }
  });
  return 0;
}

// out = gate * sigmoid(gate) * up; rows of gate and up may lie apart, as halves of one tensor do.
EXPORT int NAME(swiglu_forward)(const float* gate, const float* up, float* out, int64_t rows, int64_t width,
                                int64_t step) {
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      vectors(width, [&](int64_t i, int64_t n) {
        Vec g = load_some(gate + r * step + i, n);
        Vec silu = g / (set(1.0f) + exp(-g));
        store_some(out + r * width + i, silu * load_some(up + r * step + i, n), n);
      });
    }
  });
  return 0;
}

EXPORT int NAME(swiglu_backward)(const float* gate, const float* up, const float* grad, float* grad_gate,
                                 float* grad_up, int64_t rows, int64_t width, int64_t step) {
  parallel_ranges(rows, rows_in_a_piece(width), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      vectors(width, [&](int64_t i, int64_t n) {
        Vec g = load_some(gate + r * step + i, n), u = load_some(up + r * step + i, n);
        Vec given = load_some(grad + r * width + i, n);
        Vec sigmoid = set(1.0f) / (set(1.0f) + exp(-g)), silu = g * sigmoid;
        store_some(grad_up + r * step + i, given * silu, n);
        store_some(grad_gate + r * step + i, given * u * (sigmoid + silu * (set(1.0f) - sigmoid)), n);
      });
    }
  });
  return 0;
}

// out = x/2 (1 + tanh(c (x + a x^3))) = x sigmoid(2 c (x + a x^3)).
EXPORT int NAME(gelu_tanh_forward)(const float* x, float* out, int64_t size) {
  parallel_ranges(size, PIECE, [&](int64_t begin, int64_t end, int) {
    vectors(end - begin, [&](int64_t i, int64_t n) {
      Vec v = load_some(x + begin + i, n);
      Vec inner = v * (set(GELU_SLOPE) + set(GELU_SLOPE * GELU_CUBE) * v * v);
      store_some(out + begin + i, v / (set(1.0f) + exp(-inner)), n);
    });
  });
  return 0;
}

EXPORT int NAME(gelu_tanh_backward)(const float* x, const float* grad, float* grad_x, int64_t size) {
  parallel_ranges(size, PIECE, [&](int64_t begin, int64_t end, int) {
    vectors(end - begin, [&](int64_t i, int64_t n) {
      Vec v = load_some(x + begin + i, n), cube = set(GELU_SLOPE * GELU_CUBE) * v * v;
      Vec s = set(1.0f) / (set(1.0f) + exp(-(v * (set(GELU_SLOPE) + cube))));
      Vec slope = s + v * s * (set(1.0f) - s) * (set(GELU_SLOPE) + set(3.0f) * cube);
      store_some(grad_x + begin + i, load_some(grad + begin + i, n) * slope, n);
    });
  });
  return 0;
}
