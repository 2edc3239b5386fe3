// Errors as values: what a peer, the kernel, a disk or a user can cause.
#pragma once

#include <expected>
#include <string>
#include <utility>

namespace vremote {

// An errno (always positive) for the caller's caller, and a sentence for the person who reads the
// log. `what` is empty on hot paths, where the errno says it all.
struct Error {
  int code = 0;
  std::string what;
};

template <typename T>
using Result = std::expected<T, Error>;
using Status = Result<void>;

inline std::unexpected<Error> fail(int code, std::string what = {}) {
  return std::unexpected(Error{code, std::move(what)});
}

}  // namespace vremote

#define VR_CONCAT_INNER(a, b) a##b
#define VR_CONCAT(a, b) VR_CONCAT_INNER(a, b)
// VR_TRY(name, expr): returns the error of `expr` to the caller, else defines `name` as its value.
#define VR_TRY(name, expr)                                               \
  auto VR_CONCAT(name, _result) = (expr);                                \
  if (!VR_CONCAT(name, _result))                                         \
    return std::unexpected(std::move(VR_CONCAT(name, _result)).error()); \
  auto& name = *VR_CONCAT(name, _result)
// VR_TRY_VOID(expr): the same for a Status.
#define VR_TRY_VOID(expr)                                                                    \
  do {                                                                                       \
    if (auto status_ = (expr); !status_) return std::unexpected(std::move(status_).error()); \
  } while (false)
// The same two inside coroutines.
#define VR_CO_TRY(name, expr)                                               \
  auto VR_CONCAT(name, _result) = (expr);                                   \
  if (!VR_CONCAT(name, _result))                                            \
    co_return std::unexpected(std::move(VR_CONCAT(name, _result)).error()); \
  auto& name = *VR_CONCAT(name, _result)
