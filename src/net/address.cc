#include "net/address.h"

#include <arpa/inet.h>
#include <fmt/core.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>

#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "base/start_thread.h"

namespace vremote::net {

Result<HostPort> parse_address(std::string_view text) {
  HostPort out;
  std::string_view host = text;
  std::string_view port;
  bool has_port = false;
  if (!text.empty() && text.front() == '[') {
    size_t end = text.find(']');
    if (end == std::string_view::npos)
      return fail(EINVAL, fmt::format("address '{}': ']' is missing", text));
    host = text.substr(1, end - 1);
    std::string_view rest = text.substr(end + 1);
    if (!rest.empty() && rest.front() != ':')
      return fail(EINVAL, fmt::format("address '{}': ':port' expected after ']'", text));
    has_port = !rest.empty();
    if (has_port) port = rest.substr(1);
    if (host.empty())
      return fail(EINVAL, fmt::format("address '{}': nothing between the brackets", text));
  } else if (size_t colon = text.rfind(':');
             colon != std::string_view::npos && text.find(':') == colon) {
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
    has_port = true;
  }  // more than one colon and no brackets: an IPv6 address alone
  if (has_port) {
    auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), out.port);
    if (error != std::errc() || end != port.data() + port.size())
      return fail(EINVAL, fmt::format("address '{}': '{}' is not a port number", text, port));
  }
  if (host.empty() && !has_port) return fail(EINVAL, "empty address");
  if (host.size() > 255) return fail(EINVAL, "address too long");
  for (unsigned char c : host)
    if (c <= 0x20 || c == 0x7f)
      return fail(EINVAL, fmt::format("address '{}': blank or control character", text));
  out.host = std::string(host);
  return out;
}

std::string SocketAddress::text() const {
  char host[NI_MAXHOST], port[NI_MAXSERV];
  if (::getnameinfo(get(), length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    return "?";
  return storage.ss_family == AF_INET6 ? fmt::format("[{}]:{}", host, port)
                                       : fmt::format("{}:{}", host, port);
}

Result<std::vector<SocketAddress>> resolve(const HostPort& address, bool names, bool passive) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (names ? 0 : AI_NUMERICHOST) | (passive ? AI_PASSIVE : 0);
  // "Any" is the IPv6 one, which takes both families.
  const char* host = address.host.empty() ? (passive ? "::" : "localhost") : address.host.c_str();
  addrinfo* list = nullptr;
  int error = ::getaddrinfo(host, std::to_string(address.port).c_str(), &hints, &list);
  if (error == EAI_NONAME && !names) return fail(EAGAIN);
  if (error != 0) {
    int code = error == EAI_SYSTEM ? errno : EHOSTUNREACH;
    return fail(code, fmt::format("cannot resolve '{}': {}{}", host, ::gai_strerror(error),
                                  passive ? "; name an address that this machine has, or 0.0.0.0 "
                                            "for all of them"
                                          : ""));
  }
  std::vector<SocketAddress> out;
  for (addrinfo* a = list; a != nullptr && out.size() < 16; a = a->ai_next) {
    if (a->ai_addrlen > sizeof(sockaddr_storage)) continue;
    SocketAddress& s = out.emplace_back();
    std::memcpy(&s.storage, a->ai_addr, a->ai_addrlen);
    s.length = a->ai_addrlen;
  }
  ::freeaddrinfo(list);
  if (out.empty()) return fail(EHOSTUNREACH, fmt::format("'{}' has no address", host));
  return out;
}

struct Resolver::Impl {
  struct Job {
    HostPort address;
    EventLoop* loop;
    Callback callback;
  };
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<Job> jobs;
  bool stop = false;
  std::thread thread;

  void work() {
    pthread_setname_np(pthread_self(), "vr-resolver");
    std::unique_lock lock(mutex);
    while (true) {
      wake.wait(lock, [this] { return stop || !jobs.empty(); });
      if (stop) return;
      Job job = std::move(jobs.front());
      jobs.pop_front();
      lock.unlock();
      auto result = net::resolve(job.address, true, false);
      job.loop->post([callback = std::move(job.callback), result = std::move(result)]() mutable {
        callback(std::move(result));
      });
      lock.lock();
    }
  }
};

Resolver::Resolver() : impl_(std::make_unique<Impl>()) {}

Resolver::~Resolver() { stop(); }

void Resolver::stop() {
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stop = true;
  }
  impl_->wake.notify_all();
  if (impl_->thread.joinable()) impl_->thread.join();
}

void Resolver::resolve(HostPort address, EventLoop& loop, Callback callback) {
  std::lock_guard lock(impl_->mutex);
  if (impl_->stop) return;
  if (!impl_->thread.joinable()) {
    auto thread = start_thread([impl = impl_.get()] { impl->work(); });
    if (!thread) {  // the next attempt may get it
      loop.post([callback = std::move(callback), why = thread.error()]() mutable {
        callback(std::unexpected(std::move(why)));
      });
      return;
    }
    impl_->thread = std::move(*thread);
  }
  impl_->jobs.push_back({std::move(address), &loop, std::move(callback)});
  impl_->wake.notify_one();
}

namespace {

#ifdef TCP_RTO_MAX_MS
constexpr int kRtoMaxMs = TCP_RTO_MAX_MS;
#else
constexpr int kRtoMaxMs = 44;  // include/uapi/linux/tcp.h; milliseconds, 1000 at least
#endif

Result<Fd> open_socket(const SocketAddress& address) {
  Fd fd(::socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid())
    return fail(errno, fmt::format("cannot make a socket for {}: {}", address.text(),
                                   std::strerror(errno)));
  return fd;
}

void set_option(int fd, int level, int name, int value) {
  // Advice only: the connection works without.
  (void)::setsockopt(fd, level, name, &value, sizeof value);
}

}  // namespace

Result<Fd> listen_on(const SocketAddress& address) {
  const auto mend = [](int code) {
    if (code == EADDRINUSE)
      return "; end what listens there (`ss -ltnp` shows it), or take another";
    if (code == EADDRNOTAVAIL)
      return "; take one that this machine has, or 0.0.0.0 for all of them";
    return "";
  };
  VR_TRY(fd, open_socket(address));
  set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (address.storage.ss_family == AF_INET6) set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (::bind(fd.get(), address.get(), address.length) != 0 || ::listen(fd.get(), SOMAXCONN) != 0)
    return fail(errno, fmt::format("cannot listen on {}: {}{}", address.text(),
                                   std::strerror(errno), mend(errno)));
  return std::move(fd);
}

Result<Fd> begin_connect(const SocketAddress& address) {
  VR_TRY(fd, open_socket(address));
  tune(fd.get());
  if (::connect(fd.get(), address.get(), address.length) != 0 && errno != EINPROGRESS)
    return fail(errno,
                fmt::format("cannot connect to {}: {}", address.text(), std::strerror(errno)));
  return std::move(fd);
}

int connect_error(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0) return errno;
  return error;
}

void tune(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 4);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 8000);  // below the lease term
  // The kernel tries ever more seldom: a link that comes back for a second or two would not be
  // noticed before it is gone again, and leases be lost that could have been renewed. Before Linux
  // 6.15 that is so.
  set_option(fd, IPPROTO_TCP, kRtoMaxMs, 1000);
}

Result<SocketAddress> local_address(int fd) {
  SocketAddress address;
  address.length = sizeof address.storage;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address.storage), &address.length) != 0)
    return fail(errno, "cannot read a socket's address");
  return address;
}

}  // namespace vremote::net
