// What the processes of a world saw, and whether one copy of the file could have shown it to them.
//
// A page is a register of four cells of 1 KiB. Every write puts a value of its own into the cells
// it covers (zero is a hole, the part beyond the end of the file, or what a truncation left), so a
// read tells which writes it saw. A call on several pages is one operation per page, each with the
// interval of the call. check_page() looks for a contradiction by saturation: start from real time
// (one call ended before another began), add "the read is after its write, and no other write of
// that cell lies between" until nothing new follows; a cycle refutes the history. For one cell this
// is complete (Gibbons and Korach: values are unique); for four it also finds torn pages.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/page_range.h"
#include "base/time.h"

namespace vremote::sim {

inline constexpr uint64_t kCell = 1024;
inline constexpr uint64_t kCells = kPageSize / kCell;  // of a page
inline constexpr uint64_t kNever = UINT64_MAX;         // the end of a call that never returned

struct PageOp {
  uint64_t begin = 0, end = 0;  // ticks of the history; the operation took effect somewhere between
  bool write = false;
  uint8_t cells = 0;  // which cells it covers
  std::array<uint64_t, kCells> values{};
  const char* what = "";
  int node = -1;
  bool durable = false;  // done at the origin before it returned: never lost
};

// A sentence that names the contradiction, or nothing when one copy could have behaved so.
std::optional<std::string> check_page(std::span<const PageOp> operations);

struct SizeOp {
  // Read: a stat. AtLeast and AtMost: a read that got bytes up to there, or found the end there.
  enum class Kind : uint8_t { Read, AtLeast, AtMost, Grow, Set };
  uint64_t begin = 0, end = 0;
  Kind kind = Kind::Read;
  uint64_t size = 0;
  const char* what = "";
  int node = -1;
  uint64_t write = 0;  // Grow: its number
  bool weak = false;   // Grow, Set: it may have come to nothing
};
// Whether the file can have had such a size at some moment of the reading operation's interval.
bool size_possible(std::span<const SizeOp> operations, const SizeOp& reading);
std::optional<std::string> check_sizes(std::span<const SizeOp> operations);

// Fills a cell with its value: the write's number and the place the cell belongs to, so that
// misplaced bytes show.
uint64_t cell_value(uint64_t write, uint64_t page, uint64_t cell);
// An append does not know its place: its cells carry their number within the record instead.
uint64_t appended_value(uint64_t write, uint64_t index);
void fill_cell(std::span<std::byte> cell, uint64_t value);

class History {
 public:
  struct Interval {
    uint64_t begin, end;
    const char* what;
    int node;
  };

  uint64_t tick() { return ++clock_; }
  uint64_t new_write() { return ++writes_; }

  // A file as the origin had it before anybody came: cell_value(1, ...) up to its size.
  void start_register_file(uint32_t file, uint64_t size);
  void start_append_file(uint32_t file) { appends_[file]; }

  // Register files: whole cells. `bytes` may be shorter than `length`: beyond it the file had
  // ended.
  void wrote(uint32_t file, Interval when, uint64_t offset, uint64_t length, uint64_t write);
  void stored(uint32_t file, Interval when, uint64_t offset, uint64_t length,
              uint64_t write);  // through a mapping: the size stays
  void appended_cells(uint32_t file, Interval when, uint64_t offset, uint64_t length,
                      uint64_t write);
  // `tells_size`: where it ended says something about the file's size.
  void read(uint32_t file, Interval when, uint64_t offset, uint64_t length,
            std::span<const std::byte> bytes, bool tells_size = true);
  void truncated(uint32_t file, Interval when, uint64_t size);
  void saw_size(uint32_t file, Interval when, uint64_t size);
  // A mapping was told that the file has nothing from there on.
  void ended_before(uint32_t file, Interval when, uint64_t offset);
  void synced(uint32_t file, Interval when, std::span<const std::byte> disk);

  // ---- faults ----
  // The home has given away what this node had: from now on others may be shown older bytes.
  // `claims_stay`: but for what it has claimed (R6), which goes with its session.
  void lost(int node, bool claims_stay = false);
  // The node knows of it and has kept what it could not flush (D4). `since`: when its session
  // began; a home that had given nothing away yet, and would have waited for it, has not said
  // lost().
  void told_of_loss(int node, uint64_t since);
  void rescued(uint32_t file, uint64_t offset, std::span<const std::byte> bytes);
  // The origin has lost its power (S1): from now on everybody is shown what is left on its disk.
  void power_lost();
  // Before that: it had this page in its page cache, and perhaps not on its disk. Nothing else
  // goes.
  void exposed(uint32_t file, std::span<const std::byte> page);
  uint64_t power_losses() const { return power_losses_; }
  // The node brings bytes back that end there. That is all it knows of the file's size (S1), and
  // may be a size that nobody gave the file. Until power_lost().
  void brings_back_to(uint32_t file, int node, uint64_t size);
  void sync_failed(uint32_t file, Interval when);
  // The node's kernel has forgotten the file, and with it what an fsync was still to tell.
  void forgot(uint32_t file, int node) { sync_failed(file, {tick(), tick(), "forget", node}); }
  // An append whose caller died: where it went, if anywhere, the reads will tell.
  void appended_somewhere(uint32_t file, Interval when, uint64_t length, uint64_t write);

  // The end of the world: what the disk has is what everybody would read from now on.
  void register_file_ended(uint32_t file, std::span<const std::byte> disk);

  // Append files: records of any length.
  static std::vector<std::byte> record(uint64_t write, size_t length);
  void appended(uint32_t file, Interval when, uint64_t offset, std::vector<std::byte> bytes);
  void read_appended(uint32_t file, Interval when, uint64_t offset, uint64_t length,
                     std::span<const std::byte> bytes);
  void append_file_ended(uint32_t file, std::span<const std::byte> disk);

  // The first contradiction in all that was recorded.
  std::optional<std::string> check() const;
  uint64_t operations() const { return operations_; }

 private:
  struct Sync {
    Interval when;
    std::map<uint64_t, std::array<uint64_t, kCells>> pages;
  };
  struct Store {
    uint64_t begin, end, offset, page, cell, value;
  };
  struct Somewhere {
    Interval when;
    uint64_t length, write;
  };
  struct RegisterFile {
    struct Truncation {
      Interval when;
      uint64_t size;
    };
    std::vector<Truncation> truncations;  // a page's operations get theirs when they are checked:
                                          // pages appear at any time
    std::map<uint64_t, std::vector<PageOp>> pages;
    std::vector<SizeOp> sizes;
    std::vector<Store> stores;  // through mappings
    std::vector<Sync> syncs;
    std::vector<Interval> failed_syncs;
    std::vector<Somewhere> somewhere;
    bool sizes_unknown = false;           // one of them was never seen
    std::set<uint64_t> rescued, exposed;  // values of cells
  };
  struct Loss {
    int node;
    uint64_t tick;
    bool told = false;
    bool power = false;  // of the origin
    bool claims_stay = false;
  };
  struct Record {
    Interval when;
    uint64_t offset;
    std::vector<std::byte> bytes;
  };
  struct AppendRead {
    Interval when;
    uint64_t offset, length;
    std::vector<std::byte> bytes;
  };
  struct AppendFile {
    std::vector<Record> records;
    std::vector<AppendRead> reads;
    std::vector<std::byte> disk;
    bool ended = false;
  };

  std::vector<PageOp>& page(uint32_t file, uint64_t page);
  void page_ops(uint32_t file, Interval when, uint64_t offset, uint64_t length, bool write,
                uint64_t write_number, bool appended, std::span<const std::byte> bytes);
  std::vector<PageOp> with_truncations(const RegisterFile& file, std::span<const SizeOp> sizes,
                                       uint64_t page, std::vector<PageOp> ops) const;
  // losses.cc
  void place_appends(uint32_t file);
  bool told(const RegisterFile& file, int node, uint64_t from, uint64_t to) const;
  bool secured(const RegisterFile& file, int node, uint64_t begin, uint64_t end) const;
  bool may_go_with_power(const RegisterFile& file, std::span<const PageOp> ops,
                         const PageOp& write) const;
  bool secured_on_disk(const RegisterFile& file, std::span<const PageOp> ops,
                       const PageOp& write) const;
  const Loss* lost_at(const RegisterFile& file, std::span<const PageOp> ops,
                      const PageOp& write) const;
  const Loss* lost_with_node(const RegisterFile& file, std::span<const PageOp> ops,
                             const PageOp& write) const;
  const Loss* lost_with_power(const RegisterFile& file, std::span<const PageOp> ops,
                              const PageOp& write) const;
  std::vector<PageOp> cut_by_ends(const RegisterFile& file, std::span<const PageOp> whole) const;
  std::vector<SizeOp> sizes_of(const RegisterFile& file) const;
  // `all`: with what with_truncations() leaves out.
  std::optional<std::string> check_page_with_losses(const RegisterFile& file,
                                                    std::span<const PageOp> all,
                                                    std::span<const PageOp> ops) const;
  std::optional<std::string> check_sync(const RegisterFile& file, const Sync& sync) const;
  std::optional<std::string> check_appends(const AppendFile& file) const;
  void note(std::string what) {
    if (!first_) first_ = std::move(what);
  }

  uint64_t clock_ = 1;
  uint64_t writes_ = 1;  // 1: what was there before
  uint64_t operations_ = 0;
  std::map<uint32_t, RegisterFile> registers_;
  std::map<uint32_t, AppendFile> appends_;
  std::vector<Loss> losses_;  // in time
  uint64_t power_losses_ = 0;
  std::optional<std::string> first_;
};

}  // namespace vremote::sim
