// What other nodes may do with the exports of this one: decided here, at the origin, for every
// message.
//
// 1. Nothing that an agent says of itself counts but its node's name, which TLS has proved.
// 2. A node that may not read an export is not told of it, and gets EACCES for whatever it asks of
//    it.
// 3. A node that may not write gets EROFS for calls that change something, for requests of leases
//    that would let it, and for its flushes. What gives up something (acks, releases) passes, less
//    what it says to have changed.
// 4. An operation stays within one export: the rights on one say nothing of another's files.
// 5. With root_squash, what is asked for in the name of root is asked for by nobody. The store then
//    judges every caller by its own file system (store::Options::judge_callers): an agent that says
//    to have judged already is not believed.
//
// Contents are a matter of the node: an agent fetches and flushes pages without a caller. Who on it
// may see them, its own kernel decides.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "coherence/messages.h"

namespace vremote::node {

struct ExportAccess {
  bool read_only = false;  // nobody writes, this node included
  // Names of other nodes; empty: all of them. Who may not read may not write either.
  std::optional<std::vector<std::string>> readers, writers;
  bool root_squash = false;
  uint32_t anonymous_uid = 65534, anonymous_gid = 65534;

  bool may_read(const std::string& node) const;
  bool may_write(const std::string& node) const;
};

// Of one node, on each export.
class NodeRights {
 public:
  NodeRights(const std::vector<ExportAccess>& exports, const std::string& node);
  // Of the node whose exports they are: only `read_only` is also for it.
  static NodeRights own(const std::vector<ExportAccess>& exports);

  bool may_read(size_t export_index) const { return rights_.at(export_index).read; }
  bool may_write(size_t export_index) const { return rights_.at(export_index).write; }

  struct Pass {};                                                // on to the home, perhaps changed
  struct Drop {};                                                // means nothing from this node
  using Verdict = std::variant<Pass, Drop, coherence::ToAgent>;  // or the answer
  Verdict judge(coherence::ToHome& message) const;

 private:
  struct Rights {
    bool read = true, write = true, root_squash = false;
    uint32_t anonymous_uid = 0, anonymous_gid = 0;
  };
  NodeRights() = default;
  std::vector<Rights> rights_;
};

// True for operations that change the file system.
bool changes_something(const coherence::Operation& operation);

}  // namespace vremote::node
