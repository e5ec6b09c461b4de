// Vectors of doubles, for sums over a vocabulary whose rounding must not depend on the instruction set.

#pragma once

#include <stdint.h>

#include "simd.h"

namespace {

const int DOUBLES = WIDTH / 2;  // doubles in a vector

typedef double Doubles __attribute__((vector_size(4 * WIDTH)));
typedef double UnalignedDoubles __attribute__((vector_size(4 * WIDTH), aligned(8), may_alias));
typedef float UnalignedHalf __attribute__((vector_size(2 * WIDTH), aligned(4), may_alias));
typedef int64_t Longs __attribute__((vector_size(4 * WIDTH)));

// e^x for x <= 0 to 2 ulp; 0 below -700.
INLINE Doubles exp_below(Doubles x) {
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  Longs below = x < -700.0;
  x = below ? Doubles{} : x;
  Doubles shifted = x * 1.4426950408889634 + magic, n = shifted - magic;
  Doubles r = x - n * 0.693147180369123816490, p = Doubles{} + 1.6059043836821613e-10;
  r -= n * 1.90821492927058770002e-10;
  const double terms[] = {2.0876756987868099e-9,
                          2.505210838544172e-8,
                          2.755731922398589e-7,
                          2.7557319223985893e-6,
                          2.48015873015873e-5,
                          1.984126984126984e-4,
                          1.388888888888889e-3,
                          8.333333333333333e-3,
                          4.1666666666666664e-2,
                          1.6666666666666666e-1,
                          0.5,
                          1.0,
                          1.0};
#pragma GCC unroll 13
  for (int i = 0; i < 13; ++i) p = p * r + terms[i];
  Doubles result = (Doubles)((Longs)p + ((Longs)shifted << 52));
  return below ? Doubles{} : result;
}

}  // namespace
