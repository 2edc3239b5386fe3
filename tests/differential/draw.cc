#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "differential/step.h"

namespace vremote::differential {

std::string outcome(int64_t result) {
  if (result >= 0) return fmt::format("ok {}", result);
  const char* name = ::strerrorname_np(errno);
  return name != nullptr ? name : fmt::format("errno {}", errno);
}

std::string quoted(const std::string& bytes) {
  // Runs, as most content is.
  std::string text = fmt::format("{} bytes", bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    size_t end = at;
    while (end < bytes.size() && bytes[end] == bytes[at]) ++end;
    const auto byte = static_cast<unsigned char>(bytes[at]);
    text += byte > ' ' && byte < 0x7f ? fmt::format(" {}*{}", end - at, bytes[at])
                                      : fmt::format(" {}*{:02x}", end - at, byte);
    at = end;
  }
  return text;
}

int Side::seen_fd(size_t slot) const {
  struct stat st {};
  (void)::fstat(fd(slot), &st);
  return fd(slot);
}

std::string Side::beside(size_t slot, const std::string& name) const {
  struct stat of_fd {
  }, of_root{};
  if (::fstat(fd(slot), &of_fd) != 0) return at(name);
  for (const std::string& other : roots)
    if (::stat(other.c_str(), &of_root) == 0 && of_root.st_dev == of_fd.st_dev)
      return name.empty() ? name : other + "/" + name;
  return at(name);
}

std::string Draw::name() {
  const std::string dir = one_of<const char*>({"", "", "", "x/", "x/", "y/", "x/z/"});
  return dir + one_of<const char*>({"a", "b", "c", "d", "x", "y", "z", "link"});
}

std::string Draw::odd_name() {
  if (!chance(8)) return name();
  switch (random_.below(8)) {
    case 0:
      return "";
    case 1:
      return name() + "/";
    case 2:
      return name() + "/.";
    case 3:
      return name() + "/..";
    case 4:
      return ".";
    case 5:
      return "none/a";
    case 6:
      return std::string(random_.between(254, 256), 'n');
    default:
      return name() + "/a";
  }
}

uint64_t Draw::size() {
  switch (random_.below(8)) {
    case 0:
      return 0;
    case 1:
      return 4096 * random_.below(6);
    case 2:
      return 4096 * random_.between(1, 6) - 1;
    case 3:
      return 4096 * random_.below(6) + 1;
    case 4:
      return chance(20) ? one_of<uint64_t>({(uint64_t{1} << 32) - 7, uint64_t{1} << 33})
                        : random_.below(100'000);
    default:
      return random_.below(9000);
  }
}

int64_t Draw::odd_size() {
  if (!chance(6)) return static_cast<int64_t>(size());
  return one_of<int64_t>({-1, -4096, INT64_MIN, INT64_MAX, INT64_MAX - 4096});
}

std::string Draw::bytes() {
  return std::string(chance(70) ? random_.between(1, 200) : random_.between(1, 12'000),
                     static_cast<char>('A' + random_.below(26)));
}

uint32_t Draw::mode() {
  return one_of<uint32_t>({0644, 0600, 0666, 0755, 0777, 0711, 0444, 0000, 02755, 04755, 06777,
                           02644, 01777, 07777, 0640, 02770});
}

}  // namespace vremote::differential
