#include "base/private_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/fd.h"

namespace vremote {
namespace {

constexpr mode_t kOthersWrite = S_IWGRP | S_IWOTH;

bool is_ours(const struct stat& st) { return st.st_uid == 0 || st.st_uid == ::geteuid(); }

std::unexpected<Error> failed(const std::string& path, int code) {
  return fail(code, fmt::format("{}: {}", path, std::strerror(code)));
}

// In a user namespace all users that it does not know look alike, root of the machine among them
// (user_namespaces(7)).
bool may_be_root(const struct stat& st) {
  std::ifstream map("/proc/self/uid_map"), nobody("/proc/sys/kernel/overflowuid");
  uint64_t inside = 0, outside = 0, count = 0, overflow = 0;
  map >> inside >> outside >> count;
  nobody >> overflow;
  return map && nobody && count < UINT32_MAX && st.st_uid == overflow;
}

// What is there by that name, and what that leads to if it is a link. The first counts even when it
// is none: its owner may change it for one before the second is looked at.
Status check_owner(const std::string& path, const struct stat& link, const struct stat& st,
                   bool (*is_fit)(const struct stat&) = is_ours) {
  if (S_ISLNK(link.st_mode) && !is_fit(link))
    return fail(EPERM,
                fmt::format("{} is a symbolic link of user {}, who could have it lead anywhere; "
                            "remove it, or name another place",
                            path, link.st_uid));
  if (!S_ISDIR(st.st_mode)) return failed(path, ENOTDIR);
  for (const struct stat* each : {&link, &st})
    if (!is_fit(*each))
      return fail(EPERM, fmt::format("{} belongs to user {}, who could put anything there; give it "
                                     "to the user of this node (chown), or name another place",
                                     path, each->st_uid));
  return {};
}

// The nearest that is there, `path` itself or one above it.
Result<std::filesystem::path> nearest(std::filesystem::path path, struct stat& link) {
  for (;;) {
    if (::lstat(path.c_str(), &link) == 0) return path;
    if (errno != ENOENT || path == path.parent_path()) return failed(path.string(), errno);
    path = path.parent_path();
  }
}

// Others could rename what is in it, and put something else there.
Status check_parent(const std::string& path) {
  struct stat link {
  }, st{};
  VR_TRY(there, nearest(path, link));
  if (::stat(there.c_str(), &st) != 0) return failed(there.string(), errno);
  VR_TRY_VOID(check_owner(there.string(), link, st, [](const struct stat& owner) {
    return is_ours(owner) || may_be_root(owner);
  }));
  if ((st.st_mode & S_IWOTH) == 0 || (st.st_mode & S_ISVTX) != 0) return {};
  return fail(EPERM,
              fmt::format("{} can be written to by everybody (mode {:04o}), so others could put "
                          "anything there; chmod o-w it, or name another place",
                          there.string(), st.st_mode & 07777));
}

std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string parent_of(const std::string& path) {
  return std::filesystem::absolute(path).parent_path().string();
}

}  // namespace

Status check_private_directory(const std::string& given) {
  const std::string path = without_slash(given);
  VR_TRY_VOID(check_parent(parent_of(path)));
  struct stat link {
  }, st{};
  if (::lstat(path.c_str(), &link) != 0)
    return errno == ENOENT ? Status() : Status(failed(path, errno));
  if (::stat(path.c_str(), &st) != 0) return failed(path, errno);
  VR_TRY_VOID(check_owner(path, link, st));
  if ((st.st_mode & kOthersWrite) == 0) return {};
  return fail(EPERM, fmt::format("{} can be written to by others (mode {:04o}); chmod 0700 it, or "
                                 "name another place",
                                 path, st.st_mode & 07777));
}

Status check_private_files(const std::string& path) {
  std::error_code error;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end;
       it.increment(error)) {
    struct stat st {};
    if (::lstat(it->path().c_str(), &st) == 0 && !is_ours(st))
      return fail(EPERM, fmt::format("{} belongs to user {}, who could have put anything into it; "
                                     "remove it, or give it to the user of this node (chown) if it "
                                     "is this node's own",
                                     it->path().string(), st.st_uid));
  }
  if (error && error.value() != ENOENT) return failed(path, error.value());
  return {};
}

int make_directories(const std::string& given) {
  const std::string path = without_slash(given);
  if (path.empty()) return 0;  // where the process is
  struct stat st {};
  if (::stat(path.c_str(), &st) == 0) return S_ISDIR(st.st_mode) ? 0 : ENOTDIR;
  if (errno != ENOENT) return errno;
  if (const int error = make_directories(parent_of(path)); error != 0) return error;
  if (::mkdir(path.c_str(), 0700) != 0) return errno == EEXIST ? 0 : errno;
  return ::chmod(path.c_str(), 0711) == 0 ? 0 : errno;
}

Status make_private_directory(const std::string& given) {
  const std::string path = without_slash(given);
  VR_TRY_VOID(check_parent(parent_of(path)));
  if (const int error = make_directories(parent_of(path)); error != 0) return failed(path, error);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return failed(path, errno);
  struct stat link {
  }, st{};
  if (::lstat(path.c_str(), &link) != 0) return failed(path, errno);
  // What is judged is what is changed, whoever renames it meanwhile.
  const Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid() || ::fstat(directory.get(), &st) != 0) return failed(path, errno);
  VR_TRY_VOID(check_owner(path, link, st));
  if ((st.st_mode & 07777) != 0700 && ::fchmod(directory.get(), 0700) != 0)
    return failed(path, errno);
  return {};
}

}  // namespace vremote
