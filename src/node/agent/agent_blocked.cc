// Whose requests wait at this node's agent: for `vremote status --blocked`.
#include "base/overload.h"
#include "node/agent/agent_service.h"

namespace vremote::node {

using namespace coherence;

namespace {

const char* name_of(const Operation& operation) {
  return std::visit(
      Overload{[](const LookupCall&) { return "lookup"; },
               [](const CreateCall&) { return "create"; },
               [](const SymlinkCall&) { return "symlink"; },
               [](const LinkCall&) { return "link"; },
               [](const RemoveCall& r) { return r.directory ? "rmdir" : "unlink"; },
               [](const RenameCall&) { return "rename"; },
               [](const SetAttributesCall& s) { return s.has_size ? "truncate" : "setattr"; },
               [](const ReadLinkCall&) { return "readlink"; },
               [](const ReadDirectoryCall&) { return "readdir"; },
               [](const StatFsCall&) { return "statfs"; },
               [](const SyncCall&) { return "fsync"; },
               [](const GetXattrCall&) { return "getxattr"; },
               [](const ListXattrCall&) { return "listxattr"; },
               [](const SetXattrCall&) { return "setxattr"; },
               [](const RemoveXattrCall&) { return "removexattr"; },
               [](const AllocateCall&) { return "fallocate"; },
               [](const SeekCall&) { return "lseek"; },
               [](const LockCall& lock) {
                 return lock.action == LockAction::Release ? "close" : "lock";
               },
               [](const LeaveCall&) { return "leave"; },
               [](const ReclaimCall&) { return "reclaim"; },
               [](const CopyCall&) { return "copy"; }},
      operation);
}

}  // namespace

std::vector<AgentService::Waits> AgentService::waits(size_t most) {
  std::vector<Waits> out;
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    for (const auto& [token, pending] : shard->pending) {
      if (out.size() == most) return out;
      Waits& wait = out.emplace_back(Waits{.file = pending.file,
                                           .what = pending.what,
                                           .bytes = {},
                                           .tid = pending.waiting.tid,
                                           .since_ns = pending.started_ns});
      if (pending.length > 0) wait.bytes = {pending.offset, pending.offset + pending.length - 1};
    }
  }
  std::lock_guard lock(calls_mutex_);
  for (const auto& [id, pending] : calls_) {
    if (out.size() == most) return out;
    Waits& wait = out.emplace_back(Waits{.file = file_of(pending.call.operation),
                                         .what = name_of(pending.call.operation),
                                         .bytes = {},
                                         .tid = pending.waiting.tid,
                                         .since_ns = pending.started_ns});
    if (const auto* lock_call = std::get_if<LockCall>(&pending.call.operation))
      wait.bytes = {lock_call->start, lock_call->end};
  }
  return out;
}

}  // namespace vremote::node
