// Extended attributes, through /proc/self/fd: the f*xattr calls refuse O_PATH descriptors, and
// links and devices cannot be opened.
#include <sys/xattr.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "store/credentials.h"
#include "store/departed.h"
#include "store/store.h"
#include "store/table.h"

namespace vremote::store {
namespace {

Status check_xattr_name(const std::string& name) {
  if (name.empty() || name.size() > coherence::kNameMax) return fail(ERANGE);
  if (name.find('\0') != std::string::npos) return fail(EINVAL);
  return {};
}

// Calls `get(buffer, size)` with a small buffer, then with the largest one.
template <typename Get>
Result<Bytes> get_all(Get&& get) {
  std::byte small[1024];
  ssize_t n = get(small, sizeof small);
  if (n >= 0) return Bytes::copy_of({small, static_cast<size_t>(n)});
  if (errno != ERANGE) return fail(errno);
  auto large = std::make_unique_for_overwrite<std::byte[]>(coherence::kXattrMax);
  n = get(large.get(), coherence::kXattrMax);
  if (n < 0) return fail(errno == ERANGE ? E2BIG : errno);
  return Bytes::copy_of({large.get(), static_cast<size_t>(n)});
}

constexpr std::string_view kTrusted = "trusted.";

// The caller's own identity does not tell here: setfsuid() leaves this process the right to set
// these, capabilities of programs among them.
Status check_may_set(const coherence::Caller& caller, std::string_view name) {
  if (caller.uid != 0 && (name.starts_with(kTrusted) || name.starts_with("security.")))
    return fail(EPERM);
  return {};
}

// The list without the names that only administrators may see: the file system showed them because
// this daemon is one.
Bytes without_trusted(const Bytes& list) {
  std::string_view rest(reinterpret_cast<const char*>(list.data()), list.size());
  std::string kept;
  while (!rest.empty()) {
    size_t length = std::min(rest.find('\0'), rest.size() - 1) + 1;
    if (!rest.starts_with(kTrusted)) kept.append(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  if (kept.size() == list.size()) return list;
  return Bytes::copy_of(std::as_bytes(std::span(kept)));
}

}  // namespace

bool Store::has_xattrs(FileId file) {
  auto open = acquire(file);
  if (!open) return !departed_->attributes(file);
  ProcPath path((*open)->path());
  const ssize_t length = ::listxattr(path.c_str(), nullptr, 0);
  return length != 0 && !(length < 0 && errno == EOPNOTSUPP);
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::GetXattrCall& call) {
  VR_TRY_VOID(check_xattr_name(call.name));
  if (judges_ && caller.uid != 0 && call.name.starts_with(kTrusted)) return fail(EPERM);
  VR_TRY(file, acquire(call.file));
  ProcPath path(file->path());
  VR_TRY(value, get_all([&](void* buffer, size_t size) {
           auto n = as_caller(caller, judges_, [&] {
             return static_cast<int>(::getxattr(path.c_str(), call.name.c_str(), buffer, size));
           });
           if (!n) errno = n.error().code;
           return static_cast<ssize_t>(n.value_or(-1));
         }));
  return coherence::Text{std::move(value)};
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::ListXattrCall& call) {
  VR_TRY(file, acquire(call.file));
  ProcPath path(file->path());
  VR_TRY(list, get_all([&](void* buffer, size_t size) {
           return ::listxattr(path.c_str(), static_cast<char*>(buffer), size);
         }));
  return coherence::Text{caller.uid == 0 ? std::move(list) : without_trusted(list)};
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::SetXattrCall& call) {
  VR_TRY_VOID(check_xattr_name(call.name));
  if (judges_) VR_TRY_VOID(check_may_set(caller, call.name));
  if (call.value.size() > coherence::kXattrMax) return fail(E2BIG);
  VR_TRY(file, acquire(call.file));
  ProcPath path(file->path());
  VR_TRY_VOID(as_caller(caller, judges_, [&] {
    return ::setxattr(path.c_str(), call.name.c_str(), call.value.data(), call.value.size(),
                      static_cast<int>(call.flags));
  }));
  return Outcome{};
}

Result<coherence::Outcome> Store::run(const Caller& caller,
                                      const coherence::RemoveXattrCall& call) {
  VR_TRY_VOID(check_xattr_name(call.name));
  if (judges_) VR_TRY_VOID(check_may_set(caller, call.name));
  VR_TRY(file, acquire(call.file));
  const ProcPath path(file->path());
  VR_TRY_VOID(
      as_caller(caller, judges_, [&] { return ::removexattr(path.c_str(), call.name.c_str()); }));
  return Outcome{};
}

}  // namespace vremote::store
