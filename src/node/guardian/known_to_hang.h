// Should the daemon be killed while a thread waits in the kernel, its guardian knows for what
// (guardian_corpse.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "node/guardian/guardian_table.h"

namespace vremote::node {

class KnownToHang {
 public:
  KnownToHang(GuardianTable* guardian, uint64_t node, uint64_t offset, uint64_t length)
      : guardian_(guardian) {
    if (guardian_ != nullptr) number_ = guardian_->purge_begins(node, offset, length);
  }
  ~KnownToHang() {
    if (guardian_ != nullptr) guardian_->purge_ended(number_);
  }
  KnownToHang(const KnownToHang&) = delete;
  KnownToHang& operator=(const KnownToHang&) = delete;

 private:
  GuardianTable* const guardian_;
  size_t number_ = 0;
};

}  // namespace vremote::node
