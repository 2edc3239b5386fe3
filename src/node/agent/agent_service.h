// This node's agent for one home: drives coherence::Agent with real requests, purges, messages and
// time.
//
// Files are spread over a few shards, each an Agent under a lock of its own; no work is handed from
// thread to thread: whoever brings an event carries out its actions. Replies to reads, sends and
// starts of purges happen under the shard's lock (they never block), so that the order of the
// actions is the order the kernel and the home see (K11); everything else runs after it.
//
// Where its parts are: agent_service.cc (events in, actions out), agent_requests.cc (of the
// kernel), agent_sizes.cc, agent_truncations.cc, agent_names.cc, agent_calls.cc (operations at the
// home), agent_session.cc (from one session to the next), agent_handover.cc (from one daemon to the
// next), agent_blocked.cc (who waits).
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/metrics.h"
#include "base/result.h"
#include "coherence/agent.h"
#include "coherence/call_memory.h"
#include "coherence/name_cache.h"
#include "coherence/name_ledger.h"
#include "fuse/channel.h"
#include "fuse/own_view.h"
#include "net/event_loop.h"
#include "node/agent/listing_cache.h"
#include "node/agent/locks_at_home.h"
#include "node/base/helper_threads.h"
#include "node/base/kept.h"
#include "node/base/repeated_errors.h"

namespace vremote::node {

class GuardianTable;
class InodeTable;
class KernelNames;
class LockCircles;

// What became of a request that is not answered to the kernel directly.
struct Answer {
  int error = 0;  // errno
  Attributes attributes;
  uint64_t offset = 0;  // of a write: where it went
  uint32_t length = 0;
  bool may_cache = false;  // attributes: the kernel may keep them, if this answers a GETATTR
};

// A kernel request to be answered on the channel it came by.
struct Waiting {
  const fuse::Channel* channel = nullptr;
  uint64_t unique = 0;
  uint32_t tid = 0;  // of the thread that waits; 0: unknown
  // Whose call this is, also where an interrupt must not end it. Without the resend bit; 0: of
  // none.
  uint64_t request = 0;
  uint64_t handle = 0;  // by which it relies on locks; 0: it does on none
};

class AgentService {
 public:
  using Then = std::move_only_function<void(Answer)>;
  // AgentOptions::settle_ns, where sizes can be settled.
  static constexpr int64_t kSettlePatience = 100'000'000;
  static constexpr int64_t kPushPatience = coherence::AgentOptions{}.push_patience_ns;
  using ThenReply = std::move_only_function<void(coherence::Reply&&)>;
  // Sends to the home. Remote: never blocks, and is called under a shard's lock. For this machine's
  // own home `local` is set and messages are handed over in order without a lock. `session`: that
  // the message belongs to (begin_session(), reset()), 0 for any; in another it is dropped.
  using Send = std::function<void(FileId file, coherence::ToHome&& message, uint32_t session)>;
  struct Environment {
    InodeTable* inodes = nullptr;
    HelperThreads* purge_threads = nullptr;
    Metrics* metrics = nullptr;
    std::vector<net::EventLoop*> loops;
    std::function<const fuse::Channel*()> notify_channel;
    KernelNames* kernel_names = nullptr;
    // So much waits for the home already that nothing new may: calls fail with EHOSTDOWN. Unset:
    // never.
    std::function<bool()> backlogged = {};
    std::function<fuse::OwnView*()> own_view;  // may give nothing
    // Keeps what may not go to the home any more. Never blocks.
    std::function<void(const std::string& home, coherence::Rescue&&)> rescue = {};
    GuardianTable* guardian = nullptr;  // is told of fills that are answered
    // Takes in what the guardian has answered in this daemon's place, if anything. A purge that has
    // returned counts only then: the guardian may have what the kernel wrote back for it (G3).
    std::function<void()> take_back = {};
    LockCircles* circles = nullptr;  // gets what the home asks about owners of this node
    // These locks are others', or free; `why`, for people. Returns the handles by which they were
    // taken: nothing is written through these any more.
    std::function<std::set<uint64_t>(AgentService*, const LocksAtHome::AllHeld&,
                                     const std::string& why)>
        locks_lost = {};
  };

  AgentService(std::string home_name, const coherence::AgentOptions& options, bool local, Send send,
               Environment environment);
  ~AgentService();

  const std::string& home_name() const { return home_name_; }

  // ---- the kernel's requests; any thread ----
  void read(Waiting waiting, FileId file, uint64_t offset, uint32_t size, bool fill);
  // `then` empty: answered to the kernel as a WRITE.
  struct Placement {
    uint64_t offset = 0;  // the kernel's guess when append
    bool append = false;
    uint64_t handle = 0;
    uint32_t slot = ~0u;  // of the file in the guardian's table
  };
  void write(Waiting waiting, FileId file, Placement at, Bytes bytes, Then then);
  // Answers a WRITE that needs nothing first; false: nothing was done, use write(). Copies.
  bool write_now(Waiting waiting, FileId file, Placement at, std::span<const std::byte> bytes);
  void write_back(FileId file, uint32_t slot, uint64_t offset, Bytes bytes);
  void open(FileId file, coherence::Opening opening, Then then, uint32_t tid = 0);
  void close(FileId file, coherence::Opening opening, uint64_t handle = 0);
  void directory_closed(FileId dir, uint64_t handle);
  // `own`: of a thread in OwnView::ask().
  void attributes(Waiting waiting, FileId file, bool own, Then then);
  // Another answer has the kernel take this for the file's size.
  void size_told(FileId file, uint64_t size);
  // An fsync, or a write with O_SYNC: the request (Waiting::request) by which it came, and by which
  // the next daemon knows that it had begun before.
  struct Sync {
    FileId file;
    coherence::Opener who;
    uint64_t request = 0;
  };
  // Agent::sync_begins() of when the caller began to wait; ends with synced() or sync_ended().
  void sync_asked(const Sync& sync);
  void flush(Waiting waiting, const Sync& sync, Then then);
  // As Agent has it: before the SyncCall that follows a flush, and after it.
  void sync_begins(const Sync& sync);
  int synced(const Sync& sync, const coherence::Reply& reply);
  void sync_ended(const Sync& sync);
  // `tid`: the thread that waits. Not interruptible: the kernel's side has begun.
  void truncate(uint32_t tid, FileId file, uint64_t size, Then ready);
  // The home has replied, or nobody waits for that: `then` when the kernel may hear of it. `told`:
  // the guardian has told it that it failed.
  void truncation_replied(FileId file, uint64_t size, bool under_lock, bool told,
                          coherence::Reply&& reply, ThenReply then);
  // The child's FileId, or an errno.
  using ThenFile = std::move_only_function<void(Result<FileId>)>;
  void lookup(Waiting waiting, const coherence::Caller& caller, FileId dir, std::string name,
              ThenFile then);
  bool may_be_mapped(FileId file);
  std::optional<uint32_t> peek_mode(FileId file);
  bool has_no_xattrs(FileId file);
  // Lists a directory at the home and remembers its names while the Entries lease is held; with
  // `attributes`, the home also offers the leases that a walk of the files will want.
  void list(Waiting waiting, const coherence::Caller& caller, FileId dir, uint64_t cookie,
            uint32_t bytes_max, bool attributes, ThenReply then);
  // The kernel's thread that looked up `name` of `dir` (its node number) is about to be told so:
  // `file`, or that there is none. True: the kernel may keep it.
  bool give_name(uint64_t node, FileId dir, const std::string& name, std::optional<FileId> file,
                 const coherence::NameLedger::Asked& asked);
  // A remembered name led to a file that its home no longer knows: the next lookup asks the home.
  void forget_name(FileId dir, const std::string& name);
  // The thread whose request waits here, if it does.
  std::optional<uint32_t> waiting_thread(uint64_t unique);
  // Ends the wait of the request with EINTR where that is possible.
  void interrupt(uint64_t unique);
  // Ends with EIO what waits here and relies on locks by these handles: they are lost. An unlock
  // may succeed.
  void fail_waits(const std::set<uint64_t>& handles);
  // After the kernel forgot a node number of the file: drops what is known when it has no other.
  void forget(FileId file);

  // ---- operations ----
  // Runs at the home; `then` is called exactly once. Returns the call's id. With `waiting`,
  // interrupt() ends the wait with EINTR.
  uint64_t call(coherence::Caller caller, coherence::Operation operation, ThenReply then,
                Waiting waiting = {});
  // For those who must know the id before the reply can come. That of the daemon before, when it
  // had made a call of this kind for the same request of the kernel.
  uint64_t reserve_call(uint64_t request, const coherence::Operation& operation);
  void call_as(uint64_t id, coherence::Caller caller, coherence::Operation operation,
               ThenReply then, Waiting waiting = {});
  // The same for one that changes names in directories: what is remembered of them is not used
  // meanwhile.
  struct Change {
    FileId dir;
    std::string name;
    uint64_t node = 0;  // the directory's
  };
  // `tid`: the kernel's thread whose operation it is.
  void call_changing(std::vector<Change> changes, coherence::Caller caller,
                     coherence::Operation operation, ThenReply then, uint32_t tid,
                     uint64_t request);

  // ---- the network ----
  void receive(coherence::ToAgent&& message);
  // What is sent from here on belongs to this session.
  void begin_session(uint32_t session);
  // The session is another (coherence::Agent::reset). Calls that may be repeated are, the others
  // end with EIO.
  // `nothing_sent`: there was no session before; all calls are. `disk_has_lost`: S1.
  struct Begun {
    uint32_t session = 0;
    bool nothing_sent = false;
    bool disk_has_lost = false;
  };
  void reset(coherence::Agent::Dirty dirty, Begun begun);
  // After a reset that keeps what is dirty, again and again: whether the home has all of it, and
  // the kernel shows nothing of before but what the home knows of.
  bool brings_back();
  // Leases are good until then, by lease_clock(); a time that is past ends that at once.
  void renew(Instant until);
  // Goes on while the machine sleeps: other nodes do not.
  static Instant lease_clock() { return net::EventLoop::boot_now(); }
  // Whether the home understands the next two (wire::kFollowsWaits); else nothing is sent.
  void can_follow(bool on) { can_follow_ = on; }
  void follow(coherence::FollowWait&& message);
  // A wait for a lock: it ends with EDEADLK, unless it has ended.
  void refuse_wait(FileId file, uint64_t call);
  bool holds_range(uint64_t owner);  // not of this machine's own home
  // Ends what waits for the home with EIO when a soft mount's patience is over. What it has asked
  // about locks goes on: both sides must agree on who holds which. Locks that it may get yet are
  // given back.
  void fail_late_calls();
  // When the leases are over nobody waits until the home knows that locks went with a file that was
  // closed: a process that closes its files as it ends cannot be killed.
  void let_closers_go();

  void flush_all();
  bool idle_dirty();
  bool owes(FileId file);  // something of it is not at its home

  // ---- the next daemon of this node (docs/architecture.md, "Upgrades") ----
  // While it holds, what may block in the kernel is not begun. Not for long where must_let_go().
  void hold(bool on);
  // What the kernel shows of this home must go, or a home that has restarted waits for it.
  bool must_let_go();
  bool can_be_handed_over();
  KeptHome kept();
  // Before any request. Then the requests that the kernel delivers again, then took_over().
  void take_over(const KeptHome& kept);
  // `same_session`: the home knows this node still.
  void took_over(bool same_session);
  // The call that the daemon before had made for the request and not got a reply to.
  std::optional<coherence::Operation> inherited(uint64_t request);

  // Who waits here, for `status` (agent_blocked.cc).
  struct Waits {
    FileId file;
    std::string what;
    std::optional<std::pair<uint64_t, uint64_t>> bytes;  // inclusive
    uint32_t tid = 0;                                    // 0: unknown
    int64_t since_ns = 0;
  };
  std::vector<Waits> waits(size_t most);

  coherence::AgentCounts counts();
  coherence::AgentStatistics statistics();

 private:
  struct Pending {
    enum class Kind : uint8_t { Read, Fill, Write, Then };
    Kind kind = Kind::Then;
    FileId file;
    Waiting waiting;
    int64_t started_ns = 0;
    Then then;
    const char* what = "";            // for people
    uint64_t offset = 0, length = 0;  // of a read or write
    uint32_t slot = ~0u;              // of a write: Placement::slot
    bool refused = false;             // of a read: what it finds is not told
  };
  struct Shard {
    std::mutex mutex;
    coherence::Agent agent;
    std::unordered_map<coherence::Token, Pending> pending;
    coherence::NameCache names;
    ListingCache listings;
    std::unordered_map<uint64_t, Instant> recalls;  // when they began, for the latency
    struct Flushing {
      Instant since;
      bool bytes = false;
    };
    std::unordered_map<uint64_t, Flushing> under_way;
    net::Timer timer;
    std::optional<Instant> armed;
    uint64_t written_now = 0;
    size_t index = 0;
    // Changes under the lock, with the agent's reset: what it has sent before is of the session
    // before, and what is sent since is not sent once more.
    std::atomic<uint32_t> session{0};
    // Messages for the home of this very machine, in order; handed over by one thread at a time.
    std::mutex outbox_mutex;
    std::deque<std::pair<FileId, coherence::ToHome>> outbox;
    bool delivering = false;
    explicit Shard(const coherence::AgentOptions& options) : agent(options) {}
  };
  // Done when the shard's lock is free again.
  struct After {
    Then then;  // empty: the kernel waits for a WRITE
    Answer answer;
    Waiting waiting;
    int64_t started_ns = 0;
  };
  static constexpr size_t kShards = 4;

  Shard& shard_of(FileId file) { return *shards_[FileIdHash{}(file) % kShards]; }
  template <typename Event>
  void with(Shard& shard, Event event);
  void carry_out(Shard& shard, coherence::AgentActions& actions, std::vector<After>& after);
  void finish(After& after);
  void answer_write(const Waiting& to, int error, uint32_t length,
                    std::optional<int64_t> started_ns);
  void answer(Shard& shard, coherence::Token token, Answer answer, std::vector<After>& after);
  void note_sent(Shard& shard, const coherence::ToHome& message);
  void note_received(Shard& shard, const coherence::ToAgent& message, Instant now);
  void note_flushed(const coherence::FlushAck& ack, bool bytes, Instant now);
  void note_debts(const coherence::Agent& agent, FileId file);
  void start_blocking(HelperThreads::Job job);
  void purge(const coherence::StartPurge& a);
  void claim_pages(const coherence::ClaimPages& a);
  void tell_open(const coherence::TellOpen& a);
  void end_names(Shard& shard, const coherence::EndNames& a, std::vector<After>& after);
  void push_size(const coherence::PushSize& wanted);
  void look_at_size(const coherence::LookAtSize& wanted);
  struct Settling;
  void settle(const coherence::SettleSize& wanted);
  void settled(const coherence::SettleSize& wanted);
  void settle_ended(const std::shared_ptr<Settling>& settling);
  void arm(Shard& shard);
  void deliver_outbox(Shard& shard);
  uint64_t name_changes(FileId dir);
  std::optional<coherence::DirectoryPage> listed_before(FileId dir, uint64_t cookie);
  bool follow_rename(const coherence::RenameCall& rename, const std::vector<Change>& changes,
                     uint32_t tid);
  void lookup_at_home(Waiting waiting, const coherence::Caller& caller, FileId dir,
                      std::string name, ThenFile then);
  coherence::Token add_pending(Shard& shard, Pending pending);

  const std::string home_name_;
  const bool local_;
  Send send_;
  Environment environment_;
  std::array<std::unique_ptr<Shard>, kShards> shards_;
  std::atomic<uint64_t> next_token_{1};
  std::atomic<uint64_t> next_call_{1};
  std::atomic<bool> home_restarted_{false};  // at some time
  std::atomic<bool> can_follow_{false};
  struct PendingCall {
    coherence::Call call;  // kept for a home that restarts
    ThenReply then;
    Waiting waiting;  // the kernel's request that an interrupt may end, or its thread alone
    int64_t started_ns = 0;
    bool goes_on = false;  // its caller has an answer; what the home makes of it must be heard
    // Once: returns whom to answer now. `next` hears the reply.
    ThenReply go_on(ThenReply next = [](coherence::Reply&&) {}) {
      goes_on = true;
      waiting = {};
      return std::exchange(then, std::move(next));
    }
  };
  uint64_t heard_below(const coherence::Call& call) const;  // under calls_mutex_
  void reclaim_locks(coherence::Agent::Dirty dirty);
  void lose_locks(const LocksAtHome::AllHeld& lost, const std::string& why);
  void tell_open_files();
  // The operation, if it gives a file another size.
  static const coherence::SetAttributesCall* truncation(const coherence::Operation& operation);
  // `event(agent, now, actions)` of a truncation: what is dirty may have become less.
  template <class Event>
  void of_truncation(FileId file, Event event);
  void end_truncation(FileId file);
  void zero_page(FileId file, uint64_t from, uint64_t end);
  void clear_tail(FileId file, uint64_t before, uint64_t size, bool under_lock,
                  coherence::Reply&& reply, ThenReply then);
  RepeatedErrors not_stored_;
  LocksAtHome locks_;  // what the home has given
  std::mutex calls_mutex_;
  std::unordered_map<uint64_t, PendingCall> calls_;
  coherence::UnheardCalls unheard_;                   // of these, and of those that are reserved
  std::unordered_map<uint64_t, uint64_t> inherited_;  // request to call
  struct Syncing {
    KeptHome::Sync sync;
    bool inherited = false;  // and its request has not come again
  };
  std::mutex syncs_mutex_;                        // with a shard's, or alone
  std::unordered_map<uint64_t, Syncing> syncs_;   // by request
  std::vector<coherence::ToAgent> asked_before_;  // by the home; for took_over()
  std::mutex held_mutex_;
  bool holding_ = false;
  std::vector<HelperThreads::Job> held_;
};

template <typename Event>
void AgentService::with(Shard& shard, Event event) {
  std::vector<After> after;
  {
    std::lock_guard lock(shard.mutex);
    coherence::AgentActions actions;
    event(shard.agent, lease_clock(), actions);
    carry_out(shard, actions, after);
    arm(shard);
  }
  if (local_) deliver_outbox(shard);
  for (After& a : after) finish(a);
}

}  // namespace vremote::node
