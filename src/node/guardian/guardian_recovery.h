// Keeps what the kernel writes back while no daemon answers (rule G1 of guardian.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>

#include "base/fd.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

// One recovery file for each file of an origin. Any thread.
class GuardianRecovery {
 public:
  GuardianRecovery(std::string directory, const GuardianTable& table)
      : directory_(std::move(directory)), table_(table) {}
  void keep(uint64_t node, uint64_t offset, std::span<const std::byte> bytes);
  void sync();
  // The daemon has the bytes again.
  void remove();
  uint64_t bytes() const;

 private:
  struct File {
    std::string path;
    Fd fd;
  };
  File* file_of(uint64_t node);

  const std::string directory_;
  const GuardianTable& table_;
  mutable std::mutex mutex_;
  std::map<uint64_t, File> files_;  // by node
  uint64_t bytes_ = 0;
};

}  // namespace vremote::node
