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

// What somebody did to a file of the export without asking the home: a program on the origin that
// uses the exported directory itself.
struct OutsideChange {
  bool entries = false, attributes = false, data = false;
  bool any() const { return entries || attributes || data; }
  OutsideChange& operator|=(const OutsideChange& other) {
    entries = entries || other.entries;
    attributes = attributes || other.attributes;
    data = data || other.data;
    return *this;
  }
  bool operator==(const OutsideChange&) const = default;
  static constexpr OutsideChange everything() { return {true, true, true}; }
};
// An operation of nobody, which does nothing once it has these: every node, the origin's own
// included, has then given up what the change has made old (and what it had dirty is on the disk).
std::vector<OperationNeed> outside_needs(FileId file, const OutsideChange& change);

// Only reads: may run on a thread that should not wait long.
// The file that the operation may make longer.
std::optional<FileId> may_grow(const Operation& operation);

bool is_quick(const Operation& operation);
// Brings back what the node had before the home's restart: the node has not brought back all while
// one of them is not answered, and it belongs to the session in which it was made.
bool is_claim(const Operation& operation);
// Only lets go of something; never refused for lack of room.
bool gives_up(const Operation& operation);
// The files and directories of which it changes what is on the disk.
std::vector<FileId> changed_files(const Operation& operation);
// Doing it twice is as good as once.
bool is_repeatable(const Operation& operation);
// Whether a node makes a call again whose reply had not come when the session ended; otherwise it
// ends with EIO, and may have happened. `kept`: the home has restarted, lets the node bring back
// what it had, and knows what it had done of the calls (R4). `disk_has_lost`: its notes of that,
// perhaps, and what the calls had done (S3).
bool is_made_again(const Operation& operation, bool kept, bool disk_has_lost = false,
                   Mistakes mistakes = {});

}  // namespace vremote::coherence
