#include "coherence/operation_needs.h"

#include <algorithm>
#include <string_view>

#include "base/overload.h"

namespace vremote::coherence {
namespace {

using Needs = std::vector<OperationNeed>;

constexpr std::string_view kFileCapabilities = "security.capability";

// The caller keeps its Entries lease: it sees to its own names (it asks the home for each while the
// operation runs).
OperationNeed entries(FileId dir, LeaseMode mode, NodeId caller) {
  return {dir, Resource::Entries, mode, kUnit,
          mode == LeaseMode::Exclusive ? std::optional(caller) : std::nullopt};
}

Needs attributes(std::vector<FileId> files) {
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  Needs needs;
  for (FileId file : files)
    needs.push_back({file, Resource::Attributes, LeaseMode::Exclusive, kUnit, {}});
  return needs;
}

}  // namespace

std::vector<OperationNeed> first_needs(NodeId caller, const Operation& operation) {
  return std::visit(
      Overload{
          [&](const LookupCall& c) { return Needs{entries(c.dir, LeaseMode::Shared, caller)}; },
          [&](const ReadDirectoryCall& c) {
            return Needs{entries(c.dir, LeaseMode::Shared, caller)};
          },
          [&](const CreateCall& c) {
            if (c.is_nameless()) return Needs{};
            return Needs{entries(c.dir, LeaseMode::Exclusive, caller)};
          },
          [&](const SymlinkCall& c) { return Needs{entries(c.dir, LeaseMode::Exclusive, caller)}; },
          [&](const LinkCall& c) { return Needs{entries(c.dir, LeaseMode::Exclusive, caller)}; },
          [&](const RemoveCall& c) { return Needs{entries(c.dir, LeaseMode::Exclusive, caller)}; },
          [&](const RenameCall& c) {
            if (c.from_dir == c.to_dir)
              return Needs{entries(c.from_dir, LeaseMode::Exclusive, caller)};
            Needs needs{entries(std::min(c.from_dir, c.to_dir), LeaseMode::Exclusive, caller),
                        entries(std::max(c.from_dir, c.to_dir), LeaseMode::Exclusive, caller)};
            return needs;
          },
          // A program that has been changed loses its capabilities: the disk takes them away when
          // the bytes come.
          [&](const GetXattrCall& c) {
            if (c.name != kFileCapabilities) return Needs{};
            return Needs{{c.file, Resource::Data, LeaseMode::Shared, PageRange::all(), {}}};
          },
          [&](const auto&) { return Needs{}; },
      },
      operation);
}

std::vector<NameIn> names_of(const Operation& operation) {
  using Names = std::vector<NameIn>;
  return std::visit(Overload{
                        [](const CreateCall& c) {
                          return c.is_nameless() ? Names{} : Names{{c.dir, c.name}};
                        },
                        [](const RemoveCall& c) {
                          return Names{{c.dir, c.name}};
                        },
                        [](const RenameCall& c) {
                          return Names{{c.from_dir, c.from}, {c.to_dir, c.to}};
                        },
                        [](const auto&) { return Names{}; },
                    },
                    operation);
}

std::vector<OperationNeed> second_needs(NodeId caller, const Operation& operation,
                                        const std::vector<FileId>& named) {
  return std::visit(
      Overload{
          // Without O_EXCL an existing file is only looked up.
          [&](const CreateCall& c) {
            return named.empty() && !c.is_nameless() ? attributes({c.dir}) : Needs{};
          },
          [&](const SymlinkCall& c) { return attributes({c.dir}); },
          [&](const LinkCall& c) {
            return attributes({c.dir, c.file});
          },
          [&](const RemoveCall& c) {
            std::vector<FileId> files{c.dir};
            files.insert(files.end(), named.begin(), named.end());
            return attributes(std::move(files));
          },
          [&](const RenameCall& c) {
            std::vector<FileId> files{c.from_dir, c.to_dir};
            files.insert(files.end(), named.begin(), named.end());
            return attributes(std::move(files));
          },
          [&](const SetAttributesCall& c) {
            Needs needs = attributes({c.file});
            // K8: the caller's kernel holds its write-backs and drops its pages by itself; its
            // agent sends nothing beyond the new end meanwhile.
            if (c.has_size) {
              needs.push_back({c.file,
                               Resource::Data,
                               LeaseMode::Exclusive,
                               {std::min(c.size >> kPageShift, kPageEnd - 1), kPageEnd},
                               caller});
              for (OperationNeed& need : needs) need.truncation_of = caller;
            }
            return needs;
          },
          [&](const AllocateCall& c) {
            Needs needs = attributes({c.file});
            needs.push_back({c.file,
                             Resource::Data,
                             LeaseMode::Exclusive,
                             {std::min(c.offset >> kPageShift, kPageEnd - 1), kPageEnd},
                             {}});
            return needs;
          },
          // Without the Attributes of the source: its bytes bring the size they need (Flush).
          [&](const CopyCall& c) {
            const PageRange target = PageRange::of_bytes(c.offset, c.length);
            const PageRange source{c.from_offset >> kPageShift, kPageEnd};
            Needs needs = attributes({c.file});
            if (c.from == c.file) {
              needs.push_back({c.file,
                               Resource::Data,
                               LeaseMode::Exclusive,
                               {std::min(source.first, target.first), kPageEnd},
                               {}});
              return needs;
            }
            needs.push_back({c.file, Resource::Data, LeaseMode::Exclusive, target, {}});
            const OperationNeed read{c.from, Resource::Data, LeaseMode::Shared, source, {}};
            needs.insert(c.from < c.file ? needs.end() - 1 : needs.end(), read);
            return needs;
          },
          // Where the holes are is known once every node's dirty bytes are on disk.
          [&](const SeekCall& c) {
            return Needs{{c.file, Resource::Attributes, LeaseMode::Shared, kUnit, {}},
                         {c.file, Resource::Data, LeaseMode::Shared, PageRange::all(), {}}};
          },
          // Bytes that come to the disk later would take the new ones away.
          [&](const SetXattrCall& c) {
            Needs needs = attributes({c.file});
            if (c.name == kFileCapabilities)
              needs.push_back({c.file, Resource::Data, LeaseMode::Shared, PageRange::all(), {}});
            return needs;
          },
          [&](const RemoveXattrCall& c) { return attributes({c.file}); },
          [&](const auto&) { return Needs{}; },
      },
      operation);
}

std::vector<OperationNeed> outside_needs(FileId file, const OutsideChange& change) {
  Needs needs;
  if (change.entries) needs.push_back({file, Resource::Entries, LeaseMode::Exclusive, kUnit, {}});
  if (change.attributes)
    needs.push_back({file, Resource::Attributes, LeaseMode::Exclusive, kUnit, {}});
  if (change.data)
    needs.push_back({file, Resource::Data, LeaseMode::Exclusive, PageRange::all(), {}});
  return needs;
}

std::optional<FileId> may_grow(const Operation& operation) {
  using Maybe = std::optional<FileId>;
  return std::visit(Overload{
                        [](const SetAttributesCall& c) {
                          return c.has_size && c.size > 0 ? Maybe(c.file) : Maybe();
                        },
                        [](const AllocateCall& c) { return Maybe(c.file); },
                        [](const CopyCall& c) { return Maybe(c.file); },
                        [](const auto&) { return Maybe(); },
                    },
                    operation);
}

bool is_quick(const Operation& operation) {
  return std::holds_alternative<LookupCall>(operation) ||
         std::holds_alternative<ReadLinkCall>(operation) ||
         std::holds_alternative<GetXattrCall>(operation) ||
         std::holds_alternative<StatFsCall>(operation);
}

std::vector<FileId> changed_files(const Operation& operation) {
  using Files = std::vector<FileId>;
  return std::visit(
      Overload{
          [](const CreateCall& c) { return c.is_nameless() ? Files{} : Files{c.dir}; },
          [](const SymlinkCall& c) { return Files{c.dir}; },
          [](const LinkCall& c) {
            return Files{c.dir, c.file};
          },
          [](const RemoveCall& c) { return Files{c.dir}; },
          [](const RenameCall& c) {
            return Files{c.from_dir, c.to_dir};
          },
          [](const SetAttributesCall& c) { return Files{c.file}; },
          [](const SetXattrCall& c) { return Files{c.file}; },
          [](const RemoveXattrCall& c) { return Files{c.file}; },
          [](const AllocateCall& c) { return Files{c.file}; },
          [](const CopyCall& c) { return Files{c.file}; },
          [](const auto&) { return Files{}; },
      },
      operation);
}

bool is_claim(const Operation& operation) {
  const auto* lock = std::get_if<LockCall>(&operation);
  return std::holds_alternative<ReclaimCall>(operation) ||
         (lock != nullptr && lock->action == LockAction::Reclaim);
}

bool gives_up(const Operation& operation) {
  if (const auto* lock = std::get_if<LockCall>(&operation))
    return lock->action == LockAction::Cancel || lock->action == LockAction::Release ||
           lock->type == LockType::Unlock;
  return std::holds_alternative<LeaveCall>(operation) ||
         std::holds_alternative<ReclaimCall>(operation);
}

// Locks end with the session that holds them: in the next, a lock call that was carried out has not
// been. A truncation made again would cut what others have written since, a mode would be the old
// one again.
bool is_repeatable(const Operation& operation) {
  if (const auto* set = std::get_if<SetAttributesCall>(&operation))
    return !set->has_mode && !set->has_uid && !set->has_gid && !set->has_size && !set->has_atime &&
           !set->has_mtime;
  return is_quick(operation) || std::holds_alternative<ReadDirectoryCall>(operation) ||
         std::holds_alternative<SyncCall>(operation) ||
         std::holds_alternative<ListXattrCall>(operation) ||
         std::holds_alternative<SeekCall>(operation) || std::holds_alternative<LockCall>(operation);
}

bool is_made_again(const Operation& operation, bool kept, bool disk_has_lost, Mistakes mistakes) {
  kept = kept && (!disk_has_lost || mistakes.has(Mistake::RepeatAfterPowerLoss));
  const auto* set = std::get_if<SetAttributesCall>(&operation);
  if (set != nullptr && set->has_size && !kept) return mistakes.has(Mistake::RepeatTruncations);
  if (is_claim(operation)) return false;
  return kept || is_repeatable(operation);
}

}  // namespace vremote::coherence
