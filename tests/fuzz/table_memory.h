// The memory of a guardian's table, as its other user has it.
#pragma once

#include <cstddef>
#include <span>

#include "node/guardian/guardian_table.h"

namespace vremote::fuzz {

class TableMemory {
 public:
  explicit TableMemory(node::GuardianTable& table);
  ~TableMemory();
  TableMemory(const TableMemory&) = delete;
  TableMemory& operator=(const TableMemory&) = delete;
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

}  // namespace vremote::fuzz
