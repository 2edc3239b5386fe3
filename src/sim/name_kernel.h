// The model of a kernel's dentry cache on one node: what fs/namei.c and fs/fuse/dir.c do with
// names.
//
// - A valid dentry is used without asking and without a lock. One whose time is over is asked for
//   anew (LOOKUP), also without a lock, and the answer sets its time when the thread comes back to
//   it: an expiry in between is undone, and a rename in between has taken the dentry elsewhere.
// - What has no dentry is looked up under the directory's inode lock, shared; create, unlink and
//   rename hold it exclusively, from before their lookups until their answer.
// - An expiry waits for that lock. The epoch takes none; a dentry counts as of the epoch at which
// its
//   first lookup began, and one of an older epoch is dropped when it is met.
// - A rename moves the dentry, with its time and epoch.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "sim/name_history.h"
#include "sim/scheduler.h"

namespace vremote::sim {

// What a daemon answers when it does.
template <typename T>
class Arrival {
 public:
  explicit Arrival(Scheduler& scheduler) : scheduler_(scheduler) {}
  void set(T value) {
    value_ = std::move(value);
    if (waiter_) scheduler_.resume_after(scheduler_.draw(Delay::WakeUp), waiter_);
  }
  struct Wait {
    Arrival& arrival;
    bool await_ready() const noexcept { return arrival.value_.has_value(); }
    void await_suspend(std::coroutine_handle<> handle) { arrival.waiter_ = handle; }
    T await_resume() { return std::move(*arrival.value_); }
  };
  Wait wait() { return Wait{*this}; }

 private:
  Scheduler& scheduler_;
  std::optional<T> value_;
  std::coroutine_handle<> waiter_;
};
template <typename T>
using ArrivalOf = std::shared_ptr<Arrival<T>>;

// An rw_semaphore: who comes after a waiting writer waits behind it.
class InodeLock {
 public:
  explicit InodeLock(Scheduler& scheduler) : scheduler_(scheduler) {}
  struct Wait {
    InodeLock& lock;
    bool exclusive;
    bool await_ready() { return lock.try_take(exclusive); }
    void await_suspend(std::coroutine_handle<> handle) {
      lock.line_.emplace_back(exclusive, handle);
    }
    void await_resume() const noexcept {}
  };
  Wait take(bool exclusive) { return {*this, exclusive}; }
  void release();
  bool busy() const { return readers_ > 0 || writer_; }

 private:
  bool free_for(bool exclusive) const { return !writer_ && (!exclusive || readers_ == 0); }
  bool try_take(bool exclusive);

  Scheduler& scheduler_;
  uint32_t readers_ = 0;
  bool writer_ = false;
  std::deque<std::pair<bool, std::coroutine_handle<>>> line_;
};

struct LookedUp {
  NameValue file;
  bool kept = false;  // the kernel may use it until it is ended
};
struct Changed {
  int error = 0;
  NameValue file;      // that a create made or found
  uint64_t calls = 0;  // the last call it took at the home
};
struct Listed {
  std::map<std::string, FileId> names;
};

// The daemon, as the kernel sees it. `tid` is the thread that asks.
class NameDaemon {
 public:
  virtual ~NameDaemon() = default;
  virtual void on_lookup(uint32_t tid, NameKey key, ArrivalOf<LookedUp> to) = 0;
  virtual void on_create(uint32_t tid, NameKey key, bool exclusive, ArrivalOf<Changed> to) = 0;
  virtual void on_remove(uint32_t tid, NameKey key, ArrivalOf<Changed> to) = 0;
  virtual void on_rename(uint32_t tid, NameKey from, NameKey to_name, bool exchange,
                         ArrivalOf<Changed> to) = 0;
  virtual void on_list(uint32_t tid, FileId dir, ArrivalOf<Listed> to) = 0;
};

struct NameKernelCounts {
  uint64_t hits = 0, lookups = 0, revalidations = 0, expiries = 0, expiries_blocked = 0, epochs = 0;
  NameKernelCounts& operator+=(const NameKernelCounts& o);
};

class NameKernel {
 public:
  NameKernel(Scheduler& scheduler, NameHistory& history, NameDaemon& daemon, int node,
             bool expires_absent);

  // System calls of thread `tid`; each tells the history what it saw.
  Co<> stat(uint32_t tid, NameKey key);
  Co<> create(uint32_t tid, NameKey key, bool exclusive);
  Co<> remove(uint32_t tid, NameKey key);
  Co<> rename(uint32_t tid, NameKey from, NameKey to, bool exchange);
  Co<> list(uint32_t tid, FileId dir, const std::vector<std::string>& universe);

  // Notifications. Expiring returns whether a dentry was found.
  Co<bool> expire(NameKey key);
  void advance_epoch();

  const NameKernelCounts& counts() const { return counts_; }
  std::string dump() const;

 private:
  struct Dentry {
    NameValue file;
    bool valid = false;
    uint64_t epoch = 0;
  };
  using DentryRef = std::shared_ptr<Dentry>;

  DentryRef hashed(const NameKey& key) const;
  InodeLock& lock(FileId dir);
  Co<bool> revalidate(uint32_t tid, NameKey key, DentryRef dentry, bool forced);
  Co<DentryRef> find(uint32_t tid, NameKey key, bool forced);  // with the directory's lock
  uint32_t number() const { return static_cast<uint32_t>(node_); }
  std::string who(uint32_t tid, const char* call) const;

  Scheduler& scheduler_;
  NameHistory& history_;
  NameDaemon& daemon_;
  int node_;
  bool expires_absent_;  // an expiry finds a dentry that says there is no file
  uint64_t epoch_ = 1;
  std::map<NameKey, DentryRef> dentries_;
  std::set<NameKey> in_lookup_;
  Condition lookup_over_;
  std::map<FileId, InodeLock> locks_;
  NameKernelCounts counts_;
};

}  // namespace vremote::sim
