// Serves the mount: every request of the kernel becomes an event of an agent or an operation at a
// home.
//
// Threads: one per channel, each blocked in read(2) on a descriptor of its own (the kernel wakes
// exactly one per request), carrying a request as far as it goes without waiting. Answers that need
// another node, a disk or a purge are given by the thread that brings those.
//
// Its parts: fuse_server.cc (loop, INIT, small requests), fuse_files.cc (data and handles),
// fuse_names.cc, fuse_locks.cc, fuse_interrupts.cc (signals), fuse_handover.cc (from one daemon to
// the next), fuse_salvage.cc (after one that was killed).
#pragma once

#include <signal.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "base/metrics.h"
#include "fuse/buffer.h"
#include "fuse/channel.h"
#include "fuse/init.h"
#include "fuse/mount.h"
#include "fuse/request.h"
#include "node/agent/agent_service.h"
#include "node/agent/inode_table.h"
#include "node/agent/lock_circles.h"
#include "node/base/kept.h"
#include "node/guardian/guardian_link.h"
#include "node/mount/exports.h"
#include "node/mount/held_ranges.h"
#include "node/mount/moved_directories.h"

namespace vremote::node {

struct FuseServerOptions {
  unsigned threads = 1;
  uint32_t readahead_kib = 1024;
  bool allow_mmap = true;
  net::EventLoop* loop = nullptr;    // for timers; outlives the server
  GuardianLink* guardian = nullptr;  // outlives the server
  HelperThreads* helpers = nullptr;  // for what may block; stopped before the server ends
  LockCircles* circles = nullptr;    // outlives the server
};

class FuseServer {
 public:
  FuseServer(fuse::Mount& mount, Exports& exports, InodeTable& inodes, KernelNames& kernel_names,
             Metrics& metrics, const FuseServerOptions& options);
  ~FuseServer();

  // Answers INIT and starts the threads. `ended` is called once, on a thread of the server, when
  // the mount is gone (by whomever).
  Status start(std::function<void()> ended);
  void join();
  // False: some still serve the mount.
  bool join(int64_t patience_ms);
  // Takes back what the guardian answered and held while this daemon did not move. May wait for it.
  // `answered_only`: what it held is about to be delivered again.
  void take_back(bool answered_only = false);
  // From now on write(2) fails with ENOTCONN; what the kernel writes back is taken as before.
  void refuse_writes() { refuses_writes_ = true; }

  // ---- the next daemon of this node (fuse_handover.cc) ----
  // No request is read any more, and what was read is on its way, until resume(). False: not in
  // time, and all goes on.
  bool pause(int64_t patience_ms);
  void resume();
  // No request has been carried out in part.
  bool can_be_handed_over() const { return half_done_ == 0; }
  KeptMount kept();
  // Instead of start(): of the daemon before. Takes the descriptors.
  void take_over(const KeptMount& kept);
  // What was read by it and not answered is asked for again, and begun.
  Status deliver_again();
  // Then, when all else is ready:
  Status serve_on(std::function<void()> ended);

  // ---- after a crash (salvage.h; fuse_salvage.cc) ----
  // After take_over(): these requests the dead daemon cannot have seen.
  void after_crash(std::unordered_set<uint64_t> unseen);
  // The origin has ended the session in which they were given. Every call through a handle by which
  // one was taken is answered EIO until it is closed; returns these handles. Any thread.
  std::set<uint64_t> locks_are_lost(AgentService* agent, const LocksAtHome::AllHeld& lost);
  // Of the daemon before, and held still.
  void lock_is_held(uint64_t node, const coherence::LockCall& lock);
  Status arm_guardian();

  // For notifications; valid from start() on.
  const fuse::Channel* channel() const { return channels_.front().get(); }
  fuse::OwnView& mount_view() { return mount_view_; }
  const fuse::Capabilities& capabilities() const { return capabilities_; }
  const std::vector<std::string>& lacks() const { return lacks_; }

 private:
  // A request on its way: enough to answer it.
  struct Context {
    const fuse::Channel* channel = nullptr;
    uint64_t unique = 0;  // for replies
    uint64_t node = 0;
    coherence::Caller caller;
    uint32_t pid = 0;
    uint64_t request = 0;  // without the resend bit
    uint64_t handle = 0;   // Waiting::handle
    Instant asked_at{};    // not after it was read
    coherence::NameLedger::Asked asked() const { return {pid, asked_at}; }
    Waiting waiting() const { return {channel, unique, pid, request, handle}; }
  };
  // While it lives, a request is done that its caller has not been told of, and that must not be
  // done again.
  class HalfDone {
   public:
    explicit HalfDone(std::atomic<int>& count) : count_(&count) { ++*count_; }
    HalfDone(HalfDone&& other) noexcept : count_(std::exchange(other.count_, nullptr)) {}
    HalfDone& operator=(HalfDone&&) = delete;
    ~HalfDone() {
      if (count_ != nullptr) --*count_;
    }

   private:
    std::atomic<int>* count_;
  };
  struct Directory;  // an open directory stream

  // An operation at the home on behalf of a kernel request. When its process is killed while it
  // waits, it is answered EINTR (the operation itself may still be carried out). With `changes`,
  // one that changes names. `abandoned`: gets the reply that came too late for that.
  void call(const Context& c, AgentService* agent, coherence::Operation operation,
            AgentService::ThenReply then, std::vector<AgentService::Change> changes = {},
            AgentService::ThenReply abandoned = {});
  // fuse_interrupts.cc
  void interrupt(const Context& c, uint64_t request);
  // Who waits for the answer of a request that an interrupt may end; 0: of a foreign pid namespace.
  std::optional<uint32_t> waiting_thread(uint64_t unique);
  bool interrupt_lock(uint64_t unique);  // false: it is none
  void give_up(uint64_t unique);
  void ask_again_later(uint64_t interrupt);

  static constexpr int kPauseSignal = SIGURG;

  Status answer_init();
  Status start_threads();
  void pause_if_wanted();
  void serve(const fuse::Channel& channel);
  // `asked_at`: not after the request was read.
  void receive(const fuse::Channel& channel, std::span<const std::byte> bytes, Instant asked_at,
               fuse::ReceiveBuffer& buffer);
  void dispatch(const fuse::Channel& channel, const fuse::Request& request, Instant asked_at,
                fuse::ReceiveBuffer& buffer);

  // Answers ENOENT/ESTALE itself when the node is unknown.
  std::optional<Inode> inode(const Context& context) const { return inode(context, context.node); }
  std::optional<Inode> inode(const Context& context, uint64_t node) const;
  uint64_t shown_inode(const Inode& inode, uint64_t origin_inode) const;

  // fuse_server.cc
  void handle(const Context& c, const fuse::StatFs&);
  void handle(const Context& c, const fuse::GetXattr& r);
  void handle(const Context& c, const fuse::SetXattr& r);
  void handle(const Context& c, const fuse::ListXattr& r);
  void handle(const Context& c, const fuse::RemoveXattr& r);
  void reply_text(const Context& c, coherence::Reply&& reply, uint32_t size);
  void reply_done(const Context& c, const coherence::Reply& reply);
  void forget(uint64_t node, uint64_t lookups);
  void forget_later(const std::vector<fuse::Forget>& forgets);
  void forget_some();
  bool forgets();  // some are not done yet

  // fuse_files.cc
  void handle(const Context& c, const fuse::GetAttr&);
  void handle(const Context& c, const fuse::Statx&);
  void tell_attributes(const Context& c, bool extended);
  void handle(const Context& c, const fuse::SetAttr& r);
  void handle(const Context& c, const fuse::Open& r);
  void handle(const Context& c, const fuse::Read& r);
  void handle(const Context& c, const fuse::Write& r, fuse::ReceiveBuffer& buffer);
  void handle(const Context& c, const fuse::Flush& r);
  void handle(const Context& c, const fuse::Release& r);
  void handle(const Context& c, const fuse::Fsync& r);
  void handle(const Context& c, const fuse::Fallocate& r);
  void handle(const Context& c, const fuse::LSeek& r);
  void handle(const Context& c, const fuse::CopyFileRange& r);
  void note_handle(uint64_t node, uint64_t fh);
  // `told`: the home knows that it is open here.
  void open_file(const Context& c, const Inode& inode, fuse::Open how, bool told,
                 std::move_only_function<void(int error, uint64_t fh, uint32_t fopen_flags)> then);
  void truncate(const Context& c, const Inode& inode, coherence::SetAttributesCall call,
                bool under_lock, AgentService::ThenReply then);
  void write_synced(const Context& c, const Inode& inode, const fuse::Write& r, Bytes bytes);
  // `wait`: of sync_asked().
  void sync(const Context& c, const Inode& inode, bool data_only, const AgentService::Sync& wait,
            std::move_only_function<void(int error)> then);
  AgentService::Sync sync_by(const Context& c, const Inode& inode, uint64_t fh) const;

  // fuse_locks.cc
  void handle(const Context& c, const fuse::GetLk& r);
  void handle(const Context& c, const fuse::SetLk& r);
  void handle(const Context& c, const fuse::SetLkw& r);
  void set_lock(const Context& c, const fuse::FileLock& lock, bool wait);
  bool flush_locks(const Context& c, const fuse::Flush& r);
  void release_handle_locks(const Inode& inode, uint64_t fh);
  // fuse_salvage.cc: for the daemon after a crash of this one, with locks_mutex_.
  void note_lock(uint64_t node, uint64_t fh, const coherence::LockCall& lock);
  void note_no_lock(const HeldRanges::Owner& owner);
  void forget_lost_locks(uint64_t node, uint64_t owner);
  GuardianTable* guardian_table() const;
  // Answered with EIO: what may have been done already, or may rely on a lock that was lost.
  bool refuses(const fuse::Channel& channel, const fuse::Request& request);
  // By which the request relies on locks; 0: none.
  using Handles = std::array<uint64_t, 2>;
  static Handles handles_of(const fuse::Request& request);
  bool relies_on_lost_lock(const fuse::Request& request);
  // It came before its handle's locks were lost, and waits since after the waits were ended.
  void fail_late(const Context& c);

  // fuse_names.cc
  void handle(const Context& c, const fuse::Lookup& r);
  void handle(const Context& c, const fuse::ReadLink&);
  void handle(const Context& c, const fuse::Symlink& r);
  void handle(const Context& c, const fuse::MkNod& r);
  void handle(const Context& c, const fuse::MkDir& r);
  void handle(const Context& c, const fuse::Create& r);
  void handle(const Context& c, const fuse::TmpFile& r);
  void handle(const Context& c, const fuse::Unlink& r);
  void handle(const Context& c, const fuse::RmDir& r);
  void handle(const Context& c, const fuse::Rename& r);
  void handle(const Context& c, const fuse::Link& r);
  void handle(const Context& c, const fuse::OpenDir&);
  void read_directory(const Context& c, const fuse::ReadDir& r, bool plus);
  void handle(const Context& c, const fuse::ReleaseDir& r);
  void handle(const Context& c, const fuse::FsyncDir& r);
  // `stale`: instead of an error when the home does not know the file.
  // `named`: the name that was looked up, which the kernel may keep, or made.
  struct Named {
    Inode dir;
    std::string name;
    bool looked_up = true;
  };
  bool keep_name(const Context& c, const Named& named, FileId file);
  void reply_entry(const Context& c, AgentService* agent, FileId file,
                   std::optional<Named> named = {}, std::move_only_function<void()> stale = {},
                   std::optional<HalfDone> half_done = {});
  void look_up(const Context& c, const Inode& dir, std::string name, bool again);
  void create(const Context& c, const Inode& dir, coherence::CreateCall operation, fuse::Open how);
  void created(const Context& c, const Inode& inode, fuse::Open how, bool told = false);
  static coherence::Caller with_groups(const Context& c);
  static bool may_open(const Context& c, const Attributes& attributes, uint32_t flags);
  void make(const Context& c, std::string_view name, coherence::Operation operation);
  void change(const Context& c, const Inode& dir, std::vector<AgentService::Change> changes,
              coherence::Operation operation);
  void add_directory(uint64_t handle);
  void read_root(const Context& c, const fuse::ReadDir& r, bool plus);
  void reply_directory(const Context& c, const fuse::ReadDir& r, bool plus, Directory& directory);
  Attributes root_attributes() const;

  fuse::Mount& mount_;
  fuse::OwnView mount_view_;
  Exports& exports_;
  InodeTable& inodes_;
  KernelNames& kernel_names_;
  Metrics& metrics_;
  const FuseServerOptions options_;
  fuse::Capabilities capabilities_;
  std::vector<std::string> lacks_;
  std::vector<std::unique_ptr<fuse::Channel>> channels_;
  std::optional<fuse::Channel> guardians_;  // by which the guardian reads; kept to answer by
  std::vector<std::thread> threads_;
  fuse::BufferPool buffers_{8};
  std::function<void()> ended_;
  std::atomic<bool> ended_told_{false}, refuses_writes_{false};
  std::atomic<size_t> ended_threads_{0};
  std::atomic<bool> wants_pause_{false};
  std::mutex pause_mutex_;
  std::condition_variable paused_changed_;
  size_t paused_ = 0;  // threads
  std::atomic<int> half_done_{0};
  struct WaitingCall {
    const fuse::Channel* channel = nullptr;
    uint32_t tid = 0;
  };
  std::mutex calls_mutex_;
  std::map<uint64_t, WaitingCall> calls_;  // requests that wait for an operation, by unique
  static constexpr size_t kForgetsAtOnce = 128;
  std::mutex forgets_mutex_;
  std::deque<fuse::Forget> forgets_;
  bool forgetting_ = false;  // by a helper
  std::mutex interrupts_mutex_;
  std::vector<uint64_t> interrupts_;  // to be asked for again when the timer ends
  net::Timer interrupts_timer_;
  struct LockWait {
    AgentService* agent = nullptr;
    FileId file;
    uint64_t call = 0;
    WaitingCall from;
    bool cancelled = false;
  };
  struct HandleLocks {
    uint64_t node = 0;
    std::set<std::pair<coherence::LockKind, uint64_t>>
        owners;  // that took a lock through the handle
  };
  std::mutex locks_mutex_;
  std::map<uint64_t, LockWait> lock_waits_;       // SETLK and SETLKW requests, by unique
  std::map<uint64_t, HandleLocks> handle_locks_;  // by file handle
  // Who has asked for a lock of a range: node number and owner. FLUSH of nobody else tells the
  // origin, which may be away while a process ends, and that cannot be killed.
  std::set<std::pair<uint64_t, uint64_t>> range_owners_;
  std::set<uint64_t> locked_nodes_;  // files for which the daemon before knew such owners
  HeldRanges held_ranges_;
  // Of handles through which locks were held that died with a daemon: until they are closed.
  struct LostLock {
    uint64_t node = 0;
    std::set<std::pair<coherence::LockKind, uint64_t>> owners;
  };
  std::map<uint64_t, LostLock> lost_locks_;
  std::atomic<size_t> lost_handles_{0};
  std::atomic<uint64_t> losses_{0};  // how often locks were lost
  bool after_crash_ = false;
  std::unordered_set<uint64_t> unseen_;  // by that daemon
  uint32_t generation_ = 0;              // kGenerationShift
  std::atomic<uint64_t> next_handle_{1};
  std::mutex directories_mutex_;
  std::map<uint64_t, std::shared_ptr<Directory>> directories_;
  uint64_t next_directory_ = 1;
  std::optional<MovedDirectories> moved_;
};

}  // namespace vremote::node
