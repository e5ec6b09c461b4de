// The kernels for processors with AVX2 and FMA.

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define LEVEL avx2
#define WIDTH 8
#include "kernels.h"
#endif
