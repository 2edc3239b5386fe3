#include "coherence/name_ledger.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace vremote::coherence {
namespace {

constexpr Instant kUnderWay{std::numeric_limits<int64_t>::max()};

bool holds(const std::vector<uint64_t>& directories, uint64_t directory) {
  return std::find(directories.begin(), directories.end(), directory) != directories.end();
}

}  // namespace

bool NameLedger::give(uint64_t directory, const std::string& name, bool exists, const Asked& asked,
                      Instant now) {
  if (asked.tid == 0) return false;
  Directory& d = directories_[directory];
  if (now < d.contended_until || names_ >= kNamesMax) return false;
  // That there is none sets no time: the kernel drops what it had found.
  if (exists && may_have_moved(d, {directory, name}, asked.at)) return false;
  names_ += d.names.insert_or_assign(name, exists).second ? 1 : 0;
  unsettle(directory, asked.tid);
  return true;
}

bool NameLedger::may_have_moved(const Directory& d, const Place& place, Instant asked) const {
  if (asked < d.moved_until) return true;
  const auto it = moved_.find(place);
  return it != moved_.end() && asked < it->second;
}

bool NameLedger::move(uint64_t from, const std::string& old_name, uint64_t to,
                      const std::string& new_name, bool to_leased, uint32_t tid) {
  if (options_.mistakes.has(Mistake::ForgetRenamedNames)) return true;
  moved_.insert_or_assign({from, old_name}, kUnderWay);
  if (!may_be_known(from, old_name)) return true;
  if (!to_leased || tid == 0) return false;
  names_ += directories_[to].names.insert_or_assign(new_name, true).second ? 1 : 0;
  // Another thread's lookup of the old name that is not over sets the time of the new one.
  for (auto& [thread, directories] : unsettled_)
    if (thread != tid && holds(directories, from)) add(directories, to);
  unsettle(to, tid);
  return true;
}

bool NameLedger::moved(uint64_t from, const std::string& old_name, bool done, Instant now) {
  if (!done) {
    moved_.erase({from, old_name});
    return true;
  }
  moved_.insert_or_assign({from, old_name}, now + options_.moved_ns);
  if (moved_.size() >= look_through_at_) forget_old_moves(now);
  return moved_.size() < kMovedMax;
}

void NameLedger::forget_old_moves(Instant now) {
  for (auto it = moved_.begin(); it != moved_.end();) {
    if (now < it->second) {
      ++it;
      continue;
    }
    if (auto d = directories_.find(it->first.first); d != directories_.end())
      d->second.moved_until = std::max(d->second.moved_until, it->second);
    it = moved_.erase(it);
  }
  look_through_at_ = std::max(kMovedFew, 2 * moved_.size());
}

bool NameLedger::may_be_known(uint64_t directory, const std::string& name) const {
  auto d = directories_.find(directory);
  if (d != directories_.end() && d->second.names.contains(name)) return true;
  return std::ranges::any_of(endings_, [&](const auto& entry) {
    const Expiring& expiring = entry.second;
    return expiring.directory == directory && expiring.names.contains(name);
  });
}

void NameLedger::renewed(uint64_t directory, const std::string& name) {
  if (auto d = directories_.find(directory); d != directories_.end())
    names_ -= d->second.names.erase(name);
}

void NameLedger::request_from(uint32_t tid) { settle(tid); }

// A thread has one lookup at a time: what it looked up before is settled.
void NameLedger::unsettle(uint64_t directory, uint32_t tid) {
  settle(tid);
  add(unsettled_[tid], directory);
}

void NameLedger::add(std::vector<uint64_t>& unsettled, uint64_t directory) {
  if (holds(unsettled, directory)) return;
  unsettled.push_back(directory);
  ++directories_[directory].unsettled;
}

void NameLedger::settle(uint32_t tid) {
  auto it = unsettled_.find(tid);
  if (it == unsettled_.end()) return;
  for (uint64_t directory : it->second) --directories_[directory].unsettled;
  unsettled_.erase(it);
}

void NameLedger::settle_ended(const std::function<bool(uint32_t tid)>& has_ended) {
  std::vector<uint32_t> ended;
  for (const auto& [tid, directories] : unsettled_)
    if (has_ended(tid)) ended.push_back(tid);
  for (uint32_t tid : ended) settle(tid);
}

NameLedger::Ending NameLedger::end(uint64_t directory, bool at_once, Instant now) {
  Ending ending;
  auto it = directories_.find(directory);
  if (it == directories_.end()) return ending;
  Directory& d = it->second;
  d.contended_until = now + options_.contended_ns;
  if (d.names.empty()) return ending;
  const bool unsettled = d.unsettled > 0 && !options_.mistakes.has(Mistake::ExpireUnsettled);
  const bool too_slow =
      (at_once || d.names.size() > kExpiredMost) && !options_.mistakes.has(Mistake::ExpiryOnly);
  if (unsettled || too_slow) {
    ending.how = How::Epoch;
    return ending;
  }
  ending.how = How::Expiry;
  ending.id = next_ending_++;
  for (auto& [name, exists] : d.names) ending.names.push_back({name, exists});
  // The same order everywhere: a simulated world must replay.
  std::sort(ending.names.begin(), ending.names.end(),
            [](const Name& a, const Name& b) { return a.name < b.name; });
  Expiring& expiring = endings_[ending.id];
  expiring.directory = directory;
  for (const Name& name : ending.names) expiring.names.insert(name.name);
  names_ -= d.names.size();
  d.names.clear();
  return ending;
}

std::optional<Instant> NameLedger::deadline(Instant now) const {
  if (options_.mistakes.has(Mistake::ExpiryOnly)) return {};
  return now + options_.expiry_most_ns;
}

NameLedger::Finish NameLedger::finish(uint64_t id, bool expired) {
  if (endings_.erase(id) == 0) return Finish::WasOver;
  return expired ? Finish::Over : Finish::Epoch;
}

void NameLedger::epoch_advanced() {
  for (auto& [node, directory] : directories_) {
    directory.names.clear();
    directory.unsettled = 0;
  }
  names_ = 0;
  unsettled_.clear();
  moved_.clear();
}

void NameLedger::forget(uint64_t directory) {
  moved_.erase(moved_.lower_bound({directory, {}}), moved_.lower_bound({directory + 1, {}}));
  auto it = directories_.find(directory);
  if (it == directories_.end()) return;
  names_ -= it->second.names.size();
  directories_.erase(it);
  for (auto thread = unsettled_.begin(); thread != unsettled_.end();) {
    std::erase(thread->second, directory);
    thread = thread->second.empty() ? unsettled_.erase(thread) : std::next(thread);
  }
}

void NameLedger::check() const {
  uint64_t names = 0;
  for (const auto& [node, directory] : directories_) {
    names += directory.names.size();
    const auto unsettled =
        std::count_if(unsettled_.begin(), unsettled_.end(),
                      [node = node](const auto& entry) { return holds(entry.second, node); });
    VR_CHECK(directory.unsettled == static_cast<uint32_t>(unsettled));
  }
  VR_CHECK(names == names_);
}

}  // namespace vremote::coherence
