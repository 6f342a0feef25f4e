// How far results are from a reference.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace moec::test {

/// |a - b| / |b| in the Euclidean norm, of which |b| counts as `least` at least; NaN when either holds one.
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b,
                             double least = 1e-30) {
  REQUIRE(a.size() == b.size());
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference) / std::max(std::sqrt(norm), least);
}

}  // namespace moec::test
