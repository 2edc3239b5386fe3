// Which file a path means to the program that says it, as an absolute path.
//
// A path goes two ways into resolve():
//   resolved  symbolic links followed as the kernel would for the caller, as far as it exists here
//   lexical   the words alone: what it is on its origin, whatever this machine has of that name
// With O_ORIGIN only the first one counts. A ".." after a name makes the second one unsound: the
// name may be a link.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>

#include "base/result.h"

namespace vremote::intercept {

// How a program sees the file system. Paths are as *this* process names them.
struct View {
  std::string root;    // its root directory; "" for "/"
  std::string start;   // where relative paths start: its working directory or that of a dirfd
  std::string lookup;  // put before a path to look it up ("/proc/TID/root" for another mount
                       // namespace); else ""
  pid_t process = 0;   // what /proc/self is to it
  pid_t thread = 0;    // and /proc/thread-self
};

struct CallerPath {
  std::string resolved;
  std::string lexical;  // empty when unsound
  bool slash = false;   // ended with "/": only a directory will do
};

// The text of a symbolic link; nothing for what exists and is no link; an errno for what does not
// exist or cannot be looked at.
using ReadLink = std::function<Result<std::optional<std::string>>(const std::string& path)>;

// `strict`: a ".." beneath a missing name fails as it does in the kernel, instead of being taken
// lexically. Errors: ENOENT for an empty path, ENAMETOOLONG, ELOOP; of those that `read_link` gives
// only with `strict`.
Result<CallerPath> caller_path(const View& view, const std::string& path, bool follow_last,
                               bool strict, const ReadLink& read_link);

// readlink(2) for caller_path().
Result<std::optional<std::string>> read_link(const std::string& path);

}  // namespace vremote::intercept
