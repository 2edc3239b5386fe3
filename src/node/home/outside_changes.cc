#include "node/home/outside_changes.h"

namespace vremote::node {

void OutsideChanges::note(Instant now, FileId file, const coherence::OutsideChange& change) {
  auto [it, fresh] = files_.try_emplace(file, change);
  if (fresh) {
    order_.emplace(now, file);
  } else {
    it->second |= change;
  }
}

OutsideChanges::Due OutsideChanges::take_due(Instant now) {
  Due due;
  std::vector<FileId> again;
  while (!order_.empty() && order_.begin()->first <= now) {
    const FileId file = order_.begin()->second;
    order_.erase(order_.begin());
    auto it = files_.find(file);
    if (it->second.any()) {
      due.emplace_back(file, std::exchange(it->second, {}));
      again.push_back(file);
    } else {
      files_.erase(it);
    }
  }
  for (FileId file : again) order_.emplace(now + kApart, file);
  return due;
}

std::optional<Instant> OutsideChanges::next() const {
  if (order_.empty()) return std::nullopt;
  return order_.begin()->first;
}

}  // namespace vremote::node
