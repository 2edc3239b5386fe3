// The first frames of a connection: the agent's node says Hello, the home answers Welcome or
// Refuse.
//
// A session is one agent node at one home; its lanes (parallel connections) share it. The agent
// invents the session's epoch, a later one than before, so that a Hello that is late ends no
// session. It begins it over lane 0 alone.
// `resume` says that the home has welcomed some lane of it before: a home that does not know it any
// more must refuse (SessionUnknown) rather than begin afresh behind the agent's back.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "wire/frame.h"

namespace vremote::wire {

inline constexpr uint32_t kProtocolVersion = 1;
// Feature bits: a peer may use only what both announce.
// FollowWait, FollowOwner and LockAction::Refuse are understood.
inline constexpr uint64_t kFollowsWaits = 1;
inline constexpr uint64_t kFeatures = kFollowsWaits;
inline constexpr uint32_t kLanesMax = 64;
inline constexpr size_t kExportsMax = 1024;
inline constexpr size_t kExportPathMax = 4096;
inline constexpr size_t kHandshakeHeaderMax = size_t{512} << 10;  // of a Welcome
inline constexpr size_t kHelloMax = 4096;  // of a Hello or Refuse: all a stranger may make us keep

struct Hello {
  uint32_t version = kProtocolVersion;
  uint64_t features = kFeatures;
  std::string cluster;
  std::string node_name;
  uint64_t incarnation = 0;    // random, new with each start of the node
  uint64_t session_epoch = 0;  // grows with each session of an incarnation
  bool resume = false;
  uint32_t lane = 0;
  uint32_t lanes = 1;
  uint64_t received = 0;  // the last message received on this lane in this session
  std::string home_name;  // whom it wants to speak to; empty: whoever answers
  bool operator==(const Hello&) const = default;
};

struct Export {
  std::string name;
  uint32_t export_index = 0;
  FileId root;
  bool read_only = false;
  std::string path;  // on the origin: what O_REMOTE opens there call it; absolute, at most
                     // kExportPathMax bytes, may be empty
  bool operator==(const Export&) const = default;
};

struct Welcome {
  uint32_t version = kProtocolVersion;
  uint64_t features = kFeatures;
  std::string node_name;
  uint64_t incarnation = 0;
  uint32_t session = 0;  // the home's number for the session
  bool resumed = false;
  uint64_t received = 0;
  uint32_t lease_term_ms = 0;
  std::vector<Export> exports;
  // The home has restarted since, and gives to nobody what this node may have had: it may bring its
  // dirty bytes, locks and open files back (docs/protocol.md, R1 to R5).
  bool may_reclaim = false;
  // Another one than before: the home has lost what was written to its disk and not synced (S1);
  // 0: it does not tell.
  uint64_t disk_life = 0;
  // The home has a newer key than that by which this connection was made (net/key_ring.h, R3).
  bool newer_key = false;
  bool operator==(const Welcome&) const = default;
};

enum class RefuseReason : uint8_t {
  Version = 0,
  Cluster = 1,
  SessionUnknown = 2,
  BadHello = 3,
  Busy = 4,
  NameTaken = 5,    // a node of this name is connected and alive
  WrongNode = 6,    // the Hello was for a node of another name
  NotEncrypted = 7  // this home speaks only TLS
};
const char* to_string(RefuseReason reason);

struct Refuse {
  RefuseReason reason = RefuseReason::BadHello;
  std::string text;  // for the log of the refused
  bool operator==(const Refuse&) const = default;
};

Result<Encoded> encode(const Hello& hello);
Result<Encoded> encode(const Welcome& welcome);
Result<Encoded> encode(const Refuse& refuse);

Result<Hello> decode_hello(std::span<const std::byte> header);
Result<Welcome> decode_welcome(std::span<const std::byte> header);
Result<Refuse> decode_refuse(std::span<const std::byte> header);

}  // namespace vremote::wire
