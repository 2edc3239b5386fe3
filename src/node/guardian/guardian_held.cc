#include "node/guardian/guardian_held.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/overload.h"
#include "fuse/reply.h"
#include "node/base/signals.h"

namespace vremote::node {
namespace {

// Beyond it requests that carry bytes are refused. Programs wait with one request each.
constexpr size_t kHeldBytesMax = size_t{256} << 20;
// So that umount(8) works.
Attributes mount_root() {
  Attributes a;
  a.inode = 1;
  a.mode = S_IFDIR | 0755;
  a.nlink = 2;
  return a;
}

// An open with O_TRUNC holds nothing back: the kernel cuts its pages when it has the answer (K8).
bool truncates(const fuse::Request& request) {
  const auto* set = std::get_if<fuse::SetAttr>(&request.body);
  return set != nullptr && set->size.has_value();
}

}  // namespace

std::optional<GuardianHeld::NamesCall> GuardianHeld::names_call(const fuse::Request& request) {
  const uint64_t node = request.header.node;
  const NamesCall looks{.directories = {node, node}, .looks_again = true};
  const NamesCall changes{.directories = {node, node}, .once = true, .looks_again = true};
  using Found = std::optional<NamesCall>;
  return std::visit(Overload{[&](const fuse::Lookup&) -> Found { return looks; },
                             [&](const fuse::ReadDir&) -> Found {
                               return NamesCall{.directories = {node, node}};
                             },
                             [&](const fuse::SetAttr&) -> Found { return changes; },
                             [&](const fuse::SetXattr&) -> Found { return changes; },
                             [&](const fuse::RemoveXattr&) -> Found { return changes; },
                             [&](const fuse::Create&) -> Found { return changes; },
                             [&](const fuse::MkNod&) -> Found { return changes; },
                             [&](const fuse::MkDir&) -> Found { return changes; },
                             [&](const fuse::Symlink&) -> Found { return changes; },
                             [&](const fuse::Link&) -> Found { return changes; },
                             [&](const fuse::Unlink&) -> Found { return changes; },
                             [&](const fuse::RmDir&) -> Found {
                               NamesCall call = changes;
                               call.of_others = true;
                               return call;
                             },
                             [&](const fuse::Rename& r) -> Found {
                               NamesCall call = changes;
                               call.directories[1] = r.new_directory;
                               call.of_others = true;
                               return call;
                             },
                             [](const auto&) -> Found { return std::nullopt; }},
                    request.body);
}

// True: it needs no daemon.
bool GuardianHeld::answer(const fuse::Request& request) {
  const uint64_t unique = request.header.wire_unique();
  const bool root = request.header.node == FUSE_ROOT_ID;
  const auto done = [&] {
    (void)channel_.reply(unique);
    return true;
  };
  return std::visit(
      Overload{
          [&](const fuse::Write& r) {
            if (!r.write_back) return false;
            recovery_.keep(request.header.node, r.offset, r.payload);
            (void)channel_.reply(unique, fuse::write_out(static_cast<uint32_t>(r.payload.size())));
            return true;
          },
          [&](const fuse::Flush&) { return done(); }, [&](const fuse::Release&) { return done(); },
          [&](const fuse::ReleaseDir&) { return done(); },
          [&](const fuse::Destroy&) { return done(); },
          [&](const fuse::GetAttr&) {
            if (!root) return false;
            (void)channel_.reply(unique, fuse::attr_out(mount_root(), 1, fuse::kNotCached));
            return true;
          },
          [&](const fuse::Statx&) {
            if (!root) return false;
            (void)channel_.reply(unique, fuse::statx_out(mount_root(), 1, fuse::kNotCached));
            return true;
          },
          [&](const fuse::StatFs&) {
            if (!root) return false;
            (void)channel_.reply(
                unique,
                fuse::statfs_out({.block_size = 4096, .name_max = 255, .fragment_size = 4096}));
            return true;
          },
          [](const auto&) { return false; }},
      request.body);
}

void GuardianHeld::take(std::span<const std::byte> bytes, bool give_back) {
  auto request = fuse::decode(bytes);
  if (!request) {
    if (auto header = fuse::decode_header(bytes); header && fuse::wants_reply(header->opcode))
      (void)channel_.reply_error(header->wire_unique(), EIO);
    return;
  }
  if (const auto* interrupt = std::get_if<fuse::Interrupt>(&request->body)) {
    const bool ours = std::ranges::any_of(
        held_, [&](const Held& held) { return held.plain == interrupt->unique && !held.answered; });
    if (ours) {
      interrupts_.push_back(interrupt->unique);
      look_at_interrupts();
    } else {
      hold(*request, bytes, true, give_back);  // the daemon has the request
    }
    return;
  }
  const bool answered = answer(*request) || !fuse::wants_reply(request->header.opcode);
  if (answered && ledger_ != nullptr) ledger_->note(*request);
  if (const auto* read = std::get_if<fuse::Read>(&request->body); read != nullptr && read->fill)
    fill_(request->header.node, read->offset, read->size);
  hold(*request, bytes, answered, give_back);
}

void GuardianHeld::write_into(GuardianLedger* ledger) {
  ledger_ = ledger;
  for (const Held& held : held_) {
    if (!held.answered) continue;
    if (auto request = fuse::decode(held.bytes)) ledger->note(*request);
  }
}

std::vector<uint64_t> GuardianHeld::written_back() const {
  std::vector<uint64_t> found;
  for (const Held& held : held_) {
    if (!held.answered) continue;
    const auto request = fuse::decode(held.bytes);
    if (!request) continue;
    if (const auto* write = std::get_if<fuse::Write>(&request->body); write && write->write_back)
      found.push_back(request->header.node);
  }
  return found;
}

std::vector<uint64_t> GuardianHeld::unseen() const {
  std::vector<uint64_t> found;
  for (const Held& held : held_)
    if (!held.answered && held.unseen) found.push_back(held.plain);
  return found;
}

void GuardianHeld::hold(const fuse::Request& request, std::span<const std::byte> bytes,
                        bool answered, bool give_back) {
  if (answered && !give_back) return;
  if (request.header.resent)
    if (auto known = std::ranges::find(held_, request.header.unique, &Held::plain);
        known != held_.end()) {
      known->unique = request.header.wire_unique();
      return;
    }
  Held held{.unique = request.header.wire_unique(),
            .plain = request.header.unique,
            .pid = request.header.pid,
            .answered = answered,
            .unseen = !request.header.resent,
            .lock = std::holds_alternative<fuse::SetLkw>(request.body),
            .truncates = truncates(request),
            .fill = {},
            .names = names_call(request),
            .since = GuardianTable::clock(),
            .bytes = {}};
  if (const auto* read = std::get_if<fuse::Read>(&request.body); read != nullptr && read->fill)
    held.fill = GuardianTable::Fill{request.header.node, read->offset, read->size};
  if (give_back) {
    if (bytes_ + bytes.size() > kHeldBytesMax) {
      // What was written back is in its recovery file.
      if (!answered) (void)channel_.reply_error(held.unique, EIO);
      spdlog::error("guardian: more than {} MiB of requests wait: one is {}", kHeldBytesMax >> 20,
                    answered ? "not given back to the daemon" : "refused (EIO)");
      return;
    }
    held.bytes.assign(bytes.begin(), bytes.end());
    bytes_ += bytes.size();
  }
  held_.push_back(std::move(held));
}

void GuardianHeld::look() {
  look_at_interrupts();
  look_at_time();
  look_at_corpse();
  look_at_truncations();
}

// One that no daemon can have seen has not happened.
void GuardianHeld::look_at_truncations() {
  if (!end_truncations_) return;
  std::erase_if(held_, [&](const Held& held) {
    if (held.answered || !held.truncates) return false;
    (void)channel_.reply_error(held.unique, held.unseen ? EINTR : EIO);
    bytes_ -= held.bytes.size();
    return true;
  });
}

void GuardianHeld::look_at_corpse() {
  const pid_t daemon = corpse_pid_;
  if (daemon == 0) {
    corpse_.reset();
    return;
  }
  const Instant now = GuardianTable::clock();
  if (!corpse_) corpse_.emplace(now, table_.purges());
  const auto is_its_own = [&](uint32_t pid) {
    return pid != 0 && ::access(fmt::format("/proc/{}/task/{}", daemon, pid).c_str(), F_OK) == 0;
  };
  std::erase_if(held_, [&](const Held& held) {
    if (held.answered) return false;
    const bool own = is_its_own(held.pid);
    if (!own && !(held.fill &&
                  corpse_->refuses(now, held.fill->node, held.fill->offset, held.fill->length)))
      return false;
    (void)channel_.reply_error(held.unique, own ? EIO : EINTR);
    bytes_ -= held.bytes.size();
    ++refused_for_corpse_;
    return true;
  });
  free_directories(now);
}

void GuardianHeld::free_directories(Instant now) {
  const GuardianCorpse::Directories due = corpse_->directories(now);
  if (due.nodes.empty()) return;
  std::erase_if(held_, [&](const Held& held) {
    if (held.answered || !held.names) return false;
    const bool holds =
        (due.also_others && held.names->of_others) ||
        std::ranges::any_of(due.nodes, [&](uint64_t node) { return held.names->holds(node); });
    if (!holds) return false;
    // What the dead daemon may have done gets no other answer from the next one.
    const bool again = held.names->looks_again && (held.unseen || !held.names->once);
    const int error = again ? ESTALE : held.unseen || !held.names->once ? EINTR : EIO;
    (void)channel_.reply_error(held.unique, error);
    bytes_ -= held.bytes.size();
    ++refused_for_corpse_;
    return true;
  });
}

void GuardianHeld::look_at_time() {
  if (soft_ms_ == 0) return;
  const Instant now = GuardianTable::clock();
  std::erase_if(held_, [&](const Held& held) {
    if (held.answered || now - held.since < soft_ms_ * 1'000'000) return false;
    (void)channel_.reply_error(held.unique, EIO);
    bytes_ -= held.bytes.size();
    return true;
  });
}

void GuardianHeld::look_at_interrupts() {
  std::erase_if(interrupts_, [&](uint64_t unique) {
    auto it = std::ranges::find_if(held_, [&](const Held& held) { return held.plain == unique; });
    if (it == held_.end()) return true;
    if (!it->lock && !is_being_killed(it->pid)) return false;
    (void)channel_.reply_error(it->unique, EINTR);
    bytes_ -= it->bytes.size();
    held_.erase(it);
    return true;
  });
}

void GuardianHeld::give_back(const std::function<bool(std::span<const std::byte>)>& send) {
  for (const Held& held : held_)
    if (!send(held.bytes)) break;
  drop();
}

}  // namespace vremote::node
