// Names in directories: what this node remembers of them, what its kernel may, and what changes
// them.
#include <limits.h>
#include <stdio.h>

#include <cerrno>

#include "base/check.h"
#include "node/agent/agent_service.h"
#include "node/agent/inode_table.h"
#include "node/agent/kernel_names.h"

namespace vremote::node {

using namespace coherence;

void AgentService::lookup(Waiting waiting, const Caller& caller, FileId dir, std::string name,
                          ThenFile then) {
  Shard& shard = shard_of(dir);
  NameCache::Answer known;
  bool has_lease = false;
  {
    std::lock_guard lock(shard.mutex);
    has_lease = shard.agent.has_entries(dir) && shard.agent.leases_good(lease_clock());
    if (has_lease) known = shard.names.find(dir, name);
  }
  if (known.known) {
    environment_.metrics->add(Counter::HitsWithoutMessage);
    if (known.file) {
      then(*known.file);
    } else {
      then(fail(ENOENT));
    }
    return;
  }
  if (has_lease) {
    lookup_at_home(waiting, caller, dir, std::move(name), std::move(then));
    return;
  }
  Then leased = [this, waiting, caller, dir, name = std::move(name),
                 then = std::move(then)](Answer lease) mutable {
    if (lease.error != 0) {
      then(fail(lease.error));
      return;
    }
    lookup_at_home(waiting, caller, dir, std::move(name), std::move(then));
  };
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.entries(
        now,
        add_pending(shard,
                    {.file = dir, .waiting = waiting, .then = std::move(leased), .what = "names"}),
        dir, actions);
  });
}

bool AgentService::give_name(uint64_t node, FileId dir, const std::string& name,
                             std::optional<FileId> file, const NameLedger::Asked& asked) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  if (!shard.agent.leases_good(lease_clock()) || !shard.agent.may_give_names(dir)) return false;
  const NameCache::Answer known = shard.names.find(dir, name);
  if (!known.known || known.file != file) return false;
  if (!environment_.kernel_names->give(node, name, file.has_value(), asked, net::EventLoop::now()))
    return false;
  shard.agent.names_given(dir);
  return true;
}

uint64_t AgentService::name_changes(FileId dir) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  return shard.names.changes();
}

void AgentService::forget_name(FileId dir, const std::string& name) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  shard.names.forget(dir, name);
}

void AgentService::lookup_at_home(Waiting waiting, const Caller& caller, FileId dir,
                                  std::string name, ThenFile then) {
  LookupCall operation{dir, name};
  const uint64_t asked = name_changes(dir);
  ThenReply found = [this, dir, asked, name = std::move(name),
                     then = std::move(then)](Reply&& reply) mutable {
    const Node* node = std::get_if<Node>(&reply.outcome);
    const std::optional<FileId> file =
        reply.error == 0 && node != nullptr ? std::optional(node->file) : std::nullopt;
    if (file || reply.error == ENOENT) {
      // Replies and recalls of one directory come in the home's order: with the lease here, this is
      // still so.
      Shard& shard = shard_of(dir);
      std::lock_guard lock(shard.mutex);
      if (shard.agent.has_entries(dir)) shard.names.remember(dir, name, file, asked);
    }
    if (file) {
      then(*file);
    } else {
      then(fail(reply.error != 0 ? reply.error : EIO));
    }
  };
  call(caller, std::move(operation), std::move(found), waiting);
}

void AgentService::list(Waiting waiting, const Caller& caller, FileId dir, uint64_t cookie,
                        uint32_t bytes_max, bool attributes, ThenReply then) {
  Then leased = [this, waiting, caller, dir, cookie, bytes_max, attributes,
                 then = std::move(then)](Answer lease) mutable {
    if (lease.error != 0) {
      then(Reply{.call = 0, .error = lease.error, .outcome = {}});
      return;
    }
    if (std::optional<DirectoryPage> known = listed_before(dir, cookie)) {
      environment_.metrics->add(Counter::HitsWithoutMessage);
      then(Reply{.call = 0, .error = 0, .outcome = std::move(*known)});
      return;
    }
    const uint64_t asked = name_changes(dir);
    ThenReply listed = [this, dir, cookie, asked, then = std::move(then)](Reply&& reply) mutable {
      if (const auto* page = std::get_if<DirectoryPage>(&reply.outcome)) {
        Shard& shard = shard_of(dir);
        std::lock_guard lock(shard.mutex);
        if (shard.agent.may_give_names(dir) && !shard.names.changing(dir) &&
            shard.names.changes() == asked)
          shard.listings.remember(dir, cookie, *page);
        if (shard.agent.has_entries(dir))
          for (const DirectoryEntry& entry : page->entries)
            if (entry.file.generation != 0 && entry.name != "." && entry.name != "..")
              shard.names.remember(dir, entry.name, entry.file, asked);
      }
      then(std::move(reply));
    };
    call(caller, ReadDirectoryCall{dir, cookie, bytes_max, attributes}, std::move(listed), waiting);
  };
  Shard& shard = shard_of(dir);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.entries(
        now,
        add_pending(shard,
                    {.file = dir, .waiting = waiting, .then = std::move(leased), .what = "names"}),
        dir, actions);
  });
}

std::optional<DirectoryPage> AgentService::listed_before(FileId dir, uint64_t cookie) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  if (!shard.agent.leases_good(lease_clock()) || !shard.agent.may_give_names(dir) ||
      shard.names.changing(dir))
    return std::nullopt;
  const DirectoryPage* page = shard.listings.find(dir, cookie);
  return page == nullptr ? std::nullopt : std::optional(*page);
}

void AgentService::call_changing(std::vector<Change> changes, Caller caller, Operation operation,
                                 ThenReply then, uint32_t tid, uint64_t request) {
  for (const Change& change : changes) {
    Shard& shard = shard_of(change.dir);
    std::lock_guard lock(shard.mutex);
    shard.names.begin_change(change.dir);
    shard.listings.forget(change.dir);
  }
  const auto* rename = std::get_if<RenameCall>(&operation);
  const bool followed = rename == nullptr || follow_rename(*rename, changes, tid);
  const bool makes = rename == nullptr && !std::holds_alternative<RemoveCall>(operation);
  // Whence a rename takes a name: the first, of an exchange both.
  const size_t moves = rename == nullptr ? 0 : (rename->flags & RENAME_EXCHANGE) != 0 ? 2 : 1;
  call(std::move(caller), std::move(operation),
       [this, changes = std::move(changes), followed, makes, moves,
        then = std::move(then)](Reply&& reply) mutable {
         for (const Change& change : changes) {
           Shard& shard = shard_of(change.dir);
           std::lock_guard lock(shard.mutex);
           shard.names.end_change(change.dir, change.name);
           // The kernel is told not to keep what is made: it may have been told to keep that there
           // is none.
           if (makes && reply.error == 0)
             environment_.kernel_names->renewed(change.node, change.name);
         }
         for (size_t i = 0; i < moves; ++i)
           environment_.kernel_names->moved(changes[i].node, changes[i].name, reply.error == 0,
                                            net::EventLoop::now());
         if (!followed) environment_.kernel_names->end_all();
         then(std::move(reply));
       },
       {nullptr, 0, tid, request});
}

// The kernel takes its right to use the old name along to the new one.
bool AgentService::follow_rename(const RenameCall& rename, const std::vector<Change>& changes,
                                 uint32_t tid) {
  VR_CHECK(changes.size() == 2);
  const auto follow = [&](const Change& from, const Change& to) {
    Shard& shard = shard_of(to.dir);
    std::lock_guard lock(shard.mutex);
    const bool leased =
        shard.agent.leases_good(lease_clock()) && shard.agent.may_give_names(to.dir);
    if (leased) shard.agent.names_given(to.dir);
    return environment_.kernel_names->move(from.node, from.name, to.node, to.name, leased, tid);
  };
  const bool there = follow(changes[0], changes[1]);
  const bool back = (rename.flags & RENAME_EXCHANGE) == 0 || follow(changes[1], changes[0]);
  return there && back;
}

void AgentService::end_names(Shard& shard, const EndNames& a, std::vector<After>& after) {
  const auto ended = [this, a] {
    with(shard_of(a.dir), [&](Agent& agent, Instant now, AgentActions& next) {
      agent.names_ended(now, a.ending, a.dir, next);
    });
  };
  {
    std::lock_guard lock(held_mutex_);
    if (holding_) {
      held_.push_back([this, a, ended] {
        const std::optional<uint64_t> node = environment_.inodes->find(this, a.dir);
        if (!node || environment_.kernel_names->end(*node, true, net::EventLoop::now(), ended))
          ended();
      });
      return;
    }
  }
  const std::optional<uint64_t> node = environment_.inodes->find(this, a.dir);
  const bool at_once = a.at_once || shard.names.changing(a.dir);
  if (!node || environment_.kernel_names->end(*node, at_once, net::EventLoop::now(), ended))
    after.push_back({.then = [ended](Answer) { ended(); }, .answer = {}, .waiting = {}});
}

}  // namespace vremote::node
