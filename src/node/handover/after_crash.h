// A daemon goes on with the mount of one that was killed: how it gets it from that one's guardian
// (guardian.h), and what it must remember of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_set>

#include "base/fd.h"
#include "node/config/config.h"

namespace vremote::node {

struct Handover;

// From the guardian at `socket`. Nothing: there is none, its daemon lives, or it is of no use, of
// which the log says why; then it is to be retired. What is returned holds the guardian until
// AfterCrash::has_it().
std::optional<Handover> salvage_mount(const Config& config, const std::string& socket);

// What goes beside a Handover then.
class AfterCrash {
 public:
  AfterCrash(Fd guardian, uint32_t deaths, std::unordered_set<uint64_t> unseen_requests)
      : early_deaths(deaths), unseen(std::move(unseen_requests)), guardian_(std::move(guardian)) {}
  // The other guardian ends, without a word to the kernel. False: it did not wait.
  bool has_it();

  const uint32_t early_deaths;  // with this one
  std::unordered_set<uint64_t> unseen;

 private:
  Fd guardian_;
};

}  // namespace vremote::node
