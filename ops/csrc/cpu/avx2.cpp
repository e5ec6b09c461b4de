// The kernels for processors with AVX2, FMA and F16C.

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define LEVEL avx2
#define WIDTH 8
#include "kernels.h"
#endif
