// What waits at a home that has restarted until its nodes have brought back what they had (R1):
// whatever could be given what they still use, or be shown what they have not flushed yet. Of all
// nodes, in the order in which it came.
//
// Pure, not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <variant>

#include "coherence/call_size.h"
#include "coherence/messages.h"
#include "coherence/mistakes.h"

namespace vremote::coherence {

// What brings something back, or only lets go.
inline bool passes_grace(const ToHome& message) {
  const auto* call = std::get_if<Call>(&message);
  if (call == nullptr)
    return !std::holds_alternative<LeaseRequest>(message) &&
           !std::holds_alternative<Fetch>(message);
  const auto* lock = std::get_if<LockCall>(&call->operation);
  return (lock != nullptr && lock->action == LockAction::Reclaim) ||
         std::holds_alternative<LeaveCall>(call->operation) ||
         std::holds_alternative<ReclaimCall>(call->operation);
}

class GraceGate {
 public:
  // Of one node's calls; beside `most`.
  static constexpr uint64_t kBytesMax = uint64_t{128} << 20;

  // `most`: of one node.
  explicit GraceGate(size_t most, Mistakes mistakes = {}) : most_(most), mistakes_(mistakes) {}

  void close() { closed_ = !mistakes_.has(Mistake::NoGrace); }
  bool closed() const { return closed_; }
  // Nobody has been given anything yet.
  bool may_reclaim() const { return closed_ && !opening_; }

  enum class Verdict : uint8_t { Serve, Kept, TooMany };
  // Takes the message when it is kept.
  Verdict admit(NodeId node, ToHome& message) {
    if (!closed_ || passes_grace(message)) return Verdict::Serve;
    Of& of = kept_of_[node];
    const auto* call = std::get_if<Call>(&message);
    if (of.kept >= most_ || of.bytes >= kBytesMax) return Verdict::TooMany;
    ++of.kept;
    if (call != nullptr) of.bytes += bytes_of(*call);
    kept_.emplace_back(node, std::move(message));
    return Verdict::Kept;
  }
  // When the grace is over: serve these one after the other. Nothing: the gate is open from here
  // on.
  std::optional<std::pair<NodeId, ToHome>> next() {
    opening_ = true;
    if (kept_.empty()) {
      closed_ = opening_ = false;
      kept_of_.clear();
      return std::nullopt;
    }
    auto first = std::move(kept_.front());
    kept_.pop_front();
    return first;
  }
  void node_gone(NodeId node) {
    std::erase_if(kept_, [&](const auto& entry) { return entry.first == node; });
    kept_of_.erase(node);
  }

 private:
  size_t most_;
  Mistakes mistakes_;
  bool closed_ = false, opening_ = false;
  std::deque<std::pair<NodeId, ToHome>> kept_;
  struct Of {
    size_t kept = 0;
    uint64_t bytes = 0;
  };
  std::map<NodeId, Of> kept_of_;
};

}  // namespace vremote::coherence
