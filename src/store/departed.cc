#include "store/departed.h"

#include <utility>

namespace vremote::store {

void Departed::add(FileId id, const struct stat& st, std::shared_ptr<OpenFile> file) {
  Closing closing;
  std::lock_guard lock(mutex_);
  auto [it, fresh] = last_.try_emplace(id);
  it->second.attributes = attributes_of(st);
  if (file != nullptr && it->second.file == nullptr)
    keep(id, it->second, std::move(file), static_cast<uint64_t>(st.st_blocks) * 512, closing);
  if (fresh) order_.push_back(id);
  if (order_.size() <= kMost) return;
  if (auto oldest = last_.find(order_.front()); oldest != last_.end()) {
    closing.push_back(std::move(oldest->second.file));
    last_.erase(oldest);
  }
  order_.pop_front();
}

void Departed::keep(FileId id, Last& last, std::shared_ptr<OpenFile> file, uint64_t bytes,
                    Closing& closing) {
  if (!file->is_regular()) {
    last.file = std::move(file);
    open_.push_back(id);
    if (open_.size() <= kMostOpen) return;
    if (auto oldest = last_.find(open_.front()); oldest != last_.end())
      closing.push_back(std::move(oldest->second.file));
    open_.pop_front();
    return;
  }
  if (bytes > kFileBytes || most_files_ == 0) {
    closing.push_back(std::move(file));
    return;
  }
  last.file = std::move(file);
  files_.push_back({id, Clock::now() + kFileTime, bytes});
  files_bytes_ += bytes;
  while (files_.size() > most_files_ || files_bytes_ > kFilesBytes) let_go_file(closing);
}

void Departed::let_go_file(Closing& closing) {
  files_bytes_ -= files_.front().bytes;
  if (auto it = last_.find(files_.front().id); it != last_.end())
    closing.push_back(std::move(it->second.file));
  files_.pop_front();
}

std::optional<Attributes> Departed::attributes(FileId id) const {
  std::lock_guard lock(mutex_);
  auto it = last_.find(id);
  if (it == last_.end()) return std::nullopt;
  return it->second.attributes;
}

std::shared_ptr<OpenFile> Departed::open(FileId id) const {
  std::lock_guard lock(mutex_);
  auto it = last_.find(id);
  return it == last_.end() ? nullptr : it->second.file;
}

bool Departed::has_old(Clock::time_point now) const {
  std::lock_guard lock(mutex_);
  return !files_.empty() && files_.front().until <= now;
}

void Departed::let_go_old(Clock::time_point now) {
  Closing closing;
  std::lock_guard lock(mutex_);
  while (!files_.empty() && files_.front().until <= now) let_go_file(closing);
}

bool Departed::let_go_files() {
  Closing closing;
  std::lock_guard lock(mutex_);
  const bool any = !files_.empty();
  while (!files_.empty()) let_go_file(closing);
  return any;
}

}  // namespace vremote::store
