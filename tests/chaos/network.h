// A network between nodes on one machine that does to packets what real ones do: it loses, delays,
// doubles and stops them, each direction of each pair by itself.
//
// Every node has a network namespace of its own with one TUN device in it; a thread carries the
// packets between them. That needs neither netem nor a firewall, and what happens to a packet is
// decided by one seed.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/prng.h"
#include "base/result.h"

namespace vremote::chaos {

struct Link {
  bool cut = false;
  uint32_t lost_percent = 0;
  uint32_t doubled_percent = 0;
  int64_t delay_ns = 0;         // at least
  int64_t delay_spread_ns = 0;  // and at random up to so much more: packets overtake each other
  bool operator==(const Link&) const = default;
};

class Network {
 public:
  // Needs root and /dev/net/tun.
  static Result<std::unique_ptr<Network>> create(size_t nodes, uint64_t seed);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // Of node `i`: its address, and the namespace for setns(2).
  static std::string address(size_t i);
  int name_space(size_t i) const { return nodes_.at(i).name_space.get(); }

  void set(size_t from, size_t to, const Link& link);
  void set_all(const Link& link);
  Link get(size_t from, size_t to) const;
  uint64_t carried() const;
  uint64_t dropped() const;

 private:
  struct Node {
    Fd name_space;
    Fd tun;
  };
  struct Packet {
    size_t to = 0;
    std::vector<std::byte> bytes;
  };
  explicit Network(uint64_t seed) : random_(seed) {}
  Status add_node(size_t i);
  void carry();
  void arrived(size_t from, std::vector<std::byte> bytes);

  std::vector<Node> nodes_;
  Fd stop_;
  std::thread carrier_;

  mutable std::mutex mutex_;
  Prng random_;
  std::map<std::pair<size_t, size_t>, Link> links_;
  std::multimap<int64_t, Packet> waiting_;  // by the time of their arrival
  uint64_t carried_ = 0, dropped_ = 0;
};

}  // namespace vremote::chaos
