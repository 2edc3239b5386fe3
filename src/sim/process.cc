#include "sim/process.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"

namespace vremote::sim {

using coherence::CreateCall;
using coherence::RemoveCall;

FileId directory_id() { return FileId{.export_index = 0, .generation = 1, .inode = 1000}; }

Process::Process(Scheduler& scheduler, History& history, Node& node, int node_number, int number,
                 const std::vector<FilePlan>& files, const Habits& habits,
                 std::function<std::span<const std::byte>(uint32_t file)> disk)
    : scheduler_(scheduler),
      history_(history),
      node_(node),
      node_number_(node_number),
      number_(number),
      files_(files),
      habits_(habits),
      disk_(std::move(disk)),
      slots_(files.size()) {}

std::string Process::waits_for() const {
  return fmt::format("n{} process {}: {}", node_number_, number_, doing_);
}

uint64_t Process::some_page(uint32_t file) {
  const FilePlan& plan = files_[file];
  return scheduler_.random().below(scheduler_.random().chance(90) ? plan.hot_pages : plan.pages);
}

void Process::pick_cells(uint32_t file, uint64_t cells_max, uint64_t& offset, uint64_t& length) {
  Prng& random = scheduler_.random();
  const uint64_t end = files_[file].pages * kCells;
  uint64_t first = some_page(file) * kCells;
  if (random.chance(50)) first += random.below(kCells);
  uint64_t count = random.chance(40) ? kCells : random.between(1, cells_max);
  count = std::min(count, end - first);
  offset = first * kCell;
  length = count * kCell;
}

void Process::die() {
  if (std::exchange(dead_, true) || !under_way_) {
    done_ = true;
    return;
  }
  done_ = true;
  const UnderWay& u = *under_way_;
  scheduler_.trace(node_number_, static_cast<int>(u.file), "process {} dies during w{}", number_,
                   u.number);
  switch (u.kind) {
    case UnderWay::Kind::Write:
      history_.wrote(u.file, {u.begin, kNever, "write cut short", node_number_}, u.offset, u.length,
                     u.number);
      break;
    case UnderWay::Kind::Append:
      history_.appended_somewhere(u.file, {u.begin, kNever, "append cut short", node_number_},
                                  u.length, u.number);
      break;
    case UnderWay::Kind::Truncate:
      history_.truncated(u.file, {u.begin, kNever, "truncate cut short", node_number_}, u.length);
      break;
  }
}

Co<> Process::run() {
  Prng& random = scheduler_.random();
  uint32_t total = 0;
  for (uint32_t w : habits_.weights) total += w;
  for (uint32_t i = 0; i < habits_.operations; ++i) {
    co_await scheduler_.sleep(Delay::Think);
    if (habits_.pause_ns > 0 && random.chance(25)) {
      Scheduler::Sleep pause{
          scheduler_, static_cast<int64_t>(random.below(static_cast<uint64_t>(habits_.pause_ns)))};
      co_await pause;
    }
    if (dead_) co_return;
    uint64_t dice = random.below(total);
    size_t what = 0;
    while (dice >= habits_.weights[what]) dice -= habits_.weights[what++];
    const auto file = static_cast<uint32_t>(random.below(files_.size()));
    co_await act(static_cast<Act>(what), file);
  }
  for (uint32_t file = 0; file < files_.size(); ++file) {
    for (uint64_t which = 0; which < 3; ++which) co_await close_one(file, which);
  }
  if (habits_.faults && random.chance(50)) {
    for (uint32_t file = 0; file < files_.size(); ++file) co_await sync(file);
  }
  doing_ = "nothing";
  done_ = true;
}

// A soft mount may still fail at first, until a session that was given up has ended. It must not
// for ever.
template <class Look>
Co<> Process::until_seen(Look look) {
  for (;;) {
    const bool seen = co_await look();
    if (seen) co_return;
    Scheduler::Sleep pause{scheduler_, 1'000'000};
    co_await pause;
  }
}

Co<> Process::audit() {
  for (uint32_t file = 0; file < files_.size(); ++file) {
    const uint64_t pages = std::min<uint64_t>(files_[file].pages, 8);
    if (!files_[file].append_only) co_await until_seen([this, file] { return stat(file); });
    co_await until_seen([=, this] { return read_cached(file, 0, pages * kPageSize); });
    co_await until_seen([=, this] { return read_direct(file, 0, pages * kPageSize); });
    for (uint64_t which = 0; which < 3; ++which) co_await close_one(file, which);
  }
  doing_ = "nothing";
  done_ = true;
}

Co<> Process::act(Act what, uint32_t file) {
  Prng& random = scheduler_.random();
  const bool append_only = files_[file].append_only;
  uint64_t offset = 0, length = 0;
  switch (what) {
    case Act::ReadCached:
      pick_cells(file, habits_.read_cells_max, offset, length);
      (void)co_await read_cached(file, offset, length);
      break;
    case Act::Splice:
      pick_cells(file, habits_.read_cells_max, offset, length);
      (void)co_await read_cached(file, offset, length, true);
      break;
    case Act::ReadDirect:
      pick_cells(file, habits_.read_cells_max, offset, length);
      (void)co_await read_direct(file, offset, length);
      break;
    case Act::Write:
      if (append_only) {
        co_await append_record(file);
      } else {
        co_await write(file);
      }
      break;
    case Act::Append:
      if (append_only) {
        co_await append_record(file);
      } else {
        co_await append(file);
      }
      break;
    case Act::Load:
    case Act::Store: {
      if (append_only) break;
      const uint64_t page = some_page(file);
      const uint64_t cell = random.below(kCells);
      const bool mapped = co_await map(file, what == Act::Store);
      if (!mapped) break;
      doing_ = fmt::format("{} f{} page {} cell {}", what == Act::Store ? "store" : "load", file,
                           page, cell);
      if (what == Act::Store) {
        co_await node_.kernel().store(file, page, cell);
      } else {
        co_await node_.kernel().load(file, page, cell);
      }
      break;
    }
    case Act::Truncate:
      if (!append_only) co_await truncate(file);
      break;
    case Act::Fsync:
      co_await sync(file);
      break;
    case Act::Names:
      co_await make_and_remove();
      break;
    case Act::Stat:
      (void)co_await stat(file);
      break;
    case Act::CloseOne:
      co_await close_one(file, random.below(3));
      break;
    case Act::ReadAhead:
      node_.kernel().read_ahead(file, some_page(file));
      break;
    case Act::Reopen:
      co_await close_one(file, 0);
      co_await close_one(file, 1);
      (void)co_await open_for_reading(file);
      break;
    case Act::kCount:
      break;
  }
}

Co<> Process::sync(uint32_t file) {
  const uint64_t begin = history_.tick();
  doing_ = fmt::format("fsync f{}", file);
  const int32_t error = co_await node_.kernel().fsync(file);
  if (dead_) co_return;
  const History::Interval when{begin, history_.tick(), "fsync", node_number_};
  scheduler_.trace(node_number_, static_cast<int>(file), "process {} fsync error {} [{}, {}]",
                   number_, error, when.begin, when.end);
  if (error == ETIME) co_return;  // out of patience: it says nothing of what was lost
  if (error != 0) {
    history_.sync_failed(file, when);
  } else {
    history_.synced(file, when, disk_(file));
  }
}

// Nobody else uses the name: that it is there already, or gone already, can only come of its having
// been done twice.
Co<> Process::make_and_remove() {
  const std::string name = fmt::format("{}.{}.{}", node_number_, number_, ++names_made_);
  const uint64_t losses = history_.power_losses();
  doing_ = "create " + name;
  CreateCall create{.dir = directory_id(), .name = name, .mode = 0100644, .exclusive = true};
  const int32_t made = co_await node_.call(std::move(create));
  if (dead_) co_return;
  if (made == EEXIST)
    scheduler_.fail(fmt::format("calls are done once: n{} made {} and is told that it was there",
                                node_number_, name));
  int32_t synced = EIO;
  if (made == 0 && habits_.syncs_names) {
    doing_ = "fsync of the directory with " + name;
    // Each process has the directory open for itself.
    synced = co_await node_.call(coherence::SyncCall{directory_id(), false},
                                 {.handle = number_ + uint64_t{1}, .next = UINT64_MAX});
    if (dead_) co_return;
  }
  doing_ = "remove " + name;
  RemoveCall remove{.dir = directory_id(), .name = name, .directory = false};
  const int32_t removed = co_await node_.call(std::move(remove));
  if (dead_) co_return;
  const bool may_be_lost = history_.power_losses() != losses && synced != 0;
  if (made == 0 && removed == ENOENT && !may_be_lost)
    scheduler_.fail(fmt::format("calls are done once: n{} removed {} and is told that it was gone",
                                node_number_, name));
}

Co<bool> Process::stat(uint32_t file) {
  const uint64_t begin = history_.tick();
  doing_ = fmt::format("stat f{}", file);
  const std::optional<Attributes> attributes = co_await node_.kernel().stat(file);
  if (attributes && !dead_)
    history_.saw_size(file, {begin, history_.tick(), "stat", node_number_}, attributes->size);
  co_return attributes.has_value();
}

Co<bool> Process::open_for_reading(uint32_t file) {
  if (slots_[file].reading != nullptr) co_return true;
  doing_ = fmt::format("open f{} O_RDONLY", file);
  ModelKernel::Handle* handle = co_await node_.kernel().open(file, Kind::ReadOnly);
  slots_[file].reading = handle;
  co_return handle != nullptr;
}

Co<bool> Process::open_for_writing(uint32_t file, bool read_write) {
  ModelKernel::Handle* have = slots_[file].writing;
  if (have != nullptr && (!read_write || have->kind == Kind::ReadWrite)) co_return true;
  if (have != nullptr) co_await close_one(file, 1);
  doing_ = fmt::format("open f{} {}", file, read_write ? "O_RDWR" : "O_WRONLY");
  ModelKernel::Handle* handle =
      co_await node_.kernel().open(file, read_write ? Kind::ReadWrite : Kind::WriteOnly);
  slots_[file].writing = handle;
  co_return handle != nullptr;
}

Co<bool> Process::map(uint32_t file, bool writable) {
  Slots& slots = slots_[file];
  if (slots.mapped != nullptr && (!writable || slots.mapped->kind == Kind::ReadWrite))
    co_return true;
  if (slots.mapped != nullptr) co_await close_one(file, 2);
  // Read-only mappings may be of either kind of handle.
  if (writable || (slots.writing != nullptr && slots.writing->kind == Kind::ReadWrite &&
                   scheduler_.random().chance(50))) {
    (void)co_await open_for_writing(file, true);
    slots.mapped = slots.writing;
  } else {
    (void)co_await open_for_reading(file);
    slots.mapped = slots.reading;
  }
  if (slots.mapped == nullptr) co_return false;
  doing_ = fmt::format("mmap f{}", file);
  co_await node_.kernel().map(file, slots.mapped);
  // Mappings outlive close().
  if (scheduler_.random().chance(30))
    co_await close_one(file, slots.mapped == slots.writing ? 1 : 0);
  co_return true;
}

Co<> Process::close_one(uint32_t file, uint64_t which) {
  Slots& slots = slots_[file];
  ModelKernel::Handle*& slot = which == 0   ? slots.reading
                               : which == 1 ? slots.writing
                                            : slots.mapped;
  ModelKernel::Handle* handle = std::exchange(slot, nullptr);
  if (handle == nullptr) co_return;
  doing_ = fmt::format("{} f{}", which == 2 ? "munmap" : "close", file);
  if (which == 2) {
    co_await node_.kernel().unmap(file, handle);
  } else {
    co_await node_.kernel().close(file, handle);
  }
}

void Process::report_read(uint32_t file, History::Interval when, uint64_t offset, uint64_t length,
                          std::span<const std::byte> bytes) {
  if (length == 0 || dead_) return;
  scheduler_.trace(node_number_, static_cast<int>(file),
                   "process {} {} {}+{} got {} bytes [{}, {}]", number_, when.what, offset, length,
                   bytes.size(), when.begin, when.end);
  if (files_[file].append_only) {
    history_.read_appended(file, when, offset, length, bytes);
  } else {
    history_.read(file, when, offset, length, bytes);
  }
}

// sendfile, splice and the source of copy_file_range are reads of the page cache, too, of direct
// handles as well, and do not ask for the size.
Co<bool> Process::read_cached(uint32_t file, uint64_t offset, uint64_t length, bool splice) {
  const ModelKernel::Handle* have = slots_[file].writing;
  if (!splice || have == nullptr || have->kind != Kind::ReadWrite) {
    const bool open = co_await open_for_reading(file);
    if (!open) co_return false;
  }
  const char* const what = splice ? "splice" : "cached read";
  doing_ = fmt::format("{} f{} {}+{}", what, file, offset, length);
  const uint64_t begin = history_.tick();
  ModelKernel::Read read = co_await node_.kernel().read_cached(file, offset, length, !splice);
  const History::Interval when{begin, history_.tick(), what, node_number_};
  if (read.error != 0) length = read.bytes.size();
  // Where it ends without having asked is judged by the size alone: while a call that makes the
  // file longer is under way, some kernels know and others do not (promise.md, Limits).
  if (splice && !files_[file].append_only) {
    if (read.bytes.size() < length && !dead_ && node_.is_shown_growth())
      history_.ended_before(file, when, offset + read.bytes.size());
    length = read.bytes.size();
  }
  report_read(file, when, offset, length, read.bytes);
  co_return read.error == 0;
}

Co<bool> Process::read_direct(uint32_t file, uint64_t offset, uint64_t length) {
  // O_DIRECT on a cached handle, or a plain read through an O_RDWR one.
  bool open = false;
  if (scheduler_.random().chance(50)) {
    open = co_await open_for_reading(file);
  } else {
    open = co_await open_for_writing(file, true);
  }
  if (!open) co_return false;
  doing_ = fmt::format("direct read f{} {}+{}", file, offset, length);
  const uint64_t begin = history_.tick();
  ModelKernel::Read read = co_await node_.kernel().read_direct(file, offset, length, signal());
  if (read.error == EINTR) co_return true;
  if (fails_softly(read.error)) co_return false;
  if (read.error != 0)
    scheduler_.fail(fmt::format("no errors in this world: a read on n{} was answered {}",
                                node_number_, read.error));
  report_read(file, {begin, history_.tick(), "direct read", node_number_}, offset, length,
              read.bytes);
  co_return true;
}

Co<> Process::write(uint32_t file) {
  const bool open = co_await open_for_writing(file, scheduler_.random().chance(50));
  if (!open) co_return;
  uint64_t offset = 0, length = 0;
  pick_cells(file, habits_.write_cells_max, offset, length);
  doing_ = fmt::format("write f{} {}+{}", file, offset, length);
  const uint64_t number = history_.new_write();
  std::vector<std::byte> content(length);
  for (uint64_t at = 0; at < length; at += kCell) {
    const uint64_t cell = (offset + at) / kCell;
    fill_cell(std::span<std::byte>(content).subspan(at, kCell),
              cell_value(number, cell / kCells, cell % kCells));
  }
  const uint64_t begin = history_.tick();
  under_way_ = {UnderWay::Kind::Write, file, begin, offset, length, number};
  ModelKernel::Written written =
      co_await node_.kernel().write_direct(file, offset, Bytes::copy_of(content), false, signal());
  if (dead_) co_return;
  under_way_.reset();
  // Nothing of it was done.
  if (written.error == EINTR || fails_softly(written.error)) co_return;
  if (written.error != 0)
    scheduler_.fail(fmt::format("no errors in this world: a write on n{} was answered {}",
                                node_number_, written.error));
  const uint64_t end = written.early ? kNever : history_.tick();
  scheduler_.trace(node_number_, static_cast<int>(file), "process {} wrote w{} {}+{} [{}, {}]",
                   number_, number, offset, length, begin, end);
  history_.wrote(file, {begin, end, "write", node_number_}, offset, length, number);
}

// An append in a register file: its bytes name their place only when the place is known, so the
// place is guessed and, when the guess was wrong, the cells say so by their write's number alone.
Co<> Process::append(uint32_t file) {
  const bool open = co_await open_for_writing(file, scheduler_.random().chance(50));
  if (!open) co_return;
  const uint64_t begin = history_.tick();
  doing_ = fmt::format("append f{}", file);
  const uint64_t number = history_.new_write();
  const uint64_t length = kCell * scheduler_.random().between(1, 4);
  std::vector<std::byte> content(length);
  for (uint64_t at = 0; at < length; at += kCell)
    fill_cell(std::span<std::byte>(content).subspan(at, kCell), appended_value(number, at / kCell));
  under_way_ = {UnderWay::Kind::Append, file, begin, 0, length, number};
  ModelKernel::Written written =
      co_await node_.kernel().write_direct(file, 0, Bytes::copy_of(content), true, signal());
  if (dead_) co_return;
  under_way_.reset();
  if (written.error == EINTR || fails_softly(written.error)) co_return;
  if (written.error != 0)
    scheduler_.fail(fmt::format("no errors in this world: an append on n{} was answered {}",
                                node_number_, written.error));
  const uint64_t end = written.early ? kNever : history_.tick();
  scheduler_.trace(node_number_, static_cast<int>(file), "process {} appended w{} {}+{} [{}, {}]",
                   number_, number, written.offset, length, begin, end);
  history_.appended_cells(file, {begin, end, "append", node_number_}, written.offset, length,
                          number);
}

Co<> Process::append_record(uint32_t file) {
  (void)co_await open_for_writing(file, scheduler_.random().chance(50));
  Prng& random = scheduler_.random();
  std::vector<std::byte> record = History::record(
      history_.new_write(), random.between(1, random.chance(20) ? 3 * kPageSize : 700));
  doing_ = fmt::format("append of {} bytes to f{}", record.size(), file);
  const uint64_t begin = history_.tick();
  ModelKernel::Written written =
      co_await node_.kernel().write_direct(file, 0, Bytes::copy_of(record), true, false);
  if (written.error != 0)
    scheduler_.fail(fmt::format("no errors in this world: an append on n{} was answered {}",
                                node_number_, written.error));
  history_.appended(file, {begin, history_.tick(), "append", node_number_}, written.offset,
                    std::move(record));
}

Co<> Process::truncate(uint32_t file) {
  const uint64_t size = kCell * scheduler_.random().below(files_[file].hot_pages * kCells + 1);
  doing_ = fmt::format("truncate f{} to {}", file, size);
  const uint64_t begin = history_.tick();
  under_way_ = {UnderWay::Kind::Truncate, file, begin, 0, size, 0};
  const int32_t error = co_await node_.kernel().truncate(file, size);
  if (dead_) co_return;
  under_way_.reset();
  if (error == EIO && habits_.faults) {
    // The session ended while it was under way.
    scheduler_.trace(node_number_, static_cast<int>(file), "process {} truncates to {}: EIO",
                     number_, size);
    history_.truncated(file, {begin, kNever, "truncate that failed", node_number_}, size);
    co_return;
  }
  if (error == EINTR)
    co_return;  // two truncations that held each other's pages: one gave up, nothing was done
  if (error != 0)
    scheduler_.fail(fmt::format("no errors in this world: a truncation on n{} was answered {}",
                                node_number_, error));
  const uint64_t end = history_.tick();
  scheduler_.trace(node_number_, static_cast<int>(file), "process {} truncated to {} [{}, {}]",
                   number_, size, begin, end);
  history_.truncated(file, {begin, end, "truncate", node_number_}, size);
}

}  // namespace vremote::sim
