// Errors as values. No exception crosses the runtime's border.
#pragma once

#include <optional>
#include <string>
#include <utility>

namespace moec {

/// What went wrong, by whom it can be mended; tools turn it into their exit code.
enum class ErrorKind {
  kInput,    // a bad file, flag or value (exit code 2)
  kFailure,  // something failed while running (exit code 1)
};

struct Error {
  ErrorKind kind = ErrorKind::kFailure;
  std::string message;  // one line: the file or op, the place, what to do
};

/// Success, or an error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT: converts by design

  bool ok() const { return !error_; }
  const Error& error() const { return *error_; }

 private:
  std::optional<Error> error_;
};

/// A value, or an error.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}      // NOLINT: converts by design
  Result(Error error) : error_(std::move(error)) {}  // NOLINT: converts by design

  bool ok() const { return value_.has_value(); }
  const Error& error() const { return *error_; }
  Status status() const { return ok() ? Status() : Status(*error_); }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return *std::move(value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }

 private:
  std::optional<T> value_;
  std::optional<Error> error_;
};

inline Error input_error(std::string message) { return {ErrorKind::kInput, std::move(message)}; }
inline Error failure(std::string message) { return {ErrorKind::kFailure, std::move(message)}; }

}  // namespace moec

/// Returns the error of a Status or Result expression from the enclosing function.
#define MOEC_RETURN_IF_ERROR(expression)                                    \
  do {                                                                      \
    if (auto status_ = (expression); !status_.ok()) return status_.error(); \
  } while (0)

/// `MOEC_ASSIGN_OR_RETURN(auto x, f())`: the value of a Result expression, or its error returned from the
/// enclosing function.
#define MOEC_ASSIGN_OR_RETURN(declaration, expression) \
  MOEC_ASSIGN_OR_RETURN_NAMED(MOEC_CONCAT(result_, __LINE__), declaration, expression)
#define MOEC_ASSIGN_OR_RETURN_NAMED(result, declaration, expression) \
  auto result = (expression);                                        \
  if (!result.ok()) return result.error();                           \
  declaration = std::move(result).value()
#define MOEC_CONCAT(a, b) MOEC_CONCAT_EXPANDED(a, b)
#define MOEC_CONCAT_EXPANDED(a, b) a##b
