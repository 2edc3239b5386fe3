#include "fuse/mountinfo.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/fd.h"

namespace vremote::fuse {
namespace {

// The next word of `rest`, which loses it and the space after.
std::string_view next_word(std::string_view& rest) {
  const size_t space = std::min(rest.find(' '), rest.size());
  const std::string_view word = rest.substr(0, space);
  rest.remove_prefix(std::min(space + 1, rest.size()));
  return word;
}

bool parse_number(std::string_view text, uint32_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

std::unexpected<Error> cannot_read() {
  const int code = errno;
  return fail(code, fmt::format("cannot read /proc/self/mountinfo: {}{}", std::strerror(code),
                                code == ENOENT ? " (is /proc mounted?)" : ""));
}

bool is_octal(char c) { return c >= '0' && c <= '7'; }

// The kernel writes blanks, newlines and backslashes as \ooo.
std::string unescape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && text.size() - i > 3 &&
        std::ranges::all_of(text.substr(i + 1, 3), is_octal)) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

}  // namespace

std::optional<MountEntry> parse_mount_entry(std::string_view line) {
  // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
  MountEntry entry;
  uint32_t parent = 0;
  if (!parse_number(next_word(line), entry.id) || !parse_number(next_word(line), parent))
    return std::nullopt;
  const std::string_view device = next_word(line);
  const size_t colon = device.find(':');
  if (colon == std::string_view::npos || !parse_number(device.substr(0, colon), entry.major) ||
      !parse_number(device.substr(colon + 1), entry.minor)) {
    return std::nullopt;
  }
  entry.root = unescape(next_word(line));
  entry.point = unescape(next_word(line));
  while (!line.empty() && next_word(line) != "-") {
  }  // options and any number of optional fields
  entry.type = unescape(next_word(line));
  entry.source = unescape(next_word(line));
  if (entry.point.empty() || entry.type.empty()) return std::nullopt;
  return entry;
}

Result<std::vector<MountEntry>> read_mountinfo() {
  const Fd fd(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return cannot_read();
  std::string text;
  std::array<char, 16384> chunk;
  while (true) {
    const ssize_t length = ::read(fd.get(), chunk.data(), chunk.size());
    if (length < 0 && errno == EINTR) continue;
    if (length < 0) return cannot_read();
    if (length == 0) break;
    text.append(chunk.data(), static_cast<size_t>(length));
  }
  std::vector<MountEntry> entries;
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (auto entry = parse_mount_entry(line)) entries.push_back(std::move(*entry));
  }
  return entries;
}

Result<std::optional<MountEntry>> mounted_at(std::string_view point) {
  VR_TRY(entries, read_mountinfo());
  const auto last = std::ranges::find(entries.rbegin(), entries.rend(), point, &MountEntry::point);
  if (last == entries.rend()) return std::nullopt;
  return std::move(*last);
}

}  // namespace vremote::fuse
