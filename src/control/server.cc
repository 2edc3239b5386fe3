#include "control/server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/fd.h"
#include "base/private_directory.h"
#include "base/start_thread.h"
#include "control/socket_path.h"

namespace vremote::control {
namespace {

using Clock = std::chrono::steady_clock;

std::unexpected<Error> failed(const std::string& path, const char* what, int code) {
  const char* mend = code == EACCES || code == EPERM
                         ? "; run the node as root, or name a place its user may write to"
                     : code == ENOTDIR ? "; part of this path is no directory"
                                       : "";
  return fail(code,
              fmt::format("control socket {}: {}: {}{}", path, what, std::strerror(code), mend));
}

std::unexpected<Error> not_a_socket(const std::string& path) {
  return fail(
      EEXIST,
      fmt::format("control socket {}: something else is there; remove it or choose another path",
                  path));
}

// The directory is private from its first moment; an existing one keeps its mode (the user may have
// chosen it). Others may pass through it to the socket, and not look around.
Status make_directory(const std::string& path, bool for_others) {
  const std::filesystem::path directory = std::filesystem::path(path).parent_path();
  if (const int error = make_directories(directory.parent_path()); error != 0)
    return failed(path, "cannot make its directory", error);
  if (::mkdir(directory.c_str(), 0700) != 0)
    return errno == EEXIST ? Status() : failed(path, "cannot make its directory", errno);
  if (for_others && ::chmod(directory.c_str(), 0711) != 0)
    return failed(path, "cannot set the mode of its directory", errno);
  return {};
}

// What make_directory() and take_lock() would come to.
Status check_directory(const std::string& path) {
  const std::filesystem::path wanted = std::filesystem::path(path).parent_path();
  std::filesystem::path there = wanted;
  struct stat info {};
  while (::stat(there.c_str(), &info) != 0) {
    if (errno != ENOENT) return failed(path, "cannot make its directory", errno);
    there = there.parent_path();
  }
  const char* what = there == wanted ? "cannot make its lock file" : "cannot make its directory";
  if (!S_ISDIR(info.st_mode)) return failed(path, what, ENOTDIR);
  if (::access(there.c_str(), W_OK | X_OK) != 0) return failed(path, what, errno);
  return {};
}

// A lock beside the socket tells living from dead without a race; it goes with the process, however
// that ends.
Result<Fd> take_lock(const std::string& path) {
  const std::string lock_path = path + ".lock";
  Fd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock.valid()) return failed(path, "cannot make its lock file", errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno != EWOULDBLOCK) return failed(path, "cannot lock it", errno);
  return fail(
      EADDRINUSE,
      fmt::format(
          "control socket {}: another node runs with this state_dir; stop it or give this one "
          "a state_dir of its own",
          path));
}

Result<Fd> listen_at(const std::string& path, const Access& access) {
  VR_TRY(address, socket_address(path));
  struct stat info {};
  if (::lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) return not_a_socket(path);
    ::unlink(path.c_str());  // of a dead process: we hold the lock
  }
  Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener.valid()) return failed(path, "cannot make it", errno);
  // Before bind, which takes the file's mode from the socket: there is no moment in which others
  // may connect.
  if (::fchmod(listener.get(), 0600) != 0) return failed(path, "cannot set its mode", errno);
  if (::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return failed(path, "cannot bind it", errno);
  if (access.group && ::lchown(path.c_str(), static_cast<uid_t>(-1), *access.group) != 0)
    return failed(path, "cannot give it to the group", errno);
  if (::chmod(path.c_str(), access.mode) != 0) return failed(path, "cannot set its mode", errno);
  if (::listen(listener.get(), static_cast<int>(kClientsMax)) != 0)
    return failed(path, "cannot listen", errno);
  return listener;
}

struct Client {
  Fd socket;
  bool trusted = false;  // root, or the user the node runs as
  Clock::time_point deadline;
  std::string request;
  std::string reply;  // not empty: sending
  size_t sent = 0;
};

}  // namespace

Status check_socket_place(const std::string& path) {
  VR_TRY_VOID(socket_address(path));
  VR_TRY_VOID(check_directory(path));
  struct stat info {};
  if (::lstat((path + ".lock").c_str(), &info) == 0 && !S_ISREG(info.st_mode))
    return failed(path, "cannot make its lock file", S_ISDIR(info.st_mode) ? EISDIR : ELOOP);
  if (::lstat(path.c_str(), &info) == 0 && !S_ISSOCK(info.st_mode)) return not_a_socket(path);
  return {};
}

class ControlServer::Impl {
 public:
  Impl(std::string path, Handler handler, Access access, Fd lock, Fd listener, Fd wake)
      : path_(std::move(path)),
        handler_(std::move(handler)),
        access_(std::move(access)),
        lock_(std::move(lock)),
        listener_(std::move(listener)),
        wake_(std::move(wake)),
        thread_([this] { run(); }) {}

  ~Impl() {
    const uint64_t one = 1;
    VR_CHECK(::write(wake_.get(), &one, sizeof one) == sizeof one);
    thread_.join();
    ::unlink(path_.c_str());  // the lock file stays: removing it would race with the next node that
                              // locks it
  }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

 private:
  void run() {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_BLOCK, &all, nullptr);  // signals are for the thread that waits for them
    std::vector<pollfd> entries;
    for (;;) {
      entries.clear();
      entries.push_back({wake_.get(), POLLIN, 0});
      // Full: further clients wait in the kernel's queue.
      const bool room = clients_.size() < kClientsMax && Clock::now() >= accept_after_;
      entries.push_back({listener_.get(), static_cast<short>(room ? POLLIN : 0), 0});
      for (const Client& client : clients_)
        entries.push_back(
            {client.socket.get(), static_cast<short>(client.reply.empty() ? POLLIN : POLLOUT), 0});
      if (::poll(entries.data(), entries.size(), timeout_ms()) < 0 && errno != EINTR)
        VR_CHECK_MSG(false, "poll of the control sockets failed");
      if (entries[0].revents != 0) return;
      const auto now = Clock::now();
      for (size_t i = clients_.size(); i-- > 0;) {
        const bool keep =
            (entries[i + 2].revents == 0 || serve(clients_[i])) && now < clients_[i].deadline;
        if (!keep) clients_.erase(clients_.begin() + static_cast<ptrdiff_t>(i));
      }
      if (entries[1].revents != 0) accept_one(now);
    }
  }

  int timeout_ms() const {
    auto next = Clock::time_point::max();
    for (const Client& client : clients_) next = std::min(next, client.deadline);
    if (accept_after_ > Clock::now()) next = std::min(next, accept_after_);
    if (next == Clock::time_point::max()) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, kClientTimeoutMs));
  }

  void accept_one(Clock::time_point now) {
    Fd socket(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      // Out of descriptors or memory, mostly: the client still waits, and poll would return at once
      // for ever.
      if (errno != EAGAIN && errno != EINTR) accept_after_ = now + std::chrono::milliseconds(100);
      return;
    }
    Client client{
        std::move(socket), false, now + std::chrono::milliseconds(kClientTimeoutMs), {}, {}, 0};
    ucred peer{};
    socklen_t length = sizeof peer;
    if (::getsockopt(client.socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0)
      client.trusted = peer.uid == 0 || peer.uid == ::geteuid();
    const auto others = std::ranges::count(clients_, false, &Client::trusted);
    if (!client.trusted && static_cast<size_t>(others) >= kClientsMax / 2)
      client.reply = error_reply("too many ask at once; try again") + "\n";
    clients_.push_back(std::move(client));
  }

  bool may_ask(const Client& client) const {
    if (client.trusted) return true;
    auto name = request_name(client.request);
    return !name || std::ranges::find(access_.open_requests, *name) != access_.open_requests.end();
  }

  // Does what the client's socket allows; false when the client is done with.
  bool serve(Client& client) {
    if (client.reply.empty() && !read_request(client)) return false;
    return client.reply.empty() || write_reply(client);
  }

  bool read_request(Client& client) {
    char piece[4096];
    const ssize_t n = ::recv(client.socket.get(), piece, sizeof piece, 0);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    if (n == 0) return false;
    client.request.append(piece, static_cast<size_t>(n));
    if (const size_t end = client.request.find('\n'); end != std::string::npos) {
      client.request.resize(end);
      client.reply = may_ask(client)
                         ? handler_(client.request)
                         : error_reply("only root and the user of the node may ask for this");
      std::ranges::replace(client.reply, '\n', ' ');  // one line, whatever the handler made
      client.reply += '\n';
    } else if (client.request.size() >= kRequestMax) {
      client.reply = error_reply("the request is longer than 64 KiB") + "\n";
    }
    return true;
  }

  static bool write_reply(Client& client) {
    const ssize_t n = ::send(client.socket.get(), client.reply.data() + client.sent,
                             client.reply.size() - client.sent, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN || errno == EINTR;
    client.sent += static_cast<size_t>(n);
    return client.sent < client.reply.size();
  }

  const std::string path_;
  const Handler handler_;
  const Access access_;
  const Fd lock_;
  const Fd listener_;
  const Fd wake_;
  std::vector<Client> clients_;  // of the thread alone, like the next one
  Clock::time_point accept_after_;
  std::thread thread_;  // last: starts when all the others are there
};

Result<std::unique_ptr<ControlServer>> ControlServer::start(const std::string& path,
                                                            Handler handler, Access access) {
  VR_TRY_VOID(socket_address(path));
  VR_TRY_VOID(make_directory(path, (access.mode & 077) != 0));
  VR_TRY(lock, take_lock(path));
  VR_TRY(listener, listen_at(path, access));
  Fd wake(::eventfd(0, EFD_CLOEXEC));
  if (!wake.valid()) return failed(path, "eventfd", errno);
  try {
    auto impl = std::make_unique<Impl>(path, std::move(handler), std::move(access), std::move(lock),
                                       std::move(listener), std::move(wake));
    return std::unique_ptr<ControlServer>(new ControlServer(std::move(impl)));
  } catch (const std::system_error& error) {
    return std::unexpected(thread_refused(error.code()));
  }
}

ControlServer::ControlServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ControlServer::~ControlServer() = default;

Result<std::string> request_name(const std::string& request_json) {
  const auto parsed = nlohmann::json::parse(request_json, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_object()) {
    if (const auto name = parsed.find("request"); name != parsed.end() && name->is_string())
      return name->get<std::string>();
  }
  return fail(EINVAL, R"(not a request: send one line like {"request":"status"})");
}

std::string request_text(const std::string& request_json, std::string_view key) {
  const auto parsed = nlohmann::json::parse(request_json, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object()) return {};
  const auto text = parsed.find(key);
  return text != parsed.end() && text->is_string() ? text->get<std::string>() : std::string();
}

std::string error_reply(std::string_view sentence) {
  return nlohmann::json{{"error", sentence}}.dump(-1, ' ', false,
                                                  nlohmann::json::error_handler_t::replace);
}

}  // namespace vremote::control
