// Two nodes that keep the form of the messages and no rule of the protocol, and an honest one, at a
// home with a real directory behind it. Whatever they say: nothing aborts, and what the home does
// stays in proportion to what is said. When the sessions of the two are over, all that the honest
// node has asked for is answered, once; when its own is over, too, nothing is left.
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/overload.h"
#include "fuzz/choices.h"
#include "fuzz/scratch.h"
#include "fuzz/targets.h"
#include "node/home/home_service.h"
#include "wire/codec.h"

namespace vremote::fuzz {
namespace {

using namespace coherence;
namespace fs = std::filesystem;

constexpr uint64_t kPages = 16;

node::HelperThreads& disk_threads() {
  static node::HelperThreads threads("fuzz", 4);
  return threads;
}

class World {
 public:
  explicit World(Choices& choices) : choices_(choices) {
    const fs::path directory = scratch() + "/export";
    fs::remove_all(directory);
    fs::create_directories(directory / "d");
    for (const char* name : {"a", "b", "d/c"})
      std::ofstream(directory / name) << std::string(3 * kPageSize, 'x');
    auto store = store::Store::open(directory.string(), 0, {.use_handles = choices.coin()});
    VR_CHECK(store.has_value());
    root_ = (*store)->root();
    files_ = {root_};
    for (const char* name : {"a", "b", "d"}) {
      const auto found = (*store)->execute({}, LookupCall{root_, name});
      VR_CHECK(found.has_value());
      files_.push_back(std::get<Node>(*found).file);
    }
    std::vector<std::unique_ptr<store::Store>> stores;
    stores.push_back(std::move(*store));
    home_ = std::make_unique<node::HomeService>(
        std::move(stores), disk_threads(), metrics_,
        [this](NodeId node, FileId, ToAgent&& message) {
          const std::lock_guard lock(mutex_);
          sent_.emplace_back(node, std::move(message));
        },
        [this](NodeId node, const std::string&) {
          const std::lock_guard lock(mutex_);
          closing_.insert(node);
        },
        [](NodeId, bool) {}, Mistakes{});
    node::HomeService::Watch watch;
    watch.options = {.term_ns = 1'000'000'000, .warn_ns = 1'000'000, .deadline_ns = 5'000'000'000};
    watch.heard = [this](NodeId node) -> std::optional<Instant> {
      return node == kHonest || !silent_.contains(node) ? now_ : Instant{1};
    };
    watch.fence = [this](const Patience::Verdict& verdict) {
      const std::lock_guard lock(mutex_);
      closing_.insert(verdict.node);
    };
    home_->on_follows([](NodeId node) { return node.value != 2; });
    watch.silence = watch.report = [](const Patience::Verdict&) {};
    home_->watch(std::move(watch));
    if (choices.upto(3) == 0) home_->begin_grace();
  }

  void play() {
    while (choices_.more()) {
      ++steps_;
      switch (choices_.upto(7)) {
        case 0:
          honest_asks();
          break;
        case 1:
          something_else();
          break;
        default:
          hostile_says(hostile_[choices_.upto(1)]);
      }
      come_to_rest();
      VR_CHECK(deliveries_ <= 200 + 100 * steps_);
    }
  }

  void all_ends_well() {
    home_->end_grace();
    come_to_rest();
    for (const NodeId node : hostile_) home_->node_gone(node);
    come_to_rest();
    VR_CHECK_MSG(owed_.empty(), "an honest node was not answered");
    home_->node_gone(kHonest);
    come_to_rest();
    const HomeCounts left = home_->counts();
    VR_CHECK(left.files == 0 && left.waiting == 0 && left.recalls == 0);
    VR_CHECK(home_->lock_counts().held == 0 && home_->lock_counts().waiting == 0);
    VR_CHECK(home_->waits(1).empty());
  }

 private:
  static constexpr NodeId kHonest{3};

  FileId some_file() {
    const uint8_t which = choices_.upto(9);
    if (which == 9) return {choices_.upto(1), choices_.byte(), choices_.byte()};
    return files_[which % files_.size()];
  }
  PageRange some_pages() {
    const uint64_t first = choices_.upto(kPages - 1);
    return {first, first + 1 + choices_.upto(3)};
  }
  PageRange any_range() {
    switch (choices_.upto(4)) {
      case 0:
        return PageRange::all();
      case 1:
      case 2:
        return kUnit;
      default:
        return some_pages();
    }
  }
  uint64_t some_offset() { return choices_.upto(200) * uint64_t{500}; }
  std::string some_name() {
    return choices_.one_of<const char*>({"a", "b", "c", "d", "e", "user.x", "nowhere"});
  }
  static Bytes some_bytes(size_t size) { return Bytes::copy_of(std::vector<std::byte>(size)); }

  // ---- the two ----
  void hostile_says(NodeId node) {
    const auto& recalls = recalled_[node];
    switch (choices_.upto(11)) {
      case 0:
      case 1:
      case 2:
        say(node, LeaseRequest{.file = some_file(),
                               .request = choices_.byte(),
                               .resource = static_cast<Resource>(choices_.upto(2)),
                               .mode = static_cast<LeaseMode>(choices_.upto(3)),
                               .range = any_range(),
                               .want_data = choices_.coin()});
        return;
      case 3:
      case 4: {
        RecallAck ack{.file = some_file(), .recall = choices_.byte(), .given = any_range()};
        if (!recalls.empty() && choices_.upto(3) != 0) {
          const Recall& recall = choices_.one_of(recalls);
          ack.file = recall.file;
          ack.recall = recall.recall;
          if (choices_.coin()) ack.given = recall.range;
        }
        ack.seen = choices_.byte();
        ack.attributes = some_changes();
        ack.in_use = choices_.coin();
        ack.watches = choices_.coin();
        ack.busy = choices_.upto(3) == 0;
        say(node, ack);
        return;
      }
      case 5: {
        Flush flush{.file = some_file(), .flush = choices_.byte()};
        for (int i = choices_.upto(2); i > 0; --i)
          flush.extents.push_back({choices_.upto(15) == 0 ? uint64_t{1} << 62 : some_offset(),
                                   some_bytes(choices_.byte() * size_t{40})});
        flush.attributes = some_changes();
        say(node, flush);
        return;
      }
      case 6:
        say(node, Fetch{.file = some_file(), .fetch = choices_.byte(), .range = any_range()});
        return;
      case 7:
        say(node,
            Release{.file = some_file(), .seen = choices_.upto(9), .leases = choices_.coin()});
        return;
      case 8:
        say(node,
            Announce{.file = some_file(), .announcement = choices_.byte(), .size = some_offset()});
        return;
      case 9: {
        const auto& shows = shown_[node];
        SizeShown answer{.file = some_file(), .show = choices_.byte()};
        if (!shows.empty() && choices_.coin()) {
          answer.file = shows.back().file;
          answer.show = shows.back().show;
        }
        say(node, answer);
        return;
      }
      case 10: {
        FollowWait follow{.file = some_file(), .call = choices_.byte(), .trail = {}};
        follow.trail.searcher = choices_.byte();
        follow.trail.since = choices_.coin() ? 0 : UINT64_MAX;
        follow.trail.budget = choices_.coin() ? kTrailBudget : choices_.byte();
        follow.trail.waits.resize(choices_.upto(kTrailMax));
        say(node, follow);
        return;
      }
      default:
        say(node, Call{.call = choices_.byte(), .caller = {}, .operation = some_operation()});
    }
  }

  DirtyAttributes some_changes() {
    DirtyAttributes changes;
    changes.has_size = choices_.upto(3) == 0;
    changes.has_mtime = choices_.upto(3) == 0;
    changes.size = some_offset();
    changes.mtime = {choices_.byte(), choices_.byte()};
    return changes;
  }

  LockCall some_lock() {
    const uint64_t start = choices_.byte();
    return {.file = some_file(),
            .action = static_cast<LockAction>(choices_.upto(6)),
            .kind = static_cast<LockKind>(choices_.upto(1)),
            .type = static_cast<LockType>(choices_.upto(2)),
            .owner = choices_.upto(3),
            .start = start,
            .end = choices_.upto(3) == 0 ? uint64_t{INT64_MAX} : start + choices_.byte(),
            .pid = choices_.byte(),
            .waiting_call = choices_.byte()};
  }

  Operation some_operation() {
    const FileId file = some_file();
    switch (choices_.upto(21)) {
      case 0:
        return LookupCall{file, some_name()};
      case 1:
        return CreateCall{.dir = file,
                          .name = some_name(),
                          .mode = choices_.one_of<uint32_t>({S_IFREG, S_IFDIR, S_IFIFO}) | 0755,
                          .exclusive = choices_.coin()};
      case 2:
        return SymlinkCall{file, some_name(), "a"};
      case 3:
        return LinkCall{file, some_file(), some_name()};
      case 4:
        return RemoveCall{file, some_name(), choices_.coin()};
      case 5:
        return RenameCall{file, some_name(), some_file(), some_name(), choices_.upto(3)};
      case 6:
      case 7:
        return SetAttributesCall{.file = file,
                                 .has_mode = choices_.coin(),
                                 .has_size = choices_.coin(),
                                 .has_mtime = choices_.coin(),
                                 .mode = 0700,
                                 .size = some_offset()};
      case 8:
        return ReadLinkCall{file};
      case 9:
        return ReadDirectoryCall{file, choices_.byte(), choices_.byte() * 100u, choices_.coin()};
      case 10:
        return SyncCall{file, choices_.coin()};
      case 11:
        return GetXattrCall{file, some_name()};
      case 12:
        return SetXattrCall{file, some_name(), some_bytes(choices_.byte()), choices_.upto(3)};
      case 13:
        return AllocateCall{file, some_offset(), some_offset(), choices_.byte()};
      case 14:
        return SeekCall{file, some_offset(), choices_.upto(5)};
      case 15:
        return CopyCall{file, some_file(), some_offset(), some_offset(), 1 + some_offset()};
      case 16:
        if (choices_.coin()) return ReclaimCall{file, choices_.coin(), {}};
        return ReclaimCall{file, false, {some_pages(), some_pages()}};
      case 17:
        if (choices_.upto(3) == 0) return LeaveCall{file};
        return StatFsCall{file};
      default:
        return some_lock();
    }
  }

  // Only what comes through the decoder reaches the home.
  void say(NodeId node, const ToHome& message) {
    const auto frame = wire::encode(message);
    if (!frame) return;
    std::vector<std::byte> bulk;
    for (const Bytes& part : frame->bulk)
      bulk.insert(bulk.end(), part.view().begin(), part.view().end());
    auto decoded = wire::decode_to_home(
        frame->type, std::span(frame->header).subspan(wire::kPreambleSize), Bytes::copy_of(bulk));
    if (decoded) home_->receive(node, std::move(*decoded));
  }

  // ---- the honest node ----
  void honest_asks() {
    const FileId file = files_[choices_.byte() % files_.size()];
    const uint64_t id = ++asked_;
    owed_.insert(id);
    switch (choices_.upto(4)) {
      case 0:
      case 1: {
        LeaseRequest request{.file = file,
                             .request = id,
                             .resource = static_cast<Resource>(choices_.upto(2)),
                             .mode = choices_.coin() ? LeaseMode::Exclusive : LeaseMode::Shared,
                             .range = kUnit};
        if (request.resource == Resource::Data) {
          request.range = some_pages();
          request.want_data = choices_.coin();
        }
        home_->receive(kHonest, request);
        return;
      }
      case 2:
        home_->receive(kHonest, Flush{.file = file,
                                      .flush = id,
                                      .extents = {{some_offset(), some_bytes(100)}},
                                      .attributes = {}});
        return;
      case 3: {
        LockCall lock = some_lock();
        lock.file = file;
        lock.owner = 1;  // always: it does not wait for itself
        lock.action = choices_.coin() ? LockAction::Wait : LockAction::Try;
        home_->receive(kHonest, Call{.call = id, .caller = {}, .operation = lock});
        return;
      }
      case 4: {
        const Operation operation =
            choices_.coin() ? Operation(LookupCall{file, some_name()})
                            : Operation(SetAttributesCall{
                                  .file = file, .has_size = true, .size = some_offset()});
        home_->receive(kHonest, Call{.call = id, .caller = {}, .operation = operation});
        return;
      }
    }
  }

  void answered(uint64_t id) {
    // The offers of leases are nobody's answer.
    if (id != 0) VR_CHECK_MSG(owed_.erase(id) == 1, "answered twice, or without a question");
  }
  void honest_hears(const ToAgent& message) {
    std::visit(Overload{[&](const Grant& m) {
                          if (m.sequence != 0) seen_[m.file] = m.sequence;
                          answered(m.request);
                        },
                        [&](const Recall& m) {
                          home_->receive(kHonest, RecallAck{.file = m.file,
                                                            .recall = m.recall,
                                                            .given = m.range,
                                                            .seen = seen_[m.file]});
                        },
                        [&](const FlushAck& m) { answered(m.flush); },
                        [&](const FetchReply& m) { answered(m.fetch); },
                        [&](const Reply& m) { answered(m.call); },
                        [&](const ShowSize& m) {
                          home_->receive(kHonest, SizeShown{.file = m.file, .show = m.show});
                        },
                        [&](const Announced&) {}, [&](const FollowOwner&) {}},
               message);
  }

  // ---- time, sessions, other programs ----
  void something_else() {
    switch (choices_.upto(6)) {
      case 0:
        now_.ns += choices_.byte() * int64_t{10'000'000};
        home_->tick(now_);
        return;
      case 1:
        silent_.insert(hostile_[choices_.upto(1)]);
        return;
      case 2:
        home_->end_grace();
        return;
      case 3:
        end_session(hostile_[choices_.upto(1)]);
        return;
      case 4:
        (void)home_->changed_outside(files_[choices_.byte() % files_.size()],
                                     {choices_.coin(), choices_.coin(), choices_.coin()});
        return;
      case 5:
        (void)home_->waits(16);
        (void)home_->can_be_handed_over();
        return;
      case 6:
        (void)home_->own_locks();
        (void)home_->known_files();
        return;
    }
  }

  // The node comes back at once, under another number.
  void end_session(NodeId node) {
    VR_CHECK_MSG(node != kHonest, "an honest node was sent away");
    for (NodeId& peer : hostile_) {
      if (peer != node) continue;
      home_->node_gone(node);
      recalled_.erase(node);
      shown_.erase(node);
      silent_.erase(node);
      peer = NodeId{++last_session_};
    }
  }

  void come_to_rest() {
    for (;;) {
      while (disk_threads().busy()) std::this_thread::yield();
      std::vector<std::pair<NodeId, ToAgent>> sent;
      std::set<NodeId> closing;
      {
        const std::lock_guard lock(mutex_);
        sent.swap(sent_);
        closing.swap(closing_);
      }
      if (sent.empty() && closing.empty()) return;
      deliveries_ += sent.size();
      for (const auto& [node, message] : sent) {
        // Whoever is sent what it cannot read loses its connection.
        VR_CHECK_MSG(wire::encode(message).has_value(), "says what no agent understands");
        if (node == kHonest) {
          honest_hears(message);
          continue;
        }
        if (const auto* recall = std::get_if<Recall>(&message)) recalled_[node].push_back(*recall);
        if (const auto* show = std::get_if<ShowSize>(&message)) shown_[node].push_back(*show);
      }
      for (const NodeId node : closing) end_session(node);
    }
  }

  Choices& choices_;
  Metrics metrics_;
  std::mutex mutex_;
  std::vector<std::pair<NodeId, ToAgent>> sent_;
  std::set<NodeId> closing_;
  FileId root_;
  std::vector<FileId> files_;
  Instant now_{10'000'000'000};
  std::set<NodeId> silent_;
  uint32_t last_session_ = 3;
  NodeId hostile_[2] = {NodeId{1}, NodeId{2}};
  std::map<NodeId, std::vector<Recall>> recalled_;
  std::map<NodeId, std::vector<ShowSize>> shown_;
  std::map<FileId, uint64_t> seen_;
  std::set<uint64_t> owed_;
  uint64_t asked_ = 0;
  size_t steps_ = 0, deliveries_ = 0;
  std::unique_ptr<node::HomeService> home_;  // last: it goes first
};

}  // namespace

void home(std::span<const std::byte> bytes) {
  spdlog::set_level(spdlog::level::off);
  Choices choices(bytes);
  World world(choices);
  world.play();
  world.all_ends_well();
}

}  // namespace vremote::fuzz
