#include "net/chaos_proxy.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/check.h"
#include "net/address.h"

namespace vremote::net {

ChaosProxy::ChaosProxy(Options options) : options_(std::move(options)), random_(options_.seed) {
  auto any = resolve({"127.0.0.1", 0}, false, true);
  auto listener = listen_on(any->at(0));
  VR_CHECK(listener.has_value());
  listener_ = std::move(*listener);
  port_ = parse_address(local_address(listener_.get())->text())->port;
  wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  thread_ = std::thread([this] { run(); });
}

ChaosProxy::~ChaosProxy() {
  stop_ = true;
  uint64_t one = 1;
  VR_CHECK(::write(wake_.get(), &one, sizeof one) == sizeof one);
  thread_.join();
}

void ChaosProxy::accept_one() {
  Fd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (!client.valid()) return;
  if (++accepted_; options_.on_connection) options_.on_connection(accepted_);
  auto target = resolve({"127.0.0.1", options_.target}, false, false);
  auto server = begin_connect(target->at(0));
  if (!server) return;
  tune(client.get());
  Pair& pair = pairs_.emplace_back();
  pair.client = std::move(client);
  pair.server = std::move(*server);
  // Some break within the handshake.
  pair.bytes_left = random_.chance(10) ? random_.below(300) : random_.below(options_.bytes_max);
}

// False when the pair must go.
bool ChaosProxy::forward(Pair& pair, Fd& from, Fd& to, Direction& d) {
  if (d.at == d.waiting.size()) {
    d.waiting.resize(random_.between(1, 20000));
    d.at = 0;
    ssize_t n = ::recv(from.get(), d.waiting.data(), d.waiting.size(), MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return false;
    d.waiting.resize(n < 0 ? 0 : static_cast<size_t>(n));
    if (n > 0 && options_.corrupt && !calm_ && random_.chance(3))
      d.waiting[random_.below(d.waiting.size())] ^= static_cast<char>(1 << random_.below(8));
  }
  size_t size = d.waiting.size() - d.at;
  if (!calm_ && !options_.corrupt) size = std::min<uint64_t>(size, pair.bytes_left);
  ssize_t n = ::send(to.get(), d.waiting.data() + d.at, size, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0 && errno != EAGAIN && errno != ENOTCONN) return false;
  if (n > 0) {
    d.at += static_cast<size_t>(n);
    pair.bytes_left -= std::min<uint64_t>(pair.bytes_left, static_cast<uint64_t>(n));
  }
  if (pair.bytes_left == 0 && !calm_ && !options_.corrupt) {
    ++broken_;
    return false;
  }
  return true;
}

void ChaosProxy::destroy(Pair& pair) {
  if (random_.chance(30)) {
    linger reset{.l_onoff = 1, .l_linger = 0};  // RST: what is on its way is lost too
    (void)::setsockopt(pair.client.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    (void)::setsockopt(pair.server.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  }
  pair.client.reset();
  pair.server.reset();
}

void ChaosProxy::run() {
  while (!stop_) {
    std::vector<pollfd> fds{{.fd = listener_.get(), .events = POLLIN, .revents = 0},
                            {.fd = wake_.get(), .events = POLLIN, .revents = 0}};
    for (Pair& pair : pairs_) {
      bool up_waits = pair.up.at < pair.up.waiting.size();
      bool down_waits = pair.down.at < pair.down.waiting.size();
      auto events = [](bool in, bool out) {
        return static_cast<short>((in ? POLLIN : 0) | (out ? POLLOUT : 0));
      };
      fds.push_back(
          {.fd = pair.client.get(), .events = events(!up_waits, down_waits), .revents = 0});
      fds.push_back(
          {.fd = pair.server.get(), .events = events(!down_waits, up_waits), .revents = 0});
    }
    (void)::poll(fds.data(), fds.size(), -1);
    size_t i = 2;
    for (auto it = pairs_.begin(); it != pairs_.end(); i += 2) {
      Pair& pair = *it;
      bool keep = true;
      short ready = fds[i].revents | fds[i + 1].revents;
      if (ready != 0)
        keep = forward(pair, pair.client, pair.server, pair.up) &&
               forward(pair, pair.server, pair.client, pair.down);
      if (!keep) destroy(pair);
      it = keep ? std::next(it) : pairs_.erase(it);
    }
    if (fds[0].revents != 0) accept_one();
  }
}

}  // namespace vremote::net
