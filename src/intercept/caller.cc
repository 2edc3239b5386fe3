#include "intercept/caller.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <limits.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>

#include "base/fd.h"

namespace vremote::intercept {
namespace {

constexpr size_t kStatusMax = 1 << 20;  // 65536 groups fit

Result<std::string> read_file(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return fail(errno);
  std::string text;
  std::array<char, 4096> buffer;
  for (;;) {
    ssize_t n = ::read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno);
    if (n == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(n));
    if (text.size() > kStatusMax) return fail(EFBIG);
  }
}

// The numbers of the line "key:\t1 2 3".
std::optional<std::vector<uint64_t>> numbers_of(std::string_view text, std::string_view key,
                                                int base) {
  while (!text.empty()) {
    size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    if (!line.starts_with(key) || line.size() <= key.size() || line[key.size()] != ':') continue;
    line.remove_prefix(key.size() + 1);
    std::vector<uint64_t> numbers;
    for (;;) {
      while (!line.empty() && (line.front() == ' ' || line.front() == '\t')) line.remove_prefix(1);
      if (line.empty()) return numbers;
      uint64_t value = 0;
      auto [rest, error] = std::from_chars(line.data(), line.data() + line.size(), value, base);
      if (error != std::errc{}) return std::nullopt;
      numbers.push_back(value);
      line.remove_prefix(static_cast<size_t>(rest - line.data()));
    }
  }
  return std::nullopt;
}

std::string proc(pid_t thread, std::string_view what) {
  return fmt::format("/proc/{}/{}", thread, what);
}

bool same_namespace(pid_t thread, std::string_view kind) {
  auto theirs = read_link(proc(thread, fmt::format("ns/{}", kind)));
  auto ours = read_link(fmt::format("/proc/self/ns/{}", kind));
  return theirs && ours && *theirs == *ours;
}

// Where a magic link of a directory leads, as a path. ENOENT when the directory was removed: its
// path then says so by a suffix that an honest name may have too.
Result<std::string> directory_of(const std::string& link) {
  VR_TRY(text, read_link(link));
  if (!text || !text->starts_with('/')) return fail(ENOENT);
  if (text->ends_with(" (deleted)")) {
    struct stat meant {
    }, named{};
    if (::stat(link.c_str(), &meant) < 0 || ::lstat(text->c_str(), &named) < 0 ||
        meant.st_dev != named.st_dev || meant.st_ino != named.st_ino)
      return fail(ENOENT);
  }
  return *text;
}

Result<std::string> start_of(pid_t thread, const TrappedOpen& call) {
  if (!call.relative_to_fd || call.directory == AT_FDCWD) return directory_of(proc(thread, "cwd"));
  if (call.directory < 0) return fail(EBADF);
  std::string link = proc(thread, fmt::format("fd/{}", call.directory));
  struct stat st {};
  if (::stat(link.c_str(), &st) < 0) return fail(errno == ENOENT ? EBADF : errno);
  if (!S_ISDIR(st.st_mode)) return fail(ENOTDIR);
  return directory_of(link);
}

}  // namespace

Result<Caller> parse_status(const std::string& text) {
  auto field = [&](const char* key, size_t at_least,
                   int base = 10) -> Result<std::vector<uint64_t>> {
    auto numbers = numbers_of(text, key, base);
    if (!numbers || numbers->size() < at_least)
      return fail(EPROTO, fmt::format("/proc/PID/status has no {}", key));
    return std::move(*numbers);
  };
  VR_TRY(process, field("Tgid", 1));
  VR_TRY(thread, field("Pid", 1));
  VR_TRY(mask, field("Umask", 1, 8));
  VR_TRY(uid, field("Uid", 4));
  VR_TRY(gid, field("Gid", 4));
  VR_TRY(groups, field("Groups", 0));
  VR_TRY(table_size, field("FDSize", 1));
  VR_TRY(capabilities, field("CapEff", 1, 16));
  Caller caller;
  caller.view.process = static_cast<pid_t>(process[0]);
  caller.view.thread = static_cast<pid_t>(thread[0]);
  caller.umask = static_cast<mode_t>(mask[0] & 0777);
  caller.credentials.fsuid = static_cast<uid_t>(uid[3]);
  caller.credentials.fsgid = static_cast<gid_t>(gid[3]);
  for (uint64_t group : groups) caller.credentials.groups.push_back(static_cast<gid_t>(group));
  caller.table_size = table_size[0];
  caller.credentials.capabilities = capabilities[0];
  return caller;
}

Result<Caller> read_caller(pid_t thread, const TrappedOpen& call, bool relative) {
  VR_TRY(status, read_file(proc(thread, "status")));
  VR_TRY(caller, parse_status(status));
  if (!same_namespace(thread, "user")) caller.credentials.capabilities = 0;

  if (!same_namespace(thread, "mnt")) {
    // Its paths are not ours: look names up through its root, and match exports against the words
    // it says.
    caller.view.lookup = proc(thread, "root");
  } else {
    VR_TRY(root, directory_of(proc(thread, "root")));
    if (root != "/") caller.view.root = root;
  }
  if (relative) {
    VR_TRY(start, start_of(thread, call));
    caller.view.start = start;
  }
  return std::move(caller);
}

Result<std::string> read_string(pid_t thread, uint64_t address) {
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  std::string text;
  std::array<char, PATH_MAX> buffer;
  while (text.size() < PATH_MAX) {
    // Never across a page: the next one may be missing while the string ends in this one.
    uint64_t length = std::min<uint64_t>(page - address % page, PATH_MAX - text.size());
    iovec local{buffer.data(), length};
    iovec remote{reinterpret_cast<void*>(address), length};
    ssize_t n = ::process_vm_readv(thread, &local, 1, &remote, 1, 0);
    if (n <= 0 && (errno == EPERM || errno == ENOSYS))
      return fail(EPERM,
                  fmt::format("the supervisor may not read the memory of process {}", thread));
    if (n <= 0) return fail(EFAULT);
    size_t got = static_cast<size_t>(n);
    if (const void* end = std::memchr(buffer.data(), 0, got)) {
      text.append(buffer.data(),
                  static_cast<size_t>(static_cast<const char*>(end) - buffer.data()));
      return text;
    }
    text.append(buffer.data(), got);
    address += got;
  }
  return fail(ENAMETOOLONG);
}

bool has_room_for_descriptor(pid_t thread, uint64_t table_size) {
  rlimit limit{};
  if (::prlimit(thread, RLIMIT_NOFILE, nullptr, &limit) < 0 || table_size < limit.rlim_cur)
    return true;
  uint64_t below_limit = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator it(proc(thread, "fd"), error), end; !error && it != end;
       it.increment(error)) {
    std::string name = it->path().filename();
    uint64_t number = 0;
    std::from_chars(name.data(), name.data() + name.size(), number);
    if (number < limit.rlim_cur) ++below_limit;
  }
  return error || below_limit < limit.rlim_cur;
}

}  // namespace vremote::intercept
