// Listings, a page at a time. A cookie is the file system's own position after an entry, so that
// nothing is kept between two calls.
#include <dirent.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <limits>
#include <memory>

#include "store/credentials.h"
#include "store/handle.h"
#include "store/store.h"
#include "store/table.h"

namespace vremote::store {
namespace {

constexpr uint32_t kPageDefault = 64 << 10, kPageMax = 1 << 20;
constexpr size_t kRecordMax = 512;  // more than the record of a 255-byte name

// What an entry takes in the reader's buffer (struct fuse_dirent), which is what bytes_max counts.
size_t cost_of(std::string_view name) { return 24 + ((name.size() + 7) & ~size_t{7}); }

uint32_t entry_type(mode_t mode) { return (mode & S_IFMT) >> 12; }  // S_IFDIR -> DT_DIR, and so on

}  // namespace

Result<coherence::Outcome> Store::run(const Caller& caller,
                                      const coherence::ReadDirectoryCall& call) {
  constexpr uint64_t kCookieMax = std::numeric_limits<off_t>::max();
  if (call.cookie > kCookieMax) return fail(EINVAL);
  VR_TRY(file, acquire_directory(call.dir));
  auto open = [&]() -> Result<Fd> {
    VR_TRY(scope, CallerScope::enter(caller, judges_));
    static_cast<void>(scope);
    return reopen(file->path(), O_RDONLY | O_DIRECTORY);
  };
  VR_TRY(dir, open());
  if (call.cookie != 0 && ::lseek(dir.get(), static_cast<off_t>(call.cookie), SEEK_SET) < 0)
    return fail(errno);

  const size_t bytes_max = call.bytes_max == 0 ? kPageDefault : std::min(call.bytes_max, kPageMax);
  const size_t buffer_size = std::max(bytes_max, kRecordMax);
  auto buffer = std::make_unique_for_overwrite<std::byte[]>(buffer_size);
  coherence::DirectoryPage page;
  size_t used = 0;
  while (true) {
    long n = ::syscall(SYS_getdents64, dir.get(), buffer.get(), buffer_size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno);
    if (n == 0) {
      page.end = true;
      return page;
    }
    for (const std::byte* at = buffer.get(); at < buffer.get() + n;) {
      auto* record = reinterpret_cast<const dirent64*>(at);
      at += record->d_reclen;
      std::string_view name(record->d_name);
      if (name == "." || name == "..") continue;
      // One entry always, or a reader with a tiny buffer would never get on.
      if (used + cost_of(name) > bytes_max && !page.entries.empty()) return page;
      coherence::DirectoryEntry entry;
      entry.type = record->d_type;
      entry.cookie = static_cast<uint64_t>(record->d_off);
      if (auto identity = identify(dir.get(), record->d_name)) {
        entry.file = identity->file;
        entry.type = entry_type(identity->stat.st_mode);
        // Without handles a known file costs a descriptor: there, only a lookup makes it known.
        if (has_handles_) table_->learn(identity->file, identity->handle, nullptr);
      } else if (int code = identity.error().code; code == ENOENT || code == ESTALE) {
        continue;  // removed meanwhile
      } else if (code == EMFILE || code == ENFILE || code == ENOMEM) {
        return fail(code);
      } else {
        // A mount point (whose file system may be broken): shown, but nobody's FileId.
        entry.file = {export_index_, 0, record->d_ino};
      }
      entry.name = name;
      used += cost_of(name);
      page.entries.push_back(std::move(entry));
    }
  }
}

}  // namespace vremote::store
