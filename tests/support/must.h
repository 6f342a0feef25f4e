// Unwraps results in tests; an error ends the test case with its message.
#pragma once

#include <doctest/doctest.h>

#include <utility>

#include "runtime/status.h"

namespace moec::test {

template <class T>
T must(Result<T> result) {
  REQUIRE_MESSAGE(result.ok(), result.error().message);
  return std::move(result).value();
}

inline void must(const Status& status) { REQUIRE_MESSAGE(status.ok(), status.error().message); }

}  // namespace moec::test
