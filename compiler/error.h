// Errors inside the compiler: one line that names the file, node or field. Tools catch it at their border.
#pragma once

#include <fmt/format.h>

#include <stdexcept>

namespace moec {

class CompileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class... Args>
[[noreturn]] void compile_error(fmt::format_string<Args...> format, Args&&... args) {
  throw CompileError(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace moec
