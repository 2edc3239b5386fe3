// The agent answers this node's kernel for the files of one home, under the leases it holds.
//
// It is the driver's translation of design and protocol into "may this request be answered now,
// with which bytes, and what must happen first". Events come in (requests of the kernel, messages
// of the home, purges that returned, time), actions come out. It never blocks, reads no clock and
// owns no descriptor. The rules K1 to K20 it obeys are told in docs/kernel_cache.md; where each
// lives:
//   kernel_cache.h  which pages the kernel may have, which purges count (K3, K4, K5, K13)
//   file_agent.h    one file: leases, waiting requests, recalls, truncation (K2, K8, K10, K11, K12,
//   K15, K16) dirty_store.h   bytes written and not yet at the origin
//
// Time (T1 to T5, docs/protocol.md): leases are good until the driver says (renew()). From then on
// nothing is answered from them, the kernel's caches are purged, requests wait; when they are good
// again all goes on. Every event looks at the clock first, so that a daemon that was stopped finds
// out before it answers anything.
#pragma once

#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <variant>
#include <vector>

#include "base/time.h"
#include "coherence/dirty_pool.h"
#include "coherence/file_errors.h"
#include "coherence/messages.h"
#include "coherence/mistakes.h"

namespace vremote::coherence {

// The driver's name for a kernel request that waits for an answer. Exactly one Reply… action is
// emitted for each.
using Token = uint64_t;
using PurgeId = uint64_t;

// ---- actions
// ------------------------------------------------------------------------------------------------------------------

// The bytes of a read, in order; shorter than asked only at the file's end.
struct ReplyData {
  Token token = 0;
  std::vector<Bytes> pieces;
  uint64_t length = 0;
};
struct ReplyWritten {
  Token token = 0;
  uint64_t offset = 0;
  uint32_t length = 0;
};  // offset: where it really went (appends)
struct ReplyOpened {
  Token token = 0;
};
struct ReplyAttributes {
  Token token = 0;
  Attributes attributes;
  // The kernel may keep them until a DropAttributes, if this answers a GETATTR. (That of a LOOKUP
  // may make the inode: an invalidation that comes first would find none.)
  bool may_cache = false;
};
// Run FUSE_NOTIFY_INVAL_INODE for the attributes alone, now (it never blocks): the kernel keeps
// none after it, and none of an answer to an earlier question (fi->attr_version).
struct DropAttributes {
  FileId file;
};
struct ReplyFlushed {
  Token token = 0;
  int32_t error = 0;
};  // everything written before is at the home; errno of what failed
struct ReplyTruncateReady {
  Token token = 0;
};  // now send the SetAttributesCall, then call truncate_done()
struct ReplyEntries {
  Token token = 0;
};  // an Entries lease is held now
struct ReplyError {
  Token token = 0;
  int32_t error = 0;
};
// Run FUSE_NOTIFY_INVAL_INODE over the range on a thread that may block; then purge_returned().
struct StartPurge {
  PurgeId purge = 0;
  FileId file;
  PageRange range;
};
// Make the kernel's size of the file at least `size` (Channel::push_size) on a thread that may
// block; then size_pushed(). `open`: the file is open, or about to be; if the kernel does not know
// the inode yet it will in a moment.
struct PushSize {
  uint64_t push = 0;
  FileId file;
  uint64_t size = 0;
  bool open = false;
};
// A PushSize takes long: look on another thread (OwnView::size) until the kernel has such a size or
// a larger one, then size_pushed(). Where that cannot be looked at, or is not seen: nothing.
struct LookAtSize {
  uint64_t push = 0;
  FileId file;
  uint64_t size = 0;
};
// Make the kernel's size of the file at most `size`, and with `access` make that what it judges by,
// on threads that may block: unless `behind_truncation` it is made to ask for attributes (`own`
// below) until both are there. Then
// size_settled(); and settle_ended() when no such question is on its way any more, or the
// truncation is through: the inode's lock has been free since, or, where it is not held, a moment
// has passed (kernel_size.h).
struct SettleSize {
  uint64_t settle = 0;
  FileId file;
  uint64_t size = 0;
  bool behind_truncation = false;
  bool under_lock = false;
  std::optional<Access> access = {};
};
// Tell the home that a file without a name is open here (ReclaimCall), then open_told().
struct TellOpen {
  uint64_t tell = 0;
  FileId file;
};
// R6: tell the home that these pages are still this node's (ReclaimCall::pages); then claimed().
struct ClaimPages {
  uint64_t claim = 0;
  FileId file;
  std::vector<PageRange> pages;
};
// T3: the file's truncation that is under way must not be waited for any more.
// truncation_goes_on(), then truncate_done(), and answer its caller EIO.
struct EndTruncation {
  FileId file;
};
struct SendToHome {
  ToHome message;
};
struct EntriesLost {
  FileId dir;
};  // what the driver remembers of the directory's names is void, now
// End what the kernel knows of the directory's names (Agent::names_given); then names_ended().
struct EndNames {
  uint64_t ending = 0;
  FileId dir;
  bool at_once = false;  // nobody waits for it, and a new lease may come before
};

// Bytes that must not go to the home any more: others may have changed the file since (T5). To be
// kept where a person can find them.
struct Rescue {
  FileId file;
  std::vector<Extent> extents;
  DirtyAttributes attributes;
};

using AgentAction =
    std::variant<ReplyData, ReplyWritten, ReplyOpened, ReplyAttributes, ReplyFlushed,
                 ReplyTruncateReady, ReplyEntries, ReplyError, StartPurge, PushSize, LookAtSize,
                 SettleSize, DropAttributes, TellOpen, ClaimPages, EndTruncation, SendToHome,
                 EntriesLost, EndNames, Rescue>;
using AgentActions = std::vector<AgentAction>;

struct AgentOptions {
  // The kernel may map direct handles shared and writable (FUSE_DIRECT_IO_ALLOW_MMAP): rule K2
  // applies.
  bool writable_mappings = true;
  int64_t residency_ns = 1'000'000;   // K13
  int64_t offer_ns = 10'000'000'000;  // an offered lease on a file the kernel does not ask for is
                                      // given back after this
  int64_t busy_after_ns = 5'000'000;  // K8: how long a recall may wait for a truncation of ours
                                      // before the home hears of it
  // How long the kernel's size of a file is waited for (kernel_size.h, Z4); 0: the driver cannot
  // settle sizes.
  int64_t settle_ns = 0;
  // K16: how long a push of a size that others wait for may take before it is looked at, and how
  // long it may be neither done nor seen (0: for ever).
  int64_t push_look_ns = 1'000'000;
  int64_t push_patience_ns = 1'000'000'000;
  // By then a thread of the kernel has gone on from an answer it got.
  int64_t moment_ns = 1'000'000;
  int64_t flush_after_ns = 1'000'000'000;  // dirty bytes older than this go to the home
  uint64_t dirty_max_bytes = 256u << 20;   // beyond it writers wait
  DirtyPool* dirty_pool = nullptr;         // or more, as long as this has room
  // What the origin would refuse when the bytes come, refused when they are written. This is ext4's
  // limit.
  uint64_t file_max_bytes = (uint64_t{1} << 44) - kPageSize;
  // K15: the kernel cuts an append that is longer than this. A piece may be shorter by the place of
  // the caller's buffer in its first page.
  uint64_t max_write = 1u << 20;
  int64_t append_gap_ns = 100'000'000;      // how long the next piece of an append is waited for
  int64_t append_turn_ns = 1'000'000'000;   // and for how long all of them may keep others out
  uint64_t flush_window_bytes = 16u << 20;  // background flushes under way at once
  // Whether leases are good before the first renew(): of a home on the same machine.
  bool lease_at_start = true;
  // What waits for leases that have run out for so long fails with EIO; 0: it waits (hard).
  int64_t soft_ns = 0;
  Mistakes mistakes;
};

// What a handle allows.
struct Opening {
  bool reads = true;     // the file may be mapped
  bool may_map = false;  // shared and writable: O_RDWR
  bool told = false;     // the home knows of it: a file that was made without a name
};

struct ReadEvent {
  Token token = 0;
  FileId file;
  uint64_t offset = 0;
  uint32_t size = 0;  // > 0
  bool fill = false;  // the kernel holds locked folios for it (no FUSE_READ_LOCKOWNER); offset and
                      // size are then whole pages
};
struct WriteEvent {
  Token token = 0;
  FileId file;
  uint64_t offset = 0;  // the kernel's guess when append
  Bytes bytes;
  bool append = false;
  uint64_t handle = 0;  // by which it was written: pieces of one append share it
  Timestamp now_wall;
};
// A write whose bytes are still where the kernel put them.
struct WriteNowEvent {
  FileId file;
  uint64_t offset = 0;  // the kernel's guess when append
  std::span<const std::byte> bytes;
  bool append = false;
  uint64_t handle = 0;
  Timestamp now_wall;
};

struct AgentCounts {
  uint64_t files = 0, shared_pages = 0, exclusive_pages = 0, shared_ranges = 0,
           exclusive_ranges = 0, dirty_bytes = 0, resident_pages = 0, waiting = 0,
           purges_in_flight = 0, recalls_pending = 0, suspended = 0;

  AgentCounts& operator+=(const AgentCounts& c) {
    files += c.files;
    shared_pages += c.shared_pages;
    exclusive_pages += c.exclusive_pages;
    shared_ranges += c.shared_ranges;
    exclusive_ranges += c.exclusive_ranges;
    dirty_bytes += c.dirty_bytes;
    resident_pages += c.resident_pages;
    waiting += c.waiting;
    purges_in_flight += c.purges_in_flight;
    recalls_pending += c.recalls_pending;
    suspended += c.suspended;
    return *this;
  }
};
struct AgentStatistics {
  uint64_t fills = 0, direct_reads = 0, direct_writes = 0, write_backs = 0, lease_requests = 0,
           fetches = 0, flushes = 0, flush_bytes = 0, recalls = 0, purges = 0, size_pushes = 0,
           size_settles = 0, pages_claimed = 0, truncations_ended = 0, announcements = 0,
           hits_without_message = 0, void_fetches = 0, write_backs_without_exclusive = 0,
           suspensions = 0, rescued_bytes = 0;

  AgentStatistics& operator+=(const AgentStatistics& s) {
    fills += s.fills;
    direct_reads += s.direct_reads;
    direct_writes += s.direct_writes;
    write_backs += s.write_backs;
    lease_requests += s.lease_requests;
    fetches += s.fetches;
    flushes += s.flushes;
    flush_bytes += s.flush_bytes;
    recalls += s.recalls;
    purges += s.purges;
    size_pushes += s.size_pushes;
    size_settles += s.size_settles;
    pages_claimed += s.pages_claimed;
    truncations_ended += s.truncations_ended;
    announcements += s.announcements;
    hits_without_message += s.hits_without_message;
    void_fetches += s.void_fetches;
    write_backs_without_exclusive += s.write_backs_without_exclusive;
    suspensions += s.suspensions;
    rescued_bytes += s.rescued_bytes;
    return *this;
  }
};

// What of one file the next daemon of this node must know while the session with its home goes on
// (docs/architecture.md, "Upgrades"). No lease is in it: the home goes on believing that they are
// held, which is safe; the next daemon purges what its kernel shows and asks anew.
struct KeptFile {
  FileId file;
  uint32_t opens = 0, reading_opens = 0, mapping_opens = 0;  // of handles that were given out
  uint64_t seen = 0;                                         // Grant::sequence
  bool told_in_use = false;
  bool known_to_kernel = true;
  bool untold_time = false;
  FileErrors::Kept errors;
  bool unsynced = false;
  uint64_t unsynced_since = 0;    // of sync_begins(); 0: not known
  uint64_t kernel_size_most = 0;  // what the kernel may take the size for
  std::optional<Access> told_access = {};
  std::vector<Recall> recalls;  // not acked
  std::vector<ShowSize> shows;  // not answered
};

class FileAgent;
struct AgentShared;

// What a home can make an agent keep, unasked: leases of so many files until their offers are over;
// ranges of one file; recalls and sizes of one file, which an honest home has one of for each
// request that waits.
inline constexpr size_t kOfferedFilesMax = 16384, kUnaskedRangesMax = 4096,
                        kRecallsOfFileMax = 262144, kShowsOfFileMax = 4096;

// Not thread-safe: the driver calls it under one lock.
class Agent {
 public:
  explicit Agent(const AgentOptions& options);
  ~Agent();
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  // ---- the kernel's requests ----
  void read(Instant now, const ReadEvent& event, AgentActions& actions);
  void write(Instant now, WriteEvent event, AgentActions& actions);
  // Carries the write out if nothing has to happen first (every lease held, nothing cached, nobody
  // waits) and returns where it went; nullopt: nothing was done, use write(). No action comes of
  // it but what next_deadline() tells, if that is new.
  struct WrittenNow {
    uint64_t offset = 0;
    bool new_deadline = false;
  };
  std::optional<WrittenNow> write_now(Instant now, const WriteNowEvent& event);
  // A page-cache write-back. It is accepted at once, always; the driver answers it right after this
  // call returns (K7).
  void write_back(Instant now, FileId file, uint64_t offset, Bytes bytes, Timestamp now_wall,
                  AgentActions& actions);
  // ReplyOpened when the handle may be given out.
  void open(Instant now, Token token, FileId file, Opening opening, AgentActions& actions);
  // `handle`: that of flush() and synced().
  void close(Instant now, FileId file, Opening opening, AgentActions& actions, uint64_t handle = 0);
  // The same of a directory's stream, of which there is no open().
  void directory_closed(FileId dir, uint64_t handle);
  // `own`: asked for by SettleSize; answered at once, EAGAIN without a lease.
  void attributes(Instant now, Token token, FileId file, bool own, AgentActions& actions);
  // Takes (or has) an Entries lease on a directory: ReplyEntries.
  void entries(Instant now, Token token, FileId dir, AgentActions& actions);
  bool has_entries(FileId dir) const;
  // The kernel may be told that it may keep names of the directory until EndNames.
  bool may_give_names(FileId dir) const;
  void names_given(FileId dir);
  // Whether a writable mapping may exist here (K2).
  bool may_be_mapped(FileId file) const;
  // The mode bits when an Attributes lease is held.
  std::optional<uint32_t> peek_mode(FileId file) const;
  // True only when it is certain, under an Attributes lease, that the file has no extended
  // attribute. The kernel may keep that as long
  // as the attributes.
  bool has_no_xattrs(FileId file);
  // Everything dirty of the file to the home: ReplyFlushed. `asked`: what sync_begins() said when
  // the caller began to wait, if that was before (a write with O_SYNC).
  void flush(Instant now, Token token, FileId file, AgentActions& actions, Opener who = {},
             uint64_t asked = UINT64_MAX);
  // S1, an fsync: when flush() has been answered, the home is asked to sync the file (SyncCall);
  // `begun` tells what sync_begins() said before that was sent. Returns what the fsync is to say:
  // `error`, or what `who` or this very fsync has to hear of (file_errors.h). `by_disk`: `error` is
  // what the home's disk says, and others are to hear of it, too.
  uint64_t sync_begins() const;
  int32_t synced(FileId file, uint64_t begun, int32_t error, uint64_t asked = UINT64_MAX,
                 Opener who = {}, bool by_disk = false);
  // The home has carried out a call of this node that changes the file: the same counts for it.
  // `known`: to the kernel. Nobody can ask for an fsync of another, and it is never forgotten
  // again.
  void changed_at_home(FileId file, bool known = true);
  // A size-changing SETATTR (or an O_TRUNC open) is unanswered from here until truncate_done().
  void truncate(Instant now, Token token, FileId file, uint64_t size, AgentActions& actions);
  // `under_lock`: the kernel holds the inode's lock from the request until all is cut (SETATTR; not
  // O_TRUNC).
  void truncate_done(Instant now, FileId file, bool done, uint64_t size, bool under_lock,
                     AgentActions& actions);
  // Before truncate_done() of one that the home has done, and that made the file longer: true when
  // the kernel may show there what a mapping stored behind the old end, `before`. Then that page
  // must be overwritten with zeroes from there on (Channel::store) before truncate_done(); nothing
  // of the file is answered meanwhile (K20).
  bool tail_is_shown(Instant now, FileId file, uint64_t before, uint64_t size,
                     AgentActions& actions);
  // Its caller has an error, and the home may carry it out yet: nothing else of the file is
  // answered before truncation_ended() tells what became of it.
  void truncation_goes_on(Instant now, FileId file, AgentActions& actions);
  void truncation_ended(Instant now, FileId file, bool done, uint64_t size, AgentActions& actions);
  // Another answer than ReplyAttributes has the kernel take this for the size.
  void size_told(Instant now, FileId file, uint64_t size, AgentActions& actions);
  // FUSE_INTERRUPT, or whatever else makes nobody want it any more: a request that still waits is
  // answered with the error; one that is being carried out is finished.
  void interrupt(Instant now, Token token, FileId file, AgentActions& actions, int error = EINTR);
  // The kernel forgot the inode: no page of it is cached.
  void forget(Instant now, FileId file, AgentActions& actions);

  // ---- purges, messages, time ----
  void purge_returned(Instant now, PurgeId purge, FileId file, AgentActions& actions);
  // `there`: the kernel knows the inode, and the size.
  void size_pushed(Instant now, uint64_t push, FileId file, bool there, AgentActions& actions);
  void names_ended(Instant now, uint64_t ending, FileId dir, AgentActions& actions);
  void size_settled(Instant now, uint64_t settle, FileId file, AgentActions& actions);
  void settle_ended(Instant now, uint64_t settle, FileId file, AgentActions& actions);
  // `there`: the file will not go before this node says that it is not open any more.
  void open_told(Instant now, uint64_t tell, FileId file, bool there, AgentActions& actions);
  void receive(Instant now, Grant message, AgentActions& actions);
  void receive(Instant now, const Recall& message, AgentActions& actions);
  void receive(Instant now, const FlushAck& message, AgentActions& actions);
  void receive(Instant now, FetchReply message, AgentActions& actions);
  void receive(Instant now, const ShowSize& message, AgentActions& actions);
  void receive(Instant now, const Announced& message, AgentActions& actions);
  // The session is another: no lease is held any more, every outstanding request is void and sent
  // anew. Kept: nobody else can have been granted what was held, dirty bytes are flushed again.
  // Fenced: others may have been, they are rescued. `disk_has_lost`: what had been flushed and not
  // synced may be gone (S1).
  enum class Dirty : uint8_t { Kept, Fenced };
  void reset(Instant now, Dirty dirty, AgentActions& actions, bool disk_has_lost = false);
  // After a reset: nothing of before is left, neither in the kernel nor on the way to the home, but
  // for pages that the home knows of.
  bool brought_back() const;
  // Until then, again and again: ClaimPages for what the kernel holds back behind truncations.
  void claim_held_back(Instant now, AgentActions& actions);
  // `held`: the home has it.
  void claimed(Instant now, uint64_t claim, FileId file, bool held, AgentActions& actions);
  std::vector<FileId> open_files() const;
  // Leases are good until then (T1); a time that is past: they are not, from now on.
  void renew(Instant now, Instant until, AgentActions& actions);
  // Leases are over, or the home has restarted and waits: purges that nothing may put off.
  bool must_purge(Instant now) const;
  // For answers that the driver itself gives from what goes with a lease.
  bool leases_good(Instant now) const;
  // Leases have not been good for so long that what waits fails (soft_ns). Calls should fail, too.
  bool out_of_patience(Instant now, AgentActions& actions);
  void tick(Instant now, AgentActions& actions);
  std::optional<Instant> next_deadline() const;

  // ---- the next daemon of this node ----
  // Nothing is half done: no dirty bytes, no write that was applied and not answered, no append
  // between its pieces. All other requests can be asked again.
  bool can_be_handed_over() const;
  std::vector<KeptFile> kept_files() const;
  uint64_t next_id() const;
  // Of the daemon before; before any other event. `next_id`: beyond those it has used. What it was
  // asked by the home comes again, by receive(), after took_over().
  void take_over(const KeptFile& kept, uint64_t next_id);
  // Of the fsyncs of all agents of the home; before take_over().
  uint64_t next_sync() const;
  void take_over_syncs(uint64_t next_sync);
  // When the requests the kernel had waiting are here again: begins to purge what it shows.
  // `same_session`: the home knows this node still; otherwise as with reset(Kept).
  void took_over(Instant now, bool same_session, AgentActions& actions);

  // Starts flushing everything (shutdown); idle_dirty() tells when nothing is left.
  void flush_all(Instant now, AgentActions& actions);
  bool idle_dirty() const;
  // Bytes of the file are not at its home, or were lost and nobody has been told.
  bool owes(FileId file) const;

  AgentCounts counts() const;
  const AgentStatistics& statistics() const;
  LeaseMode held(FileId file, Resource resource, uint64_t page) const;
  void check() const;

 private:
  FileAgent& file(FileId id);
  FileAgent* find(FileId id) const;
  void settle(Instant now, FileAgent& file, AgentActions& actions);
  void settle_alone(Instant now, FileAgent& file, AgentActions& actions);
  // An event of a file that may be forgotten already.
  template <typename Event>
  void if_known(Instant now, FileId id, AgentActions& actions, Event event);
  void share_room(Instant now, AgentActions& actions);
  void set_deadline(FileId id, std::optional<Instant> at);
  void look_at_time(Instant now, AgentActions& actions);
  void look_at_patience(Instant now, AgentActions& actions);
  void suspend(Instant now, AgentActions& actions);
  // `step` for each file, and what follows from it; a file may go with that.
  template <typename Step>
  void each_file(Instant now, AgentActions& actions, Step step);
  void settle_all(Instant now, AgentActions& actions);

  std::unique_ptr<AgentShared> shared_;
  std::unordered_map<FileId, std::unique_ptr<FileAgent>, FileIdHash> files_;
  // Files that the kernel has not asked for: what a home has offered leases of, or recalled.
  std::unordered_set<FileId, FileIdHash> offered_;
  std::set<std::pair<Instant, FileId>> deadlines_;  // one per file that waits for time
  std::unordered_map<FileId, Instant, FileIdHash> deadline_of_;
};

}  // namespace vremote::coherence
