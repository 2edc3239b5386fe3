// What a history may look like when nodes have lost what they had (D1 to D4 of history.h).
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "sim/history.h"

namespace vremote::sim {

void History::lost(int node) { losses_.push_back({node, tick()}); }

void History::told_of_loss(int node) {
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

// Whether an fsync told somebody of this node, between these moments, that something was lost.
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

// When the write ceased to be, if it did.
const History::Loss* History::lost_at(const RegisterFile& file, std::span<const PageOp> ops,
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
    if (loss.tick > write.end) break;
  }
  return nullptr;
}

std::vector<SizeOp> History::sizes_of(const RegisterFile& file) const {
  std::vector<SizeOp> sizes = file.sizes;
  if (losses_.empty()) return sizes;
  std::set<uint64_t> gone;
  for (const auto& [p, ops] : file.pages)
    for (const PageOp& op : ops)
      if (op.write && lost_at(file, ops, op) != nullptr)
        for (uint64_t value : op.values) gone.insert(value >> 32);
  for (SizeOp& op : sizes)
    op.weak = op.kind == SizeOp::Kind::Grow && op.write != 0 && gone.contains(op.write);
  return sizes;
}

std::optional<std::string> History::check_page_with_losses(const RegisterFile& file,
                                                           std::span<const PageOp> all,
                                                           std::span<const PageOp> ops) const {
  std::vector<uint64_t> gone_at(ops.size(), kNever);
  std::vector<uint64_t> moments;
  for (size_t i = 0; i < ops.size(); ++i) {
    if (!ops[i].write) continue;
    const Loss* loss = losses_.empty() ? nullptr : lost_at(file, ops, ops[i]);
    if (loss == nullptr) continue;
    gone_at[i] = loss->tick;
    moments.push_back(loss->tick);
    if (!loss->told || ops[i].end > loss->tick) continue;  // or it had not been done yet
    for (uint64_t c = 0; c < kCells; ++c) {                // D4
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
  moments.erase(std::ranges::unique(moments).begin(), moments.end());
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
