// What processes saw of names, and what the home did to them: the judgement of linearizability.
//
// The home's order is the order of the changes of a name; a change counts from the instant it is
// made there, and for everybody once its call has returned. Every look must then find a version
// that is no older than any change or look that was over before it began. Versions are taken as
// early as that allows, which is complete for a fixed order of changes. Each name is a register of
// its own.
//
// One thing is the kernel's and excused unless `strict`: until the call that changes a name returns
// on its own node, other processes there may still be shown what was before the change, without
// asking, while another node has learnt it already (docs/promise.md, limits).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace vremote::sim {

using NameKey = std::pair<FileId, std::string>;  // a name in a directory
using NameValue = std::optional<FileId>;         // the file, or none

class NameHistory {
 public:
  struct Interval {
    int64_t begin = 0, end = 0;
  };
  // Names a change until its call has returned.
  struct CallKey {
    uint32_t node = 0;
    uint64_t call = 0;
    auto operator<=>(const CallKey&) const = default;
  };

  explicit NameHistory(bool strict) : strict_(strict) {}

  // At the home. `by` nullopt: as the world begins.
  void changed(const NameKey& key, NameValue value, int64_t now, std::optional<CallKey> by);
  void returned(CallKey call, int64_t now);
  void saw(uint32_t node, const NameKey& key, NameValue value, Interval when, std::string who);
  // That there was some file.
  void saw_some(uint32_t node, const NameKey& key, Interval when, std::string who);

  uint64_t looks() const { return looks_; }
  std::optional<std::string> check() const;

 private:
  struct Version {
    NameValue value;
    int64_t made = 0, returned = INT64_MAX;
    std::optional<CallKey> by;
  };
  struct Look {
    uint32_t node = 0;
    NameValue value;
    bool some = false;
    Interval when;
    std::string who;
  };
  struct Register {
    std::vector<Version> versions;
    std::vector<Look> looks;
  };
  std::optional<std::string> check(const NameKey& key, const Register& reg) const;
  size_t excused(const Register& reg, const Look& look, size_t oldest) const;

  bool strict_;
  std::map<NameKey, Register> registers_;
  std::map<CallKey, std::vector<std::pair<NameKey, size_t>>> under_way_;
  uint64_t looks_ = 0;
};

std::string to_text(const NameKey& key);
std::string to_text(const NameValue& value);

}  // namespace vremote::sim
