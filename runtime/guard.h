// The runtime's border: code below it may throw (allocation, the standard library), callers above it get a
// value.
#pragma once

#include <exception>
#include <new>
#include <string>
#include <string_view>

#include "runtime/status.h"

namespace moec::runtime {

/// Calls `body`, which returns a Status or a Result, and turns an exception into a failure that says what was
/// being done, e.g. "reading x.plan".
template <class Body>
auto guarded(std::string_view doing, Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return failure(std::string(doing) + ": out of host memory");
  } catch (const std::exception& e) {
    return failure(std::string(doing) + ": " + e.what());
  }
}

}  // namespace moec::runtime
