#include "node/config/access.h"

#include <algorithm>
#include <cerrno>

#include "base/overload.h"

namespace vremote::node {

using namespace coherence;

namespace {

bool names(const std::optional<std::vector<std::string>>& list, const std::string& node) {
  return !list || std::ranges::find(*list, node) != list->end();
}

// The file of an operation that file_of() does not tell, where there are two.
FileId other_file(const Operation& operation) {
  if (auto* rename = std::get_if<RenameCall>(&operation)) return rename->to_dir;
  if (auto* link = std::get_if<LinkCall>(&operation)) return link->file;
  if (auto* copy = std::get_if<CopyCall>(&operation)) return copy->from;
  return file_of(operation);
}
ToAgent refusal(const ToHome& message, int error) {
  return std::visit(
      Overload{[&](const LeaseRequest& m) -> ToAgent {
                 return Grant{.file = m.file,
                              .request = m.request,
                              .resource = m.resource,
                              .mode = LeaseMode::None,
                              .range = m.range,
                              .error = error};
               },
               [&](const Flush& m) -> ToAgent {
                 return FlushAck{.file = m.file, .flush = m.flush, .error = error};
               },
               [&](const Fetch& m) -> ToAgent {
                 return FetchReply{.file = m.file, .fetch = m.fetch, .error = error};
               },
               [&](const Call& m) -> ToAgent { return Reply{.call = m.call, .error = error}; },
               [](const Announce& m) -> ToAgent {
                 return Announced{.file = m.file, .announcement = m.announcement};
               },
               // Nobody waits for an answer to these.
               [](const RecallAck&) -> ToAgent { return Reply{}; },
               [](const SizeShown&) -> ToAgent { return Reply{}; },
               [](const FollowWait&) -> ToAgent { return Reply{}; },
               [](const Release&) -> ToAgent { return Reply{}; }},
      message);
}

bool gives_up_only(const ToHome& message) {
  if (auto* call = std::get_if<Call>(&message))
    return std::holds_alternative<LeaveCall>(call->operation);
  return std::holds_alternative<RecallAck>(message) || std::holds_alternative<SizeShown>(message) ||
         std::holds_alternative<Release>(message);
}
// Nothing comes of it for who asks.
bool asks_nothing(const ToHome& message) { return std::holds_alternative<FollowWait>(message); }

bool writes(const ToHome& message) {
  return std::visit(
      Overload{[](const LeaseRequest& m) {
                 return m.mode == LeaseMode::Exclusive || m.mode == LeaseMode::Update;
               },
               [](const Flush&) { return true; }, [](const Announce&) { return true; },
               [](const Call& m) { return changes_something(m.operation); },
               [](const auto&) { return false; }},
      message);
}

}  // namespace

bool changes_something(const Operation& operation) {
  return std::visit(Overload{[](const CreateCall&) { return true; },
                             [](const SymlinkCall&) { return true; },
                             [](const LinkCall&) { return true; },
                             [](const RemoveCall&) { return true; },
                             [](const RenameCall&) { return true; },
                             [](const SetAttributesCall&) { return true; },
                             [](const SetXattrCall&) { return true; },
                             [](const RemoveXattrCall&) { return true; },
                             [](const AllocateCall&) { return true; },
                             [](const CopyCall&) { return true; },
                             [](const LookupCall&) { return false; },
                             [](const ReadLinkCall&) { return false; },
                             [](const ReadDirectoryCall&) { return false; },
                             [](const StatFsCall&) { return false; },
                             [](const SyncCall&) { return false; },
                             [](const GetXattrCall&) { return false; },
                             [](const ListXattrCall&) { return false; },
                             [](const SeekCall&) { return false; },
                             [](const LockCall&) { return false; },
                             [](const LeaveCall&) { return false; },
                             [](const ReclaimCall& c) { return !c.pages.empty(); }},
                    operation);
}

bool ExportAccess::may_read(const std::string& node) const { return names(readers, node); }
bool ExportAccess::may_write(const std::string& node) const {
  return !read_only && may_read(node) && names(writers, node);
}

NodeRights::NodeRights(const std::vector<ExportAccess>& exports, const std::string& node) {
  for (const ExportAccess& e : exports)
    rights_.push_back({.read = e.may_read(node),
                       .write = e.may_write(node),
                       .root_squash = e.root_squash,
                       .anonymous_uid = e.anonymous_uid,
                       .anonymous_gid = e.anonymous_gid});
}

NodeRights NodeRights::own(const std::vector<ExportAccess>& exports) {
  NodeRights all;
  for (const ExportAccess& e : exports) all.rights_.push_back({.write = !e.read_only});
  return all;
}

NodeRights::Verdict NodeRights::judge(ToHome& message) const {
  const uint32_t index = file_of(message).export_index;
  if (index >= rights_.size()) return Pass{};  // the home ends the session for it
  const Rights& rights = rights_[index];
  if (auto* call = std::get_if<Call>(&message)) {
    if (other_file(call->operation).export_index != index) return refusal(message, EXDEV);
  }
  if (!rights.read) {
    if (asks_nothing(message)) return Drop{};
    if (!gives_up_only(message)) return refusal(message, EACCES);
    if (!std::holds_alternative<Call>(message)) return Drop{};
  }
  if (!rights.write) {
    if (writes(message)) return refusal(message, EROFS);
    if (auto* ack = std::get_if<RecallAck>(&message)) ack->attributes = {};
  }
  if (auto* call = std::get_if<Call>(&message); call != nullptr && rights.root_squash) {
    Caller& caller = call->caller;
    if (caller.uid == 0) {
      caller = {.uid = rights.anonymous_uid, .gid = rights.anonymous_gid, .groups = {}};
    } else {
      if (caller.gid == 0) caller.gid = rights.anonymous_gid;
      std::erase(caller.groups, 0u);
    }
  }
  return Pass{};
}

}  // namespace vremote::node
