// The page cache: folios, fills, write-backs, purges.
#include "sim/model_kernel.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace vremote::sim {

// Linux invalidates in batches of 15 folios, looked up before it waits for the first of them
// (PAGEVEC_SIZE).
inline constexpr size_t kBatch = 15;

FileId file_id(uint32_t file) {
  return FileId{.export_index = 0, .generation = 1, .inode = file + 1};
}

ModelKernel::ModelKernel(Scheduler& scheduler, History& history, Daemon& daemon, int node,
                         const KernelOptions& options)
    : scheduler_(scheduler),
      history_(history),
      daemon_(daemon),
      node_(node),
      options_(options),
      background_free_(scheduler),
      daemon_back_(scheduler) {}

ModelKernel::Inode& ModelKernel::inode(uint32_t file) {
  auto& slot = inodes_[file];
  if (!slot) {
    slot = std::make_unique<Inode>(scheduler_, file);
    slot->id = file_id(file);
  }
  return *slot;
}

ModelKernel::Folio* ModelKernel::find(Inode& in, uint64_t page) {
  auto it = in.folios.find(page);
  return it == in.folios.end() ? nullptr : &it->second;
}

void ModelKernel::wake(Inode& in, uint64_t page) {
  std::erase_if(in.waiters, [&](const Waiter& waiter) {
    if (waiter.page != page) return false;
    scheduler_.resume_after(scheduler_.draw(Delay::WakeUp), waiter.handle);
    return true;
  });
}

Token ModelKernel::upcall(Inode& in, Upcall& call, Tells tells) {
  const Token token = next_token_++;
  call.inode = &in;
  call.tells = tells;
  upcalls_[token] = &call;
  return token;
}

void ModelKernel::answer(Token token, Answer answer) {
  if (auto fill = fills_.find(token); fill != fills_.end()) {
    const Fill found = std::move(fill->second);
    fills_.erase(fill);
    fill_answered(found, answer);
    return;
  }
  auto it = upcalls_.find(token);
  if (it == upcalls_.end()) {
    scheduler_.fail(
        fmt::format("exactly one answer: n{} token {} is unknown or answered twice", node_, token));
    return;
  }
  Upcall& call = *it->second;
  upcalls_.erase(it);
  call.answer = std::move(answer);
  call.done = true;
  if (!options_.size_races && call.answer.error == 0) {
    switch (call.tells) {
      case Tells::Nothing:
        break;
      case Tells::Size:
        if (!call.answer.size_was_pushed) set_size(*call.inode, call.answer.attributes.size);
        break;
      case Tells::WrittenEnd:
        call.inode->size = std::max(call.inode->size, call.written_end);
        break;
      case Tells::NewSize:
        set_size(*call.inode, call.new_size);
        break;
    }
  }
  if (call.waiter) scheduler_.resume_after(scheduler_.draw(Delay::WakeUp), call.waiter);
}

void ModelKernel::may_fail(const char* what, int32_t error) {
  if (error != 0 && !options_.soft)
    scheduler_.fail(
        fmt::format("no errors in this world: {} on n{} was answered {}", what, node_, error));
}

Co<> ModelKernel::lock(Inode& in) {
  while (in.locked) co_await in.lock.wait();
  in.locked = true;
}

void ModelKernel::unlock(Inode& in) {
  VR_CHECK(in.locked);
  in.locked = false;
  in.lock.wake_all();
}

Co<> ModelKernel::background_slot() {
  while (background_ >= options_.background_max) co_await background_free_.wait();
  ++background_;
}

void ModelKernel::free_background_slot() {
  VR_CHECK(background_ > 0);
  --background_;
  background_free_.wake_all();
}

// Without the races: the size and what follows from it for the cache, at once.
void ModelKernel::set_size(Inode& in, uint64_t size) {
  if (in.size == size) return;
  in.size = size;
  for (auto it = in.folios.lower_bound(size >> kPageShift); it != in.folios.end();) {
    const uint64_t page = it->first;
    Folio& folio = it->second;
    const uint64_t keep = page == size >> kPageShift ? size % kPageSize : 0;
    ++it;
    if (folio.state == State::Locked) continue;
    if (keep != 0 || (folio.state != State::Clean && folio.state != State::Dirty)) {
      // A folio on its way to the daemon stays, and shows zeroes.
      std::fill(folio.bytes.begin() + static_cast<ptrdiff_t>(keep), folio.bytes.end(),
                std::byte{0});
    } else {
      in.folios.erase(page);
      wake(in, page);
    }
  }
}

// Inserts locked folios at `page` and the absent pages after it, up to the window and the end of
// the file, and sends their fills.
void ModelKernel::start_fill(Inode& in, uint64_t page, uint64_t window) {
  const uint64_t end_of_file = std::max((in.size + kPageSize - 1) >> kPageShift, page + 1);
  uint64_t end = page;
  std::vector<uint64_t> ids;
  while (end < end_of_file && end - page < window && !in.folios.contains(end)) {
    in.failed.erase(end);
    Folio& folio = in.folios[end++];
    folio.id = next_folio_++;
    ids.push_back(folio.id);
  }
  uint64_t first = page;
  size_t at = 0;
  while (first < end) {
    const uint64_t left = end - first;
    const uint64_t count =
        options_.readahead_in_pieces ? scheduler_.random().between(1, left) : left;
    scheduler_.spawn(
        send_fill(in, first, count,
                  std::vector<uint64_t>(ids.begin() + static_cast<ptrdiff_t>(at),
                                        ids.begin() + static_cast<ptrdiff_t>(at + count))));
    first += count;
    at += count;
  }
}

Co<> ModelKernel::send_fill(Inode& in, uint64_t first, uint64_t count, std::vector<uint64_t> ids) {
  ++counts_.fills;
  const uint64_t version = in.version;
  co_await background_slot();
  co_await scheduler_.sleep(Delay::KernelQueue);
  const Token token = next_token_++;
  fills_[token] = Fill{&in, first, count, version, std::move(ids)};
  scheduler_.trace(node_, static_cast<int>(in.number), "kernel  fill t{} pages {}-{}", token, first,
                   first + count - 1);
  daemon_.on_read(token, in.id, first << kPageShift, static_cast<uint32_t>(count << kPageShift),
                  true);
}

void ModelKernel::fill_answered(const Fill& fill, const Answer& answer) {
  Inode& in = *fill.inode;
  for (uint64_t i = 0; i < fill.count; ++i) {
    Folio* folio = find(in, fill.first + i);
    VR_CHECK_MSG(folio != nullptr && folio->id == fill.ids[i] && folio->state == State::Locked,
                 "a locked folio left the page cache");
    if (answer.error != 0) {
      in.folios.erase(fill.first + i);
      in.failed.insert(fill.first + i);
    } else {
      folio->bytes.assign(kPageSize, std::byte{0});
      const uint64_t at = i << kPageShift;
      if (at < answer.bytes.size()) {
        std::memcpy(folio->bytes.data(), answer.bytes.data() + at,
                    std::min<uint64_t>(kPageSize, answer.bytes.size() - at));
      }
      folio->state = State::Clean;
    }
    wake(in, fill.first + i);
  }
  free_background_slot();
  scheduler_.trace(node_, static_cast<int>(in.number),
                   "kernel  filled pages {}-{} with {} bytes error {}", fill.first,
                   fill.first + fill.count - 1, answer.bytes.size(), answer.error);
  may_fail("a fill", answer.error);
  if (answer.error != 0) return;
  // A short answer is the end of the file, unless the attributes changed since the request was sent
  // (fuse_short_read).
  const uint64_t end = (fill.first << kPageShift) + answer.bytes.size();
  if (answer.bytes.size() >= fill.count << kPageShift || end >= in.size) return;
  if (!options_.size_races) {
    in.size = end;
  } else if (fill.version == in.version && !in.size_unstable) {
    ++in.version;
    in.size = end;
  }
}

// One dirty folio, already in State::WriteBack or State::Laundry, to the daemon.
Co<> ModelKernel::carry_write_back(Inode& in, uint64_t page) {
  ++counts_.write_backs;
  if (in.no_write) ++counts_.held_back;
  while (in.no_write) co_await in.released.wait();
  ++in.writes_in_flight;
  const uint64_t offset = page << kPageShift;
  const Folio* folio = find(in, page);
  VR_CHECK(folio != nullptr);
  // Cut at the end of the file when it is sent, not when it was made dirty (fuse_send_writepage).
  const uint64_t length = offset >= in.size ? 0 : std::min<uint64_t>(kPageSize, in.size - offset);
  Bytes bytes = Bytes::copy_of(std::span<const std::byte>(folio->bytes).first(length));
  if (length > 0) {
    co_await background_slot();
    co_await scheduler_.sleep(Delay::KernelQueue);
    while (!daemon_.takes_write_backs()) co_await daemon_back_.wait();
    scheduler_.trace(node_, static_cast<int>(in.number), "kernel  write-back page {} {} bytes",
                     page, length);
    daemon_.on_write_back(in.id, offset, bytes);
    free_background_slot();
    co_await scheduler_.sleep(Delay::WakeUp);
  }
  --in.writes_in_flight;
  in.writes_idle.wake_all();
}

void ModelKernel::start_write_back(Inode& in, uint64_t page) {
  Folio* folio = find(in, page);
  VR_CHECK(folio != nullptr && folio->state == State::Dirty);
  folio->state = State::WriteBack;
  struct Flow {
    static Co<> run(ModelKernel& kernel, Inode& node, uint64_t index) {
      co_await kernel.carry_write_back(node, index);
      Folio* written = kernel.find(node, index);
      VR_CHECK(written != nullptr && written->state == State::WriteBack);
      written->state = State::Clean;
      kernel.wake(node, index);
    }
  };
  scheduler_.spawn(Flow::run(*this, in, page));
}

Co<> ModelKernel::write_back_and_wait(Inode& in, PageRange range) {
  std::vector<uint64_t> pages;
  for (auto it = in.folios.lower_bound(range.first); it != in.folios.end() && it->first < range.end;
       ++it) {
    if (it->second.state == State::Dirty || it->second.state == State::WriteBack ||
        it->second.state == State::Laundry)
      pages.push_back(it->first);
  }
  for (uint64_t page : pages) {
    if (Folio* folio = find(in, page); folio != nullptr && folio->state == State::Dirty)
      start_write_back(in, page);
  }
  for (uint64_t page : pages) {
    for (;;) {
      Folio* folio = find(in, page);
      if (folio == nullptr || (folio->state != State::WriteBack && folio->state != State::Laundry))
        break;
      co_await folio_changes(in, page);
    }
  }
}

// invalidate_inode_pages2_range(): in order, waiting for whatever is locked or on its way.
Co<> ModelKernel::invalidate(Inode& in, PageRange range) {
  for (uint64_t next = range.first; next < range.end;) {
    std::vector<std::pair<uint64_t, uint64_t>> batch;
    for (auto it = in.folios.lower_bound(next);
         it != in.folios.end() && it->first < range.end && batch.size() < kBatch; ++it) {
      batch.emplace_back(it->first, it->second.id);
    }
    if (batch.empty()) break;
    next = batch.back().first + 1;
    for (auto [page, id] : batch) {
      bool blocked = false;
      for (;;) {
        Folio* folio = find(in, page);
        // Another folio at the same place is not the one that was looked up: it is passed over.
        if (folio == nullptr || folio->id != id) break;
        if (folio->state == State::Locked || folio->state == State::Laundry ||
            folio->state == State::WriteBack) {
          if (!blocked) ++counts_.purge_blocks;
          blocked = true;
          co_await folio_changes(in, page);
          continue;
        }
        if (folio->state == State::Dirty) {
          folio->state = State::Laundry;
          co_await carry_write_back(in, page);
        }
        in.folios.erase(page);
        wake(in, page);
        break;
      }
      co_await scheduler_.sleep(Delay::PurgeStep);
    }
  }
}

Co<> ModelKernel::purge(FileId file, PageRange range) {
  Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  ++counts_.purges;
  ++in.version;  // fuse_reverse_inval_inode
  in.fresh = false;
  co_await invalidate(in, range);
}

Co<> ModelKernel::push_size(FileId file, uint64_t size) {
  Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  ++in.version;  // fuse_write_update_attr
  in.fresh = false;
  if (options_.size_races) in.size = std::max(in.size, size);
  const uint64_t page = (size - 1) >> kPageShift;
  for (Folio* folio = find(in, page); folio != nullptr && folio->state == State::Locked;
       folio = find(in, page))
    co_await folio_changes(in, page);
}

// fuse_notify_store(): the size, then the bytes, whatever the folio's state, but under its lock. A
// purge that waits for the write-back of a dirty folio has that.
Co<> ModelKernel::store_zeroes(FileId file, uint64_t offset, uint64_t length) {
  Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  const uint64_t page = offset >> kPageShift;
  ++in.version;
  in.fresh = false;
  in.size = std::max(in.size, offset + length);
  for (Folio* folio = find(in, page); folio != nullptr && folio->state == State::Locked;
       folio = find(in, page))
    co_await folio_changes(in, page);
  if (Folio* folio = find(in, page))
    std::ranges::fill(std::span<std::byte>(folio->bytes).subspan(offset % kPageSize, length),
                      std::byte{0});
}

void ModelKernel::drop_attributes(FileId file) {
  Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  ++in.version;
  in.fresh = false;
}

std::vector<Token> ModelKernel::end_truncations() {
  std::vector<Token> ended;
  for (const auto& [token, call] : upcalls_)
    if (call->tells == Tells::NewSize) ended.push_back(token);
  for (Token token : ended) answer(token, Answer{.error = EIO});
  return ended;
}

void ModelKernel::drop_all_attributes() {
  for (auto& [number, in] : inodes_) drop_attributes(in->id);
}

void ModelKernel::push_begins(FileId file, uint64_t size) {
  Inode& in = inode(static_cast<uint32_t>(file.inode - 1));
  if (!options_.size_races) in.size = std::max(in.size, size);
}

// truncate_pagecache(): what lies beyond goes without a write-back, the rest of the last page
// becomes zero.
Co<> ModelKernel::truncate_page_cache(Inode& in, uint64_t size) {
  const uint64_t partial = size % kPageSize == 0 ? UINT64_MAX : size >> kPageShift;
  std::vector<uint64_t> pages;
  for (auto it = in.folios.lower_bound(size >> kPageShift); it != in.folios.end(); ++it)
    pages.push_back(it->first);
  for (uint64_t page : pages) {
    for (;;) {
      Folio* folio = find(in, page);
      if (folio == nullptr || (folio->state == State::Locked && !options_.size_races)) break;
      if (folio->state != State::Clean && folio->state != State::Dirty) {
        co_await folio_changes(in, page);
        continue;
      }
      if (page == partial) {
        std::fill(folio->bytes.begin() + static_cast<ptrdiff_t>(size % kPageSize),
                  folio->bytes.end(), std::byte{0});
      } else {
        in.folios.erase(page);
        wake(in, page);
      }
      break;
    }
  }
}

void ModelKernel::reclaim_something() {
  if (inodes_.empty()) return;
  auto in =
      std::next(inodes_.begin(), static_cast<ptrdiff_t>(scheduler_.random().below(inodes_.size())));
  auto& folios = in->second->folios;
  if (folios.empty()) return;
  auto it =
      std::next(folios.begin(), static_cast<ptrdiff_t>(scheduler_.random().below(folios.size())));
  const uint64_t page = it->first;
  if (it->second.state == State::Dirty) {
    start_write_back(*in->second, page);
  } else if (it->second.state == State::Clean) {
    scheduler_.trace(node_, static_cast<int>(in->first), "kernel  reclaims page {}", page);
    folios.erase(it);
    wake(*in->second, page);
    ++counts_.reclaims;
  }
}

void ModelKernel::forget_something() {
  if (!options_.forgets || inodes_.empty()) return;
  auto slot =
      std::next(inodes_.begin(), static_cast<ptrdiff_t>(scheduler_.random().below(inodes_.size())));
  Inode& in = *slot->second;
  if (!in.known || in.looking || in.users != 0) return;
  for (auto& [page, folio] : in.folios) {
    if (folio.state != State::Clean) return;
  }
  for (auto it = in.folios.begin(); it != in.folios.end(); it = in.folios.begin()) {
    const uint64_t page = it->first;
    in.folios.erase(it);
    wake(in, page);
  }
  in.known = false;
  in.size = 0;
  in.fresh = false;
  ++in.version;
  ++counts_.forgets;
  if (options_.errors && power_) history_.forgot(in.number, node_);
  scheduler_.trace(node_, static_cast<int>(in.number), "kernel  forgets the inode");
  daemon_.on_forget(in.id);
}

std::vector<std::pair<FileId, uint64_t>> ModelKernel::cached_pages() const {
  std::vector<std::pair<FileId, uint64_t>> pages;
  for (const auto& [number, in] : inodes_)
    for (const auto& [page, folio] : in->folios)
      if (folio.state != State::Locked) pages.emplace_back(in->id, page);
  return pages;
}

std::vector<uint64_t> ModelKernel::dirty_pages(uint32_t file) const {
  std::vector<uint64_t> pages;
  auto it = inodes_.find(file);
  if (it == inodes_.end()) return pages;
  for (const auto& [page, folio] : it->second->folios) {
    if (folio.state == State::Dirty && (page << kPageShift) < it->second->size)
      pages.push_back(page);
  }
  return pages;
}

std::string ModelKernel::dump() const {
  std::string out;
  static constexpr const char* kStates[] = {"locked", "clean", "dirty", "write-back", "laundry"};
  for (const auto& [number, in] : inodes_) {
    out += fmt::format("  n{} f{} size {} users {}{}{} write-backs {}:", node_, number, in->size,
                       in->users, in->locked ? " inode-locked" : "",
                       in->no_write ? " write-backs-held" : "", in->writes_in_flight);
    for (const auto& [page, folio] : in->folios)
      out += fmt::format(" {}={}", page, kStates[static_cast<size_t>(folio.state)]);
    for (const auto& waiter : in->waiters) out += fmt::format(" (waits for {})", waiter.page);
    out += '\n';
  }
  for (const auto& [token, fill] : fills_) {
    out += fmt::format("  n{} f{} unanswered fill t{} pages {}-{}\n", node_, fill.inode->number,
                       token, fill.first, fill.first + fill.count - 1);
  }
  for (const auto& [token, call] : upcalls_)
    out += fmt::format("  n{} unanswered request t{}\n", node_, token);
  return out;
}

}  // namespace vremote::sim
