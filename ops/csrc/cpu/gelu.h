// Constants of GELU's tanh approximation: x sigmoid(GELU_SLOPE (x + GELU_CUBE x^3)).

#pragma once

namespace {

const float GELU_SLOPE = 1.5957691216057308f, GELU_CUBE = 0.044715f;  // 2 sqrt(2 / pi)

}  // namespace
