// Who waits for whom, and for how long: the reply to the control request "blocked".
//
// Two sides tell. The node whose program waits ("agent") knows the program and the origin it asks;
// the origin ("home") knows which node has not given up its lease yet, or whose lock is in the way.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace vremote::control {

// A node, and where it is known the process there.
struct Party {
  std::string node;
  uint32_t pid = 0;     // 0: unknown
  std::string process;  // its name; of processes of the node that tells only
  bool operator==(const Party&) const = default;
};

struct BlockedEntry {
  std::string side;  // "agent": a program of this node waits. "home": a request at this origin
  std::string what;  // "read", "write", "lock", "lease", ...
  std::string export_name;
  std::string path;    // empty: not known
  uint64_t inode = 0;  // at its origin
  // Bytes, inclusive; unset: the whole file, or its names or attributes.
  struct Range {
    uint64_t first = 0, last = 0;
    bool operator==(const Range&) const = default;
  };
  std::optional<Range> range;
  Party who;
  std::vector<Party> waits_for;
  std::string why;  // what else is known: "not connected for 12 s"
  int64_t for_ms = 0;
  bool operator==(const BlockedEntry&) const = default;
};

struct Blocked {
  std::string node;
  std::vector<BlockedEntry> entries;  // the longest wait first
  bool more = false;                  // than are told
};

inline constexpr size_t kBlockedMax = 200;  // entries told

// One line. Keys are the members' names; "from" and "to" are the range.
std::string to_json(const Blocked& blocked);
Result<Blocked> blocked_from_json(const std::string& json);
// For people.
std::string blocked_table(const Blocked& blocked);

}  // namespace vremote::control
