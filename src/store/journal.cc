#include "store/journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <span>

#include "base/durable_file.h"
#include "store/handle.h"

namespace vremote::store {
namespace {

constexpr char kMagic[8] = {'V', 'R', 'F', 'I', 'L', 'E', 'S', '1'};
constexpr size_t kHandleMax = 4 + 128;  // type, MAX_HANDLE_SZ
constexpr size_t kBytesMax = size_t{1} << 30;
constexpr size_t kRewriteMin = 64 << 10;  // records
constexpr std::chrono::seconds kTryAgain{1};

// The state directory is this machine's own: its order of bytes.
struct Head {
  uint32_t check;  // of what follows and the handle
  uint32_t export_index, generation;
  uint32_t handle_bytes;
  uint64_t inode;
};

uint32_t check_of(const Head& head, const char* handle) {
  std::string all(reinterpret_cast<const char*>(&head) + sizeof head.check,
                  sizeof head - sizeof head.check);
  all.append(handle, head.handle_bytes);
  return generation_of(all);
}

void append(std::string& out, FileId file, const std::string& handle) {
  Head head{.check = 0,
            .export_index = file.export_index,
            .generation = file.generation,
            .handle_bytes = static_cast<uint32_t>(handle.size()),
            .inode = file.inode};
  head.check = check_of(head, handle.data());
  out.append(reinterpret_cast<const char*>(&head), sizeof head);
  out += handle;
}

std::string read_all(const Fd& fd) {
  struct stat st {};
  std::string out;
  if (::fstat(fd.get(), &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < 0 ||
      static_cast<uint64_t>(st.st_size) > kBytesMax)
    return out;
  out.resize(static_cast<size_t>(st.st_size));
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t n =
        ::pread(fd.get(), out.data() + done, out.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  out.resize(done);
  return out;
}

}  // namespace

KnownFiles read_journal(std::string_view rest, FileId root, size_t* lost) {
  KnownFiles known;
  size_t ignored = 0;
  if (lost == nullptr) lost = &ignored;
  *lost = rest.size();
  const auto next = [&](FileId& file, std::string& handle) {
    Head head;
    if (rest.size() < sizeof head) return false;
    std::memcpy(&head, rest.data(), sizeof head);
    if (head.handle_bytes > kHandleMax || rest.size() - sizeof head < head.handle_bytes ||
        check_of(head, rest.data() + sizeof head) != head.check)
      return false;
    file = {.export_index = head.export_index, .generation = head.generation, .inode = head.inode};
    handle.assign(rest.data() + sizeof head, head.handle_bytes);
    rest.remove_prefix(sizeof head + head.handle_bytes);
    return true;
  };
  if (rest.size() < sizeof kMagic || std::memcmp(rest.data(), kMagic, sizeof kMagic) != 0)
    return known;
  rest.remove_prefix(sizeof kMagic);
  FileId file;
  std::string handle;
  // The first record is the root: another directory, or another place in the list of exports, and
  // nothing of it is of use.
  if (!next(file, handle)) return known;
  *lost = 0;
  if (file != root) return known;
  while (next(file, handle))
    if (file.export_index == root.export_index && !handle.empty() &&
        file.generation == generation_of(handle))
      known.emplace_back(file, handle);
  *lost = rest.size();
  return known;
}

Result<Journal::Known> Journal::open(FileId root) {
  std::lock_guard lock(mutex_);
  root_ = root;
  std::string bytes;
  if (Fd old(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)); old.valid())
    bytes = read_all(old);
  Known known = read_journal(bytes, root, &lost_);
  if (auto begun = rewrite(known); !begun && !go_on(bytes, known))
    return std::unexpected(begun.error());
  return known;
}

std::string Journal::written(const Known& known) const {
  std::string out(kMagic, sizeof kMagic);
  append(out, root_, {});
  for (const auto& [file, handle] : known) append(out, file, handle);
  return out;
}

// A disk that is full now must not cost what it has.
bool Journal::go_on(std::string_view bytes, const Known& known) {
  const std::string whole = written(known);
  if (!bytes.starts_with(whole)) return false;
  Fd fd(::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid() || ::ftruncate(fd.get(), static_cast<off_t>(whole.size())) != 0) return false;
  fd_ = std::move(fd);
  whole_ = static_cast<off_t>(whole.size());
  incomplete_ = true;
  ++added_;
  records_ = known.size();
  rewrite_at_ = std::max(kRewriteMin, 2 * records_);
  return true;
}

Status Journal::rewrite(const Known& known) {
  const std::string fresh = path_ + ".new";
  Fd fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW,
               0600));
  if (!fd.valid()) return fail(errno, fresh + ": " + std::strerror(errno));
  const std::string out = written(known);
  if (auto done = write_all(fd, out); !done) {
    (void)::unlink(fresh.c_str());  // it only takes room
    return done;
  }
  if (::rename(fresh.c_str(), path_.c_str()) != 0)
    return fail(errno, path_ + ": " + std::strerror(errno));
  whole_ = static_cast<off_t>(out.size());
  incomplete_ = false;
  fd_ = std::move(fd);
  name_synced_ = false;
  renamed_at_ = ++added_;
  records_ = known.size();
  rewrite_at_ = std::max(kRewriteMin, 2 * records_);
  return {};
}

void Journal::add(FileId file, const std::string& handle, const std::function<Known()>& all) {
  if (handle.empty()) return;
  std::lock_guard lock(mutex_);
  if (const auto now = std::chrono::steady_clock::now(); incomplete_ && now >= try_again_at_) {
    // `all` has this one, too.
    if (rewrite(all())) return;
    try_again_at_ = now + kTryAgain;
  }
  if (++records_ > rewrite_at_) {
    // A disk that is full must not end up with half of it: then the old one goes on.
    if (!rewrite(all())) rewrite_at_ *= 2;
  }
  std::string out;
  append(out, file, handle);
  // What is missing is ESTALE after a crash, not more. A record that is cut short would hide those
  // behind it.
  if (!write_all(fd_, out)) {
    (void)::ftruncate(fd_.get(), whole_);
    if (!incomplete_) try_again_at_ = std::chrono::steady_clock::now() + kTryAgain;
    incomplete_ = true;
    return;
  }
  whole_ += static_cast<off_t>(out.size());
  ++added_;
}

// Syncing may take long; whoever adds does not wait for it.
void Journal::sync() {
  Fd fd;
  uint64_t upto = 0;
  bool name = false;
  {
    std::lock_guard lock(mutex_);
    if (added_ == synced_) return;
    upto = added_;
    name = !name_synced_;
    fd = Fd(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
  }
  if (!fd.valid() || ::fdatasync(fd.get()) != 0) return;
  if (name && !sync_directory_of(path_)) return;
  std::lock_guard lock(mutex_);
  if (upto <= synced_ || renamed_at_ > upto) return;
  synced_ = upto;
  name_synced_ = name_synced_ || name;
}

}  // namespace vremote::store
