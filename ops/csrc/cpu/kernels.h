// All kernels, for the instruction set that the including unit chose: its name LEVEL and its vectors' WIDTH.

#pragma once

#define JOIN(name, level) llmctl_ops_##name##_##level
#define JOINED(name, level) JOIN(name, level)
#define NAME(name) JOINED(name, LEVEL)
#define EXPORT extern "C" __attribute__((visibility("default")))

#include "glibc.h"

#include "attention.h"
#include "decoder_api.h"
#include "elementwise.h"
#include "linear_api.h"
#include "sample.h"
#include "training.h"
