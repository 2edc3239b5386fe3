// One agent and one file, between a kernel and a home that a scenario plays: events go in, actions
// come out as lines, in order.
//
// Every action must be expected: lines that no expect() has taken fail the test at the next event
// or at the end.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "coherence/agent.h"
#include "coherence/agent_test_lines.h"

namespace vremote::coherence::test {

class AgentWorld {
 public:
  explicit AgentWorld(const AgentOptions& options = {}) : options_(options), agent(options) {}
  ~AgentWorld() { EXPECT_THAT(lines_, testing::IsEmpty()) << "actions nobody expected"; }

  // ---- how the scenario begins ----
  AgentWorld& has(LeaseMode mode, PageRange range) { return offers(range, mode); }
  AgentWorld& has_attributes(LeaseMode mode, uint64_t size, bool watched = false) {
    settle_lines();
    disk_size_ = size;
    Grant grant = grant_of_attributes(0, mode);
    grant.watched = watched;
    agent.receive(now_, grant, actions_);
    return took();
  }
  // The kernel has these pages, filled with `c`, for longer than a recall spares them. They must be
  // leased.
  AgentWorld& cached(PageRange range, char c) {
    settle_lines();
    fills(kSetup, range);
    lines_.clear();
    serves_fetch(c);
    EXPECT_THAT(lines_, testing::ElementsAre(testing::StartsWith("data 1000 ")));
    lines_.clear();
    return later_ms(2);
  }

  // ---- the kernel ----
  AgentWorld& fills(Token token, PageRange range) {
    return event([&] {
      agent.read(now_,
                 {.token = token,
                  .file = file,
                  .offset = range.byte_offset(),
                  .size = static_cast<uint32_t>(range.byte_length()),
                  .fill = true},
                 actions_);
    });
  }
  AgentWorld& reads(Token token, uint64_t offset, uint32_t size) {
    return event([&] {
      agent.read(now_, {.token = token, .file = file, .offset = offset, .size = size}, actions_);
    });
  }
  AgentWorld& writes(Token token, uint64_t offset, uint32_t size, char c) {
    return write(token, offset, size, c, false);
  }
  AgentWorld& appends(Token token, uint64_t guess, uint32_t size, char c) {
    return write(token, guess, size, c, true);
  }
  // By another handle than the other writes.
  AgentWorld& appends_by(uint64_t handle, Token token, uint64_t guess, uint32_t size, char c) {
    return write(token, guess, size, c, true, handle);
  }
  AgentWorld& writes_back(uint64_t page, char c) {
    return event([&] {
      agent.write_back(now_, file, page << kPageShift, repeated(c, kPageSize), wall_, actions_);
    });
  }
  // A size that has to be pushed for it is there at once.
  AgentWorld& opens(Token token, bool may_map) {
    return event([&] {
      agent.open(now_, token, file, {.reads = true, .may_map = may_map}, actions_);
      auto push = std::find_if(actions_.begin(), actions_.end(), [](const AgentAction& action) {
        return std::holds_alternative<PushSize>(action);
      });
      if (push == actions_.end()) return;
      const uint64_t id = std::get<PushSize>(*push).push;
      actions_.erase(push);
      agent.size_pushed(now_, id, file, true, actions_);
    });
  }
  AgentWorld& opens_slowly(Token token, bool may_map) {
    return event(
        [&] { agent.open(now_, token, file, {.reads = true, .may_map = may_map}, actions_); });
  }
  AgentWorld& closes(bool may_map, uint64_t handle = 0) {
    return event(
        [&] { agent.close(now_, file, {.reads = true, .may_map = may_map}, actions_, handle); });
  }
  AgentWorld& opens_nameless(Token token) {
    return event([&] { agent.open(now_, token, file, {.reads = true, .told = true}, actions_); });
  }
  AgentWorld& opens_for_writing(Token token) {
    return event([&] { agent.open(now_, token, file, {.reads = false}, actions_); });
  }
  AgentWorld& stats(Token token) {
    return event([&] { agent.attributes(now_, token, file, false, actions_); });
  }
  // A SETATTR is answered with this size.
  AgentWorld& sets_attributes(uint64_t size) {
    return event([&] { agent.size_told(now_, file, size, actions_); });
  }
  AgentWorld& lists(Token token) {
    return event([&] { agent.entries(now_, token, file, actions_); });
  }
  AgentWorld& syncs(Token token, Opener who = {}) {
    return event([&] { agent.flush(now_, token, file, actions_, who); });
  }
  AgentWorld& truncates(Token token, uint64_t size) {
    return event([&] { agent.truncate(now_, token, file, size, actions_); });
  }
  bool tail_is_shown(uint64_t before, uint64_t size) {
    settle_lines();
    const bool shown = agent.tail_is_shown(now_, file, before, size, actions_);
    took();
    return shown;
  }
  AgentWorld& truncation_done(uint64_t size, bool done = true) {
    return event([&] { agent.truncate_done(now_, file, done, size, true, actions_); });
  }
  AgentWorld& interrupts(Token token) {
    return event([&] { agent.interrupt(now_, token, file, actions_); });
  }
  AgentWorld& forgets() {
    return event([&] { agent.forget(now_, file, actions_); });
  }
  // The purge of exactly this range, the oldest such, has returned.
  AgentWorld& returns(PageRange range) {
    return event([&] {
      auto it = std::find_if(purges_.begin(), purges_.end(),
                             [&](const StartPurge& p) { return p.range == range; });
      if (it == purges_.end()) {
        ADD_FAILURE() << "no purge of " << text(range) << " is under way";
        return;
      }
      const PurgeId id = it->purge;
      purges_.erase(it);
      agent.purge_returned(now_, id, file, actions_);
    });
  }

  // The kernel knows the size of the oldest push.
  // The kernel's size is what the last settle wanted; and nothing is cut for it any more.
  AgentWorld& size_is_settled() {
    return event([&] { agent.size_settled(now_, settle_, file, actions_); });
  }
  AgentWorld& settle_ends() {
    return event([&] { agent.settle_ended(now_, settle_, file, actions_); });
  }
  AgentWorld& asks_itself(Token token) {
    return event([&] { agent.attributes(now_, token, file, true, actions_); });
  }
  AgentWorld& size_is_pushed(bool there = true) {
    return event([&] {
      if (pushes_.empty()) {
        ADD_FAILURE() << "no size is being pushed";
        return;
      }
      const uint64_t push = pushes_.front();
      pushes_.pop_front();
      agent.size_pushed(now_, push, file, there, actions_);
    });
  }

  // The home keeps the file for the open that told it first, or has not got it any more.
  AgentWorld& open_is_told(bool there) {
    return event([&] {
      if (tells_.empty()) {
        ADD_FAILURE() << "no open was told";
        return;
      }
      const uint64_t tell = tells_.front();
      tells_.pop_front();
      agent.open_told(now_, tell, file, there, actions_);
    });
  }

  AgentWorld& ends_names() {
    return event([&] {
      if (endings_.empty()) {
        ADD_FAILURE() << "no names are being ended";
        return;
      }
      const uint64_t ending = endings_.front();
      endings_.pop_front();
      agent.names_ended(now_, ending, file, actions_);
    });
  }

  // ---- the home ----
  // Grants the oldest request for data as asked (or stronger, or wider); its bytes, when it wanted
  // them, are all `c`.
  struct How {
    std::optional<LeaseMode> mode = {};
    std::optional<PageRange> range = {};
    int32_t error = 0;
  };
  AgentWorld& grants(char c) { return grants(c, How{}); }
  AgentWorld& grants(char c, const How& how) {
    return event([&] {
      std::optional<LeaseRequest> request = next_request(Resource::Data);
      if (!request) return;
      Grant grant{.file = file,
                  .request = request->request,
                  .sequence = ++sequence_,
                  .resource = Resource::Data,
                  .error = how.error};
      grant.mode = how.mode.value_or(request->mode);
      grant.range = how.range.value_or(request->range);
      grant.size_floor = disk_size_;
      if (request->want_data && how.error == 0) {
        grant.data_offset = request->range.byte_offset();
        grant.data = on_disk(request->range, c);
      }
      agent.receive(now_, std::move(grant), actions_);
    });
  }
  // What nobody asked for.
  AgentWorld& offers(PageRange range, LeaseMode mode) {
    return event([&] {
      agent.receive(now_,
                    Grant{.file = file,
                          .sequence = ++sequence_,
                          .resource = Resource::Data,
                          .mode = mode,
                          .range = range,
                          .size_floor = disk_size_},
                    actions_);
    });
  }
  // This node may not have the oldest of the data asked for. What is refused at the home's door has
  // no number.
  AgentWorld& refuses_at_the_door(int32_t error) {
    return event([&] {
      std::optional<LeaseRequest> request = next_request(Resource::Data);
      if (!request) return;
      agent.receive(now_,
                    Grant{.file = file,
                          .request = request->request,
                          .resource = Resource::Data,
                          .range = request->range,
                          .error = error},
                    actions_);
    });
  }
  // What later grants of Attributes say.
  // On the disk nothing of the file has a place yet.
  AgentWorld& has_no_blocks() {
    blocks_ = 0;
    return *this;
  }
  AgentWorld& loses_its_last_name() {
    links_ = 0;
    return *this;
  }
  AgentWorld& mode_is(uint32_t permissions) {
    mode_ = 0100000 | permissions;
    return *this;
  }
  AgentWorld& grants_attributes(uint64_t size, std::optional<LeaseMode> mode = {},
                                bool watched = false, int32_t error = 0) {
    return event([&] {
      std::optional<LeaseRequest> request = next_request(Resource::Attributes);
      if (!request) return;
      disk_size_ = size;
      Grant grant = grant_of_attributes(request->request, mode.value_or(request->mode));
      grant.watched = watched;
      grant.error = error;
      agent.receive(now_, grant, actions_);
    });
  }
  AgentWorld& grants_entries(int32_t error = 0) {
    return event([&] {
      std::optional<LeaseRequest> request = next_request(Resource::Entries);
      if (!request) return;
      agent.receive(now_,
                    Grant{.file = file,
                          .request = request->request,
                          .sequence = ++sequence_,
                          .resource = Resource::Entries,
                          .mode = LeaseMode::Shared,
                          .range = kUnit,
                          .error = error},
                    actions_);
    });
  }
  AgentWorld& recalls(PageRange range, LeaseMode to = LeaseMode::None) {
    return recall(Resource::Data, range, to);
  }
  AgentWorld& recalls_attributes(LeaseMode to = LeaseMode::None) {
    return recall(Resource::Attributes, kUnit, to);
  }
  AgentWorld& recalls_entries() { return recall(Resource::Entries, kUnit, LeaseMode::None); }
  // Answers the oldest fetch with `c` all over, cut at the end of the file.
  AgentWorld& serves_fetch(char c, int32_t error = 0) {
    return event([&] {
      if (fetches_.empty()) {
        ADD_FAILURE() << "nothing is being fetched";
        return;
      }
      const Fetch fetch = fetches_.front();
      fetches_.pop_front();
      FetchReply reply{.file = file,
                       .fetch = fetch.fetch,
                       .error = error,
                       .data_offset = fetch.range.byte_offset()};
      if (error == 0) reply.data = on_disk(fetch.range, c);
      agent.receive(now_, std::move(reply), actions_);
    });
  }
  AgentWorld& shows(uint64_t show, uint64_t size) {
    return event(
        [&] { agent.receive(now_, ShowSize{.file = file, .show = show, .size = size}, actions_); });
  }
  AgentWorld& all_know(bool watched = true) {
    return event([&] {
      agent.receive(now_,
                    Announced{.file = file, .announcement = announcement_, .watched = watched},
                    actions_);
    });
  }
  AgentWorld& acks_flush(int32_t error = 0, uint64_t blocks = 8) {
    return event([&] {
      if (flushes_.empty()) {
        ADD_FAILURE() << "no flush is under way";
        return;
      }
      const Flush flush = flushes_.front();
      flushes_.pop_front();
      agent.receive(now_,
                    FlushAck{.file = file, .flush = flush.flush, .error = error, .blocks = blocks},
                    actions_);
    });
  }
  AgentWorld& resets(Agent::Dirty dirty = Agent::Dirty::Kept, bool disk_has_lost = false) {
    return event([&] {
      sequence_ = 0;
      requests_.clear();
      fetches_.clear();
      flushes_.clear();
      agent.reset(now_, dirty, actions_, disk_has_lost);
    });
  }
  AgentWorld& takes_over(const KeptFile& kept) {
    return event([&] { agent.take_over(kept, 1000); });
  }
  AgentWorld& took_over(bool same_session) {
    return event([&] { agent.took_over(now_, same_session, actions_); });
  }
  // The home has answered a ping: leases are good for so long from now on; 0: no more.
  // As the driver does again and again after a reset.
  AgentWorld& looks_what_is_back() {
    return event([&] { agent.claim_held_back(now_, actions_); });
  }
  AgentWorld& claim_is_heard(bool held) {
    return event([&] { agent.claimed(now_, claim_, file, held, actions_); });
  }
  // The caller of the truncation under way has an error, and the home may do it yet.
  AgentWorld& truncation_goes_on(uint64_t size) {
    return event([&] {
      agent.truncation_goes_on(now_, file, actions_);
      agent.truncate_done(now_, file, false, size, true, actions_);
    });
  }
  AgentWorld& late_truncation(uint64_t size, bool done) {
    return event([&] { agent.truncation_ended(now_, file, done, size, actions_); });
  }
  // What has come of the last event, whatever it is.
  std::vector<std::string> came() { return std::exchange(lines_, {}); }
  AgentWorld& session_is_over() {
    return event([&] { agent.renew(now_, Instant{}, actions_); });
  }
  AgentWorld& renews_for_ms(int64_t ms) {
    return event([&] { agent.renew(now_, now_ + ms * 1'000'000, actions_); });
  }
  // Time passes and nobody looks at the clock: the daemon is stopped.
  AgentWorld& sleeps_ms(int64_t ms) {
    now_.ns += ms * 1'000'000;
    return *this;
  }
  AgentWorld& later_ms(int64_t ms) {
    return event([&] {
      now_.ns += ms * 1'000'000;
      agent.tick(now_, actions_);
    });
  }

  template <typename... Lines>
  AgentWorld& expect(Lines... lines) {
    EXPECT_THAT(lines_, testing::ElementsAre(std::string(lines)...));
    lines_.clear();
    return *this;
  }
  AgentWorld& expect_nothing() {
    EXPECT_THAT(lines_, testing::IsEmpty());
    lines_.clear();
    return *this;
  }
  // For scenarios that count instead.
  AgentWorld& discard() {
    lines_.clear();
    return *this;
  }

  LeaseMode held(uint64_t page) const { return agent.held(file, Resource::Data, page); }
  LeaseMode held_attributes() const { return agent.held(file, Resource::Attributes, 0); }
  std::optional<int64_t> ms_to_deadline() const {
    auto at = agent.next_deadline();
    if (!at) return std::nullopt;
    return (*at - now_) / 1'000'000;
  }

 private:
  // As drivers do: at once when nothing has to happen first.
  AgentWorld& write(Token token, uint64_t offset, uint32_t size, char c, bool append,
                    uint64_t handle = 1) {
    return event([&] {
      const Bytes bytes = repeated(c, size);
      const auto went = size > kPageSize ? std::nullopt
                                         : agent.write_now(now_, {.file = file,
                                                                  .offset = offset,
                                                                  .bytes = bytes.view(),
                                                                  .append = append,
                                                                  .handle = handle,
                                                                  .now_wall = wall_});
      if (went) {
        actions_.push_back(ReplyWritten{token, went->offset, size});
        return;
      }
      agent.write(now_,
                  {.token = token,
                   .file = file,
                   .offset = offset,
                   .bytes = bytes,
                   .append = append,
                   .handle = handle,
                   .now_wall = wall_},
                  actions_);
    });
  }

  static constexpr Token kSetup = 1000;
  AgentOptions options_;

 public:
  Agent agent;
  FileId file{.export_index = 0, .generation = 1, .inode = 7};

 private:
  template <typename Event>
  AgentWorld& event(Event happen) {
    settle_lines();
    happen();
    return took();
  }

  AgentWorld& recall(Resource resource, PageRange range, LeaseMode to) {
    return event([&] {
      agent.receive(
          now_,
          Recall{.file = file, .recall = ++recall_, .resource = resource, .to = to, .range = range},
          actions_);
    });
  }

  Grant grant_of_attributes(uint64_t request, LeaseMode mode) {
    Grant grant{.file = file,
                .request = request,
                .sequence = ++sequence_,
                .resource = Resource::Attributes,
                .mode = mode,
                .range = kUnit};
    grant.attributes.size = disk_size_;
    grant.attributes.blocks = blocks_;
    grant.attributes.mode = mode_;
    grant.attributes.nlink = links_;
    return grant;
  }

  Bytes on_disk(PageRange range, char c) const {
    const uint64_t end = std::min(range.byte_offset() + range.byte_length(), disk_size_);
    return repeated(c, end > range.byte_offset() ? end - range.byte_offset() : 0);
  }

  std::optional<LeaseRequest> next_request(Resource resource) {
    auto it = std::find_if(requests_.begin(), requests_.end(),
                           [&](const LeaseRequest& r) { return r.resource == resource; });
    if (it == requests_.end()) {
      ADD_FAILURE() << "nothing of the kind was asked";
      return std::nullopt;
    }
    LeaseRequest request = *it;
    requests_.erase(it);
    return request;
  }

  void settle_lines() {
    EXPECT_THAT(lines_, testing::IsEmpty()) << "actions nobody expected";
    lines_.clear();
  }

  AgentWorld& took() {
    for (const AgentAction& action : actions_) {
      if (const auto* purge = std::get_if<StartPurge>(&action)) purges_.push_back(*purge);
      if (const auto* push = std::get_if<PushSize>(&action)) pushes_.push_back(push->push);
      if (const auto* tell = std::get_if<TellOpen>(&action)) tells_.push_back(tell->tell);
      if (const auto* claim = std::get_if<ClaimPages>(&action)) claim_ = claim->claim;
      if (const auto* names = std::get_if<EndNames>(&action)) endings_.push_back(names->ending);
      if (const auto* settle = std::get_if<SettleSize>(&action)) settle_ = settle->settle;
      if (const auto* told = std::get_if<ReplyAttributes>(&action))
        told_blocks = told->attributes.blocks;
      if (const auto* send = std::get_if<SendToHome>(&action)) {
        if (const auto* m = std::get_if<LeaseRequest>(&send->message)) requests_.push_back(*m);
        if (const auto* m = std::get_if<Fetch>(&send->message)) fetches_.push_back(*m);
        if (const auto* m = std::get_if<Flush>(&send->message)) flushes_.push_back(*m);
        if (const auto* m = std::get_if<Announce>(&send->message)) announcement_ = m->announcement;
      }
      lines_.push_back(line(action));
    }
    actions_.clear();
    agent.check();
    return *this;
  }

  AgentActions actions_;
  std::vector<std::string> lines_;
  std::deque<LeaseRequest> requests_;
  std::deque<Fetch> fetches_;
  std::deque<Flush> flushes_;
  std::vector<StartPurge> purges_;
  std::deque<uint64_t> pushes_, endings_, tells_;
  uint64_t claim_ = 0;
  uint64_t settle_ = 0, announcement_ = 0;
  Instant now_{1'000'000'000};
  Timestamp wall_{1'700'000'000, 0};
  uint64_t sequence_ = 0, recall_ = 0;
  uint64_t disk_size_ = 0;
  uint32_t mode_ = 0100644;
  uint32_t links_ = 1;
  uint64_t blocks_ = 8;

 public:
  uint64_t told_blocks = 0;  // with the last attributes
};

}  // namespace vremote::coherence::test
