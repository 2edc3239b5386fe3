#include "chaos/network.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace vremote::chaos {
namespace {

constexpr size_t kPacketMax = 65536;
constexpr size_t kWaitingMax = 65536;  // packets: more are lost, as in a router

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Status bring_up(int socket, const char* name) {
  ifreq request{};
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (::ioctl(socket, SIOCGIFFLAGS, &request) != 0) return fail(errno, name);
  request.ifr_flags |= IFF_UP | IFF_RUNNING;
  if (::ioctl(socket, SIOCSIFFLAGS, &request) != 0) return fail(errno, name);
  return {};
}

Status set_address(int socket, const char* name, unsigned long what, const std::string& address) {
  ifreq request{};
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  sockaddr_in in{};
  in.sin_family = AF_INET;
  ::inet_pton(AF_INET, address.c_str(), &in.sin_addr);
  std::memcpy(&request.ifr_addr, &in, sizeof in);
  if (::ioctl(socket, what, &request) != 0) return fail(errno, name);
  return {};
}

}  // namespace

std::string Network::address(size_t i) { return fmt::format("10.77.0.{}", i + 1); }

Result<std::unique_ptr<Network>> Network::create(size_t nodes, uint64_t seed) {
  std::unique_ptr<Network> network(new Network(seed));
  network->nodes_.resize(nodes);
  for (size_t i = 0; i < nodes; ++i) {
    // A namespace is entered by a thread, and left with it.
    Status made;
    std::thread([&] { made = network->add_node(i); }).join();
    if (!made) return std::unexpected(made.error());
  }
  network->stop_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  network->carrier_ = std::thread([n = network.get()] { n->carry(); });
  return network;
}

Network::~Network() {
  if (!carrier_.joinable()) return;
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof one);
  carrier_.join();
}

Status Network::add_node(size_t i) {
  if (::unshare(CLONE_NEWNET) != 0) return fail(errno, "a network namespace (root only)");
  Node& node = nodes_[i];
  node.name_space = Fd(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  node.tun = Fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!node.name_space.valid() || !node.tun.valid()) return fail(errno, "/dev/net/tun");
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  std::strncpy(request.ifr_name, "vr0", IFNAMSIZ - 1);
  if (::ioctl(node.tun.get(), TUNSETIFF, &request) != 0) return fail(errno, "TUNSETIFF");
  const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  VR_TRY_VOID(set_address(socket.get(), "vr0", SIOCSIFADDR, address(i)));
  VR_TRY_VOID(set_address(socket.get(), "vr0", SIOCSIFNETMASK, "255.255.255.0"));
  VR_TRY_VOID(bring_up(socket.get(), "vr0"));
  return bring_up(socket.get(), "lo");
}

void Network::set(size_t from, size_t to, const Link& link) {
  std::lock_guard lock(mutex_);
  links_[{from, to}] = link;
}
void Network::set_all(const Link& link) {
  std::lock_guard lock(mutex_);
  for (size_t from = 0; from < nodes_.size(); ++from)
    for (size_t to = 0; to < nodes_.size(); ++to) links_[{from, to}] = link;
}
Link Network::get(size_t from, size_t to) const {
  std::lock_guard lock(mutex_);
  auto it = links_.find({from, to});
  return it == links_.end() ? Link{} : it->second;
}
uint64_t Network::carried() const {
  std::lock_guard lock(mutex_);
  return carried_;
}
uint64_t Network::dropped() const {
  std::lock_guard lock(mutex_);
  return dropped_;
}

void Network::arrived(size_t from, std::vector<std::byte> bytes) {
  iphdr head;
  if (bytes.size() < sizeof head) return;
  std::memcpy(&head, bytes.data(), sizeof head);
  const uint32_t to = ntohl(head.daddr) - (ntohl(::inet_addr("10.77.0.0")) + 1);
  if (head.version != 4 || to >= nodes_.size()) return;
  std::lock_guard lock(mutex_);
  const Link link = links_[{from, to}];
  if (link.cut || random_.chance(link.lost_percent) || waiting_.size() >= kWaitingMax) {
    ++dropped_;
    return;
  }
  const int copies = random_.chance(link.doubled_percent) ? 2 : 1;
  for (int copy = 0; copy < copies; ++copy) {
    int64_t delay = link.delay_ns;
    if (link.delay_spread_ns > 0)
      delay += static_cast<int64_t>(random_.below(static_cast<uint64_t>(link.delay_spread_ns)));
    waiting_.emplace(now_ns() + delay, Packet{to, bytes});
  }
}

void Network::carry() {
  std::vector<pollfd> polled(nodes_.size() + 1);
  for (size_t i = 0; i < nodes_.size(); ++i) polled[i] = {nodes_[i].tun.get(), POLLIN, 0};
  polled.back() = {stop_.get(), POLLIN, 0};
  std::vector<std::byte> buffer(kPacketMax);
  for (;;) {
    int64_t wait_ns = -1;
    {
      std::lock_guard lock(mutex_);
      if (!waiting_.empty()) wait_ns = std::max<int64_t>(0, waiting_.begin()->first - now_ns());
    }
    timespec timeout{wait_ns / 1'000'000'000, wait_ns % 1'000'000'000};
    ::ppoll(polled.data(), polled.size(), wait_ns < 0 ? nullptr : &timeout, nullptr);
    if (polled.back().revents != 0) return;
    for (size_t i = 0; i < nodes_.size(); ++i) {
      if (polled[i].revents == 0) continue;
      for (int burst = 0; burst < 64; ++burst) {
        const ssize_t n = ::read(nodes_[i].tun.get(), buffer.data(), buffer.size());
        if (n <= 0) break;
        arrived(i, {buffer.begin(), buffer.begin() + n});
      }
    }
    std::unique_lock lock(mutex_);
    while (!waiting_.empty() && waiting_.begin()->first <= now_ns()) {
      auto packet = waiting_.extract(waiting_.begin());
      ++carried_;
      lock.unlock();
      const auto& bytes = packet.mapped().bytes;
      (void)!::write(nodes_[packet.mapped().to].tun.get(), bytes.data(), bytes.size());
      lock.lock();
    }
  }
}

}  // namespace vremote::chaos
