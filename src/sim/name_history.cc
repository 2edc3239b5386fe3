#include "sim/name_history.h"

#include <fmt/format.h>

#include <algorithm>
#include <queue>

namespace vremote::sim {

std::string to_text(const NameKey& key) {
  return fmt::format("d{}/{}", key.first.inode, key.second);
}

std::string to_text(const NameValue& value) {
  return value ? fmt::format("file {}", value->inode) : std::string("nothing");
}

void NameHistory::changed(const NameKey& key, NameValue value, int64_t now,
                          std::optional<CallKey> by) {
  std::vector<Version>& versions = registers_[key].versions;
  versions.push_back({value, now, by ? INT64_MAX : now, by});
  if (by) under_way_[*by].emplace_back(key, versions.size() - 1);
}

void NameHistory::returned(CallKey call, int64_t now) {
  auto it = under_way_.find(call);
  if (it == under_way_.end()) return;
  for (const auto& [key, version] : it->second) registers_[key].versions[version].returned = now;
  under_way_.erase(it);
}

void NameHistory::saw(uint32_t node, const NameKey& key, NameValue value, Interval when,
                      std::string who) {
  ++looks_;
  registers_[key].looks.push_back({node, value, false, when, std::move(who)});
}

void NameHistory::saw_some(uint32_t node, const NameKey& key, Interval when, std::string who) {
  ++looks_;
  registers_[key].looks.push_back({node, {}, true, when, std::move(who)});
}

std::optional<std::string> NameHistory::check() const {
  for (const auto& [key, reg] : registers_)
    if (auto what = check(key, reg)) return what;
  return {};
}

// The oldest version that the look may find where its own node's changes are under way.
size_t NameHistory::excused(const Register& reg, const Look& look, size_t oldest) const {
  if (strict_) return oldest;
  for (size_t v = 1; v <= oldest; ++v) {
    const Version& version = reg.versions[v];
    if (version.by && version.by->node == look.node && version.returned >= look.when.begin)
      return v - 1;
  }
  return oldest;
}

std::optional<std::string> NameHistory::check(const NameKey& key, const Register& reg) const {
  struct Over {
    int64_t at;
    size_t version;
    std::string why;
    bool operator<(const Over& other) const { return at > other.at; }  // the earliest in front
  };
  std::priority_queue<Over> over;
  for (size_t v = 0; v < reg.versions.size(); ++v)
    if (const Version& version = reg.versions[v]; version.returned != INT64_MAX)
      over.push({version.returned, v,
                 fmt::format("was made at {} and its call had returned at {}", version.made / 1000,
                             version.returned / 1000)});
  std::vector<const Look*> looks;
  for (const Look& look : reg.looks) looks.push_back(&look);
  std::stable_sort(looks.begin(), looks.end(),
                   [](const Look* a, const Look* b) { return a->when.begin < b->when.begin; });
  size_t oldest = 0;
  std::string why;
  for (const Look* look : looks) {
    for (; !over.empty() && over.top().at < look->when.begin; over.pop()) {
      if (over.top().version < oldest) continue;
      oldest = over.top().version;
      why = over.top().why;
    }
    size_t v = excused(reg, *look, oldest);
    const auto fits = [&](const Version& version) {
      return look->some ? version.value.has_value() : version.value == look->value;
    };
    while (v < reg.versions.size() && reg.versions[v].made <= look->when.end &&
           !fits(reg.versions[v]))
      ++v;
    if (v == reg.versions.size() || reg.versions[v].made > look->when.end)
      return fmt::format("linearizable names: {} saw {} at {} [{}, {}]; version {} of it, {}, {}",
                         look->who, look->some ? "some file" : to_text(look->value), to_text(key),
                         look->when.begin / 1000, look->when.end / 1000, oldest,
                         to_text(reg.versions[oldest].value), why);
    over.push({look->when.end, v,
               fmt::format("had been seen by {} [{}, {}]", look->who, look->when.begin / 1000,
                           look->when.end / 1000)});
  }
  return {};
}

}  // namespace vremote::sim
