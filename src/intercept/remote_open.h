// An O_REMOTE open from the caller's words to the descriptor: caller_path(), resolve() and
// open_under_mount() in a row. The supervisor and libvremote both do exactly this.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "intercept/caller_path.h"
#include "intercept/flags.h"
#include "intercept/resolve.h"

namespace vremote::intercept {

// `names` with what this machine's symbolic links make of its paths: the mount in its real place,
// and each local export under its real path too. Resolved paths match against these.
Namespace with_real_paths(Namespace names);

// The namespace in use, renewed on demand. Thread-safe.
class NamespaceCache {
 public:
  using Reload = std::function<Result<Namespace>()>;
  NamespaceCache(Namespace initial, Reload reload);  // `reload` may be empty
  explicit NamespaceCache(Reload reload);            // asked at the first get()

  Result<std::shared_ptr<const Namespace>> get();
  // What get() would give after asking again; `used` itself when that cannot be done, failed, or
  // was done less than a second ago.
  std::shared_ptr<const Namespace> renew(std::shared_ptr<const Namespace> used);

 private:
  std::mutex mutex_;
  std::shared_ptr<const Namespace> names_;  // null until first asked
  Reload reload_;
  std::chrono::steady_clock::time_point asked_{};
};

struct RemoteOpen {
  std::string path;  // as the program said it
  OpenFlags flags;   // with flags.remote
  uint32_t mode = 0;
  bool require_mount = true;
};

// Errors with an empty sentence are the file system's own answers (ENOENT, EACCES, EEXIST, …), the
// others refusals for which the user should read the sentence.
Result<Fd> open_remote(NamespaceCache& names, const View& view, const RemoteOpen& open);

// The first half of it: where the file is.
struct Place {
  std::shared_ptr<const Namespace> names;
  Target target;
  bool slash = false;
};
Result<Place> find_remote(NamespaceCache& names, const View& view, const RemoteOpen& open);

// `open("/srv/x", O_REMOTE|O_ORIGIN): sentence`, with the path made printable.
std::string refusal_line(const char* function, const RemoteOpen& open, const std::string& sentence);

}  // namespace vremote::intercept
