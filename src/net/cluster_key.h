// What makes a node a member of its cluster, and the secrets of connections made of it.
//
// 1. The cluster key is 32 random bytes. Who holds it is trusted as every other who does: it can
//    claim any name.
// 2. The key of node N is HKDF(cluster key, cluster, N). A *guest* is given only that: it can claim
//    no other name.
// 3. The connection from node A to node B is under a secret of its own (a TLS 1.3 external PSK):
//      member  HKDF(key of B, from A)  dialled by holders of the cluster key: every B can make it
//      guest   HKDF(key of A, to B)    dialled by the guest A: only a B with the cluster key can
//    Two guests have nothing in common: one of two nodes that talk must hold the cluster key.
// 4. A member's secret counts only at the node it names: the guest B could make HKDF(key of B, from
//    A) for any A, so whoever answers to another name than B must not believe it (rule for those
//    who use Dialled::to).
// 5. What is shown says which key it was made of (a digest), so that a node can have two while the
//    cluster changes from one to the next (key_ring.h).
//
// A key as a line:
//   vremote-cluster-key 1 CLUSTER HEX CHECK
//   vremote-guest-key 1 CLUSTER NODE HEX CHECK
// CHECK is made of all before it: a letter lost on the way is noticed, and two nodes can be
// compared without showing the key.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace vremote::net {

// 32 bytes that are wiped when they are no longer needed.
class Secret {
 public:
  Secret() = default;
  Secret(const Secret&) = default;
  Secret& operator=(const Secret&) = default;
  ~Secret();
  static constexpr size_t kSize = 32;
  unsigned char* data() { return bytes_.data(); }
  const unsigned char* data() const { return bytes_.data(); }
  bool operator==(const Secret&) const = default;

 private:
  std::array<unsigned char, kSize> bytes_{};
};

// A connection's two ends, as its PSK identity names them.
struct Dialled {
  std::string from;
  std::string to;
  bool operator==(const Dialled&) const = default;
};

class ClusterKey {
 public:
  static Result<ClusterKey> generate(std::string cluster);
  // White space around the line is of no account. The error tells what is wrong with it, and
  // nothing of the key.
  static Result<ClusterKey> parse(std::string_view line);
  std::string line() const;  // with a newline

  const std::string& cluster() const { return cluster_; }
  bool is_guest() const { return !guest_.empty(); }
  const std::string& guest() const { return guest_; }  // whose key it is; empty: the cluster key
  std::string check() const;                           // 16 hexadecimal digits
  bool operator==(const ClusterKey&) const = default;

  // Of a cluster key.
  ClusterKey for_guest(std::string node) const;

  // What `from`, who holds this key, shows to reach `to`.
  struct Shown {
    std::string identity;
    Secret secret;
  };
  Shown dial(const Dialled& ends) const;
  // The secret behind an identity that somebody shows to the node `own_name`, and who that claims
  // to be. Nothing when the identity is not of this cluster or this key cannot make its secret.
  struct Known {
    Dialled ends;
    Secret secret;
  };
  std::optional<Known> recognize(std::string_view identity, std::string_view own_name) const;

 private:
  ClusterKey(std::string cluster, std::string guest, const Secret& secret)
      : cluster_(std::move(cluster)), guest_(std::move(guest)), secret_(secret) {}
  Secret key_of(std::string_view node) const;
  std::string text() const;  // of line(), less the check
  // Of the key that `node` and all members have.
  std::string mark_of(std::string_view node) const;

  std::string cluster_;
  std::string guest_;
  Secret secret_;
};

}  // namespace vremote::net
