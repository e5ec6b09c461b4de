// A product with a packed weight as an operator of its own.

#pragma once

#include "linear.h"

// y[rows, out] = x[rows, in] w + bias.
EXPORT int NAME(linear)(const Linear* w, const float* x, float* y, int64_t rows) {
  void* scratch = aligned<char>(linear_scratch(rows, w->in));
  if (!scratch) return 1;
  gather((w->out + PANEL - 1) / PANEL, [&](Team& team) { linear(team, *w, x, rows, w->in, y, w->out, scratch); });
  free(scratch);
  return 0;
}
