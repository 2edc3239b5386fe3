// The register checkers: pages and sizes.
#include <fmt/format.h>

#include <algorithm>

#include "sim/history.h"

namespace vremote::sim {
namespace {

std::string describe(const PageOp& op) {
  std::string cells;
  for (uint64_t c = 0; c < kCells; ++c) {
    if ((op.cells >> c & 1) == 0) continue;
    cells += op.values[c] == 0 ? fmt::format(" {}:zero", c)
                               : fmt::format(" {}:w{}", c, op.values[c] >> 32);
  }
  return fmt::format("{} on n{} [{}, {}] cells{}", op.what, op.node, op.begin,
                     op.end == kNever ? std::string("never") : fmt::format("{}", op.end), cells);
}

// The transitive closure of "must come before".
class Order {
 public:
  explicit Order(size_t count) : count_(count), words_((count + 63) / 64), bits_(count * words_) {}

  bool before(size_t a, size_t b) const {
    return (bits_[a * words_ + b / 64] >> (b % 64) & 1) != 0;
  }
  // True when that was news.
  bool add(size_t a, size_t b) {
    if (before(a, b)) return false;
    for (size_t x = 0; x < count_; ++x) {
      if (x != a && !before(x, a)) continue;
      set(x, b);
      for (size_t w = 0; w < words_; ++w) bits_[x * words_ + w] |= bits_[b * words_ + w];
    }
    return true;
  }
  void set(size_t a, size_t b) { bits_[a * words_ + b / 64] |= uint64_t{1} << (b % 64); }

 private:
  size_t count_, words_;
  std::vector<uint64_t> bits_;
};

class PageCheck {
 public:
  explicit PageCheck(std::span<const PageOp> ops) : ops_(ops), order_(ops.size()) {}

  std::optional<std::string> run() {
    for (size_t a = 0; a < ops_.size(); ++a) {
      for (size_t b = 0; b < ops_.size(); ++b) {
        if (a != b && ops_[a].end < ops_[b].begin) order_.set(a, b);
      }
      if (ops_[a].write) {
        for (uint64_t c = 0; c < kCells; ++c) {
          if (covers(a, c)) writers_[c].push_back(a);
        }
      }
    }
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t r = 0; r < ops_.size(); ++r) {
        if (ops_[r].write) continue;
        for (uint64_t c = 0; c < kCells; ++c) {
          if (!covers(r, c)) continue;
          if (!follow(r, c, changed)) return failure_;
        }
      }
    }
    return std::nullopt;
  }

 private:
  bool covers(size_t op, uint64_t cell) const { return (ops_[op].cells >> cell & 1) != 0; }

  // What reading its value on cell `c` says about the order; false: a contradiction.
  bool follow(size_t r, uint64_t c, bool& changed) {
    const uint64_t value = ops_[r].values[c];
    size_t candidates = 0, source = 0, killer = SIZE_MAX, refused = SIZE_MAX;
    for (size_t w : writers_[c]) {
      if (ops_[w].values[c] != value) continue;
      if (order_.before(r, w)) {
        refused = w;
        continue;
      }
      bool dead = false;
      for (size_t other : writers_[c]) {
        if (other != w && order_.before(w, other) && order_.before(other, r)) {
          dead = true;
          killer = other;
          refused = w;
          break;
        }
      }
      if (dead) continue;
      source = w;
      if (++candidates > 1) return true;  // only zeroes have several sources: say nothing yet
    }
    if (candidates == 0) {
      failure_ = fmt::format("{} cannot have read cell {}", describe(ops_[r]), c);
      if (refused == SIZE_MAX) {
        failure_ += ": nobody wrote that value there";
      } else {
        failure_ += fmt::format(": its source {}", describe(ops_[refused]));
        failure_ += killer == SIZE_MAX
                        ? " comes after it"
                        : fmt::format(" was overwritten by {}", describe(ops_[killer]));
      }
      return false;
    }
    changed |= order_.add(source, r);
    for (size_t other : writers_[c]) {
      if (other == source) continue;
      if (order_.before(other, r)) changed |= order_.add(other, source);
      if (order_.before(source, other)) changed |= order_.add(r, other);
    }
    for (size_t x : {r, source}) {
      if (order_.before(x, x)) {
        failure_ =
            fmt::format("no order of the operations explains {} with its source {} (cell {})",
                        describe(ops_[r]), describe(ops_[source]), c);
        return false;
      }
    }
    return true;
  }

  std::span<const PageOp> ops_;
  Order order_;
  std::array<std::vector<size_t>, kCells> writers_;
  std::string failure_;
};

}  // namespace

std::optional<std::string> check_page(std::span<const PageOp> operations) {
  return PageCheck(operations).run();
}

namespace {

bool is_source(const SizeOp& op) {
  return op.kind == SizeOp::Kind::Grow || op.kind == SizeOp::Kind::Set;
}

bool agrees(const SizeOp& reading, uint64_t size) {
  switch (reading.kind) {
    case SizeOp::Kind::AtLeast:
      return size >= reading.size;
    case SizeOp::Kind::AtMost:
      return size <= reading.size;
    case SizeOp::Kind::Read:
    case SizeOp::Kind::Grow:
    case SizeOp::Kind::Set:
      break;
  }
  return size == reading.size;
}

}  // namespace

bool size_possible(std::span<const SizeOp> ops, const SizeOp& reading) {
  for (const SizeOp& source : ops) {
    if (!is_source(source) || !agrees(reading, source.size) || source.begin > reading.end) continue;
    bool replaced = false;
    for (const SizeOp& other : ops) {
      if (!is_source(other) || other.weak || source.end >= other.begin ||
          other.end >= reading.begin)
        continue;
      // Something wholly between made the size another one (growing to less changes nothing).
      replaced |= !agrees(reading, other.size) &&
                  (other.kind == SizeOp::Kind::Set || other.size > source.size);
    }
    if (!replaced) return true;
  }
  return false;
}

std::optional<std::string> check_sizes(std::span<const SizeOp> ops) {
  using Kind = SizeOp::Kind;
  bool any_set = false;
  for (const SizeOp& op : ops)
    any_set |= (op.weak && op.write != 0) || (op.kind == Kind::Set && op.begin != 0);
  for (const SizeOp& read : ops) {
    if (is_source(read)) continue;
    if (!size_possible(ops, read)) {
      return fmt::format("the size {} {} seen{}{} in [{}, {}] was not the file's size then",
                         read.kind == Kind::AtLeast  ? ">="
                         : read.kind == Kind::AtMost ? "<="
                                                     : "==",
                         read.size, *read.what == 0 ? "" : " by a ", read.what, read.begin,
                         read.end);
    }
    if (any_set || read.kind != Kind::Read) continue;  // without truncations a size never falls
    for (const SizeOp& other : ops) {
      if (other.kind == Kind::Read && other.end < read.begin && other.size > read.size) {
        return fmt::format(
            "the size fell from {} (seen in [{}, {}]) to {} (seen in [{}, {}]) without a "
            "truncation",
            other.size, other.begin, other.end, read.size, read.begin, read.end);
      }
    }
  }
  return std::nullopt;
}

}  // namespace vremote::sim
