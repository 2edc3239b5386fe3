// What runs on the mounts while nodes fail, and what it must see whatever happens.
//
// Registers: pages, each written by one process and read by all. A read gives no value older than
// the last write that had returned before it (floor), none that was never begun (started), and none
// that is torn. When the writer's node is cut off or dies, what was not synced may be lost: the
// floor falls back to the last value whose fsync succeeded (durable), and rises again with the next
// fsync. Log: a file that processes on all nodes append records to. At the end each one whose fsync
// succeeded is there once and whole, the records of one writer in order. Records that were not
// synced when a node died or the disk was full may be torn, no others.
// Locks: files under fcntl locks, held by one process at a time as long as its node is well. Whose
// node's daemon dies meanwhile is told: it cannot give back what it has not.
// Open files: they outlive the daemon, where the next one goes on with its mount.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace vremote::chaos {

inline constexpr size_t kNodesMax = 8;
inline constexpr size_t kWritersMax = 32;
inline constexpr size_t kProcessesMax = 128;

// Lies in memory that all processes share.
struct Register {
  std::atomic<uint64_t> started{0}, durable{0};
  // Of the disturbance it was raised after (disturbed, below) and the value: both change at once.
  std::atomic<uint64_t> floor_word{0};
  uint64_t floor() const { return floor_word & kValueMask; }
  static constexpr uint64_t kValueMask = (uint64_t{1} << 40) - 1;
};
struct Log {  // of one appending process
  std::atomic<uint64_t> started{0}, durable{0};
};
struct Holder {  // of a lock: process + 1, and how often its node had been disturbed
  std::atomic<uint64_t> word{0};
};
struct Process {
  std::atomic<uint64_t> calls{0}, errors{0}, finished{0};
  std::atomic<uint64_t> cut_off{0};  // calls whose mount was ended under them
};

struct Shared {
  std::atomic<bool> go{false}, stop{false};
  // [node][origin]: odd while something is wrong between them, or may be: what the node has not
  // synced there may be lost, and its locks.
  std::atomic<uint64_t> disturbed[kNodesMax][kNodesMax];
  std::atomic<uint64_t> disturbances{0};
  std::atomic<uint64_t> deaths[kNodesMax];  // of a node's daemons, counted when they are dead
  std::atomic<bool> disk_was_full{false};
  Register registers[kWritersMax];
  Log logs[kWritersMax];
  Holder holders[kNodesMax];
  Process processes[kProcessesMax];
  std::atomic<uint64_t> reads{0}, mapped_reads{0}, appends{0}, locks{0}, syncs{0};
  std::atomic<bool> failed{false};
  char failure[512];
  static Shared* create();
  // Keeps the first one.
  void fail(const std::string& what);
};

struct Plan {
  size_t nodes = 3;
  size_t registers_per_node = 2;
  uint64_t seed = 1;
  std::string dir;         // of the cluster
  bool only_full = false;  // nothing happens but that the log's disk is full: no other call fails
  // dir/nodeI/mnt/nodeK/NAME
  std::string path(size_t node, size_t origin, const std::string& name) const;
  size_t registers() const { return nodes * registers_per_node; }
};

// The work of one process, until shared.stop.
enum class Role { Writer, Reader, Appender, Locker };
struct Job {
  Role role;
  size_t node;
  size_t number;  // of the register, log or process of its kind
};
std::vector<Job> jobs_of(const Plan& plan);
void work(const Plan& plan, const Job& job, size_t process, Shared& shared);

// Main's side of a disturbance between a node and an origin.
void disturb(const Plan& plan, size_t node, size_t origin, Shared& shared);
void is_well(const Plan& plan, Shared& shared);  // all of them are over

// After all is well again: what the files hold, through each node. Empty: all is there.
std::string judge(const Plan& plan, Shared& shared);

}  // namespace vremote::chaos
