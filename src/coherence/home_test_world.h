// A home and as many nodes as a scenario names: events go in by name, actions come out as lines.
//
// Every action must be expected: lines that no expect() has taken fail the test at the next event
// or at the end.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coherence/home.h"
#include "coherence/test_text.h"

namespace vremote::coherence::test {

class HomeWorld {
 public:
  explicit HomeWorld(Mistakes mistakes = {}, const HomeLimits& limits = {})
      : home(mistakes, limits) {}
  ~HomeWorld() { EXPECT_THAT(lines_, testing::IsEmpty()) << "actions nobody expected"; }

  // Gives `node` exactly this, whatever others must give up for it. Operations of mode None, which
  // conflict with nothing, fence the grant in: it becomes neither wider nor stronger.
  HomeWorld& has(const std::string& node, LeaseMode mode, PageRange range) {
    HomeActions ignored;
    OperationId fence = kFence;
    for (const PageRange piece : {PageRange{0, range.first}, range, {range.end, kPageEnd}})
      home.acquire(fence++, {file, Resource::Data, LeaseMode::None, piece, {}}, ignored);
    return set_up(node, Resource::Data, mode, range);
  }
  HomeWorld& has_attributes(const std::string& node, LeaseMode mode) {
    HomeActions ignored;
    home.acquire(kFence, {file, Resource::Attributes, LeaseMode::None, kUnit, {}}, ignored);
    return set_up(node, Resource::Attributes, mode, kUnit);
  }

  HomeWorld& asks(const std::string& node, LeaseMode mode, PageRange range,
                  bool want_data = false) {
    return ask(node, Resource::Data, mode, range, want_data);
  }
  HomeWorld& asks_attributes(const std::string& node, LeaseMode mode) {
    return ask(node, Resource::Attributes, mode, kUnit, false);
  }
  HomeWorld& asks_entries(const std::string& node) {
    return ask(node, Resource::Entries, LeaseMode::Shared, kUnit, false);
  }

  // Acks the oldest recall sent to `node`: exactly its range, or `given`. `seen` is the last grant
  // sent to it unless told.
  struct How {
    std::optional<PageRange> given = {};
    std::optional<uint64_t> seen = {};
    DirtyAttributes attributes = {};
    bool in_use = false;
    bool watches = false;
  };
  HomeWorld& acks(const std::string& node) { return acks(node, How{}); }
  HomeWorld& acks(const std::string& node, const How& how) {
    settle_lines();
    const NodeId id = node_id(node);
    if (recalls_[id].empty()) {
      ADD_FAILURE() << node << " has no recall to ack";
      return *this;
    }
    Recall recall = recalls_[id].front();
    recalls_[id].pop_front();
    home.receive(id,
                 RecallAck{.file = file,
                           .recall = recall.recall,
                           .given = how.given.value_or(recall.range),
                           .seen = how.seen.value_or(last_grant_[id]),
                           .attributes = how.attributes,
                           .in_use = how.in_use || how.watches,
                           .watches = how.watches},
                 actions_);
    return took();
  }

  HomeWorld& releases(const std::string& node, bool leases = true,
                      std::optional<uint64_t> seen = {}) {
    settle_lines();
    const NodeId id = node_id(node);
    home.receive(id,
                 Release{.file = file, .seen = seen.value_or(last_grant_[id]), .leases = leases},
                 actions_);
    return took();
  }
  HomeWorld& announces(const std::string& node, uint64_t size) {
    return receives(node, Announce{.file = file, .announcement = 1, .size = size});
  }
  // The oldest size that it was shown.
  HomeWorld& has_shown(const std::string& node) {
    auto& shows = shows_[node_id(node)];
    if (shows.empty()) {
      ADD_FAILURE() << node << " was shown nothing";
      return *this;
    }
    const uint64_t show = shows.front();
    shows.pop_front();
    return receives(node, SizeShown{.file = file, .show = show});
  }
  // An operation that holds the Attributes has made the file so long; true: it must wait.
  bool operation_announces(OperationId operation, uint64_t size,
                           std::optional<std::string> caller = {}) {
    settle_lines();
    const bool waits = home.announce(
        operation, file, size, caller ? std::optional(node_id(*caller)) : std::nullopt, actions_);
    took();
    return waits;
  }
  HomeWorld& goes(const std::string& node) {
    settle_lines();
    recalls_.erase(node_id(node));
    home.node_gone(node_id(node), actions_);
    return took();
  }
  HomeWorld& operation(OperationId operation, Resource resource, LeaseMode mode, PageRange range,
                       std::optional<std::string> except = {}) {
    settle_lines();
    OperationNeed need{file, resource, mode, range, {}};
    if (except) need.except = node_id(*except);
    home.acquire(operation, need, actions_);
    return took();
  }
  // The Attributes, and then the pages from `first` on, as the truncation of `node` takes them.
  HomeWorld& truncation(OperationId operation, const std::string& node) {
    settle_lines();
    home.acquire(operation,
                 {file, Resource::Attributes, LeaseMode::Exclusive, kUnit, {}, node_id(node)},
                 actions_);
    return took();
  }
  HomeWorld& truncation_goes_on(OperationId operation, const std::string& node, uint64_t first) {
    settle_lines();
    home.acquire(operation,
                 {file, Resource::Data, LeaseMode::Exclusive, pages_from(first), node_id(node),
                  node_id(node)},
                 actions_);
    return took();
  }
  // `node` cannot ack its oldest recall before its truncation is served.
  // Of a session before the home's restart.
  bool reclaims(const std::string& node, std::vector<PageRange> ranges) {
    settle_lines();
    const bool held = home.reclaimed(node_id(node), file, ranges, actions_);
    took();
    return held;
  }
  HomeWorld& is_busy(const std::string& node) {
    settle_lines();
    const NodeId id = node_id(node);
    if (recalls_[id].empty()) {
      ADD_FAILURE() << node << " has no recall";
      return *this;
    }
    const Recall& recall = recalls_[id].front();
    home.receive(id,
                 RecallAck{.file = file,
                           .recall = recall.recall,
                           .given = recall.range,
                           .seen = last_grant_[id],
                           .busy = true},
                 actions_);
    return took();
  }
  HomeWorld& finishes(OperationId operation) {
    settle_lines();
    home.finish(operation, file, actions_);
    return took();
  }
  HomeWorld& offers(const std::string& node, Resource resource, LeaseMode mode) {
    settle_lines();
    home.offer(node_id(node), file, resource, mode, actions_);
    return took();
  }
  template <typename Message>
  HomeWorld& receives(const std::string& node, Message message) {
    settle_lines();
    home.receive(node_id(node), std::move(message), actions_);
    return took();
  }

  template <typename... Lines>
  HomeWorld& expect(Lines... lines) {
    EXPECT_THAT(lines_, testing::ElementsAre(std::string(lines)...));
    lines_.clear();
    return *this;
  }
  HomeWorld& expect_nothing() {
    EXPECT_THAT(lines_, testing::IsEmpty());
    lines_.clear();
    return *this;
  }

  LeaseMode held(const std::string& node, uint64_t page, Resource resource = Resource::Data) {
    return home.held(node_id(node), file, resource, page);
  }
  uint64_t last_grant(const std::string& node) { return last_grant_[node_id(node)]; }
  static NodeId node_id(const std::string& name) {
    return NodeId{static_cast<uint32_t>(std::stoul(name.substr(1)))};
  }

  Home home;
  FileId file{.export_index = 0, .generation = 1, .inode = 7};

 private:
  HomeWorld& ask(const std::string& node, Resource resource, LeaseMode mode, PageRange range,
                 bool want_data) {
    settle_lines();
    home.receive(node_id(node),
                 LeaseRequest{.file = file,
                              .request = next_request_++,
                              .resource = resource,
                              .mode = mode,
                              .range = range,
                              .want_data = want_data},
                 actions_);
    return took();
  }

  static constexpr OperationId kFence = 1'000'000;  // three from there on
  HomeWorld& set_up(const std::string& node, Resource resource, LeaseMode mode, PageRange range) {
    ask(node, resource, mode, range, false);
    for (auto& [id, recalls] : recalls_)
      while (!recalls.empty()) {
        lines_.clear();
        acks(fmt::format("n{}", id.value));
      }
    lines_.clear();
    for (OperationId fence = kFence; fence < kFence + 3; ++fence)
      home.finish(fence, file, actions_);
    actions_.clear();
    EXPECT_EQ(held(node, range.first, resource), mode);
    return *this;
  }

  void settle_lines() {
    EXPECT_THAT(lines_, testing::IsEmpty()) << "actions nobody expected";
    lines_.clear();
  }

  HomeWorld& took() {
    for (const HomeAction& action : actions_) {
      if (const auto* grant = std::get_if<SendGrant>(&action)) {
        EXPECT_EQ(grant->grant.sequence, last_grant_[grant->node] + 1)
            << "grants are numbered without a gap";
        last_grant_[grant->node] = grant->grant.sequence;
      }
      if (const auto* recall = std::get_if<SendRecall>(&action))
        recalls_[recall->node].push_back(recall->recall);
      if (const auto* show = std::get_if<SendShowSize>(&action))
        shows_[show->node].push_back(show->show.show);
      lines_.push_back(line(action));
    }
    actions_.clear();
    home.check();
    return *this;
  }

  static std::string line(const HomeAction& action) {
    if (const auto* a = std::get_if<SendGrant>(&action); a != nullptr && a->grant.error != 0)
      return fmt::format("refuse n{} {} error {}", a->node.value,
                         text(a->grant.resource, a->grant.range), a->grant.error);
    if (const auto* a = std::get_if<SendGrant>(&action))
      return fmt::format("grant n{} {} {}{}{}", a->node.value, text(a->grant.mode),
                         text(a->grant.resource, a->grant.range),
                         a->grant.watched ? " watched" : "",
                         a->data.empty() ? "" : fmt::format(" with data {}", text(a->data)));
    if (const auto* a = std::get_if<SendRecall>(&action))
      return fmt::format("recall n{} {}{}", a->node.value,
                         text(a->recall.resource, a->recall.range),
                         a->recall.to == LeaseMode::None ? "" : " to Shared");
    if (const auto* a = std::get_if<ApplyFlush>(&action))
      return fmt::format("apply flush {} of n{}", a->flush.flush, a->node.value);
    if (const auto* a = std::get_if<ApplyAttributes>(&action))
      return fmt::format("apply size {}", a->attributes.size);
    if (const auto* a = std::get_if<ServeFetch>(&action))
      return fmt::format("serve fetch {} of n{}", text(a->fetch.range), a->node.value);
    if (const auto* a = std::get_if<OperationReady>(&action))
      return fmt::format("{} {}", a->error == 0 ? "ready" : "fail", a->operation);
    if (const auto* a = std::get_if<SendShowSize>(&action))
      return fmt::format("show n{} size {}", a->node.value, a->show.size);
    if (const auto* a = std::get_if<SendAnnounced>(&action))
      return fmt::format("announced n{}{}", a->node.value, a->announced.watched ? " watched" : "");
    if (const auto* a = std::get_if<SizesShown>(&action))
      return fmt::format("all know {}", a->operation);
    if (std::holds_alternative<PinFile>(action)) return "pin";
    if (std::holds_alternative<UnpinFile>(action)) return "unpin";
    if (std::holds_alternative<FileIdle>(action)) return "idle";
    if (const auto* a = std::get_if<CloseSession>(&action))
      return fmt::format("close n{}", a->node.value);
    return "?";
  }

  HomeActions actions_;
  std::vector<std::string> lines_;
  std::map<NodeId, std::deque<Recall>> recalls_;
  std::map<NodeId, std::deque<uint64_t>> shows_;
  std::map<NodeId, uint64_t> last_grant_;
  uint64_t next_request_ = 1;
};

}  // namespace vremote::coherence::test
