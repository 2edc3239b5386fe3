// Which leases an operation at the home takes before it runs (coherence/home.h, OperationNeed).
#pragma once

#include <vector>

#include "coherence/home.h"

namespace vremote::coherence {

// The first part: what the call itself tells. In the order to take them.
std::vector<OperationNeed> first_needs(NodeId caller, const Operation& operation);

// The names whose files the second part needs, looked up once the first part is held.
struct NameIn {
  FileId dir;
  std::string name;
};
std::vector<NameIn> names_of(const Operation& operation);

// The second part, given the files of those names that exist. In the order to take them.
std::vector<OperationNeed> second_needs(NodeId caller, const Operation& operation,
                                        const std::vector<FileId>& named);

// Only reads: may run on a thread that should not wait long.
bool is_quick(const Operation& operation);
// Doing it twice is as good as once.
bool is_idempotent(const Operation& operation);

}  // namespace vremote::coherence
