// The kernels for processors with AVX-512 that multiply bytes and add in one instruction.

#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#define LEVEL avx512vnni
#define WIDTH 16
#define VNNI
#include "kernels.h"
#endif
