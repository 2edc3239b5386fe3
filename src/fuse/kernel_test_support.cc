#include "fuse/kernel_test_support.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/overload.h"
#include "fuse/fusectl.h"
#include "fuse/mount.h"
#include "fuse/mountinfo.h"
#include "fuse/reply.h"

namespace vremote::fuse::testing {
namespace {

// Ends the connections of everything mounted at `point`, which is ours, and detaches it.
void clear(const std::string& point) {
  for (int i = 0; i < 8; ++i) {
    const auto entry = mounted_at(point);
    if (!entry || !*entry) return;
    if (!abort_connection((*entry)->minor)) ::umount2(point.c_str(), MNT_FORCE | UMOUNT_NOFOLLOW);
    ::umount2(point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
  }
}

}  // namespace

std::string why_no_mounts() {
  if (const auto channel = Channel::open(); !channel) return channel.error().what;
  // The capability, asked for by using it: on a directory of our own, undone at once.
  const Scratch scratch;
  if (::mount("none", scratch.point().c_str(), "tmpfs", 0, "size=4k") != 0)
    return "may not mount: needs CAP_SYS_ADMIN";
  ::umount2(scratch.point().c_str(), MNT_DETACH);
  return {};
}

Scratch::Scratch() {
  std::string name = (std::filesystem::temp_directory_path() / "vremote-fuse-XXXXXX").string();
  VR_CHECK(::mkdtemp(name.data()) != nullptr);
  path_ = std::filesystem::canonical(name).string();
  point_ = path_ + "/point";
  VR_CHECK(::mkdir(point_.c_str(), 0755) == 0);
}

Scratch::~Scratch() {
  clear(point_);
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

Watchdog::Watchdog(std::string point, int seconds) {
  int ends[2];
  VR_CHECK(::pipe2(ends, O_CLOEXEC) == 0);
  const Fd reader(ends[0]);
  alive_ = Fd(ends[1]);
  process_ = ::fork();
  VR_CHECK(process_ >= 0);
  if (process_ != 0) return;
  alive_.reset();
  pollfd wait{.fd = reader.get(), .events = POLLIN, .revents = 0};
  const int ready = ::poll(&wait, 1, seconds * 1000);
  if (ready == 0) std::fputs("the watchdog ends the connection of a test that hangs\n", stderr);
  clear(point);
  ::_exit(0);
}

Watchdog::~Watchdog() {
  alive_.reset();
  ::waitpid(process_, nullptr, 0);
}

void OneFile::serve(Channel channel) {
  VR_CHECK(!thread_.joinable());
  channel_ = std::move(channel);
  wake_ = Fd(::eventfd(0, EFD_CLOEXEC));
  VR_CHECK(wake_.valid());
  thread_ = std::thread([this] { run(); });
}

std::optional<Channel> OneFile::stop() {
  if (!thread_.joinable()) return std::nullopt;
  const uint64_t one = 1;
  VR_CHECK(::write(wake_.get(), &one, sizeof(one)) == sizeof(one));
  thread_.join();
  auto channel = std::move(channel_);
  channel_.reset();
  return channel;
}

void OneFile::hold_reads(bool hold) {
  const std::lock_guard lock(mutex_);
  hold_reads_ = hold;
}

void OneFile::run() {
  ReceiveBuffer buffer = pool_.take();
  while (true) {
    pollfd wait[2] = {{.fd = channel_->fd(), .events = POLLIN, .revents = 0},
                      {.fd = wake_.get(), .events = POLLIN, .revents = 0}};
    if (::poll(wait, 2, -1) < 0) continue;
    if (wait[1].revents != 0) return;
    const auto memory = buffer.next();
    const auto length = channel_->receive(memory);
    if (!length) {
      if (length.error().code == EAGAIN) continue;
      const std::lock_guard lock(mutex_);
      end_error_ = length.error().code;
      changed_.notify_all();
      return;
    }
    const auto request = decode(memory.first(*length));
    VR_CHECK_MSG(request.has_value(), "the kernel sent what we cannot decode");
    handle(*request);
  }
}

void OneFile::note(Event event) {
  const std::lock_guard lock(mutex_);
  events_.push_back(std::move(event));
  changed_.notify_all();
}

void OneFile::handle(const Request& request) {
  const uint64_t unique = request.header.wire_unique();
  const Channel& out = *channel_;
  const auto attributes = [this](uint64_t node) {
    const std::lock_guard lock(mutex_);
    Attributes a;
    a.mode = node == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0644;
    a.nlink = node == FUSE_ROOT_ID ? 2 : 1;
    a.size = node == FUSE_ROOT_ID ? 0 : content_.size();
    return a;
  };
  Status sent = std::visit(
      Overload{
          [&](const Init& init) {
            auto answer = negotiate(init, {.max_pages_limit = Mount::kernel_max_pages()});
            VR_CHECK(answer.has_value());
            const Status done = out.reply(unique, answer->reply);
            {
              const std::lock_guard lock(mutex_);
              negotiation_ = std::move(*answer);
            }
            note({.what = "init"});
            return done;
          },
          [&](const Lookup& lookup) {
            note({.what = "lookup"});
            if (request.header.node != FUSE_ROOT_ID || lookup.name != kFileName)
              return out.reply_error(unique, ENOENT);
            return out.reply(unique, entry_out(kFileNode, 1, attributes(kFileNode), kFileInode,
                                               kUntilInvalidated, kUntilInvalidated));
          },
          [&](const GetAttr&) {
            note({.what = "getattr"});
            return out.reply(
                unique, attr_out(attributes(request.header.node), kFileInode, kUntilInvalidated));
          },
          [&](const Open& open) {
            const bool cached = (open.flags & O_ACCMODE) == O_RDONLY;
            return out.reply(unique, open_out(7, cached ? FOPEN_KEEP_CACHE
                                                        : FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE));
          },
          [&](const Read& read) {
            bool held = false;
            std::string piece;
            {
              const std::lock_guard lock(mutex_);
              held = hold_reads_;
              if (read.offset < content_.size()) piece = content_.substr(read.offset, read.size);
            }
            note({.what = "read",
                  .fill = read.fill,
                  .resent = request.header.resent,
                  .offset = read.offset,
                  .size = read.size});
            if (held) return Status();
            // In two pieces, as replies from a dirty store are.
            const size_t half = piece.size() / 2;
            const iovec parts[] = {{piece.data(), half},
                                   {piece.data() + half, piece.size() - half}};
            return out.reply(unique, parts);
          },
          [&](const Write& write) {
            {
              const std::lock_guard lock(mutex_);
              content_.resize(
                  std::max<size_t>(content_.size(), write.offset + write.payload.size()));
              std::memcpy(content_.data() + write.offset, write.payload.data(),
                          write.payload.size());
            }
            note({.what = "write",
                  .write_back = write.write_back,
                  .offset = write.offset,
                  .size = write.payload.size()});
            return out.reply(unique, write_out(static_cast<uint32_t>(write.payload.size())));
          },
          [&](const ReadDir& read) {
            DirentWriter entries(read.size);
            if (read.offset < 1) entries.add(".", FUSE_ROOT_ID, DT_DIR, 1);
            if (read.offset < 2) entries.add("..", FUSE_ROOT_ID, DT_DIR, 2);
            if (read.offset < 3) entries.add(kFileName, kFileInode, DT_REG, 3);
            return out.reply(unique, entries.bytes());
          },
          [&](const ReadDirPlus& read) {
            // Names only (node 0): each is looked up when it is used.
            DirentWriter entries(read.size);
            if (read.offset < 1) entries.add_plus(".", {}, FUSE_ROOT_ID, DT_DIR, 1);
            if (read.offset < 2) entries.add_plus("..", {}, FUSE_ROOT_ID, DT_DIR, 2);
            if (read.offset < 3) entries.add_plus(kFileName, {}, kFileInode, DT_REG, 3);
            return out.reply(unique, entries.bytes());
          },
          [&](const OpenDir&) { return out.reply(unique, open_out(8, 0)); },
          [&](const StatFs&) {
            return out.reply(
                unique, statfs_out({.block_size = 4096, .name_max = 255, .fragment_size = 4096}));
          },
          [&](const Flush&) { return out.reply(unique); },
          [&](const Release&) { return out.reply(unique); },
          [&](const ReleaseDir&) { return out.reply(unique); },
          [&](const auto&) {
            return wants_reply(request.header.opcode) ? out.reply_error(unique, ENOSYS) : Status();
          },
      },
      request.body);
  VR_CHECK_MSG(sent.has_value() || sent.error().code == ENODEV || sent.error().code == ECONNABORTED,
               "the kernel refused a reply");
}

size_t OneFile::count(const std::string& what) const { return events(what).size(); }

std::vector<OneFile::Event> OneFile::events(const std::string& what) const {
  const std::lock_guard lock(mutex_);
  std::vector<Event> found;
  std::ranges::copy_if(events_, std::back_inserter(found),
                       [&](const Event& e) { return e.what == what; });
  return found;
}

bool OneFile::wait_for(const std::function<bool(const std::vector<Event>&)>& done) const {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::seconds(10), [&] { return done(events_); });
}

Negotiation OneFile::negotiation() const {
  const std::lock_guard lock(mutex_);
  return negotiation_;
}

void OneFile::cut(size_t size) {
  std::lock_guard lock(mutex_);
  content_.resize(size);
}

void OneFile::append(const std::string& text) {
  const std::lock_guard lock(mutex_);
  content_ += text;
}

std::string OneFile::content() const {
  const std::lock_guard lock(mutex_);
  return content_;
}

int OneFile::wait_for_end() const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::seconds(10), [&] { return end_error_ != 0; });
  return end_error_;
}

}  // namespace vremote::fuse::testing
