// What a history may look like when nodes have lost what they had (D1 to D4 of history.h).
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "sim/history.h"

namespace vremote::sim {

void History::lost(int node, bool claims_stay) {
  losses_.push_back({.node = node, .tick = tick(), .claims_stay = claims_stay});
}

void History::brings_back_to(uint32_t number, int node, uint64_t size) {
  auto it = registers_.find(number);
  if (it == registers_.end()) return;
  it->second.sizes.push_back({.begin = tick(),
                              .end = kNever,
                              .kind = SizeOp::Kind::Grow,
                              .size = size,
                              .what = "bytes brought back",
                              .node = node,
                              .weak = true});
}

void History::power_lost() {
  for (auto& [number, file] : registers_)
    for (SizeOp& op : file.sizes)
      if (op.weak && op.end == kNever) op.end = tick();
  losses_.push_back({.node = -1, .tick = tick(), .power = true});
  ++power_losses_;
}

void History::exposed(uint32_t file, std::span<const std::byte> page) {
  auto it = registers_.find(file);
  if (it == registers_.end()) return;
  for (uint64_t at = 0; at + kCell <= page.size(); at += kCell) {
    uint64_t value = 0;
    std::memcpy(&value, page.data() + at, sizeof value);
    if (value != 0) it->second.exposed.insert(value);
  }
}

void History::told_of_loss(int node, uint64_t since) {
  if (std::ranges::none_of(losses_, [&](const Loss& loss) {
        return !loss.power && loss.node == node && loss.tick > since;
      }))
    lost(node);
  for (Loss& loss : losses_)
    if (loss.node == node) loss.told = true;
}

void History::rescued(uint32_t file, uint64_t offset, std::span<const std::byte> bytes) {
  auto it = registers_.find(file);
  if (it == registers_.end()) return;
  for (uint64_t at = (kCell - offset % kCell) % kCell; at + kCell <= bytes.size(); at += kCell) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    it->second.rescued.insert(value);
  }
}

void History::sync_failed(uint32_t file, Interval when) {
  ++operations_;
  if (auto it = registers_.find(file); it != registers_.end())
    it->second.failed_syncs.push_back(when);
}

void History::appended_somewhere(uint32_t file, Interval when, uint64_t length, uint64_t write) {
  if (auto it = registers_.find(file); it != registers_.end())
    it->second.somewhere.push_back({when, length, write});
}

void History::place_appends(uint32_t number) {
  RegisterFile& file = registers_[number];
  for (const Somewhere& append : std::exchange(file.somewhere, {})) {
    std::optional<uint64_t> offset;
    const auto look_at = [&](uint64_t p, uint64_t c, uint64_t value) {
      if (value >> 32 == append.write)
        offset = p * kPageSize + c * kCell - (value & 0x7fffffff) * kCell;
    };
    for (const auto& [p, ops] : file.pages)
      for (const PageOp& op : ops)
        for (uint64_t c = 0; c < kCells; ++c)
          if (!op.write && (op.cells >> c & 1) != 0) look_at(p, c, op.values[c]);
    for (const Sync& sync : file.syncs)
      for (const auto& [p, values] : sync.pages)
        for (uint64_t c = 0; c < kCells; ++c) look_at(p, c, values[c]);
    if (!offset) {
      file.sizes_unknown = true;
      continue;
    }
    page_ops(number, append.when, *offset, append.length, true, append.write, true, {});
    file.sizes.push_back({append.when.begin, append.when.end, SizeOp::Kind::Grow,
                          *offset + append.length, append.when.what, append.when.node,
                          append.write});
  }
}

// Whether an fsync told somebody of this node, between these moments, that something was lost. (The
// inode's lock has the fsyncs of a node come one after the other.)
bool History::told(const RegisterFile& file, int node, uint64_t from, uint64_t to) const {
  return std::ranges::any_of(file.failed_syncs, [&](const Interval& sync) {
    return sync.node == node && sync.end > from && sync.begin < to;
  });
}

bool History::secured(const RegisterFile& file, int node, uint64_t begin, uint64_t end) const {
  return std::ranges::any_of(file.syncs, [&](const Sync& sync) {
    return sync.when.node == node && sync.when.begin > end &&
           !told(file, node, begin, sync.when.end);
  });
}

// It, or what was written over it on its node before it went to the origin; or it was cut off and
// the truncation went.
bool History::may_go_with_power(const RegisterFile& file, std::span<const PageOp> ops,
                                const PageOp& write) const {
  for (const auto& truncation : file.truncations)
    if (truncation.when.end >= write.begin) return true;
  for (uint64_t c = 0; c < kCells; ++c) {
    if ((write.cells >> c & 1) == 0) continue;
    if (write.values[c] == 0) return true;
    for (const PageOp& op : ops)
      if (op.write && (op.cells >> c & 1) != 0 && op.node == write.node && op.end >= write.begin &&
          file.exposed.contains(op.values[c]))
        return true;
    // with_truncations() may have taken them out.
    const bool appended = (write.values[c] & 0x80000000u) != 0;
    for (const Store& store : file.stores)
      if (store.cell == c && store.end >= write.begin && file.exposed.contains(store.value) &&
          (appended || (store.value & 0xffffffffu) == (write.values[c] & 0xffffffffu)))
        return true;
  }
  return false;
}

// S1, S2: the node that wrote it, or one that has seen it, has had it synced since.
bool History::secured_on_disk(const RegisterFile& file, std::span<const PageOp> ops,
                              const PageOp& write) const {
  if (secured(file, write.node, write.begin, write.end)) return true;
  for (const PageOp& read : ops) {
    if (read.write || read.node == write.node) continue;
    bool saw = false;
    for (uint64_t c = 0; c < kCells; ++c)
      saw = saw || (((read.cells & write.cells) >> c & 1) != 0 && write.values[c] != 0 &&
                    read.values[c] == write.values[c]);
    if (saw && secured(file, read.node, read.begin, read.end)) return true;
  }
  return false;
}

// When the write ceased to be, if it did.
const History::Loss* History::lost_at(const RegisterFile& file, std::span<const PageOp> ops,
                                      const PageOp& write) const {
  const Loss* node = lost_with_node(file, ops, write);
  const Loss* power = lost_with_power(file, ops, write);
  // In between nobody has seen it.
  return node == nullptr || (power != nullptr && power->tick < node->tick) ? power : node;
}

// Of zeroes (a truncation) nobody can tell whether they were seen.
const History::Loss* History::lost_with_power(const RegisterFile& file, std::span<const PageOp> ops,
                                              const PageOp& write) const {
  if (power_losses_ == 0 || write.node < 0 || !may_go_with_power(file, ops, write) ||
      secured_on_disk(file, ops, write))
    return nullptr;
  std::vector<const PageOp*> seen;
  for (const PageOp& op : ops)
    for (uint64_t c = 0; c < kCells && !op.write; ++c)
      if (((op.cells & write.cells) >> c & 1) != 0 && write.values[c] != 0 &&
          op.values[c] == write.values[c])
        seen.push_back(&op);
  // Gone from the disk it may be left in a page that a node has claimed (R6). Nobody else sees it
  // then, and it goes with that node's session.
  const Loss* power = nullptr;
  for (const Loss& loss : losses_) {
    if (loss.tick < write.begin) continue;
    if (loss.power) power = &loss;
    if (power != nullptr && std::ranges::none_of(seen, [&](const PageOp* read) {
          return read->begin >= loss.tick ||
                 (read->begin >= power->tick && read->node != loss.node);
        }))
      return &loss;
  }
  return nullptr;
}

const History::Loss* History::lost_with_node(const RegisterFile& file, std::span<const PageOp> ops,
                                             const PageOp& write) const {
  if (write.durable || write.node < 0 || secured(file, write.node, write.begin, write.end))
    return nullptr;
  uint64_t last_seen = 0;  // by that node
  for (const PageOp& op : ops) {
    if (op.write) continue;
    for (uint64_t c = 0; c < kCells; ++c) {
      if (((op.cells & write.cells) >> c & 1) == 0 || op.values[c] != write.values[c]) continue;
      if (op.node != write.node) return nullptr;
      last_seen = std::max(last_seen, op.begin);
    }
  }
  for (const Loss& loss : losses_) {
    if (loss.node != write.node || loss.tick < write.begin) continue;
    if (last_seen < loss.tick) return &loss;
    if (loss.tick > write.end && !loss.claims_stay) break;
  }
  return nullptr;
}

std::vector<SizeOp> History::sizes_of(const RegisterFile& file) const {
  std::vector<SizeOp> sizes = file.sizes;
  if (losses_.empty()) return sizes;
  std::set<uint64_t> gone;
  for (const auto& [p, whole] : file.pages) {
    const std::vector<PageOp> ops = cut_by_ends(file, whole);
    for (const PageOp& op : ops)
      if (op.write && lost_at(file, ops, op) != nullptr)
        for (uint64_t value : op.values) gone.insert(value >> 32);
  }
  const auto may_be_undone = [&](const SizeOp& op) {
    return op.kind == SizeOp::Kind::Set && op.begin != 0 &&
           !secured(file, op.node, op.begin, op.end) &&
           std::ranges::any_of(
               losses_, [&](const Loss& loss) { return loss.power && loss.tick >= op.begin; });
  };
  for (SizeOp& op : sizes)
    op.weak = op.weak ||
              (op.kind == SizeOp::Kind::Grow && op.write != 0 && gone.contains(op.write)) ||
              may_be_undone(op);
  return sizes;
}

// The end of the file that a loss of power leaves may lie in the midst of a write: each of its
// cells is there or not.
std::vector<PageOp> History::cut_by_ends(const RegisterFile& file,
                                         std::span<const PageOp> whole) const {
  std::vector<PageOp> ops;
  for (const PageOp& op : whole) {
    const bool may_be_cut =
        op.write && op.node >= 0 && !std::has_single_bit(op.cells) &&
        std::ranges::any_of(
            losses_, [&](const Loss& loss) { return loss.power && loss.tick >= op.begin; }) &&
        may_go_with_power(file, whole, op) && !secured(file, op.node, op.begin, op.end);
    if (!may_be_cut) {
      ops.push_back(op);
      continue;
    }
    for (uint64_t c = 0; c < kCells; ++c) {
      if ((op.cells >> c & 1) == 0) continue;
      ops.push_back(op);
      ops.back().cells = static_cast<uint8_t>(1u << c);
    }
  }
  return ops;
}

std::optional<std::string> History::check_page_with_losses(const RegisterFile& file,
                                                           std::span<const PageOp> all,
                                                           std::span<const PageOp> whole) const {
  const std::vector<PageOp> ops = cut_by_ends(file, whole);
  std::vector<uint64_t> gone_at(ops.size(), kNever);
  std::vector<uint64_t> moments;
  for (size_t i = 0; i < ops.size(); ++i) {
    if (!ops[i].write) continue;
    const Loss* loss = losses_.empty() ? nullptr : lost_at(file, ops, ops[i]);
    if (loss == nullptr) continue;
    gone_at[i] = loss->tick;
    moments.push_back(loss->tick);
    if (!loss->told || ops[i].end > loss->tick) continue;  // or it had not been done yet
    // Then it had been flushed.
    if (power_losses_ > 0 && lost_with_power(file, ops, ops[i]) != nullptr) continue;
    for (uint64_t c = 0; c < kCells; ++c) {  // D4
      if ((ops[i].cells >> c & 1) == 0 || file.rescued.contains(ops[i].values[c])) continue;
      const auto covers = [&](const PageOp& other) {
        return other.write && other.values != ops[i].values && (other.cells >> c & 1) != 0 &&
               other.end > ops[i].begin;
      };
      const bool covered = std::ranges::any_of(all, covers) || std::ranges::any_of(ops, covers);
      if (!covered)
        return fmt::format("{} on n{} [{}, {}], cell {}, is lost and in no recovery file",
                           ops[i].what, ops[i].node, ops[i].begin, ops[i].end, c);
    }
  }
  std::ranges::sort(moments);
  moments.erase(std::unique(moments.begin(), moments.end()), moments.end());
  // Between two moments in which something went: what went before never was, what went later was
  // there.
  for (size_t i = 0; i <= moments.size(); ++i) {
    const uint64_t from = i == 0 ? 0 : moments[i - 1];
    const uint64_t to = i == moments.size() ? kNever : moments[i];
    std::vector<PageOp> seen;
    for (size_t k = 0; k < ops.size(); ++k) {
      PageOp op = ops[k];
      if (op.begin >= to) continue;
      if (op.write) {
        if (gone_at[k] <= from) continue;
        if (op.end > to) op.end = kNever;
      } else {
        if (op.end > to) continue;
        for (size_t w = 0; w < ops.size(); ++w) {
          if (gone_at[w] > from) continue;
          for (uint64_t c = 0; c < kCells; ++c)
            if ((op.cells & ops[w].cells) >> c & 1 && op.values[c] == ops[w].values[c])
              op.cells &= static_cast<uint8_t>(~(1u << c));
        }
        if (op.cells == 0) continue;
      }
      seen.push_back(op);
    }
    if (auto what = check_page(seen))
      return moments.empty()
                 ? *what
                 : fmt::format("{} (of what was not lost in [{}, {}))", *what, from,
                               to == kNever ? std::string("the end") : fmt::format("{}", to));
  }
  return std::nullopt;
}

}  // namespace vremote::sim
