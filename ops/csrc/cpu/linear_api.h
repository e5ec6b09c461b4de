// The product with a packed weight as an exported function.

#pragma once

#include <stdint.h>
#include <stdlib.h>

#include "linear.h"
#include "memory.h"
#include "packed_weight.h"
#include "structs.h"
#include "team.h"

// y[rows, out] = x[rows, in] w + bias. 0 = done, 1 = no memory.
EXPORT int NAME(linear)(const Linear* w, const float* x, float* y, int64_t rows) {
  void* scratch = aligned<char>(linear_scratch_bytes(rows, w->in));
  if (!scratch) return 1;
  parallel_region((w->out + PANEL - 1) / PANEL,
                  [&](Team& team) { linear(team, *w, x, rows, w->in, y, w->out, scratch); });
  free(scratch);
  return 0;
}
