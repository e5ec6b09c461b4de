// The kernels for processors with AVX-512.

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define LEVEL avx512
#define WIDTH 16
#include "kernels.h"
#endif
