#include "node/home/disk_life.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/durable_file.h"
#include "base/fd.h"

namespace vremote::node {
namespace {

constexpr std::string_view kHead = "vremote disk 1\n";
constexpr size_t kBootMax = 64;

std::string read_start(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  std::array<char, 256> text;
  const ssize_t n = fd.valid() ? ::read(fd.get(), text.data(), text.size()) : 0;
  return {text.data(), n > 0 ? static_cast<size_t>(n) : 0};
}

Status note(const std::string& path, const DiskLife& life) {
  return replace_durably(path, fmt::format("{}{} {} {}\nend\n", kHead, life.boot, life.number,
                                           life.synced ? "synced" : "used"));
}

}  // namespace

std::optional<DiskLife> parse_disk_life(std::string_view text) {
  if (!text.starts_with(kHead)) return std::nullopt;
  text.remove_prefix(kHead.size());
  DiskLife life;
  const size_t boot_end = text.find(' ');
  if (boot_end == 0 || boot_end == std::string_view::npos || boot_end > kBootMax)
    return std::nullopt;
  life.boot = text.substr(0, boot_end);
  text.remove_prefix(boot_end + 1);
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), life.number);
  if (error != std::errc() || life.number == 0) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(at - text.data()));
  life.synced = text == " synced\nend\n";
  if (!life.synced && text != " used\nend\n") return std::nullopt;
  return life;
}

std::string boot_id() {
  std::string text = read_start("/proc/sys/kernel/random/boot_id");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.size() > kBootMax || text.find_first_of(" \n") != std::string::npos ? std::string()
                                                                                  : text;
}

Result<DiskLife> begin_disk_life(const std::string& path, const std::string& boot, uint64_t fresh) {
  const std::string text = read_start(path);
  const auto before = parse_disk_life(text);
  if (!before && !text.empty())
    spdlog::warn("{}: damaged; nodes will take this start for a power failure of this machine",
                 path);
  const bool goes_on = before && (before->synced || (!boot.empty() && before->boot == boot));
  DiskLife life{.boot = boot.empty() ? "unknown" : boot,
                .number = goes_on ? before->number : fresh,
                .synced = false};
  VR_TRY_VOID(note(path, life));
  life.synced = !goes_on || before->synced;
  return life;
}

Status end_disk_life(const std::string& path, DiskLife life) {
  life.synced = true;
  return note(path, life);
}

Status break_disk_life(const std::string& path, DiskLife life, uint64_t fresh) {
  life.number = fresh;
  life.synced = false;
  return note(path, life);
}

}  // namespace vremote::node
