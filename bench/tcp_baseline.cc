#include "bench/tcp_baseline.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <climits>
#include <cstring>
#include <vector>

#include "bench/compare.h"

namespace vremote::bench {
namespace {

constexpr size_t kBlock = 1 << 20;
constexpr size_t kPage = 4096;

// What we ask of the peer: one page, for every kind.
struct Request {
  enum Kind : uint32_t { Echo, Send } kind = Echo;
  std::array<char, kPage - 4> path{};
};
static_assert(sizeof(Request) == kPage);

bool send_all(int fd, const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = ::send(fd, at, size, MSG_NOSIGNAL);
    if (n <= 0) return false;
    at += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

bool receive_all(int fd, void* data, size_t size) {
  return ::recv(fd, data, size, MSG_WAITALL) == static_cast<ssize_t>(size);
}

bool send_file(int connection, const char* path, std::vector<char>& block) {
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  const int64_t size = ::lseek(file.get(), 0, SEEK_END);
  ::lseek(file.get(), 0, SEEK_SET);
  if (!send_all(connection, &size, sizeof size)) return false;
  for (;;) {
    const ssize_t n = ::read(file.get(), block.data(), block.size());
    if (n <= 0) return n == 0;
    if (!send_all(connection, block.data(), static_cast<size_t>(n))) return false;
  }
}

[[noreturn]] void serve(int connection) {
  std::vector<char> block(kBlock);
  Request request;
  while (receive_all(connection, &request, sizeof request)) {
    const bool done = request.kind == Request::Echo
                          ? send_all(connection, &request, sizeof request)
                          : send_file(connection, request.path.data(), block);
    if (!done) ::_exit(1);
  }
  ::_exit(0);
}

void no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

}  // namespace

TcpPeer::TcpPeer() {
  Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  must(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length) == 0 &&
           ::listen(listener.get(), 1) == 0 &&
           ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0,
       "a loopback socket");
  process_ = ::fork();
  must(process_ >= 0, "fork");
  if (process_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const Fd accepted(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    no_delay(accepted.get());
    serve(accepted.get());
  }
  connection_ = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  must(::connect(connection_.get(), reinterpret_cast<sockaddr*>(&address), length) == 0, "connect");
  no_delay(connection_.get());
}

TcpPeer::~TcpPeer() {
  connection_.reset();
  ::waitpid(process_, nullptr, 0);
}

uint64_t TcpPeer::copy_into_page_cache(const std::string& path) {
  Request request{.kind = Request::Send};
  must(path.size() < request.path.size(), "a short path");
  std::memcpy(request.path.data(), path.data(), path.size());
  const Fd file(::memfd_create("copy", MFD_CLOEXEC));
  must(file.valid() && send_all(connection_.get(), &request, sizeof request), "asking for a file");
  int64_t size = 0;
  must(receive_all(connection_.get(), &size, sizeof size), "receiving a size");
  static std::vector<char> block(kBlock);
  for (int64_t left = size; left > 0;) {
    const ssize_t n = ::recv(connection_.get(), block.data(), block.size(), 0);
    must(n > 0 && ::write(file.get(), block.data(), static_cast<size_t>(n)) == n,
         "receiving a file");
    left -= n;
  }
  return static_cast<uint64_t>(size);
}

void TcpPeer::round_trip() {
  Request request;
  must(send_all(connection_.get(), &request, sizeof request) &&
           receive_all(connection_.get(), &request, sizeof request),
       "a TCP round trip");
}

}  // namespace vremote::bench
