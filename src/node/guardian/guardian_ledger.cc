#include "node/guardian/guardian_ledger.h"

#include "base/overload.h"
#include "node/base/handle.h"

namespace vremote::node {

using coherence::LockKind;

GuardianLedger::GuardianLedger(GuardianTable& table) : table_(table), slots_(table.slots()) {
  table_.locks().learn();
}

void GuardianLedger::owes(uint64_t node) {
  if (auto it = slots_.find(node); it != slots_.end()) table_.set_owes(it->second, true);
}

void GuardianLedger::note(const fuse::Request& request) {
  const uint64_t node = request.header.node;
  const auto slot = [&] {
    auto it = slots_.find(node);
    return it == slots_.end() ? GuardianTable::kNoSlot : it->second;
  };
  std::visit(Overload{
                 [&](const fuse::Release& r) {
                   const auto opening = opening_of(r.fh);
                   table_.closed(slot(), opening.reads, opening.may_map);
                   table_.locks().drop(r.fh);
                 },
                 [&](const fuse::Flush& r) {
                   table_.locks().drop(node, static_cast<uint8_t>(LockKind::Range), r.lock_owner);
                 },
                 [&](const fuse::Write& r) {
                   if (r.write_back) owes(node);
                 },
                 [&](const fuse::Forget& r) { forget(r.node != 0 ? r.node : node, r.lookups); },
                 [&](const fuse::BatchForget& r) {
                   for (const fuse::Forget& f : r.forgets) forget(f.node, f.lookups);
                 },
                 [](const auto&) {},
             },
             request.body);
}

void GuardianLedger::forget(uint64_t node, uint64_t lookups) {
  auto it = slots_.find(node);
  if (it == slots_.end()) return;
  const uint64_t known = table_.lookups(it->second);
  if (known > lookups) {
    table_.set_lookups(it->second, known - lookups);
    return;
  }
  table_.remove_inode(it->second);
  slots_.erase(it);
}

}  // namespace vremote::node
