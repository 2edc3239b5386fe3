// libvremote: <vremote/fcntl.h> for programs that link it. The rules are those of `vremote run`,
// and so is the code (src/intercept).
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "base/fd.h"
#include "intercept/flags.h"
#include "intercept/namespace_source.h"
#include "intercept/remote_open.h"
#include "vremote/fcntl.h"

#define VREMOTE_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace vremote;
using namespace vremote::intercept;

static_assert(O_REMOTE == kRemoteFlag && O_ORIGIN == kOriginFlag &&
              VREMOTE_O_ORIGIN_DECIMAL == kDecimalOrigin);

// Of the whole process, as the C interface is; asked for at the first O_REMOTE open. Never
// destroyed: threads may open during exit.
NamespaceCache& cache() {
  alignas(NamespaceCache) static unsigned char storage[sizeof(NamespaceCache)];
  static NamespaceCache* instance = new (storage) NamespaceCache([]() -> Result<Namespace> {
    VR_TRY(socket, find_control_socket());
    return fetch_namespace(socket);
  });
  return *instance;
}

thread_local std::string reason;

int refuse(const Error& error) {
  reason = error.what;
  errno = error.code;
  return -1;
}

Result<View> view_of_self(int dirfd, const char* path) {
  View view;
  view.process = ::getpid();
  view.thread = ::gettid();
  if (path[0] == '/') return view;
  VR_TRY(start,
         read_link(dirfd == AT_FDCWD ? "/proc/self/cwd" : fmt::format("/proc/self/fd/{}", dirfd)));
  if (!start) return fail(EBADF);
  if (!start->starts_with('/')) return fail(ENOTDIR);  // a pipe or socket
  view.start = *start;
  return view;
}

Result<Place> find(int dirfd, const RemoteOpen& open) {
  VR_TRY(view, view_of_self(dirfd, open.path.c_str()));
  return find_remote(cache(), view, open);
}

int open_or_refuse(const char* function, int dirfd, const RemoteOpen& open) {
  auto view = view_of_self(dirfd, open.path.c_str());
  if (!view) return refuse(view.error().code == ENOENT ? Error{EBADF, {}} : view.error());
  auto fd = open_remote(cache(), *view, open);
  if (fd) return fd->release();
  if (!fd.error().what.empty()) {
    std::string line = refusal_line(function, open, fd.error().what) + "\n";
    [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, line.data(), line.size());
  }
  return refuse(fd.error());
}

// No exception may leave through C: only memory can be short here.
template <typename F>
auto guarded(F f) -> decltype(f()) {
  try {
    reason.clear();
    return f();
  } catch (const std::exception&) {
    errno = ENOMEM;
    return -1;
  }
}

int open_any(const char* function, int dirfd, const char* path, int flags, mode_t mode) {
  OpenFlags meaning = interpret_flags(static_cast<uint32_t>(flags));
  if (!meaning.remote) return ::openat(dirfd, path, flags, mode);
  if (!path) {
    errno = EFAULT;
    return -1;
  }
  return guarded([&] {
    return open_or_refuse(function, dirfd, {.path = path, .flags = meaning, .mode = mode});
  });
}

// As in open(2): the argument is there only when the flags say so. The bits of the decimal O_ORIGIN
// are none of these two.
bool has_mode(int flags) { return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE; }

}  // namespace

VREMOTE_EXPORT int vremote_open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if (has_mode(flags)) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
  }
  return open_any("vremote_open", AT_FDCWD, path, flags, mode);
}

VREMOTE_EXPORT int vremote_openat(int dirfd, const char* path, int flags, ...) {
  mode_t mode = 0;
  if (has_mode(flags)) {
    va_list arguments;
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
  }
  return open_any("vremote_openat", dirfd, path, flags, mode);
}

VREMOTE_EXPORT ssize_t vremote_resolve(const char* path, int flags, char* buffer, size_t size) {
  return guarded([&]() -> ssize_t {
    if (!path || !buffer) return refuse({EFAULT, {}});
    RemoteOpen open{.path = path,
                    .flags = interpret_flags(static_cast<uint32_t>(flags) | kRemoteFlag)};
    auto place = find(AT_FDCWD, open);
    if (!place) return refuse(place.error());
    std::string target = place->target.path(*place->names);
    if (target.size() >= size) return refuse({ERANGE, {}});
    std::memcpy(buffer, target.c_str(), target.size() + 1);
    return static_cast<ssize_t>(target.size());
  });
}

VREMOTE_EXPORT const char* vremote_reason(void) { return reason.c_str(); }
