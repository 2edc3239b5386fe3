#include "store/table.h"

#include "base/check.h"

namespace vremote::store {

namespace {

constexpr size_t kJustGiven = 16;

}  // namespace

bool Table::learn(FileId id, const std::string& handle, OpenRef file) {
  Closing closing;
  std::lock_guard lock(mutex_);
  auto [it, fresh] = entries_.try_emplace(id);
  Entry& entry = it->second;
  if (fresh) {
    entry.handle = handle;
    if (!handle.empty()) by_handle_.emplace(entry.handle, id);
    unreferenced_.push_front(id);
    entry.unreferenced_place = unreferenced_.begin();
  } else if (!entry.referenced) {
    unreferenced_.splice(unreferenced_.begin(), unreferenced_, entry.unreferenced_place);
  }
  if (file != nullptr && entry.file == nullptr) {
    entry.file = std::move(file);
    touch_open(id, entry, closing);
  } else if (file != nullptr) {
    closing.push_back(std::move(file));
  }
  if (fresh && unreferenced_.size() > unreferenced_max_)
    erase(entries_.find(unreferenced_.back()), closing);
  return fresh;
}

std::optional<Table::Found> Table::use(FileId id) {
  Closing closing;
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end()) return std::nullopt;
  Entry& entry = it->second;
  reference(entry);
  if (entry.file == nullptr) return Found{nullptr, entry.handle, entry.pins > 0};
  touch_open(id, entry, closing);
  return Found{entry.file, {}, entry.pins > 0};
}

OpenRef Table::use_if_open(FileId id) {
  Closing closing;
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end() || it->second.file == nullptr) return nullptr;
  reference(it->second);
  touch_open(id, it->second, closing);
  return it->second.file;
}

OpenRef Table::keep_open(FileId id, OpenRef file) {
  Closing closing;
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end()) return file;  // forgotten meanwhile
  Entry& entry = it->second;
  if (entry.file == nullptr) entry.file = std::move(file);
  OpenRef result = entry.file;
  touch_open(id, entry, closing);
  return result;
}

bool Table::pin(FileId id, OpenRef file) {
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end()) return false;
  Entry& entry = it->second;
  reference(entry);
  if (entry.pins++ == 0) ++pinned_;
  if (entry.file == nullptr) entry.file = std::move(file);
  leave_open(entry);
  return true;
}

bool Table::unpin(FileId id) {
  Closing closing;
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end() || it->second.pins == 0) return false;
  Entry& entry = it->second;
  if (--entry.pins > 0) return false;
  --pinned_;
  touch_open(id, entry, closing);
  return true;
}

bool Table::pinned(FileId id) const {
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  return it != entries_.end() && it->second.pins > 0;
}

std::optional<FileId> Table::find(std::string_view handle) const {
  std::lock_guard lock(mutex_);
  auto it = by_handle_.find(handle);
  if (it == by_handle_.end()) return std::nullopt;
  return it->second;
}

bool Table::knows(FileId id) const {
  std::lock_guard lock(mutex_);
  return entries_.contains(id);
}

bool Table::drop_oldest() {
  Closing closing;
  std::lock_guard lock(mutex_);
  if (unreferenced_.size() <= kJustGiven) return false;
  erase(entries_.find(unreferenced_.back()), closing);
  return true;
}

void Table::forget(FileId id) {
  Closing closing;
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end() || it->second.pins > 0) return;
  Entry& entry = it->second;
  if (!entry.handle.empty() && entry.file != nullptr) {
    leave_open(entry);
    closing.push_back(std::move(entry.file));
  }
  unreference(id, entry, closing);
}

void Table::gone(FileId id) {
  Closing closing;
  std::lock_guard lock(mutex_);
  auto it = entries_.find(id);
  if (it == entries_.end() || it->second.pins > 0) return;
  Entry& entry = it->second;
  if (entry.handle.empty()) {
    erase(it, closing);
  } else if (entry.file != nullptr) {
    leave_open(entry);
    closing.push_back(std::move(entry.file));
  }
}

void Table::close_some() {
  Closing closing;
  std::lock_guard lock(mutex_);
  for (size_t n = open_.size() / 2 + 1; n > 0 && !open_.empty(); --n) close_oldest(closing);
}

Table::Counts Table::counts() const {
  std::lock_guard lock(mutex_);
  return {entries_.size(), open_.size(), pinned_};
}

std::vector<std::pair<FileId, std::string>> Table::referenced() const {
  std::vector<std::pair<FileId, std::string>> result;
  std::lock_guard lock(mutex_);
  for (const auto& [id, entry] : entries_) {
    if (entry.referenced && !entry.handle.empty()) result.emplace_back(id, entry.handle);
  }
  return result;
}

std::vector<std::pair<FileId, std::string>> Table::all() const {
  std::vector<std::pair<FileId, std::string>> result;
  std::lock_guard lock(mutex_);
  result.reserve(entries_.size());
  for (const auto& [id, entry] : entries_)
    if (!entry.handle.empty()) result.emplace_back(id, entry.handle);
  return result;
}

std::vector<Table::Open> Table::all_open() const {
  std::vector<Open> result;
  std::lock_guard lock(mutex_);
  for (const auto& [id, entry] : entries_)
    if (entry.file != nullptr) result.push_back({id, entry.file, entry.pins > 0});
  return result;
}

// Moves an open file to the front of those kept only for speed, and closes the oldest when there
// are too many.
void Table::touch_open(FileId id, Entry& entry, Closing& closing) {
  if (entry.pins > 0 || entry.handle.empty() || entry.file == nullptr) return;
  if (entry.in_open) {
    open_.splice(open_.begin(), open_, entry.open_place);
    return;
  }
  open_.push_front(id);
  entry.open_place = open_.begin();
  entry.in_open = true;
  while (open_.size() > open_max_) close_oldest(closing);
}

void Table::leave_open(Entry& entry) {
  if (!entry.in_open) return;
  open_.erase(entry.open_place);
  entry.in_open = false;
}

void Table::close_oldest(Closing& closing) {
  auto it = entries_.find(open_.back());
  VR_CHECK(it != entries_.end());
  leave_open(it->second);
  closing.push_back(std::move(it->second.file));
}

void Table::reference(Entry& entry) {
  if (entry.referenced) return;
  unreferenced_.erase(entry.unreferenced_place);
  entry.referenced = true;
}

void Table::unreference(FileId id, Entry& entry, Closing& closing) {
  if (!entry.referenced) return;
  unreferenced_.push_front(id);
  entry.unreferenced_place = unreferenced_.begin();
  entry.referenced = false;
  if (unreferenced_.size() > unreferenced_max_) erase(entries_.find(unreferenced_.back()), closing);
}

void Table::erase(Entries::iterator it, Closing& closing) {
  VR_CHECK(it != entries_.end());
  Entry& entry = it->second;
  leave_open(entry);
  if (entry.pins > 0) --pinned_;
  if (!entry.referenced) unreferenced_.erase(entry.unreferenced_place);
  if (entry.file != nullptr) closing.push_back(std::move(entry.file));
  if (auto named = by_handle_.find(entry.handle);
      named != by_handle_.end() && named->second == it->first)
    by_handle_.erase(named);
  entries_.erase(it);
}

}  // namespace vremote::store
