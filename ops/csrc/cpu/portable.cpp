// The kernels in whatever the compiler's default target offers, which every processor of the architecture has.

#define LEVEL portable
#define WIDTH 4
#include "kernels.h"
