// Binds mathematics to the first versions of glibc's symbols, so that a library built today also loads on glibc 2.17:
// later versions differ only in that they do not set errno the old way. Included first.

#pragma once

#include <stdlib.h>

#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver expf,expf@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
__asm__(".symver logf,logf@GLIBC_2.2.5");
__asm__(".symver log2f,log2f@GLIBC_2.2.5");
#endif
