#include "differential/view.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "base/fd.h"

namespace vremote::differential {
namespace {

// Times are compared when they were set to long ago; the clock's are nobody's but the clock's.
constexpr time_t kLongAgo = 1'000'000'000;

std::string attributes_of(const struct stat& st) {
  std::string text =
      fmt::format("{:06o} links {} owner {}:{}", st.st_mode, st.st_nlink, st.st_uid, st.st_gid);
  if (!S_ISDIR(st.st_mode)) text += fmt::format(" size {}", st.st_size);
  if (S_ISCHR(st.st_mode))
    text += fmt::format(" device {}:{}", major(st.st_rdev), minor(st.st_rdev));
  // The times of a FIFO change where it is used.
  if (!S_ISFIFO(st.st_mode) && st.st_mtim.tv_sec < kLongAgo)
    text += fmt::format(" mtime {}.{}", st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
  return text;
}

std::string content_of(const std::string& path, const struct stat& st) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) return outcome(-1);
  std::string text;
  // Of large ones, which are holes for the most part, the ends.
  constexpr off_t kWindow = 128 << 10;
  for (const off_t at : {off_t{0}, std::max(kWindow, st.st_size - kWindow)}) {
    std::string bytes(kWindow, '\0');
    const ssize_t n = ::pread(fd.get(), bytes.data(), bytes.size(), at);
    if (n < 0) return outcome(n);
    bytes.resize(static_cast<size_t>(n));
    text += quoted(bytes) + "; ";
  }
  return text;
}

void walk(const std::string& path, const std::string& shown, std::map<ino_t, size_t>& inodes,
          std::string& text) {
  std::vector<std::pair<std::string, ino_t>> names;
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) {
    text += fmt::format("{}: {}\n", shown, outcome(-1));
    return;
  }
  while (const dirent* entry = ::readdir(dir))
    if (std::string_view(entry->d_name) != "." && std::string_view(entry->d_name) != "..")
      names.emplace_back(entry->d_name, entry->d_ino);
  ::closedir(dir);
  std::sort(names.begin(), names.end());
  for (const auto& [name, listed] : names) {
    const std::string at = path + "/" + name, as = shown + name;
    struct stat st {};
    if (::lstat(at.c_str(), &st) != 0) {
      text += fmt::format("{}: listed, and {}\n", as, outcome(-1));
      continue;
    }
    const size_t number = inodes.emplace(st.st_ino, inodes.size()).first->second;
    text += fmt::format("{}: {} inode #{}{}", as, attributes_of(st), number,
                        listed == st.st_ino ? "" : ", listed with another");
    if (S_ISREG(st.st_mode)) text += " " + content_of(at, st);
    if (S_ISLNK(st.st_mode)) {
      char target[256] = {};
      text +=
          fmt::format(" {} {}", outcome(::readlink(at.c_str(), target, sizeof target - 1)), target);
    }
    text += "\n";
    if (S_ISDIR(st.st_mode)) walk(at, as + "/", inodes, text);
  }
}

}  // namespace

std::string view_of_name(const Side& side, const std::string& name) {
  struct stat st {};
  if (::lstat(side.at(name).c_str(), &st) != 0) return outcome(-1);
  return attributes_of(st);
}

std::string view_of_all(const Side& side) {
  std::string text;
  for (size_t slot = 0; slot < kSlots; ++slot) {
    struct stat st {};
    text += ::fstat(side.fd(slot), &st) != 0
                ? fmt::format("slot {}: {}\n", slot, outcome(-1))
                : fmt::format("slot {}: {}\n", slot, attributes_of(st));
  }
  std::map<ino_t, size_t> inodes;
  walk(side.root, "", inodes, text);
  return text;
}

}  // namespace vremote::differential
