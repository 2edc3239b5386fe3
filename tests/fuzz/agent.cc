// A home that keeps the form of the messages and no rule of the protocol, against the agent of a
// node whose kernel behaves. Whatever it says: nothing aborts, no request is answered twice, what
// the agent does stays in proportion to what is said. And when its session is over, an honest home
// has all requests answered and all recalls acked.
#include "coherence/agent.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/overload.h"
#include "fuzz/choices.h"
#include "fuzz/targets.h"
#include "wire/codec.h"

namespace vremote::fuzz {
namespace {

using namespace coherence;

constexpr uint64_t kPages = 16;  // of a file that the kernel looks at
constexpr size_t kFiles = 3;
constexpr int64_t kMs = 1'000'000;

// What the kernel knows of one file.
struct KernelFile {
  std::vector<Opening> opens;
  std::set<Token> waiting;
  std::map<Token, PageRange> fills;
  std::map<Token, Opening> opening;
  PageSet cached;
  Token truncation = 0;
  uint64_t truncated_to = 0;
  bool truncation_ready = false;
};

class World {
 public:
  explicit World(Choices& choices)
      : choices_(choices), soft_(choices.upto(3) == 0), agent_(options(soft_, choices)) {}

  void play() {
    while (choices_.more()) {
      ++steps_;
      if (choices_.upto(2) == 0) {
        kernel_does();
      } else {
        home_says();
      }
      take_in();
      agent_.check();
      VR_CHECK(actions_taken_ <= 1000 + 200 * steps_);
    }
  }

  // The session is over; the next is with a home that does what it should.
  void all_ends_well() {
    honest_ = true;
    wants_.clear();
    fetches_.clear();
    flushes_.clear();
    announced_.clear();
    agent_.reset(now_, choices_.coin() ? Agent::Dirty::Fenced : Agent::Dirty::Kept, actions_);
    renew();
    settle();
    uint64_t recall = 1'000'000;
    for (size_t i = 0; i < kFiles; ++i)
      for (const Resource resource : {Resource::Entries, Resource::Attributes, Resource::Data}) {
        owed_acks_.insert(++recall);
        agent_.receive(now_,
                       Recall{.file = file(i),
                              .recall = recall,
                              .resource = resource,
                              .to = LeaseMode::None,
                              .range = resource == Resource::Data ? PageRange::all() : kUnit},
                       actions_);
      }
    settle();
    VR_CHECK_MSG(owed_acks_.empty(), "a recall of an honest home was not acked");
    for (const KernelFile& known : kernel_)
      VR_CHECK_MSG(known.waiting.empty(), "a request was never answered");
    VR_CHECK(agent_.counts().waiting == 0 && agent_.counts().purges_in_flight == 0);
    agent_.flush_all(now_, actions_);
    settle();
    VR_CHECK_MSG(agent_.idle_dirty(), "dirty bytes stay");
  }

 private:
  static AgentOptions options(bool soft, Choices& choices) {
    AgentOptions options;
    if (choices.coin()) options.settle_ns = 100 * kMs;
    if (choices.coin()) options.dirty_max_bytes = 2 * kPageSize;
    if (choices.coin()) options.flush_window_bytes = kPageSize;
    if (soft) options.soft_ns = 50 * kMs;
    return options;
  }
  static FileId file(size_t i) { return {0, 7, 100 + i}; }

  KernelFile& known(FileId id) { return kernel_[id.inode - 100]; }

  Token ask(KernelFile& in) {
    const Token token = next_token_++;
    in.waiting.insert(token);
    return token;
  }
  PageRange some_pages() {
    const uint64_t first = choices_.upto(kPages - 1);
    return {first, std::min(first + 1 + choices_.upto(3), kPages)};
  }
  static Bytes some_bytes(size_t size) { return Bytes::copy_of(std::vector<std::byte>(size)); }

  void kernel_does() {
    const size_t i = choices_.upto(kFiles - 1);
    const FileId id = file(i);
    KernelFile& f = kernel_[i];
    switch (choices_.upto(17)) {
      case 0: {
        const PageRange range = some_pages();
        bool free = !f.cached.overlaps(range) && !f.opens.empty();
        for (const auto& [token, pages] : f.fills) free = free && !pages.overlaps(range);
        if (!free) return;
        const Token token = ask(f);
        f.fills.emplace(token, range);
        agent_.read(now_,
                    {.token = token,
                     .file = id,
                     .offset = range.byte_offset(),
                     .size = static_cast<uint32_t>(range.byte_length()),
                     .fill = true},
                    actions_);
        return;
      }
      case 1:
        agent_.read(now_,
                    {.token = ask(f),
                     .file = id,
                     .offset = choices_.upto(200) * uint64_t{300},
                     .size = 1 + choices_.byte() * 40u},
                    actions_);
        return;
      case 2:
      case 3: {
        if (f.opens.empty() || f.truncation != 0) return;
        WriteEvent event{.token = 0,
                         .file = id,
                         .offset = choices_.upto(200) * uint64_t{300},
                         .bytes = some_bytes(1 + choices_.byte() * 40u),
                         .append = choices_.coin(),
                         .handle = 1};
        if (choices_.coin()) {
          const std::vector<std::byte> bytes(event.bytes.size());
          if (agent_.write_now(now_, {.file = id,
                                      .offset = event.offset,
                                      .bytes = bytes,
                                      .append = event.append,
                                      .handle = 1}))
            return;
        }
        event.token = ask(f);
        agent_.write(now_, std::move(event), actions_);
        return;
      }
      case 4: {
        const bool mapped =
            std::ranges::any_of(f.opens, [](const Opening& opening) { return opening.may_map; });
        if (!mapped || f.cached.empty() || f.truncation != 0) return;
        const uint64_t page = f.cached.ranges().front().first;
        agent_.write_back(now_, id, page << kPageShift, some_bytes(kPageSize), {}, actions_);
        return;
      }
      case 5:
      case 6: {
        Opening opening{.reads = choices_.coin(), .may_map = false};
        opening.may_map = opening.reads && choices_.coin();
        const Token token = ask(f);
        f.opening.emplace(token, opening);
        agent_.open(now_, token, id, opening, actions_);
        return;
      }
      case 7:
        if (f.opens.empty()) return;
        agent_.close(now_, id, f.opens.back(), actions_);
        f.opens.pop_back();
        return;
      case 8:
        agent_.attributes(now_, ask(f), id, choices_.upto(7) == 0, actions_);
        return;
      case 9:
        agent_.entries(now_, ask(f), id, actions_);
        if (agent_.may_give_names(id)) agent_.names_given(id);
        return;
      case 10:
        agent_.flush(now_, ask(f), id, actions_);
        return;
      case 11:
        if (f.truncation != 0) return;
        f.truncation = ask(f);
        f.truncated_to = choices_.upto(200) * uint64_t{300};
        agent_.truncate(now_, f.truncation, id, f.truncated_to, actions_);
        return;
      case 12:
        truncation_ends(id, f);
        if (choices_.coin()) late_truncations_end();
        return;
      case 13:
        if (f.waiting.empty()) return;
        agent_.interrupt(
            now_,
            *std::next(f.waiting.begin(), choices_.byte() % static_cast<int>(f.waiting.size())), id,
            actions_);
        return;
      case 14:
        if (!f.waiting.empty() || !f.opens.empty() || f.truncation != 0) return;
        f.cached.clear();
        agent_.forget(now_, id, actions_);
        return;
      case 15:
        something_returns(choices_.byte());
        return;
      case 16:
        now_.ns += choices_.one_of<int64_t>({1000, kMs / 2, 2 * kMs, 60 * kMs, 1200 * kMs});
        agent_.tick(now_, actions_);
        return;
      case 17:
        if (choices_.coin()) {
          renew();
        } else {
          agent_.renew(now_, now_, actions_);
        }
        return;
    }
  }

  void renew() { agent_.renew(now_, now_ + 10'000 * kMs, actions_); }

  void truncation_ends(FileId id, KernelFile& f) {
    if (f.truncation == 0 || !f.truncation_ready) return;
    f.truncation = 0;
    f.truncation_ready = false;
    f.cached.remove(PageRange{(f.truncated_to + kPageSize - 1) >> kPageShift, kPageEnd});
    agent_.truncate_done(now_, id, true, f.truncated_to, true, actions_);
  }

  void late_truncations_end() {
    for (const auto& [id, size] : std::exchange(going_on_, {}))
      agent_.truncation_ended(now_, id, choices_.coin(), size, actions_);
  }

  bool something_returns(uint8_t which) {
    if (jobs_.empty()) return false;
    const size_t at = which % jobs_.size();
    const auto job = jobs_[at];
    if (const auto* purge = std::get_if<StartPurge>(&job))
      for (const auto& [token, pages] : known(purge->file).fills)
        if (pages.overlaps(purge->range)) return false;  // the kernel waits for it
    jobs_.erase(jobs_.begin() + static_cast<ptrdiff_t>(at));
    std::visit(
        Overload{
            [&](const ClaimPages& a) {
              agent_.claimed(now_, a.claim, a.file, honest_ || choices_.coin(), actions_);
            },
            // The driver's hands are in time, or it is answered already.
            [&](const EndTruncation& a) {
              KernelFile& f = known(a.file);
              if (f.truncation == 0 || !f.truncation_ready) return;
              agent_.truncation_goes_on(now_, a.file, actions_);
              agent_.truncate_done(now_, a.file, false, f.truncated_to, true, actions_);
              f.truncation = 0;
              f.truncation_ready = false;
              going_on_.emplace_back(a.file, f.truncated_to);
            },
            // A home that has it still, or has not.
            [&](const TellOpen& a) {
              agent_.open_told(now_, a.tell, a.file, honest_ || choices_.coin(), actions_);
            },
            [&](const StartPurge& a) {
              known(a.file).cached.remove(a.range);
              agent_.purge_returned(now_, a.purge, a.file, actions_);
            },
            [&](const PushSize& a) {
              agent_.size_pushed(now_, a.push, a.file, honest_ || choices_.coin(), actions_);
            },
            [&](const LookAtSize& a) { agent_.size_pushed(now_, a.push, a.file, true, actions_); },
            [&](const SettleSize& a) {
              agent_.size_settled(now_, a.settle, a.file, actions_);
              agent_.settle_ended(now_, a.settle, a.file, actions_);
            },
            [&](const EndNames& a) { agent_.names_ended(now_, a.ending, a.dir, actions_); }},
        job);
    return true;
  }

  // ---- what the home says ----
  FileId some_file() {
    const uint8_t which = choices_.upto(7);
    return which < 7 ? file(which % kFiles) : FileId{choices_.byte(), 7, choices_.byte()};
  }
  uint64_t some_size() {
    return choices_.one_of<uint64_t>(
        {0, 1, kPageSize, 3 * kPageSize + 5, kPages * kPageSize, uint64_t{1} << 43, INT64_MAX});
  }
  PageRange any_range() {
    switch (choices_.upto(4)) {
      case 0:
        return PageRange::all();
      case 1:
        return kUnit;
      case 2:
        return {};
      default:
        return some_pages();
    }
  }
  Attributes some_attributes() {
    Attributes a{.size = some_size()};
    a.mode = choices_.one_of<uint32_t>({0100644, 0100600, 040755, 0});
    a.nlink = choices_.upto(2);
    a.blocks = choices_.upto(3) == 0 ? UINT64_MAX : choices_.byte();
    return a;
  }
  Bytes data() { return some_bytes(choices_.byte() * size_t{64}); }

  void home_says() {
    switch (choices_.upto(9)) {
      case 0:
      case 1:
      case 2: {
        Grant grant{.file = some_file(), .request = choices_.byte()};
        grant.resource = static_cast<Resource>(choices_.upto(2));
        grant.range = any_range();
        if (!wants_.empty() && choices_.upto(3) != 0) {
          const LeaseRequest want = choices_.one_of(wants_);
          grant.file = want.file;
          grant.request = want.request;
          grant.resource = want.resource;
          grant.range = want.range;
        }
        grant.sequence = ++sequence_ % 200;
        grant.mode = static_cast<LeaseMode>(choices_.upto(3));
        if (choices_.upto(3) == 0) grant.mode = LeaseMode::Exclusive;
        grant.error = choices_.upto(7) == 0 ? choices_.byte() : 0;
        grant.size_floor = some_size();
        grant.attributes = some_attributes();
        grant.has_xattrs = choices_.coin();
        grant.watched = choices_.coin();
        grant.data_offset = choices_.coin() ? grant.range.byte_offset() : some_size();
        grant.data = data();
        say(grant);
        return;
      }
      case 3:
      case 4:
        say(Recall{.file = some_file(),
                   .recall = choices_.byte(),
                   .resource = static_cast<Resource>(choices_.upto(2)),
                   .to = static_cast<LeaseMode>(choices_.upto(3)),
                   .range = any_range()});
        return;
      case 5: {
        FlushAck ack{.file = some_file(), .flush = choices_.byte()};
        if (!flushes_.empty() && choices_.coin()) {
          ack.file = flushes_.back().file;
          ack.flush = flushes_.back().flush;
        }
        ack.error = choices_.upto(3) == 0 ? choices_.byte() : 0;
        ack.blocks = choices_.upto(3) == 0 ? UINT64_MAX : choices_.byte();
        say(ack);
        return;
      }
      case 6: {
        FetchReply reply{.file = some_file(), .fetch = choices_.byte()};
        if (!fetches_.empty() && choices_.upto(3) != 0) {
          reply.file = fetches_.back().file;
          reply.fetch = fetches_.back().fetch;
          reply.data_offset = fetches_.back().range.byte_offset();
        }
        reply.error = choices_.upto(3) == 0 ? choices_.byte() : 0;
        if (choices_.upto(3) == 0) reply.data_offset = some_size();
        reply.data = data();
        say(reply);
        return;
      }
      case 7:
        say(ShowSize{.file = some_file(), .show = choices_.byte(), .size = some_size()});
        return;
      case 8:
        say(Announced{
            .file = some_file(),
            .announcement = announced_.empty() ? choices_.byte() : announced_.back().announcement,
            .watched = choices_.coin()});
        return;
      case 9:
        agent_.reset(now_, choices_.coin() ? Agent::Dirty::Fenced : Agent::Dirty::Kept, actions_);
        wants_.clear();
        fetches_.clear();
        flushes_.clear();
        return;
    }
  }

  // Only what comes through the decoder reaches the agent.
  void say(const ToAgent& message) {
    const auto frame = wire::encode(message);
    if (!frame) return;
    std::vector<std::byte> bulk;
    for (const Bytes& part : frame->bulk)
      bulk.insert(bulk.end(), part.view().begin(), part.view().end());
    auto decoded = wire::decode_to_agent(
        frame->type, std::span(frame->header).subspan(wire::kPreambleSize), Bytes::copy_of(bulk));
    if (!decoded) return;
    std::visit(Overload{[](Reply&) {}, [](FollowOwner&) {},
                        [&](auto& m) { agent_.receive(now_, std::move(m), actions_); }},
               *decoded);
  }

  // ---- what the agent does ----
  void take_in() {
    while (!actions_.empty()) {
      AgentActions taken;
      taken.swap(actions_);
      actions_taken_ += taken.size();
      for (AgentAction& action : taken) take(action);
    }
  }

  void answered(Token token, bool well) {
    for (size_t i = 0; i < kFiles; ++i) {
      KernelFile& f = kernel_[i];
      if (f.waiting.erase(token) == 0) continue;
      if (const auto opening = f.opening.find(token); opening != f.opening.end()) {
        const Opening how = opening->second;
        f.opening.erase(opening);
        if (well) {
          f.opens.push_back(how);
        } else {
          agent_.close(now_, file(i), how, actions_);
        }
      }
      if (const auto fill = f.fills.find(token); fill != f.fills.end()) {
        if (well) f.cached.add(fill->second);
        f.fills.erase(fill);
      }
      if (token == f.truncation) {
        f.truncation_ready = well;
        if (!well) f.truncation = 0;
      }
      return;
    }
    VR_CHECK_MSG(false, "an answer to nobody's question, or a second one");
  }

  void take(AgentAction& action) {
    std::visit(Overload{[&](const ReplyData& a) {
                          uint64_t size = 0;
                          for (const Bytes& piece : a.pieces) size += piece.size();
                          VR_CHECK(size == a.length);
                          answered(a.token, true);
                        },
                        [&](const ReplyError& a) {
                          VR_CHECK(a.error > 0);
                          answered(a.token, false);
                        },
                        [&](const StartPurge& a) {
                          VR_CHECK(!a.range.empty());
                          jobs_.emplace_back(a);
                        },
                        [&](const PushSize& a) { jobs_.emplace_back(a); },
                        [&](const LookAtSize& a) { jobs_.emplace_back(a); },
                        [&](const SettleSize& a) { jobs_.emplace_back(a); },
                        [&](const EndNames& a) { jobs_.emplace_back(a); },
                        [&](const TellOpen& a) { jobs_.emplace_back(a); },
                        [&](const ClaimPages& a) { jobs_.emplace_back(a); },
                        [&](const EndTruncation& a) { jobs_.emplace_back(a); },
                        [&](const DropAttributes&) {}, [&](const EntriesLost&) {},
                        [&](const Rescue&) {}, [&](const SendToHome& a) { heard(a.message); },
                        [&](const auto& reply) { answered(reply.token, true); }},
               action);
  }

  // What the agent says must be what a home's decoder takes.
  void heard(const ToHome& message) {
    VR_CHECK_MSG(wire::encode(message).has_value(), "says what no home understands");
    std::visit(Overload{[&](const LeaseRequest& m) { wants_.push_back(m); },
                        [&](const Fetch& m) { fetches_.push_back(m); },
                        [&](const Flush& m) { flushes_.push_back(m); },
                        [&](const Announce& m) { announced_.push_back(m); },
                        [&](const RecallAck& m) {
                          if (!m.busy) owed_acks_.erase(m.recall);
                        },
                        [](const auto&) {}},
               message);
  }

  // An honest home and a kernel that goes on, until nothing moves any more.
  void settle() {
    for (int quiet = 0, round = 0; quiet < 4; ++round) {
      VR_CHECK_MSG(round < 5000, "it never comes to rest");
      take_in();
      bool moved = serve();
      for (size_t i = 0; i < kFiles; ++i) truncation_ends(file(i), kernel_[i]);
      late_truncations_end();
      for (size_t at = 0; at < jobs_.size();)
        if (something_returns(static_cast<uint8_t>(at))) {
          moved = true;
        } else {
          ++at;
        }
      take_in();
      moved = moved || !wants_.empty() || !fetches_.empty() || !flushes_.empty();
      now_.ns += 200 * kMs;
      agent_.tick(now_, actions_);
      renew();
      moved = moved || !actions_.empty();
      quiet = moved ? 0 : quiet + 1;
    }
  }

  bool serve() {
    const auto wants = std::exchange(wants_, {});
    const auto fetches = std::exchange(fetches_, {});
    const auto flushes = std::exchange(flushes_, {});
    const auto announced = std::exchange(announced_, {});
    for (const LeaseRequest& want : wants) {
      Grant grant{.file = want.file,
                  .request = want.request,
                  .sequence = ++sequence_,
                  .resource = want.resource,
                  .mode = want.mode,
                  .range = want.range,
                  .size_floor = kPageSize,
                  .attributes = {.size = kPageSize}};
      grant.attributes.mode = 0100644;
      grant.attributes.nlink = 1;
      if (want.want_data) {
        grant.data_offset = want.range.byte_offset();
        if (want.range.first == 0) grant.data = some_bytes(kPageSize);
      }
      agent_.receive(now_, std::move(grant), actions_);
      take_in();
    }
    for (const Fetch& fetch : fetches) {
      FetchReply reply{.file = fetch.file, .fetch = fetch.fetch};
      reply.data_offset = fetch.range.byte_offset();
      if (fetch.range.first == 0) reply.data = some_bytes(kPageSize);
      agent_.receive(now_, std::move(reply), actions_);
      take_in();
    }
    for (const Flush& flush : flushes) {
      agent_.receive(now_, FlushAck{.file = flush.file, .flush = flush.flush, .blocks = 8},
                     actions_);
      take_in();
    }
    for (const Announce& announce : announced) {
      agent_.receive(now_, Announced{.file = announce.file, .announcement = announce.announcement},
                     actions_);
      take_in();
    }
    return !wants.empty() || !fetches.empty() || !flushes.empty() || !announced.empty();
  }

  Choices& choices_;
  bool soft_ = false, honest_ = false;
  Agent agent_;
  Instant now_{1'000'000'000};
  AgentActions actions_;
  size_t steps_ = 0, actions_taken_ = 0;
  KernelFile kernel_[kFiles];
  Token next_token_ = 1;
  std::vector<std::variant<StartPurge, PushSize, LookAtSize, SettleSize, EndNames, TellOpen,
                           ClaimPages, EndTruncation>>
      jobs_;
  std::vector<std::pair<FileId, uint64_t>> going_on_;  // truncations that failed here
  std::vector<LeaseRequest> wants_;
  std::vector<Fetch> fetches_;
  std::vector<Flush> flushes_;
  std::vector<Announce> announced_;
  std::set<uint64_t> owed_acks_;
  uint64_t sequence_ = 0;
};

}  // namespace

void agent(std::span<const std::byte> bytes) {
  Choices choices(bytes);
  World world(choices);
  world.play();
  world.all_ends_well();
}

}  // namespace vremote::fuzz
