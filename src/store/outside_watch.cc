#include "store/outside_watch.h"

#include <fcntl.h>
#include <sys/fanotify.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "store/store.h"

namespace vremote::store {
namespace {

using coherence::OutsideChange;

constexpr uint64_t kEntries = FAN_CREATE | FAN_DELETE | FAN_MOVED_FROM | FAN_MOVED_TO;
// ATTRIB comes with a link more or less, too: the name that was removed is told by it.
constexpr uint64_t kAttributes = FAN_ATTRIB | FAN_MOVE_SELF;
constexpr uint64_t kWatched = kEntries | kAttributes | FAN_MODIFY | FAN_DELETE_SELF | FAN_ONDIR;

// FAN_REPORT_FID (5.1) names the directory for a change of its entries, else the file itself.
OutsideChange change_of(uint64_t mask) {
  OutsideChange change;
  if ((mask & kEntries) != 0) change |= {.entries = true, .attributes = true};
  if ((mask & kAttributes) != 0) change |= {.attributes = true};
  if ((mask & FAN_MODIFY) != 0) change |= {.attributes = true, .data = true};
  if ((mask & FAN_DELETE_SELF) != 0) change |= OutsideChange::everything();
  return change;
}

// The handle in the first identity record, in the store's form; empty when there is none.
std::string handle_in(std::span<const std::byte> records) {
  while (records.size() >= sizeof(fanotify_event_info_header)) {
    fanotify_event_info_header header{};
    std::memcpy(&header, records.data(), sizeof header);
    if (header.len < sizeof header || header.len > records.size()) return {};
    constexpr size_t kHandleAt = offsetof(fanotify_event_info_fid, handle);
    struct {
      uint32_t bytes;
      int32_t type;
    } prefix{};
    if (header.info_type == FAN_EVENT_INFO_TYPE_FID && header.len >= kHandleAt + sizeof prefix) {
      std::memcpy(&prefix, records.data() + kHandleAt, sizeof prefix);
      if (prefix.bytes == 0 || prefix.bytes > header.len - kHandleAt - sizeof prefix) return {};
      std::string handle(sizeof prefix.type + prefix.bytes, '\0');
      std::memcpy(handle.data(), &prefix.type, sizeof prefix.type);
      std::memcpy(handle.data() + sizeof prefix.type, records.data() + kHandleAt + sizeof prefix,
                  prefix.bytes);
      return handle;
    }
    records = records.subspan(header.len);
  }
  return {};
}

}  // namespace

void read_events(std::span<const std::byte> buffer, pid_t self, OutsideEvents& out) {
  while (!buffer.empty()) {
    fanotify_event_metadata event{};
    if (buffer.size() < sizeof event) {
      out.lost = true;
      return;
    }
    std::memcpy(&event, buffer.data(), sizeof event);
    if (event.vers != FANOTIFY_METADATA_VERSION || event.metadata_len < sizeof event ||
        event.event_len < event.metadata_len || event.event_len > buffer.size()) {
      out.lost = true;
      return;
    }
    const auto records = buffer.subspan(event.metadata_len, event.event_len - event.metadata_len);
    buffer = buffer.subspan(event.event_len);
    if ((event.mask & FAN_Q_OVERFLOW) != 0) {
      out.lost = true;
      continue;
    }
    if (event.pid == self) continue;
    OutsideEvents::Event told{handle_in(records), change_of(event.mask)};
    if (!told.handle.empty() && told.change.any()) out.events.push_back(std::move(told));
  }
}

Result<OutsideWatch> OutsideWatch::open() {
  Fd fd(::fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_CLOEXEC | FAN_NONBLOCK,
                        O_RDONLY | O_LARGEFILE));
  if (fd.valid()) return OutsideWatch(std::move(fd));
  const int code = errno;
  if (code == EPERM) return fail(code, "fanotify needs CAP_SYS_ADMIN");
  if (code == EMFILE)
    return fail(code, "this user has too many fanotify groups (fs.fanotify.max_user_groups)");
  return fail(code, std::string("this kernel's fanotify: ") + std::strerror(code));
}

Status OutsideWatch::watch(const Store& store) {
  if (!store.has_handles()) return fail(EOPNOTSUPP, store.why_no_handles());
  if (::fanotify_mark(fd_.get(), FAN_MARK_ADD | FAN_MARK_FILESYSTEM, kWatched,
                      store.root_descriptor(), nullptr) == 0)
    return {};
  const int code = errno;
  if (code == ENODEV || code == EXDEV || code == EOPNOTSUPP)
    return fail(code, "its file system cannot be watched as a whole");
  if (code == EPERM) return fail(code, "watching a file system needs CAP_SYS_ADMIN");
  return fail(code, std::string("fanotify: ") + std::strerror(code));
}

bool OutsideWatch::read(OutsideEvents& out) {
  const ssize_t n = ::read(fd_.get(), buffer_.data(), buffer_.size());
  if (n > 0) {
    read_events(std::span<const std::byte>(buffer_).first(static_cast<size_t>(n)), ::getpid(), out);
    return true;
  }
  // EAGAIN: nothing waits. Anything else is told once by what the caller does about it.
  if (n < 0 && errno != EAGAIN && errno != EINTR) out.lost = true;
  return false;
}

}  // namespace vremote::store
