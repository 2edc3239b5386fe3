#include "node/mount/fuse_server.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <sstream>

#include "base/overload.h"
#include "base/start_thread.h"
#include "fuse/reply.h"
#include "node/agent/kernel_names.h"
#include "node/base/shown_inode.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Supplementary groups of a thread; none when it is gone.
std::vector<uint32_t> groups_of(uint32_t pid) {
  std::vector<uint32_t> groups;
  std::ifstream status("/proc/" + std::to_string(pid) + "/status");
  std::string line;
  while (std::getline(status, line)) {
    if (!line.starts_with("Groups:")) continue;
    std::istringstream numbers(line.substr(7));
    for (uint32_t group = 0; numbers >> group && groups.size() < kGroupsMax;)
      groups.push_back(group);
    break;
  }
  return groups;
}

constexpr int kInitTimeoutMs = 10'000;

}  // namespace

FuseServer::FuseServer(fuse::Mount& mount, Exports& exports, InodeTable& inodes,
                       KernelNames& kernel_names, Metrics& metrics,
                       const FuseServerOptions& options)
    : mount_(mount),
      mount_view_(mount.path(), mount.connection_id()),
      exports_(exports),
      inodes_(inodes),
      kernel_names_(kernel_names),
      metrics_(metrics),
      options_(options) {
  if (options_.helpers != nullptr && options_.loop != nullptr && fuse::OwnView::possible())
    moved_.emplace(mount_view_, *options_.helpers, *options_.loop);
}

FuseServer::~FuseServer() { join(); }

Status FuseServer::start(std::function<void()> ended) {
  ended_ = std::move(ended);
  channels_.push_back(std::make_unique<fuse::Channel>(mount_.take_channel()));
  VR_TRY_VOID(answer_init());
  for (unsigned i = 1; i < options_.threads; ++i) {
    VR_TRY(clone, channels_.front()->clone());
    channels_.push_back(std::make_unique<fuse::Channel>(std::move(clone)));
  }
  for (auto& channel : channels_) {
    // Blocked in read(2), a thread is woken alone; several in epoll are all woken for each request.
    const int flags = fcntl(channel->fd(), F_GETFL);
    if (flags < 0 || fcntl(channel->fd(), F_SETFL, flags & ~O_NONBLOCK) < 0)
      return fail(errno, "/dev/fuse: cannot be made blocking");
  }
  VR_TRY_VOID(start_threads());
  if (options_.guardian != nullptr) VR_TRY_VOID(arm_guardian());
  if (capabilities_.inc_epoch && capabilities_.expire_only)
    kernel_names_.enable(channels_.front().get());
  const uint32_t window = std::min<uint32_t>(options_.readahead_kib, capabilities_.max_pages * 4);
  if (auto set = mount_.set_read_ahead(window); !set)
    spdlog::warn("readahead stays at the kernel's default: {}", set.error().what);
  return {};
}

Status FuseServer::start_threads() {
  // Blocked in all other threads: it ends a read(2) of ours, and does nothing else.
  struct sigaction nothing {};
  nothing.sa_handler = [](int) {};
  ::sigaction(kPauseSignal, &nothing, nullptr);
  for (auto& channel : channels_) {
    VR_TRY(thread, start_thread([this, &channel] { serve(*channel); }));
    threads_.push_back(std::move(thread));
  }
  return {};
}

Status FuseServer::arm_guardian() {
  if (!guardians_) {
    VR_TRY(clone, channels_.front()->clone());
    guardians_.emplace(std::move(clone));
  }
  std::vector<int> others;
  for (const auto& channel : channels_) others.push_back(channel->fd());
  options_.guardian->table().set_capabilities(capabilities_);
  return options_.guardian->arm(*guardians_, others, mount_.connection_id(), mount_.path());
}

namespace {

// What a guardian answers in its daemon's place (GuardianHeld::answer), or needs no answer.
bool guardian_has_answered(const fuse::Request& request) {
  if (const auto* write = std::get_if<fuse::Write>(&request.body)) return write->write_back;
  return std::holds_alternative<fuse::Flush>(request.body) ||
         std::holds_alternative<fuse::Release>(request.body) ||
         std::holds_alternative<fuse::ReleaseDir>(request.body) ||
         std::holds_alternative<fuse::Forget>(request.body) ||
         std::holds_alternative<fuse::BatchForget>(request.body);
}

}  // namespace

void FuseServer::take_back(bool answered_only) {
  fuse::ReceiveBuffer buffer = buffers_.take();
  options_.guardian->take_back([&](std::span<const std::byte> bytes) {
    std::span<std::byte> memory = buffer.next();
    std::ranges::copy(bytes, memory.begin());
    auto request = fuse::decode(memory.first(bytes.size()));
    if (!request) return;  // the guardian has decoded it once
    if (answered_only && !guardian_has_answered(*request)) return;
    kernel_names_.request_from(request->header.pid);
    dispatch(*guardians_, *request, Instant{}, buffer);
  });
}

void FuseServer::join() {
  for (std::thread& thread : threads_)
    if (thread.joinable()) thread.join();
}

bool FuseServer::join(int64_t patience_ms) {
  for (int64_t waited = 0; ended_threads_ < threads_.size(); ++waited) {
    if (waited >= patience_ms) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  join();
  return true;
}

Status FuseServer::answer_init() {
  fuse::ReceiveBuffer buffer = buffers_.take();
  const fuse::Channel& channel = *channels_.front();
  for (;;) {
    pollfd wait{channel.fd(), POLLIN, 0};
    const int ready = poll(&wait, 1, kInitTimeoutMs);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return fail(ETIMEDOUT, "the kernel sent no FUSE_INIT");
    std::span<std::byte> memory = buffer.next();
    auto length = channel.receive(memory);
    if (!length && (length.error().code == EAGAIN || length.error().code == EINTR)) continue;
    if (!length) return std::unexpected(length.error());
    VR_TRY(request, fuse::decode(memory.first(*length)));
    const auto* init = std::get_if<fuse::Init>(&request.body);
    if (init == nullptr) return fail(EPROTO, "the kernel's first request is not FUSE_INIT");
    fuse::InitOptions init_options;
    init_options.allow_mmap = options_.allow_mmap;
    init_options.max_pages_limit = fuse::Mount::kernel_max_pages();
    VR_TRY(negotiated, fuse::negotiate(*init, init_options));
    VR_TRY_VOID(channel.reply(request.header.wire_unique(), negotiated.reply));
    if (negotiated.again) continue;
    capabilities_ = negotiated.capabilities;
    lacks_ = negotiated.lacks;
    return {};
  }
}

void FuseServer::serve(const fuse::Channel& channel) {
  pthread_setname_np(pthread_self(), "vremote-fuse");
  sigset_t all;
  sigfillset(&all);
  sigdelset(&all, kPauseSignal);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  fuse::ReceiveBuffer buffer = buffers_.take();
  for (;;) {
    if (wants_pause_.load(std::memory_order_relaxed)) pause_if_wanted();
    std::span<std::byte> memory = buffer.next();
    const Instant asked_at = net::EventLoop::now();
    auto length = channel.receive(memory);
    if (!length) {
      if (length.error().code == EINTR) pause_if_wanted();
      if (length.error().code == EAGAIN || length.error().code == EINTR) continue;
      if (length.error().code != ENODEV && length.error().code != ECONNABORTED)
        spdlog::error("/dev/fuse: {}", length.error().what);
      break;
    }
    metrics_.add(Counter::Upcalls);
    // What came before this request comes first.
    if (options_.guardian != nullptr && options_.guardian->table().guardian_in_charge())
      take_back();
    receive(channel, memory.first(*length), asked_at, buffer);
  }
  if (!ended_told_.exchange(true) && ended_) ended_();
  ++ended_threads_;
}

void FuseServer::receive(const fuse::Channel& channel, std::span<const std::byte> bytes,
                         Instant asked_at, fuse::ReceiveBuffer& buffer) {
  auto request = fuse::decode(bytes);
  if (!request) {
    if (auto header = fuse::decode_header(bytes); header && fuse::wants_reply(header->opcode)) {
      spdlog::error("a malformed request of the kernel: {}", request.error().what);
      (void)channel.reply_error(header->wire_unique(), EIO);
    }
    return;
  }
  kernel_names_.request_from(request->header.pid);
  dispatch(channel, *request, asked_at, buffer);
}

void FuseServer::dispatch(const fuse::Channel& channel, const fuse::Request& request,
                          Instant asked_at, fuse::ReceiveBuffer& buffer) {
  const uint64_t losses = losses_;
  if ((after_crash_ || lost_handles_ != 0) && refuses(channel, request)) return;
  Context c{&channel,
            request.header.wire_unique(),
            request.header.node,
            {request.header.uid, request.header.gid, {}},
            request.header.pid,
            request.header.unique,
            handles_of(request).front(),
            asked_at};
  std::visit(Overload{
                 [&](const fuse::Forget& r) { forget(r.node != 0 ? r.node : c.node, r.lookups); },
                 [&](const fuse::BatchForget& r) { forget_later(r.forgets); },
                 [&](const fuse::Write& r) { handle(c, r, buffer); },
                 [&](const fuse::Interrupt& r) { interrupt(c, r.unique); },
                 [&](const fuse::Destroy&) { (void)channel.reply(c.unique); },
                 [&](const fuse::Access&) { (void)channel.reply(c.unique); },
                 [&](const fuse::Ioctl&) { (void)channel.reply_error(c.unique, ENOTTY); },
                 [&](const fuse::Init&) { (void)channel.reply_error(c.unique, EIO); },
                 [&](const fuse::ReadDir& r) { read_directory(c, r, false); },
                 // The kernel asks so when a program looks at the files of the directory too: their
                 // leases are fetched with the names. No inode is handed out: its kernel would have
                 // to ask for it anew at the next use anyway.
                 [&](const fuse::ReadDirPlus& r) {
                   read_directory(c, fuse::ReadDir{r.fh, r.offset, r.size}, true);
                 },
                 [&](const fuse::Poll&) { (void)channel.reply_error(c.unique, ENOSYS); },
                 [&](const fuse::Unknown&) { (void)channel.reply_error(c.unique, ENOSYS); },
                 [&](const auto& r) { handle(c, r); },
             },
             request.body);
  if (losses_ != losses) fail_late(c);
}

std::optional<Inode> FuseServer::inode(const Context& context, uint64_t node) const {
  auto found = inodes_.get(node);
  // The mount's root is made of the exports: nothing can be made or changed in it.
  if (!found)
    (void)context.channel->reply_error(context.unique, node == FUSE_ROOT_ID ? EPERM : ESTALE);
  return found;
}

// The same on every node: the origin's number, apart from those of other exports.
uint64_t FuseServer::shown_inode(const Inode& inode, uint64_t origin_inode) const {
  return node::shown_inode(inode.agent->home_name(), inode.file.export_index, origin_inode);
}

void FuseServer::forget(uint64_t node, uint64_t lookups) {
  auto gone = inodes_.forget(node, lookups);
  if (!gone) return;
  kernel_names_.forget(node);
  if (moved_) moved_->forget(node);
  {
    std::lock_guard lock(locks_mutex_);
    locked_nodes_.erase(node);
    range_owners_.erase(range_owners_.lower_bound({node, 0}),
                        range_owners_.upper_bound({node, UINT64_MAX}));
  }
  gone->agent->forget(gone->file);
}

// A kernel that drops a directory of 100,000 names sends all of them at once, each perhaps a
// message to the home: seconds, in which no thread would read /dev/fuse. They may be late (the
// kernel itself sends them behind younger requests): a file that is looked up again meanwhile keeps
// its number, and what is taken off its count then is the same.
void FuseServer::forget_later(const std::vector<fuse::Forget>& forgets) {
  if (options_.helpers == nullptr || forgets.size() <= kForgetsAtOnce) {
    for (const fuse::Forget& f : forgets) forget(f.node, f.lookups);
    return;
  }
  std::lock_guard lock(forgets_mutex_);
  forgets_.insert(forgets_.end(), forgets.begin(), forgets.end());
  if (!std::exchange(forgetting_, true)) options_.helpers->submit([this] { forget_some(); });
}

void FuseServer::forget_some() {
  std::vector<fuse::Forget> some;
  {
    std::lock_guard lock(forgets_mutex_);
    const auto end =
        forgets_.begin() + static_cast<ptrdiff_t>(std::min(forgets_.size(), kForgetsAtOnce));
    some.assign(forgets_.begin(), end);
    forgets_.erase(forgets_.begin(), end);
  }
  for (const fuse::Forget& f : some) forget(f.node, f.lookups);
  std::lock_guard lock(forgets_mutex_);
  forgetting_ = !forgets_.empty();
  // A job each: whoever stops the helpers waits for no more than one.
  if (forgetting_) options_.helpers->submit([this] { forget_some(); });
}

bool FuseServer::forgets() {
  std::lock_guard lock(forgets_mutex_);
  return forgetting_;
}

void FuseServer::call(const Context& c, AgentService* agent, Operation operation,
                      AgentService::ThenReply then, std::vector<AgentService::Change> changes,
                      AgentService::ThenReply abandoned) {
  {
    std::lock_guard lock(calls_mutex_);
    calls_.emplace(c.unique, WaitingCall{c.channel, c.pid});
  }
  AgentService::ThenReply unless_interrupted = [this, unique = c.unique, then = std::move(then),
                                                abandoned =
                                                    std::move(abandoned)](Reply&& reply) mutable {
    bool waited_for = false;
    {
      std::lock_guard lock(calls_mutex_);
      waited_for = calls_.erase(unique) != 0;
    }
    if (waited_for) {
      then(std::move(reply));
    } else if (abandoned) {
      abandoned(std::move(reply));
    }
  };
  Caller caller = with_groups(c);
  if (changes.empty()) {
    agent->call(std::move(caller), std::move(operation), std::move(unless_interrupted),
                {nullptr, 0, c.pid, c.request, c.handle});
  } else {
    agent->call_changing(std::move(changes), std::move(caller), std::move(operation),
                         std::move(unless_interrupted), c.pid, c.request);
  }
}

// Root may do anything; others are judged at the origin by their groups too.
Caller FuseServer::with_groups(const Context& c) {
  Caller caller = c.caller;
  if (caller.uid != 0) caller.groups = groups_of(c.pid);
  return caller;
}

// As the kernel would have judged it, had it known the file (default_permissions).
bool FuseServer::may_open(const Context& c, const Attributes& attributes, uint32_t flags) {
  if (c.caller.uid == 0) return true;
  const uint32_t access = flags & O_ACCMODE;
  const uint32_t wanted =
      (access != O_WRONLY ? 4u : 0u) | (access != O_RDONLY || (flags & O_TRUNC) != 0 ? 2u : 0u);
  const auto in_group = [&] {
    const std::vector<uint32_t> groups = groups_of(c.pid);
    return c.caller.gid == attributes.gid ||
           std::find(groups.begin(), groups.end(), attributes.gid) != groups.end();
  };
  const uint32_t mode = c.caller.uid == attributes.uid ? attributes.mode >> 6
                        : in_group()                   ? attributes.mode >> 3
                                                       : attributes.mode;
  return (mode & wanted) == wanted;
}

void FuseServer::reply_done(const Context& c, const Reply& reply) {
  if (reply.error != 0) {
    (void)c.channel->reply_error(c.unique, reply.error);
  } else {
    (void)c.channel->reply(c.unique);
  }
}

void FuseServer::handle(const Context& c, const fuse::StatFs&) {
  if (c.node == FUSE_ROOT_ID) {
    (void)c.channel->reply(
        c.unique,
        fuse::statfs_out({.block_size = 4096, .name_max = kNameMax, .fragment_size = 4096}));
    return;
  }
  auto node = inode(c);
  if (!node) return;
  call(c, node->agent, StatFsCall{node->file}, [c](Reply&& reply) {
    const auto* s = std::get_if<FileSystemStats>(&reply.outcome);
    if (reply.error != 0 || s == nullptr) {
      (void)c.channel->reply_error(c.unique, reply.error != 0 ? reply.error : EIO);
      return;
    }
    (void)c.channel->reply(c.unique, fuse::statfs_out({.blocks = s->blocks,
                                                       .blocks_free = s->blocks_free,
                                                       .blocks_available = s->blocks_available,
                                                       .files = s->files,
                                                       .files_free = s->files_free,
                                                       .block_size = s->block_size,
                                                       .name_max = s->name_max,
                                                       .fragment_size = s->fragment_size}));
  });
}

// ---- extended attributes

void FuseServer::reply_text(const Context& c, Reply&& reply, uint32_t size) {
  const auto* text = std::get_if<Text>(&reply.outcome);
  if (reply.error != 0 || text == nullptr) {
    (void)c.channel->reply_error(c.unique, reply.error != 0 ? reply.error : EIO);
  } else if (size == 0) {
    (void)c.channel->reply(c.unique, fuse::getxattr_out(static_cast<uint32_t>(text->bytes.size())));
  } else if (text->bytes.size() > size) {
    (void)c.channel->reply_error(c.unique, ERANGE);
  } else {
    (void)c.channel->reply(c.unique, text->bytes.view());
  }
}

namespace {

// One that a file may have: of others the origin's file system says what is wrong with them.
bool names_an_attribute(std::string_view name) {
  if (name == "system.posix_acl_access" || name == "system.posix_acl_default") return true;
  for (const std::string_view kind : {"user.", "trusted.", "security."})
    if (name.starts_with(kind)) return name.size() > kind.size();
  return false;
}

}  // namespace

void FuseServer::handle(const Context& c, const fuse::GetXattr& r) {
  if (c.node == FUSE_ROOT_ID) {
    (void)c.channel->reply_error(c.unique, ENODATA);
    return;
  }
  auto node = inode(c);
  if (!node) return;
  if (names_an_attribute(r.name) && node->agent->has_no_xattrs(node->file)) {
    (void)c.channel->reply_error(c.unique, ENODATA);
    return;
  }
  // The kernel keeps access control lists until it is told to drop the attributes, also those it
  // has only just been told.
  const bool kept = r.name.starts_with("system.posix_acl_");
  call(c, node->agent, GetXattrCall{node->file, std::string(r.name)},
       [this, c, size = r.size, kept](Reply&& reply) {
         reply_text(c, std::move(reply), size);
         if (kept) (void)channel()->invalidate_attributes(c.node);
       });
}

void FuseServer::handle(const Context& c, const fuse::ListXattr& r) {
  if (c.node == FUSE_ROOT_ID) {
    if (r.size == 0) {
      (void)c.channel->reply(c.unique, fuse::getxattr_out(0));
    } else {
      (void)c.channel->reply(c.unique);
    }
    return;
  }
  auto node = inode(c);
  if (!node) return;
  call(c, node->agent, ListXattrCall{node->file},
       [this, c, size = r.size](Reply&& reply) { reply_text(c, std::move(reply), size); });
}

void FuseServer::handle(const Context& c, const fuse::SetXattr& r) {
  if (r.name == fuse::OwnView::kLockName) {
    (void)c.channel->reply_error(c.unique, EOPNOTSUPP);
    return;
  }
  if (c.node == FUSE_ROOT_ID) {
    (void)c.channel->reply_error(c.unique, EPERM);
    return;
  }
  auto node = inode(c);
  if (!node) return;
  call(c, node->agent,
       SetXattrCall{node->file, std::string(r.name), Bytes::copy_of(r.value), r.flags},
       [this, c](Reply&& reply) { reply_done(c, reply); });
}

void FuseServer::handle(const Context& c, const fuse::RemoveXattr& r) {
  if (c.node == FUSE_ROOT_ID) {
    (void)c.channel->reply_error(c.unique, EPERM);
    return;
  }
  auto node = inode(c);
  if (!node) return;
  call(c, node->agent, RemoveXattrCall{node->file, std::string(r.name)},
       [this, c](Reply&& reply) { reply_done(c, reply); });
}

}  // namespace vremote::node
