// The keys that a node has: one, or two while its cluster changes from one to the next.
//
//   R1. All are accepted of others.
//   R2. The newest is shown; a home that does not take it is shown the older.
//   R3. When a ring changes, connections that are not of its newest key are made anew
//       (Stream::stale()): so one of a key that was dropped ends, and all are of the new one as
//       soon as both ends have it. Only one that was under way might miss the change, the newest
//       refused before it and the older taken after it: there the home says that it has a newer
//       one (wire::Welcome::newer_key), and the newest is shown again.
// So a cluster changes its key in two rounds while it runs: every node gets the new one beside the
// old, then every node drops the old. Until the last has got the new one the old one speaks for
// them; whoever has only the old one when the others drop it is a stranger.
//
// The file has a line for each key (cluster_key.h), the newest first; what is carried from node to
// node is the same text.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/cluster_key.h"

namespace vremote::net {

class KeyRing {
 public:
  static constexpr size_t kKeysMax = 2;

  KeyRing(ClusterKey key) : keys_{std::move(key)} {}  // a key is a ring of one
  static Result<KeyRing> parse(std::string_view text);
  std::string text() const;  // ends with a newline

  // Newest first; at least one. All of one cluster, and for the same guest or none.
  const std::vector<ClusterKey>& keys() const { return keys_; }
  const ClusterKey& newest() const { return keys_.front(); }
  bool has(const ClusterKey& key) const;
  bool shares_a_key_with(const KeyRing& other) const;
  bool operator==(const KeyRing&) const = default;

  // EEXIST while there are two keys already. Not of guests.
  Result<KeyRing> renewed() const;
  KeyRing without_older() const { return newest(); }
  KeyRing for_guest(const std::string& node) const;

  struct Known {
    ClusterKey::Known by;
    const ClusterKey* key;  // of this ring
  };
  // ClusterKey::recognize() by the key that it was made of.
  std::optional<Known> recognize(std::string_view identity, std::string_view own_name) const;

 private:
  explicit KeyRing(std::vector<ClusterKey> keys) : keys_(std::move(keys)) {}
  std::vector<ClusterKey> keys_;
};

// Reads a key file: a regular file of this user's or root's that nobody else may read. Errors name
// the file and the mend.
Result<KeyRing> read_key_file(const std::string& path);
// Makes it, mode 0600; EEXIST when there is one already.
Status write_key_file(const std::string& path, const KeyRing& keys);
// Puts another in its place, all at once, with the same owner.
Status replace_key_file(const std::string& path, const KeyRing& keys);

}  // namespace vremote::net
