#include "sim/history.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace vremote::sim {

uint64_t cell_value(uint64_t write, uint64_t page, uint64_t cell) {
  return write << 32 | (page * kCells + cell + 1);
}

uint64_t appended_value(uint64_t write, uint64_t index) {
  return write << 32 | 0x80000000u | index;
}

void fill_cell(std::span<std::byte> cell, uint64_t value) {
  for (size_t at = 0; at + sizeof value <= cell.size(); at += sizeof value)
    std::memcpy(cell.data() + at, &value, sizeof value);
}

namespace {

// The value all of a cell's bytes agree on.
std::optional<uint64_t> value_of(std::span<const std::byte> cell) {
  uint64_t first = 0;
  if (cell.size() < sizeof first) return std::nullopt;
  std::memcpy(&first, cell.data(), sizeof first);
  // Shifted by one value the cell must equal itself.
  if (std::memcmp(cell.data(), cell.data() + sizeof first, cell.size() - sizeof first) != 0)
    return std::nullopt;
  return first;
}

}  // namespace

void History::start_register_file(uint32_t file, uint64_t size) {
  registers_[file].sizes.push_back({0, 0, SizeOp::Kind::Set, size});
}

std::vector<PageOp>& History::page(uint32_t file, uint64_t page) {
  RegisterFile& f = registers_[file];
  auto [it, fresh] = f.pages.try_emplace(page);
  if (fresh) {
    PageOp first{.begin = 0,
                 .end = 0,
                 .write = true,
                 .cells = 0xf,
                 .values = {},
                 .what = "the beginning",
                 .node = -1};
    for (uint64_t c = 0; c < kCells; ++c) {
      if (page * kPageSize + c * kCell < f.sizes.front().size)
        first.values[c] = cell_value(1, page, c);
    }
    it->second.push_back(first);
  }
  return it->second;
}

void History::page_ops(uint32_t file, Interval when, uint64_t offset, uint64_t length, bool write,
                       uint64_t write_number, bool appended, std::span<const std::byte> bytes) {
  VR_CHECK(offset % kCell == 0 && length % kCell == 0);
  ++operations_;
  PageRange range = PageRange::of_bytes(offset, length);
  for (uint64_t p = range.first; p < range.end; ++p) {
    PageOp op{.begin = when.begin,
              .end = when.end,
              .write = write,
              .cells = 0,
              .values = {},
              .what = when.what,
              .node = when.node};
    for (uint64_t c = 0; c < kCells; ++c) {
      const uint64_t at = p * kPageSize + c * kCell;
      if (at < offset || at >= offset + length) continue;
      op.cells |= static_cast<uint8_t>(1u << c);
      if (write) {
        op.values[c] = appended ? appended_value(write_number, (at - offset) / kCell)
                                : cell_value(write_number, p, c);
      } else if (at - offset < bytes.size()) {
        if (bytes.size() - (at - offset) < kCell) {
          note(fmt::format("{} on n{} [{}, {}] ended inside a cell, at byte {}", when.what,
                           when.node, when.begin, when.end, offset + bytes.size()));
          return;
        }
        auto value = value_of(bytes.subspan(at - offset, kCell));
        if (!value || (*value != 0 && (*value & 0x80000000) == 0 &&
                       (*value & 0xffffffff) != p * kCells + c + 1)) {
          note(fmt::format(
              "{} on n{} [{}, {}] saw {} at page {} cell {}", when.what, when.node, when.begin,
              when.end,
              value ? fmt::format("bytes of page {} cell {}", ((*value & 0xffffffff) - 1) / kCells,
                                  ((*value & 0xffffffff) - 1) % kCells)
                    : std::string("a torn cell"),
              p, c));
          return;
        }
        op.values[c] = *value;
      }
    }
    if (write) {
      page(file, p).push_back(op);
      continue;
    }
    // Where the file ends and what its pages hold is looked at one after the other, as on a local
    // file system: two reads.
    PageOp beyond = op;
    const uint64_t seen_end = offset + bytes.size();
    for (uint64_t c = 0; c < kCells; ++c) {
      const auto bit = static_cast<uint8_t>(1u << c);
      (p * kPageSize + c * kCell < seen_end ? beyond : op).cells &= static_cast<uint8_t>(~bit);
    }
    if (op.cells != 0) page(file, p).push_back(op);
    if (beyond.cells != 0) page(file, p).push_back(beyond);
  }
}

void History::wrote(uint32_t file, Interval when, uint64_t offset, uint64_t length,
                    uint64_t write) {
  page_ops(file, when, offset, length, true, write, false, {});
  registers_[file].sizes.push_back(
      {when.begin, when.end, SizeOp::Kind::Grow, offset + length, when.what, when.node, write});
}

void History::stored(uint32_t file, Interval when, uint64_t offset, uint64_t length,
                     uint64_t write) {
  page_ops(file, when, offset, length, true, write, false, {});
  const uint64_t page = offset >> kPageShift, cell = offset / kCell % kCells;
  registers_[file].stores.push_back(
      {when.begin, when.end, offset, page, cell, cell_value(write, page, cell)});
}

void History::appended_cells(uint32_t file, Interval when, uint64_t offset, uint64_t length,
                             uint64_t write) {
  page_ops(file, when, offset, length, true, write, true, {});
  auto& sizes = registers_[file].sizes;
  sizes.push_back(
      {when.begin, when.end, SizeOp::Kind::Grow, offset + length, when.what, when.node, write});
  sizes.push_back(
      {when.begin, when.end, SizeOp::Kind::Read, offset});  // it went to the end of the file
}

void History::read(uint32_t file, Interval when, uint64_t offset, uint64_t length,
                   std::span<const std::byte> bytes, bool tells_size) {
  page_ops(file, when, offset, length, false, 0, false, bytes);
  auto& sizes = registers_[file].sizes;
  const uint64_t seen_end = offset + bytes.size();
  if (!tells_size) return;
  if (!bytes.empty()) sizes.push_back({when.begin, when.end, SizeOp::Kind::AtLeast, seen_end});
  if (bytes.size() < length)
    sizes.push_back({when.begin, when.end, SizeOp::Kind::AtMost, seen_end});
}

void History::truncated(uint32_t file, Interval when, uint64_t size) {
  ++operations_;
  VR_CHECK(size % kCell == 0);
  RegisterFile& f = registers_[file];
  f.truncations.push_back({when, size});
  f.sizes.push_back({when.begin, when.end, SizeOp::Kind::Set, size});
}

void History::register_file_ended(uint32_t file, std::span<const std::byte> disk) {
  const Interval when{tick(), tick(), "the disk at the end", -1};
  std::vector<uint64_t> touched;
  for (const auto& [p, ops] : registers_[file].pages) touched.push_back(p);
  for (uint64_t p : touched) {
    const uint64_t at = p << kPageShift;
    read(file, when, at, kPageSize,
         at >= disk.size() ? std::span<const std::byte>()
                           : disk.subspan(at, std::min<uint64_t>(kPageSize, disk.size() - at)));
  }
  saw_size(file, when, disk.size());
  place_appends(file);
}

void History::saw_size(uint32_t file, Interval when, uint64_t size) {
  ++operations_;
  if (auto it = registers_.find(file); it != registers_.end())
    it->second.sizes.push_back({when.begin, when.end, SizeOp::Kind::Read, size});
}

void History::ended_before(uint32_t file, Interval when, uint64_t offset) {
  ++operations_;
  if (auto it = registers_.find(file); it != registers_.end())
    it->second.sizes.push_back({when.begin, when.end, SizeOp::Kind::AtMost, offset, when.what});
}

void History::synced(uint32_t file, Interval when, std::span<const std::byte> disk) {
  auto it = registers_.find(file);
  if (it == registers_.end()) return;
  ++operations_;
  Sync sync{when, {}};
  for (auto& [p, ops] : it->second.pages) {
    auto& values = sync.pages[p];
    for (uint64_t c = 0; c < kCells; ++c) {
      const uint64_t at = p * kPageSize + c * kCell;
      if (at + kCell > disk.size()) continue;
      values[c] = value_of(disk.subspan(at, kCell)).value_or(0);
    }
  }
  it->second.syncs.push_back(std::move(sync));
}

// What this node had written before the fsync began is on the disk, or something that is not older.
std::optional<std::string> History::check_sync(const RegisterFile& file, const Sync& sync) const {
  if (!file.truncations.empty()) return std::nullopt;
  for (const auto& [p, values] : sync.pages) {
    const auto& ops = file.pages.at(p);
    for (uint64_t c = 0; c < kCells; ++c) {
      const PageOp* source = nullptr;
      for (const PageOp& op : ops) {
        if (op.write && (op.cells >> c & 1) != 0 && op.values[c] == values[c]) source = &op;
      }
      if (source == nullptr)
        return fmt::format("the disk has a value nobody wrote at page {} cell {}", p, c);
      for (const PageOp& op : ops) {
        if (op.write && op.node == sync.when.node && (op.cells >> c & 1) != 0 &&
            op.end < sync.when.begin && source->end < op.begin &&
            !told(file, op.node, op.begin, sync.when.end)) {
          return fmt::format(
              "after the fsync on n{} [{}, {}] the disk has at page {} cell {} w{} instead of w{} "
              "[{}, {}]",
              sync.when.node, sync.when.begin, sync.when.end, p, c, values[c] >> 32,
              op.values[c] >> 32, op.begin, op.end);
        }
      }
    }
  }
  return std::nullopt;
}

std::vector<std::byte> History::record(uint64_t write, size_t length) {
  std::vector<std::byte> bytes(length);
  uint64_t x = write * 0x9E3779B97F4A7C15u;
  for (auto& b : bytes) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    b = static_cast<std::byte>(1 + (x >> 56) % 255);  // never zero: zero is a hole
  }
  return bytes;
}

void History::appended(uint32_t file, Interval when, uint64_t offset,
                       std::vector<std::byte> bytes) {
  ++operations_;
  appends_[file].records.push_back({when, offset, std::move(bytes)});
}

void History::read_appended(uint32_t file, Interval when, uint64_t offset, uint64_t length,
                            std::span<const std::byte> bytes) {
  ++operations_;
  appends_[file].reads.push_back({when, offset, length, {bytes.begin(), bytes.end()}});
}

void History::append_file_ended(uint32_t file, std::span<const std::byte> disk) {
  AppendFile& f = appends_[file];
  f.disk.assign(disk.begin(), disk.end());
  f.ended = true;
}

std::optional<std::string> History::check_appends(const AppendFile& file) const {
  uint64_t end = 0;
  std::vector<const Record*> placed;
  for (const Record& r : file.records) placed.push_back(&r);
  std::sort(placed.begin(), placed.end(),
            [](const Record* a, const Record* b) { return a->offset < b->offset; });
  for (const Record* r : placed) {
    if (r->offset != end)
      return fmt::format("the record appended on n{} [{}, {}] lies at {} and not at {}",
                         r->when.node, r->when.begin, r->when.end, r->offset, end);
    end += r->bytes.size();
    if (file.ended && (file.disk.size() < end ||
                       !std::equal(r->bytes.begin(), r->bytes.end(),
                                   file.disk.begin() + static_cast<ptrdiff_t>(r->offset)))) {
      return fmt::format(
          "the record appended on n{} [{}, {}] at {} is lost, torn or overwritten on the disk",
          r->when.node, r->when.begin, r->when.end, r->offset);
    }
  }
  if (file.ended && file.disk.size() != end)
    return fmt::format("the appended records end at {} and the file at {}", end, file.disk.size());
  for (size_t i = 0; i < placed.size(); ++i) {
    for (size_t k = i + 1; k < placed.size(); ++k) {
      if (placed[k]->when.end < placed[i]->when.begin) {
        return fmt::format(
            "the record appended in [{}, {}] lies behind the one appended later in [{}, {}]",
            placed[k]->when.begin, placed[k]->when.end, placed[i]->when.begin, placed[i]->when.end);
      }
    }
  }
  for (const AppendRead& read : file.reads) {
    for (const Record* r : placed) {
      for (uint64_t i = 0; i < r->bytes.size(); ++i) {
        const uint64_t at = r->offset + i;
        if (at < read.offset || at >= read.offset + read.length) continue;
        const uint64_t k = at - read.offset;
        const std::byte seen = k < read.bytes.size() ? read.bytes[k] : std::byte{0};
        const bool may = r->when.begin < read.when.end;
        const bool must = r->when.end < read.when.begin;
        if ((seen == r->bytes[i] && may) || (seen == std::byte{0} && !must)) continue;
        return fmt::format(
            "{} on n{} [{}, {}] saw byte {} as {:#x}: the record appended there in [{}, {}] has "
            "{:#x}",
            read.when.what, read.when.node, read.when.begin, read.when.end, at,
            static_cast<unsigned>(seen), r->when.begin, r->when.end,
            static_cast<unsigned>(r->bytes[i]));
      }
    }
  }
  return std::nullopt;
}

// What check_page() is to see of a page: truncations are writes of zeroes. A store through a
// mapping while the file may already have ended before it is nobody's business (POSIX leaves it
// undefined): it and what was seen of it are taken out.
std::vector<PageOp> History::with_truncations(const RegisterFile& file,
                                              std::span<const SizeOp> sizes, uint64_t p,
                                              std::vector<PageOp> ops) const {
  if (file.truncations.empty() && losses_.empty()) return ops;
  for (const Store& store : file.stores) {
    const SizeOp short_file{store.begin, store.end, SizeOp::Kind::AtMost, store.offset};
    if (store.page != p || !size_possible(sizes, short_file)) continue;
    for (PageOp& op : ops) {
      if ((op.cells >> store.cell & 1) != 0 && op.values[store.cell] == store.value)
        op.cells &= static_cast<uint8_t>(~(1u << store.cell));
    }
  }
  std::erase_if(ops, [](const PageOp& op) { return op.cells == 0; });
  for (const auto& t : file.truncations) {
    PageOp op{.begin = t.when.begin,
              .end = t.when.end,
              .write = true,
              .cells = 0,
              .values = {},
              .what = t.when.what,
              .node = t.when.node,
              .durable = true};
    for (uint64_t c = 0; c < kCells; ++c) {
      if (p * kPageSize + c * kCell >= t.size) op.cells |= static_cast<uint8_t>(1u << c);
    }
    if (op.cells != 0) ops.push_back(op);
  }
  return ops;
}

std::optional<std::string> History::check() const {
  if (first_) return first_;
  for (const auto& [number, file] : registers_) {
    const std::vector<SizeOp> sizes = sizes_of(file);
    for (const auto& [p, plain] : file.pages) {
      const std::vector<PageOp> ops = with_truncations(file, sizes, p, plain);
      if (auto what = check_page_with_losses(file, plain, ops))
        return fmt::format("linearizability of file {} page {}: {}", number, p, *what);
    }
    if (auto what = file.sizes_unknown ? std::nullopt : check_sizes(sizes))
      return fmt::format("linearizability of the size of file {}: {}", number, *what);
    for (const auto& sync : file.syncs) {
      if (auto what = check_sync(file, sync))
        return fmt::format("durability of file {}: {}", number, *what);
    }
  }
  for (const auto& [number, file] : appends_) {
    if (auto what = check_appends(file))
      return fmt::format("appends of file {}: {}", number, *what);
  }
  return std::nullopt;
}

}  // namespace vremote::sim
