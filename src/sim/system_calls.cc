// The model kernel's system calls.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "sim/model_kernel.h"

namespace vremote::sim {

// The LOOKUP that makes the inode brings its attributes; nobody touches the inode before.
Co<int32_t> ModelKernel::look_up(Inode& in) {
  ++in.users;
  while (in.looking) co_await in.looked_up.wait();
  if (in.known) co_return 0;
  in.looking = true;
  Upcall call;
  co_await scheduler_.sleep(Delay::KernelQueue);
  const Token token = upcall(in, call, Tells::Size);
  scheduler_.trace(node_, static_cast<int>(in.number), "kernel  LOOKUP t{}", token);
  daemon_.on_get_attributes(token, in.id, false);
  co_await AnswerWait{call};
  in.looking = false;
  in.looked_up.wake_all();
  if (const int32_t error = call.answer.error; error != 0) {
    may_fail("a LOOKUP", error);
    --in.users;
    co_return error;
  }
  if (options_.size_races) in.size = call.answer.attributes.size;
  ++in.version;
  in.fresh = false;
  in.known = true;
  co_return 0;
}

Co<ModelKernel::Handle*> ModelKernel::open(uint32_t file, Handle::Kind kind) {
  Inode& in = inode(file);
  const int32_t unknown = co_await look_up(in);
  if (unknown != 0) co_return nullptr;
  Upcall call;
  co_await scheduler_.sleep(Delay::KernelQueue);
  const Token token = upcall(in, call);
  scheduler_.trace(node_, static_cast<int>(file), "kernel  OPEN t{}{}", token,
                   kind == Handle::Kind::ReadWrite ? " read-write" : "");
  daemon_.on_open(token, in.id, kind != Handle::Kind::WriteOnly, kind == Handle::Kind::ReadWrite);
  co_await AnswerWait{call};
  if (call.answer.error != 0) {
    may_fail("an OPEN", call.answer.error);
    --in.users;
    co_return nullptr;
  }
  auto handle = std::make_unique<Handle>();
  handle->kind = kind;
  Handle* raw = handle.get();
  in.handles[raw] = std::move(handle);
  co_return raw;
}

Co<> ModelKernel::release(Inode& in, bool reads, bool may_map) {
  co_await background_slot();
  co_await scheduler_.sleep(Delay::KernelQueue);
  scheduler_.trace(node_, static_cast<int>(in.number), "kernel  RELEASE{}",
                   may_map ? " read-write" : "");
  daemon_.on_release(in.id, reads, may_map);
  free_background_slot();
  --in.users;
}

Co<> ModelKernel::drop_handle(Inode& in, Handle* handle) {
  VR_CHECK(handle->users > 0);
  if (--handle->users == 0) {
    const Handle::Kind kind = handle->kind;
    in.handles.erase(handle);
    scheduler_.spawn(release(in, kind != Handle::Kind::WriteOnly, kind == Handle::Kind::ReadWrite));
  }
  co_return;
}

Co<> ModelKernel::close(uint32_t file, Handle* handle) {
  Inode& in = inode(file);
  if (handle->kind != Handle::Kind::ReadOnly)
    co_await write_back_and_wait(in, PageRange::all());  // fuse_flush
  co_await drop_handle(in, handle);
}

Co<int32_t> ModelKernel::refresh_attributes(Inode& in, Attributes& out, bool own) {
  if (in.fresh && !own) {  // fuse_update_get_attr
    out.size = in.size;
    ++counts_.attribute_hits;
    co_return 0;
  }
  const uint64_t version = in.version;
  Upcall call;
  co_await scheduler_.sleep(Delay::KernelQueue);
  const Token token = upcall(in, call, Tells::Size);
  scheduler_.trace(node_, static_cast<int>(in.number), "kernel  GETATTR t{}{}", token,
                   own ? " of our own" : "");
  daemon_.on_get_attributes(token, in.id, own);
  co_await AnswerWait{call};
  if (!own) may_fail("a GETATTR", call.answer.error);
  if (call.answer.error != 0) co_return call.answer.error;
  out = call.answer.attributes;
  if (in.version > version || in.size_unstable)
    co_return 0;  // an older truth than what is known (fuse_change_attributes)
  in.fresh = call.answer.may_cache;
  if (!options_.size_races) co_return 0;
  ++in.version;
  const uint64_t before = in.size;
  in.size = out.size;
  if (before != in.size) co_await truncate_page_cache(in, out.size);
  co_return 0;
}

Co<std::optional<Attributes>> ModelKernel::stat(uint32_t file) {
  Inode& in = inode(file);
  const int32_t unknown = co_await look_up(in);
  if (unknown != 0) co_return std::nullopt;
  Attributes attributes;
  const int32_t error = co_await refresh_attributes(in, attributes);
  --in.users;
  if (error != 0) co_return std::nullopt;
  co_return attributes;
}

Co<> ModelKernel::own_stat(FileId file) {
  Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  if (!in.known) co_return;
  ++in.users;
  Attributes attributes;
  (void)co_await refresh_attributes(in, attributes, true);
  --in.users;
}

bool ModelKernel::size_at_most(FileId file, uint64_t size) {
  const Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  return !in.known || in.size <= size;
}

bool ModelKernel::size_at_least(FileId file, uint64_t size) {
  const Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  return in.known && in.size >= size;
}

Co<> ModelKernel::inode_lock_passes(FileId file) {
  Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  if (!in.known) co_return;
  ++in.users;
  co_await lock(in);
  unlock(in);
  --in.users;
}

// filemap_read(): page by page; after each wait the page is looked up again, and the size is looked
// at after the page.
Co<ModelKernel::Read> ModelKernel::read_cached(uint32_t file, uint64_t offset, uint64_t length,
                                               bool asks) {
  Inode& in = inode(file);
  Read result;
  result.error = co_await look_up(in);
  if (result.error != 0) co_return result;
  if (asks && offset + length > in.size) {
    Attributes attributes;
    result.error = co_await refresh_attributes(in, attributes);
    if (result.error != 0) {
      --in.users;
      co_return result;
    }
  }
  uint64_t at = offset;
  bool waited = false;
  while (at < offset + length && at < in.size) {
    const uint64_t page = at >> kPageShift;
    Folio* folio = find(in, page);
    if (folio == nullptr && waited && in.failed.contains(page)) {
      // What was read before is told, where it ends means nothing.
      result.error = EIO;
      break;
    }
    if (folio == nullptr) {
      if (waited) ++counts_.refaults;
      start_fill(in, page, scheduler_.random().between(1, options_.readahead_max));
      folio = find(in, page);
    }
    if (folio->state == State::Locked ||
        (folio->state == State::Laundry && scheduler_.random().chance(50))) {
      waited = true;
      co_await folio_changes(in, page);
      continue;
    }
    if (at >= in.size) break;
    const uint64_t piece = std::min({(page + 1) << kPageShift, offset + length, in.size}) - at;
    const auto from = folio->bytes.begin() + static_cast<ptrdiff_t>(at & (kPageSize - 1));
    result.bytes.insert(result.bytes.end(), from, from + static_cast<ptrdiff_t>(piece));
    ++counts_.hits;
    at += piece;
    waited = false;
    if (at == in.size) break;  // the size it copied by; a longer one is for the next call
    if (at < offset + length) co_await scheduler_.sleep(Delay::WakeUp);
  }
  --in.users;
  co_return result;
}

Co<ModelKernel::Read> ModelKernel::read_direct(uint32_t file, uint64_t offset, uint64_t length,
                                               bool interrupted) {
  Inode& in = inode(file);
  const int32_t unknown = co_await look_up(in);
  if (unknown != 0) co_return Read{.bytes = {}, .error = unknown};
  co_await write_back_and_wait(in, PageRange::of_bytes(offset, length));
  Upcall call;
  co_await scheduler_.sleep(Delay::KernelQueue);
  const Token token = upcall(in, call);
  scheduler_.trace(node_, static_cast<int>(file), "kernel  READ t{} {}+{} direct", token, offset,
                   length);
  daemon_.on_read(token, in.id, offset, static_cast<uint32_t>(length), false);
  if (interrupted) {
    scheduler_.after(Delay::KernelQueue, [this, token, id = in.id] {
      if (upcalls_.contains(token)) daemon_.on_interrupt(token, id);
    });
  }
  co_await AnswerWait{call};
  Read result;
  result.error = call.answer.error;
  result.bytes = std::move(call.answer.bytes);
  --in.users;
  co_return result;
}

// fuse_direct_write_iter(): the inode lock is held all the while, the cached range is dropped
// before and after.
Co<ModelKernel::Written> ModelKernel::write_direct(uint32_t file, uint64_t offset, Bytes bytes,
                                                   bool append, bool interrupted) {
  Inode& in = inode(file);
  const int32_t unknown = co_await look_up(in);
  if (unknown != 0) co_return Written{.error = unknown};
  co_await lock(in);
  if (append) offset = in.size;
  const PageRange range = PageRange::of_bytes(offset, bytes.size());
  co_await write_back_and_wait(in, range);
  co_await invalidate(in, range);
  Written result;
  // fuse_direct_io(): what is longer than a request goes in pieces, one after the other's answer.
  const uint64_t handle = ++writers_;
  for (uint64_t done = 0; done < bytes.size() && result.error == 0;) {
    const uint64_t length =
        append ? std::min<uint64_t>(bytes.size() - done, options_.append_piece) : bytes.size();
    Upcall call;
    call.written_end = offset + done + length;  // of an append still by the guess
    co_await scheduler_.sleep(Delay::KernelQueue);
    const Token token = upcall(in, call, Tells::WrittenEnd);
    scheduler_.trace(node_, static_cast<int>(file), "kernel  WRITE t{} {}+{}{}", token,
                     offset + done, length, append ? " append" : "");
    daemon_.on_write(token, in.id, offset + done, bytes.part(done, length), append, handle);
    if (interrupted) {
      scheduler_.after(Delay::KernelQueue, [this, token, id = in.id] {
        if (upcalls_.contains(token)) daemon_.on_interrupt(token, id);
      });
    }
    co_await AnswerWait{call};
    result.error = call.answer.error;
    if (result.error == 0 && call.answer.length != length) {
      scheduler_.fail(fmt::format("a write is whole: n{} t{} wrote {} of {} bytes", node_, token,
                                  call.answer.length, length));
    }
    if (done == 0) result.offset = call.answer.offset;
    result.early = result.early || call.answer.early;
    done += length;
  }
  if (result.error == 0) {
    ++in.version;
    in.fresh = false;
    if (options_.size_races)
      in.size = std::max(in.size, offset + bytes.size());  // for an append still by the guess
  }
  co_await invalidate(in, range);
  unlock(in);
  --in.users;
  co_return result;
}

Co<int32_t> ModelKernel::fsync(uint32_t file) {
  Inode& in = inode(file);
  const int32_t unknown = co_await look_up(in);
  if (unknown != 0) co_return ETIME;
  co_await lock(in);
  co_await write_back_and_wait(in, PageRange::all());
  Upcall call;
  co_await scheduler_.sleep(Delay::KernelQueue);
  const Token token = upcall(in, call);
  scheduler_.trace(node_, static_cast<int>(file), "kernel  FSYNC t{}", token);
  daemon_.on_fsync(token, in.id);
  co_await AnswerWait{call};
  if (call.answer.error != 0 && !options_.errors)
    scheduler_.fail(fmt::format("no errors in this world: FSYNC on n{} was answered {}", node_,
                                call.answer.error));
  unlock(in);
  --in.users;
  co_return call.answer.error;
}

// fuse_do_setattr() with a size.
Co<int32_t> ModelKernel::truncate(uint32_t file, uint64_t size) {
  Inode& in = inode(file);
  const int32_t unknown = co_await look_up(in);
  if (unknown != 0) co_return unknown;
  co_await lock(in);
  in.no_write = true;
  while (in.writes_in_flight != 0) co_await in.writes_idle.wait();
  in.size_unstable = true;
  Upcall call;
  call.new_size = size;
  co_await scheduler_.sleep(Delay::KernelQueue);
  const Token token = upcall(in, call, Tells::NewSize);
  scheduler_.trace(node_, static_cast<int>(file), "kernel  SETATTR t{} size {}", token, size);
  daemon_.on_set_size(token, in.id, size);
  co_await AnswerWait{call};
  const int32_t error = call.answer.error;
  const uint64_t before = in.size;
  if (error == 0) {
    ++in.version;
    in.fresh = false;
    if (options_.size_races) in.size = size;
  }
  in.no_write = false;
  in.released.wake_all();
  if (error == 0 && (before != size || !options_.size_races)) {
    co_await truncate_page_cache(in, size);
    co_await invalidate(in, PageRange::all());
  }
  in.size_unstable = false;
  unlock(in);
  --in.users;
  co_return error;
}

Co<> ModelKernel::map(uint32_t file, Handle* handle) {
  Inode& in = inode(file);
  ++handle->users;
  // A direct handle: the kernel drops the whole file first (fuse_file_mmap).
  if (handle->kind != Handle::Kind::ReadOnly) co_await invalidate(in, PageRange::all());
}

Co<> ModelKernel::unmap(uint32_t file, Handle* handle) {
  Inode& in = inode(file);
  co_await write_back_and_wait(in, PageRange::all());  // fuse_vma_close
  co_await drop_handle(in, handle);
}

// There: at this instant, and readable. Else: SIGBUS.
Co<ModelKernel::Fault> ModelKernel::fault(Inode& in, uint64_t page) {
  bool waited = false;
  for (;;) {
    if (page >= (in.size + kPageSize - 1) >> kPageShift) co_return Fault::BehindEnd;
    Folio* folio = find(in, page);
    if (folio == nullptr && waited && in.failed.contains(page)) co_return Fault::Failed;
    if (folio == nullptr) {
      if (waited) ++counts_.refaults;
      start_fill(in, page, scheduler_.random().between(1, options_.readahead_max));
    } else if (folio->state != State::Locked && folio->state != State::Laundry) {
      // The page is mapped; before the instruction runs again it may be gone, and faults anew.
      if (!waited) co_return Fault::There;
      const uint64_t id = folio->id;
      co_await scheduler_.sleep(Delay::WakeUp);
      folio = find(in, page);
      if (folio != nullptr && folio->id == id)
        co_return page < (in.size + kPageSize - 1) >> kPageShift ? Fault::There : Fault::BehindEnd;
      continue;
    }
    waited = true;
    co_await folio_changes(in, page);
  }
}

// A page that the file does not have: at this moment, as the kernel says.
void ModelKernel::bus_error(const Inode& in, uint64_t begin, uint64_t page, const char* what) {
  if (!power_) return;
  ++counts_.bus_errors;
  const uint64_t end = history_.tick();
  scheduler_.trace(node_, static_cast<int>(in.number), "kernel  SIGBUS page {} [{}, {}]", page,
                   begin, end);
  if (!daemon_.is_shown_growth()) return;
  history_.ended_before(in.number, {begin, end, what, node_}, page << kPageShift);
}

Co<bool> ModelKernel::load(uint32_t file, uint64_t page, uint64_t cell) {
  Inode& in = inode(file);
  const uint64_t begin = history_.tick();
  const Fault found = co_await fault(in, page);
  const bool there = found == Fault::There;
  if (found == Fault::BehindEnd) bus_error(in, begin, page, "SIGBUS of a load");
  // Beyond the end of the file, inside its last page, a mapping shows anything: a truncation cuts
  // the size first and the page later.
  if (!there || (page << kPageShift) + cell * kCell >= in.size || !power_) co_return false;
  const Folio* folio = find(in, page);
  const auto bytes = std::span<const std::byte>(folio->bytes).subspan(cell * kCell, kCell);
  history_.read(file, {begin, history_.tick(), "mapped load", node_},
                (page << kPageShift) + cell * kCell, kCell, bytes,
                false);  // SIGBUS comes by the page
  ++counts_.hits;
  co_return true;
}

void ModelKernel::hit_something(uint32_t file) {
  Inode& in = inode(file);
  if (in.folios.empty() || !power_) return;
  const auto it = std::next(in.folios.begin(),
                            static_cast<ptrdiff_t>(scheduler_.random().below(in.folios.size())));
  const uint64_t begin = it->first << kPageShift;
  if (it->second.state == State::Locked || it->second.state == State::Laundry || begin >= in.size)
    return;
  const uint64_t length = std::min(kPageSize, (in.size - begin) / kCell * kCell);
  if (length == 0) return;
  history_.read(file, {history_.tick(), history_.tick(), "hit", node_}, begin, length,
                std::span<const std::byte>(it->second.bytes).first(length), false);
  ++counts_.hits;
}

Co<bool> ModelKernel::store(uint32_t file, uint64_t page, uint64_t cell) {
  Inode& in = inode(file);
  const uint64_t begin = history_.tick();
  for (;;) {
    const Fault found = co_await fault(in, page);
    if (found == Fault::BehindEnd) bus_error(in, begin, page, "SIGBUS of a store");
    if (found != Fault::There || !power_) co_return false;
    Folio* folio = find(in, page);
    if (folio->state == State::Clean || folio->state == State::Dirty) {
      // What is stored beyond the end of the file, inside its last page, is nothing, and nobody
      // must ever see it.
      if ((page << kPageShift) + cell * kCell >= in.size) {
        if (!options_.tails) co_return false;
        fill_cell(std::span<std::byte>(folio->bytes).subspan(cell * kCell, kCell),
                  cell_value(history_.new_write(), page, cell));
        folio->state = State::Dirty;
        ++counts_.stores_behind;
        co_return false;
      }
      const uint64_t write = history_.new_write();
      fill_cell(std::span<std::byte>(folio->bytes).subspan(cell * kCell, kCell),
                cell_value(write, page, cell));
      scheduler_.trace(node_, static_cast<int>(file), "kernel  store w{} page {} cell {}{}", write,
                       page, cell, folio->state == State::Clean ? " (now dirty)" : "");
      folio->state = State::Dirty;
      ++counts_.stores;
      history_.stored(file, {begin, history_.tick(), "mapped store", node_},
                      (page << kPageShift) + cell * kCell, kCell, write);
      co_return true;
    }
    co_await folio_changes(in, page);  // page_mkwrite waits for the write-back
  }
}

void ModelKernel::read_ahead(uint32_t file, uint64_t page) {
  Inode& in = inode(file);
  if (in.known && page < (in.size + kPageSize - 1) >> kPageShift && find(in, page) == nullptr)
    start_fill(in, page, options_.readahead_max);
}

}  // namespace vremote::sim
