#include "live/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <vector>

#include "live/register_check.h"
#include "live/worker.h"
#include "sim/history.h"

namespace vremote::live {
namespace {

constexpr size_t kTogetherMax =
    700;  // operations of a page that are also checked together, cell with cell

std::string describe(const Shared& shared, const Op& op) {
  std::string values;
  for (unsigned c = 0; c < kCellsMax; ++c) {
    if ((op.cells >> c & 1) == 0) continue;
    values += op.values[c] == 0 ? fmt::format(" {}:beginning", c)
                                : fmt::format(" {}:p{}.{}", c, stamp_process(op.values[c]),
                                              stamp_write(op.values[c]));
  }
  return fmt::format("p{} node{} {:<13} file {} page {} [{}, {}]{} cells{}", op.process,
                     op.process % shared.settings.nodes + 1, kHowNames[static_cast<size_t>(op.how)],
                     op.file, op.page, op.begin, op.end,
                     op.last_begin != op.begin
                         ? fmt::format(" again until [{}, {}]", op.last_begin, op.last_end)
                         : "",
                     values);
}

bool on_cells(const Op& op) {
  return op.kind == OpKind::Read || op.kind == OpKind::Write || op.kind == OpKind::NameWrite ||
         op.kind == OpKind::NameRead;
}
bool is_write(const Op& op) { return op.kind == OpKind::Write || op.kind == OpKind::NameWrite; }

// Everything on the page that began or ended around the given calls.
std::string around(const Shared& shared, const std::vector<const Op*>& page,
                   const std::vector<uint32_t>& named) {
  uint64_t low = UINT64_MAX, high = 0;
  for (uint32_t index : named) {
    low = std::min(low, page[index]->begin);
    high = std::max(high, page[index]->last_end);
  }
  std::vector<const Op*> near;
  for (const Op* op : page)
    if (op->last_end + 20'000'000 >= low && op->begin <= high) near.push_back(op);
  std::sort(near.begin(), near.end(), [](const Op* a, const Op* b) { return a->begin < b->begin; });
  std::string text = "  in order of their begin, * those that contradict each other:\n";
  if (near.size() > 60) near.erase(near.begin(), near.end() - 60);
  for (const Op* op : near) {
    const bool mine =
        std::any_of(named.begin(), named.end(), [&](uint32_t index) { return page[index] == op; });
    text += fmt::format("  {} {}\n", mine ? '*' : ' ', describe(shared, *op));
  }
  return text;
}

sim::PageOp page_op(const Op& op, bool last) {
  return {.begin = last ? op.last_begin : op.begin,
          .end = last ? op.last_end : op.end,
          .write = is_write(op),
          .cells = op.cells,
          .values = op.values,
          .what = kHowNames[static_cast<size_t>(op.how)],
          .node = op.process};
}

// The first operations of a page, all cells at once. Reads that ended later are left out, writes
// may have had their effect or not.
std::optional<std::string> check_together(const std::vector<const Op*>& page,
                                          const std::vector<const Op*>& truncations) {
  std::vector<const Op*> sorted = page;
  sorted.insert(sorted.end(), truncations.begin(), truncations.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const Op* a, const Op* b) { return a->begin < b->begin; });
  uint64_t until = sorted.size() > kTogetherMax ? sorted[kTogetherMax]->begin : kNever;
  std::vector<sim::PageOp> ops;
  ops.push_back({.begin = 0,
                 .end = 0,
                 .write = true,
                 .cells = 0xF,
                 .values = {},
                 .what = "the beginning",
                 .node = -1});
  for (const Op* op : sorted) {
    if (op->begin >= until) break;
    if (op->kind == OpKind::Truncate) {
      sim::PageOp zero{.begin = op->begin,
                       .end = op->end >= until ? kNever : op->end,
                       .write = true,
                       .cells = 0,
                       .values = {},
                       .what = "truncation",
                       .node = op->process};
      for (uint64_t c = 0; c < kSimCells.size(); ++c)
        if (page.front()->page * kPageSize + kSimCells[c].offset >= op->values[0])
          zero.cells |= static_cast<uint8_t>(1u << c);
      if (zero.cells != 0) ops.push_back(zero);
    } else if (is_write(*op)) {
      ops.push_back(page_op(*op, false));
      if (op->end >= until) ops.back().end = kNever;
    } else {
      if (op->end < until) ops.push_back(page_op(*op, false));
      if (op->last_begin != op->begin && op->last_end < until) ops.push_back(page_op(*op, true));
    }
  }
  return sim::check_page(ops);
}

// What was done to and seen of a file's size until then, the last lines of it.
std::string sizes_until(const Shared& shared, const std::vector<const Op*>& log, uint64_t until) {
  std::vector<const Op*> near;
  for (const Op* op : log)
    if (!on_cells(*op) && op->begin <= until) near.push_back(op);
  std::sort(near.begin(), near.end(), [](const Op* a, const Op* b) { return a->begin < b->begin; });
  if (near.size() > 20) near.erase(near.begin(), near.end() - 20);
  std::string text;
  for (const Op* op : near) {
    const char* what = op->kind == OpKind::Truncate ? "set to"
                       : op->kind == OpKind::Size   ? "seen as"
                       : op->kind == OpKind::Grow   ? "at least, by a write,"
                                                    : "read up to";
    text += fmt::format("    p{} node{} [{}, {}] {} {}\n", op->process,
                        op->process % shared.settings.nodes + 1, op->begin, op->end, what,
                        op->values[0]);
  }
  return text;
}

std::optional<std::string> check_size(const Shared& shared, const std::vector<const Op*>& log) {
  using Kind = sim::SizeOp::Kind;
  std::vector<sim::SizeOp> sizes{{0, 0, Kind::Set, 0}};
  std::vector<const Op*> seen;
  for (const Op* op : log) {
    if (on_cells(*op)) continue;
    const Kind kind = op->kind == OpKind::Truncate ? Kind::Set
                      : op->kind == OpKind::Size   ? Kind::Read
                      : op->kind == OpKind::Grow   ? Kind::Grow
                                                   : Kind::AtLeast;
    sizes.push_back({op->begin, op->end, kind, op->values[0]});
    if (kind == Kind::Read || kind == Kind::AtLeast) seen.push_back(op);
  }
  if (auto what = sim::check_sizes(sizes)) {
    for (const Op* op : seen) {
      if (!sim::size_possible(
              sizes, {op->begin, op->end, op->kind == OpKind::Size ? Kind::Read : Kind::AtLeast,
                      op->values[0]}))
        return *what + "\n" + sizes_until(shared, log, op->end);
    }
    return what;
  }
  return std::nullopt;
}

std::optional<std::string> check_one_page(const Shared& shared, const std::vector<const Op*>& page,
                                          Verdict& verdict) {
  for (unsigned c = 0; c < kCellsMax; ++c) {
    std::vector<CellOp> ops;
    for (uint32_t i = 0; i < page.size(); ++i) {
      const Op& op = *page[i];
      if ((op.cells >> c & 1) == 0) continue;
      ops.push_back({.begin = op.begin,
                     .end = op.end,
                     .last_begin = op.last_begin,
                     .value = op.values[c],
                     .write = is_write(op),
                     .index = i});
    }
    if (ops.empty()) continue;
    ++verdict.cells;
    if (auto found = check_register(ops)) {
      return fmt::format("file {} page {} cell {}: {}\n{}", page.front()->file, page.front()->page,
                         c, found->what, around(shared, page, found->operations));
    }
  }
  return std::nullopt;
}

}  // namespace

Verdict judge(const Shared& shared) {
  Verdict verdict;
  std::map<std::pair<unsigned, unsigned>, std::vector<const Op*>> pages;
  std::map<unsigned, std::vector<const Op*>> truncated;
  for (const ProcessLog& log : shared.logs) {
    verdict.operations += log.calls;
    for (uint32_t i = 0; i < log.count; ++i) {
      const Op& op = log.ops[i];
      if (on_cells(op)) pages[{op.file, op.page}].push_back(&op);
      if (op.file >= kTruncated) truncated[op.file].push_back(&op);
    }
  }
  for (const auto& [place, page] : pages) {
    if (place.first >= kTruncated) {
      std::vector<const Op*> truncations;
      for (const Op* op : truncated[place.first])
        if (op->kind == OpKind::Truncate) truncations.push_back(op);
      if (auto what = check_together(page, truncations))
        verdict.violation = fmt::format("file {} page {}: {}\n", place.first, place.second, *what);
    } else {
      verdict.violation = check_one_page(shared, page, verdict);
      if (!verdict.violation && place.first < kAppendFile) {
        if (auto what = check_together(page, {}))
          verdict.violation = fmt::format("file {} page {}, cells together: {}\n", place.first,
                                          place.second, *what);
      }
    }
    if (verdict.violation) return verdict;
  }
  for (const auto& [file, log] : truncated) {
    if (auto what = check_size(shared, log)) {
      verdict.violation = fmt::format("file {}: {}\n", file, *what);
      return verdict;
    }
  }
  return verdict;
}

std::optional<std::string> judge_appends(const Shared& shared, const std::string& path,
                                         uint64_t* records) {
  std::ifstream file(path, std::ios::binary);
  std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
  if (!file && content.empty()) return fmt::format("{} cannot be read", path);
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> places;
  for (size_t at = 0; at < content.size();) {
    const std::span<const std::byte> rest = std::as_bytes(std::span(content)).subspan(at);
    const uint32_t length = sound_record(rest);
    if (length == 0)
      return fmt::format("appends: no sound record at {} of {} bytes", at, content.size());
    RecordHead head;
    std::memcpy(&head, rest.data(), sizeof head);
    if (!places.emplace(std::pair(head.process, head.number), at).second)
      return fmt::format("appends: record {} of process {} is there twice", head.number,
                         head.process);
    at += length;
    ++*records;
  }
  struct Placed {
    const Op* op;
    uint64_t at;
  };
  std::vector<Placed> placed;
  for (const ProcessLog& log : shared.logs) {
    for (uint32_t i = 0; i < log.count; ++i) {
      const Op& op = log.ops[i];
      if (op.kind != OpKind::Append) continue;
      auto it = places.find({op.process, static_cast<uint32_t>(op.values[1])});
      if (it == places.end())
        return fmt::format("appends: record {} of process {} (node {}) [{}, {}] is lost",
                           op.values[1], op.process, op.process % shared.settings.nodes + 1,
                           op.begin, op.end);
      placed.push_back({&op, it->second});
    }
  }
  // What ended before another began lies before it.
  std::sort(placed.begin(), placed.end(),
            [](const Placed& a, const Placed& b) { return a.at < b.at; });
  uint64_t latest_begin = 0;
  for (const Placed& p : placed) {
    if (p.op->end < latest_begin)
      return fmt::format(
          "appends: record {} of process {} lies behind one whose append began after it had ended",
          p.op->values[1], p.op->process);
    latest_begin = std::max(latest_begin, p.op->begin);
  }
  return std::nullopt;
}

}  // namespace vremote::live
