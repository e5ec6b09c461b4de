// The score of a key that a query does not attend to.

#pragma once

namespace {

const float MASKED = -1e30f;  // finite: the difference of two infinities would be NaN

}  // namespace
