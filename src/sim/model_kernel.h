// A node's kernel as a FUSE daemon meets it: the page cache and the system calls on one mount
// (docs/simulation.md lists the facts).
//
// What makes it dangerous is all here: fills keep their folios locked until they are answered; a
// purge walks in order and blocks on each locked folio; a store to a cached page through a mapping
// makes no upcall; write-backs sit in queues, and are held back while a truncation is unanswered;
// clean pages vanish at any moment; readers look the page up again after they waited; the kernel's
// idea of the size is old.
//
// Every system call is a coroutine; each co_await is a place where everything else may happen.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/attributes.h"
#include "base/bytes.h"
#include "base/ids.h"
#include "base/page_range.h"
#include "sim/history.h"
#include "sim/scheduler.h"

namespace vremote::sim {

using Token = uint64_t;

// The daemon as the kernel sees it. Each call is one request read from /dev/fuse; its answer comes
// through ModelKernel::answer().
class Daemon {
 public:
  virtual ~Daemon() = default;
  // False: it is stopped, and nobody answers in its place.
  virtual bool takes_write_backs() const { return true; }
  // Whether what makes a file longer is shown to this kernel before it returns. (Not while the
  // leases are not good: docs/promise.md, Limits.)
  virtual bool is_shown_growth() const { return true; }
  virtual void on_read(Token token, FileId file, uint64_t offset, uint32_t size, bool fill) = 0;
  // `handle`: who writes; appends only.
  virtual void on_write(Token token, FileId file, uint64_t offset, Bytes bytes, bool append,
                        uint64_t handle) = 0;
  virtual void on_write_back(FileId file, uint64_t offset,
                             Bytes bytes) = 0;  // answered when it returns
  virtual void on_open(Token token, FileId file, bool reads, bool may_map) = 0;
  virtual void on_release(FileId file, bool reads, bool may_map) = 0;
  virtual void on_get_attributes(Token token, FileId file, bool own) = 0;
  virtual void on_fsync(Token token, FileId file) = 0;
  virtual void on_set_size(Token token, FileId file, uint64_t size) = 0;
  virtual void on_interrupt(Token token, FileId file) = 0;
  virtual void on_forget(FileId file) = 0;
};

struct Answer {
  int32_t error = 0;
  std::vector<std::byte> bytes;
  uint64_t offset = 0;
  uint64_t length = 0;
  Attributes attributes;
  bool early = false;      // a write: its caller was killed and does not wait for all of it
  bool may_cache = false;  // attributes: until they are dropped
  bool size_was_pushed =
      false;  // these attributes were read when the push of their size was asked for
};

struct KernelOptions {
  uint64_t readahead_max = 1;  // pages of one window
  bool readahead_in_pieces = false;
  uint64_t background_max = UINT64_MAX;  // requests that fills, write-backs and RELEASE share
  uint64_t append_piece = UINT64_MAX;    // bytes of one WRITE of an append
  bool forgets = true;
  // The kernel's races around i_size, which no daemon can see (docs/simulation.md):
  // a size (of attributes, of a short fill) thrown away because a purge, a write or another short
  // fill came between; truncate_pagecache() for an old size that cuts newer bytes; the guessed end
  // of an append. Off: i_size follows the daemon's answers at the instant they are given.
  bool size_races = false;
  bool tails = false;   // stores behind the end of a file, inside its last page, are done
  bool errors = false;  // the daemon may answer FSYNC with one
  bool soft = false;    // ... everything with EIO: a soft mount's patience is over
};

struct KernelCounts {
  uint64_t hits = 0, fills = 0, refaults = 0, write_backs = 0, purges = 0, purge_blocks = 0,
           reclaims = 0, forgets = 0, stores = 0, held_back = 0, stores_behind = 0,
           attribute_hits = 0, bus_errors = 0;

  KernelCounts& operator+=(const KernelCounts& c) {
    hits += c.hits;
    fills += c.fills;
    refaults += c.refaults;
    write_backs += c.write_backs;
    purges += c.purges;
    purge_blocks += c.purge_blocks;
    reclaims += c.reclaims;
    stores_behind += c.stores_behind;
    forgets += c.forgets;
    stores += c.stores;
    held_back += c.held_back;
    attribute_hits += c.attribute_hits;
    bus_errors += c.bus_errors;
    return *this;
  }
};

class ModelKernel {
 public:
  // How many descriptors and mappings hold a handle; at 0 the RELEASE is sent.
  struct Handle {
    enum class Kind : uint8_t { ReadOnly, WriteOnly, ReadWrite } kind;
    uint32_t users = 1;
  };

  ModelKernel(Scheduler& scheduler, History& history, Daemon& daemon, int node,
              const KernelOptions& options);

  // ---- system calls; each returns 0 or an errno ----
  Co<Handle*> open(uint32_t file, Handle::Kind kind);  // null: EIO
  Co<> close(uint32_t file, Handle* handle);           // a descriptor; mappings keep the handle
  struct Read {
    std::vector<std::byte> bytes;
    int32_t error = 0;
  };
  // `asks`: for the size, where it would end behind it; sendfile and its like do not.
  Co<Read> read_cached(uint32_t file, uint64_t offset, uint64_t length, bool asks);
  // `interrupted`: a signal arrives after a while.
  Co<Read> read_direct(uint32_t file, uint64_t offset, uint64_t length, bool interrupted);
  struct Written {
    uint64_t offset = 0;
    int32_t error = 0;
    bool early = false;  // done, but its caller was killed: it never returns
  };
  Co<Written> write_direct(uint32_t file, uint64_t offset, Bytes bytes, bool append,
                           bool interrupted);
  Co<std::optional<Attributes>> stat(uint32_t file);  // nothing: EIO
  // ETIME stands for the EIO of a soft mount, which has told of no loss.
  Co<int32_t> fsync(uint32_t file);
  Co<int32_t> truncate(uint32_t file, uint64_t size);
  Co<> map(uint32_t file, Handle* handle);
  Co<> unmap(uint32_t file, Handle* handle);
  // A touch of one cell through a mapping; what it saw or stored goes into the history here, at the
  // instant it happens. False: SIGBUS.
  Co<bool> load(uint32_t file, uint64_t page, uint64_t cell);
  Co<bool> store(uint32_t file, uint64_t page, uint64_t cell);
  void read_ahead(uint32_t file, uint64_t page);  // WILLNEED: fills nobody waits for

  // ---- the daemon's side of /dev/fuse ----
  void answer(Token token, Answer answer);
  // FUSE_NOTIFY_INVAL_INODE with a range, from a thread of its own: ends when the walk ends.
  Co<> purge(FileId file, PageRange range);
  // FUSE_NOTIFY_STORE of a last byte that cannot be copied: the size is raised, then the folio of
  // that byte is waited for.
  Co<> push_size(FileId file, uint64_t size);
  void drop_attributes(FileId file);  // FUSE_NOTIFY_INVAL_INODE with a negative offset
  // FUSE_NOTIFY_STORE of zeroes, within a page.
  Co<> store_zeroes(FileId file, uint64_t offset, uint64_t length);
  void push_begins(FileId file, uint64_t size);  // without the races the size follows at once
  // statx() of the daemon's own: with AT_STATX_FORCE_SYNC, as if a program asked; and the kernel's
  // idea of the size (AT_STATX_DONT_SYNC).
  Co<> own_stat(FileId file);
  bool size_at_most(FileId file, uint64_t size);
  bool size_at_least(FileId file, uint64_t size);
  bool knows(FileId file) { return inode(static_cast<uint32_t>(file.inode - 1)).known; }
  Co<> inode_lock_passes(FileId file);

  // ---- faults ----
  void daemon_listens() { daemon_back_.wake_all(); }
  // A read or load that needs no daemon: whatever page of the file happens to be cached.
  void hit_something(uint32_t file);
  // What a guardian purges: all but what is locked and empty, and what is known of any file.
  std::vector<std::pair<FileId, uint64_t>> cached_pages() const;
  void drop_all_attributes();
  // Of a soft mount: whether something asked before `token` has no answer yet.
  Token next_token() const { return next_token_; }
  bool waits_since_before(Token token) const {
    return (!upcalls_.empty() && upcalls_.begin()->first < token) ||
           (!fills_.empty() && fills_.begin()->first < token);
  }
  // By the guardian: truncations that wait for an answer fail. Which they are.
  std::vector<Token> end_truncations();
  // Whatever still runs here is not heard of.
  void power_lost() { power_ = false; }

  // ---- background of the machine ----
  void reclaim_something();
  void forget_something();

  // ---- for checkers ----
  // A page whose newest bytes only this kernel has.
  std::vector<uint64_t> dirty_pages(uint32_t file) const;
  std::string dump() const;
  const KernelCounts& counts() const { return counts_; }

 private:
  // Locked: a fill is pending, no bytes. WriteBack: clean and readable, its bytes on the way.
  // Laundry: the same, and locked.
  enum class State : uint8_t { Locked, Clean, Dirty, WriteBack, Laundry };
  struct Folio {
    uint64_t id = 0;
    State state = State::Locked;
    std::vector<std::byte> bytes;
  };
  struct Waiter {
    uint64_t page;
    std::coroutine_handle<> handle;
  };
  struct Inode {
    Inode(Scheduler& scheduler, uint32_t file)
        : number(file),
          looked_up(scheduler),
          lock(scheduler),
          writes_idle(scheduler),
          released(scheduler) {}
    uint32_t number;
    FileId id;
    bool known = false;    // looked up, and not forgotten since
    bool looking = false;  // the LOOKUP is under way
    Condition looked_up;
    uint64_t size = 0;     // i_size: the kernel's idea of it
    uint64_t version = 0;  // fi->attr_version
    bool fresh = false;    // the attributes (here: the size) may be told without asking
    bool size_unstable = false;
    std::map<uint64_t, Folio> folios;
    std::set<uint64_t> failed;  // pages whose last fill was answered with an error
    std::vector<Waiter> waiters;
    bool locked = false;  // inode lock
    Condition lock;
    uint64_t writes_in_flight = 0;
    bool no_write = false;  // write-backs are held back
    Condition writes_idle, released;
    uint32_t users = 0;  // handles and calls: not forgotten while any
    std::map<Handle*, std::unique_ptr<Handle>> handles;
  };
  struct Fill {
    Inode* inode;
    uint64_t first, count, version;
    std::vector<uint64_t> ids;
  };
  // What the answer tells of the file's size.
  enum class Tells : uint8_t { Nothing, Size, WrittenEnd, NewSize };
  struct Upcall {
    Inode* inode = nullptr;
    Tells tells = Tells::Nothing;
    uint64_t new_size = 0, written_end = 0;
    Answer answer;
    std::coroutine_handle<> waiter;
    bool done = false;
  };
  struct FolioWait {
    Inode& inode;
    uint64_t page;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) { inode.waiters.push_back({page, handle}); }
    void await_resume() const noexcept {}
  };
  struct AnswerWait {
    Upcall& upcall;
    bool await_ready() const noexcept { return upcall.done; }
    void await_suspend(std::coroutine_handle<> handle) { upcall.waiter = handle; }
    void await_resume() const noexcept {}
  };

  Inode& inode(uint32_t file);
  Folio* find(Inode& in, uint64_t page);
  void wake(Inode& in, uint64_t page);
  FolioWait folio_changes(Inode& in, uint64_t page) { return FolioWait{in, page}; }
  Token upcall(Inode& in, Upcall& call, Tells tells = Tells::Nothing);
  Co<> lock(Inode& in);
  void unlock(Inode& in);

  void start_fill(Inode& in, uint64_t page, uint64_t window);
  Co<> send_fill(Inode& in, uint64_t first, uint64_t count, std::vector<uint64_t> ids);
  void fill_answered(const Fill& fill, const Answer& answer);
  Co<> background_slot();
  void free_background_slot();

  void start_write_back(Inode& in, uint64_t page);
  Co<> carry_write_back(Inode& in,
                        uint64_t page);  // Dirty folio already marked; returns when answered
  Co<> write_back_and_wait(Inode& in, PageRange range);
  Co<> invalidate(Inode& in, PageRange range);
  Co<> truncate_page_cache(Inode& in, uint64_t size);
  enum class Fault : uint8_t { There, BehindEnd, Failed };
  Co<Fault> fault(Inode& in, uint64_t page);
  void set_size(Inode& in, uint64_t size);
  // Every call comes through it: counts a user, unless it fails.
  Co<int32_t> look_up(Inode& in);
  Co<int32_t> refresh_attributes(Inode& in, Attributes& out, bool own = false);
  void may_fail(const char* what, int32_t error);
  Co<> drop_handle(Inode& in, Handle* handle);
  Co<> release(Inode& in, bool reads, bool may_map);
  void bus_error(const Inode& in, uint64_t begin, uint64_t page, const char* what);

  Scheduler& scheduler_;
  History& history_;
  Daemon& daemon_;
  int node_;
  KernelOptions options_;
  std::map<uint32_t, std::unique_ptr<Inode>> inodes_;
  std::map<Token, Fill> fills_;
  std::map<Token, Upcall*> upcalls_;
  Token next_token_ = 1;
  uint64_t next_folio_ = 1;
  uint64_t background_ = 0;
  uint64_t writers_ = 0;  // names for them, as handles are
  Condition background_free_;
  Condition daemon_back_;
  bool power_ = true;
  KernelCounts counts_;
};

FileId file_id(uint32_t file);

}  // namespace vremote::sim
