#include "intercept/open_server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "base/check.h"
#include "intercept/caller.h"
#include "intercept/trap_filter.h"

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS  // Linux 6.6
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif

namespace vremote::intercept {
namespace {

constexpr size_t kReceivingKept = 4;
constexpr auto kAbandonedCheck = std::chrono::milliseconds(250);

void say(const std::string& line) {
  std::string whole = "vremote run: " + line + "\n";
  // In one piece, among the lines of the program. Nothing is to be done when nobody listens.
  [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, whole.data(), whole.size());
}

}  // namespace

// What a worker thread has of its own.
struct OpenServer::Worker {
  // The umask is part of what CLONE_FS shares. Where containers forbid unshare(), the server's is 0
  // and the mode is masked by us: the same but for directories with a default ACL.
  const bool own_umask = ::unshare(CLONE_FS) == 0;
  const pid_t thread = ::gettid();
  Disguise disguise;
};

OpenServer::OpenServer(Fd listener, NamespaceCache& names, bool require_mount)
    : listener_(std::move(listener)), names_(names), require_mount_(require_mount) {
  struct sigaction interrupt {};  // no SA_RESTART: its only use is to end a blocked open
  interrupt.sa_handler = [](int) {};
  VR_CHECK(::sigaction(SIGUSR1, &interrupt, nullptr) == 0);
  ::umask(0);
  seccomp_notif_sizes sizes{};
  VR_CHECK(::syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) == 0);
  notification_size_ = std::max<size_t>(sizes.seccomp_notif, sizeof(seccomp_notif));
  // Caller and worker never run at once: both on one processor is the quickest. Older kernels
  // refuse.
  ::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
}

void OpenServer::serve() {
  std::unique_lock lock(mutex_);
  for (;;) {
    if (receiving_ == 0) add_worker();
    if (opening_.empty() && receiving_ > 0) {
      serve_sleeps_ = true;
      busy_.wait(lock);
      serve_sleeps_ = false;
    }
    busy_.wait_for(lock, kAbandonedCheck);
    interrupt_abandoned();
  }
}

void OpenServer::add_worker() {
  try {
    std::thread([this] { work(); }).detach();
    ++receiving_;
  } catch (const std::system_error&) {
    // No more threads for us: serve() tries again, and the next worker that is done receives.
  }
}

void OpenServer::work() {
  Worker worker;
  std::unique_lock lock(mutex_, std::defer_lock);
  for (;;) {
    auto call = receive();
    lock.lock();
    --receiving_;
    if (!call) return;  // nobody is left to call
    if (receiving_ == 0) add_worker();
    opening_.emplace(call->id, worker.thread);
    if (serve_sleeps_) busy_.notify_one();
    lock.unlock();
    serve_one(*call, worker);
    lock.lock();
    opening_.erase(call->id);
    if (receiving_ >= kReceivingKept) return;
    ++receiving_;
    lock.unlock();
  }
}

Result<seccomp_notif> OpenServer::receive() {
  // The kernel fills in its own idea of the struct's size, and wants it zeroed.
  std::vector<uint64_t> buffer(notification_size_ / 8 + 1);
  while (::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_RECV, buffer.data()) < 0) {
    VR_CHECK(errno == EINTR || errno == ENOENT);  // ENOENT: the caller was killed, or all were
    pollfd p{listener_.get(), POLLIN, 0};
    if (::poll(&p, 1, 0) > 0 && (p.revents & POLLHUP)) return fail(ESRCH);
    std::fill(buffer.begin(), buffer.end(), 0);
  }
  seccomp_notif call;
  std::memcpy(&call, buffer.data(), sizeof call);
  return call;
}

void OpenServer::serve_one(const seccomp_notif& call, Worker& worker) {
  RemoteOpen open;
  open.require_mount = require_mount_;
  auto fd = open_for(call, open, worker);
  worker.disguise.bare();
  if (!fd) {
    if (!fd.error().what.empty() && still_waiting(call.id))
      say(refusal_line("open", open, fd.error().what));
    answer(call.id, 0, fd.error().code);
    return;
  }
  auto sent = answer_descriptor(call.id, *fd, open.flags.cloexec());
  if (!sent) answer(call.id, 0, sent.error().code);
}

Result<Fd> OpenServer::open_for(const seccomp_notif& call, RemoteOpen& open, Worker& worker) {
  auto trapped = decode_trap(call.data);
  if (!trapped) return fail(ENOSYS, "a system call that is not known here was trapped");
  auto thread = static_cast<pid_t>(call.pid);
  open.flags = interpret_flags(trapped->flags);
  open.mode = trapped->mode;
  VR_TRY(path, read_string(thread, trapped->path));
  open.path = path;
  if (open.flags.kernel & O_PATH)  // the kernel hands no such descriptor to another process
    return fail(EINVAL,
                "O_PATH does not go together with O_REMOTE; open the path under the mount without "
                "O_REMOTE");
  VR_TRY(caller, read_caller(thread, *trapped, !path.starts_with('/')));
  if (open.flags.changes() && !has_room_for_descriptor(thread, caller.table_size))
    return fail(EMFILE);
  // All of the above was read by number: it is the caller's only if the caller still waits.
  if (!still_waiting(call.id)) return fail(ESRCH);

  VR_TRY_VOID(worker.disguise.wear(caller.credentials));
  if (worker.own_umask)
    ::umask(caller.umask);
  else
    open.mode &= ~caller.umask;
  return open_remote(names_, caller.view, open);
}

bool OpenServer::still_waiting(uint64_t id) const {
  int valid;
  while ((valid = ::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_ID_VALID, &id)) < 0 &&
         errno == EINTR) {  // says nothing about the caller
  }
  return valid == 0;
}

void OpenServer::answer(uint64_t id, int64_t value, int error) {
  seccomp_notif_resp answer{};
  answer.id = id;
  answer.val = value;
  answer.error = -error;
  // ENOENT: the caller was killed.
  while (::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_SEND, &answer) < 0 && errno == EINTR) {
  }
}

// In two steps. SECCOMP_ADDFD_FLAG_SEND would do it in one, but when anything interrupts that one
// (a signal, a stop, a debugger, the machine going to sleep) the kernel takes the descriptor back
// and the answer not: the caller's open returns 0, which is another file or none. Alone, adding it
// is done or not, and can be repeated.
Status OpenServer::answer_descriptor(uint64_t id, const Fd& fd, bool cloexec) {
  seccomp_notif_addfd add{};
  add.id = id;
  add.srcfd = static_cast<uint32_t>(fd.get());
  add.newfd_flags = cloexec ? O_CLOEXEC : 0;
  int number;
  while ((number = ::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_ADDFD, &add)) < 0)
    if (errno != EINTR) return fail(errno);  // EMFILE: the caller's own limit
  answer(id, number, 0);
  return {};
}

void OpenServer::interrupt_abandoned() {
  for (auto [id, worker] : opening_)
    if (!still_waiting(id)) ::syscall(SYS_tgkill, ::getpid(), worker, SIGUSR1);
}

}  // namespace vremote::intercept
