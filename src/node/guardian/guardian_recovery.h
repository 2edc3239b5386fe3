// Keeps what the kernel writes back while no daemon answers (rule G1 of guardian.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <string>

#include "node/guardian/guardian_table.h"
#include "node/recovery/rescued_file.h"

namespace vremote::node {

// One recovery file for each file of an origin. Any thread.
class GuardianRecovery {
 public:
  GuardianRecovery(std::string directory, const GuardianTable& table)
      : directory_(std::move(directory)), table_(table) {}
  void keep(uint64_t node, uint64_t offset, std::span<const std::byte> bytes);
  // The log tells what became of it.
  void sync();
  // The daemon has the bytes again.
  void remove();
  uint64_t bytes() const;

 private:
  RescuedFile* file_of(uint64_t node);
  void settle_all();

  const std::string directory_;
  const GuardianTable& table_;
  mutable std::mutex mutex_;
  std::map<uint64_t, RescuedFile> files_;  // by node
  std::set<uint64_t> unsettled_;
};

}  // namespace vremote::node
