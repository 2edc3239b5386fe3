// One file at one node: its leases, the kernel requests that wait, and the recalls to be acked.
//
// Every event changes the state and then step() carries out whatever has become possible, requests
// before recalls (a grant is used once before it can be taken away, K10), until nothing moves. A
// request waits only for what it shows in `Request`; nothing here waits in code.
//
// What a request needs:
//   fill, read    Data Shared over its whole range (fills: Exclusive while the file may be mapped
//   writable, K2), and the true size under an
//                 Attributes lease when it may reach the file's end
//   write         Attributes Update, or Exclusive when it extends; then Data Exclusive; then no
//   cached page of the range (K12) attributes    Attributes Shared open          Attributes of any
//   mode (so that the home learns at the next recall that the file is in use); K2 for O_RDWR
//   truncate      no flush under way, no clean page beyond the new end cached
// A request that has its Attributes lease pins it until it is answered, and may wait for Data
// meanwhile; never the other way round.
#pragma once

#include <deque>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "coherence/agent.h"
#include "coherence/dirty_store.h"
#include "coherence/kernel_cache.h"
#include "coherence/kernel_size.h"
#include "coherence/lease_map.h"

namespace vremote::coherence {

inline constexpr Instant kForever{INT64_MAX};

// What the files of one agent have in common.
struct AgentShared {
  AgentShared() = default;
  AgentShared(const AgentShared&) = delete;
  AgentShared& operator=(const AgentShared&) = delete;
  ~AgentShared() {
    for (; pieces > 0; --pieces) options.dirty_pool->give_back();
  }

  // Whether so many bytes more may be dirty.
  bool has_room(uint64_t more) {
    while (dirty_bytes + more > dirty_limit()) {
      if (options.dirty_pool == nullptr || !options.dirty_pool->take()) return false;
      ++pieces;
    }
    return true;
  }
  // One piece more than is needed is kept for the next write.
  void give_back_room() {
    while (pieces > 1 && dirty_bytes + 2 * options.dirty_pool->piece() <= dirty_limit()) {
      --pieces;
      options.dirty_pool->give_back();
    }
    if (pieces == 1 && dirty_bytes == 0) {
      pieces = 0;
      options.dirty_pool->give_back();
    }
  }
  uint64_t dirty_limit() const {
    return options.dirty_max_bytes + (pieces == 0 ? 0 : pieces * options.dirty_pool->piece());
  }

  AgentOptions options;
  uint64_t pieces = 0;  // of the pool
  AgentStatistics statistics;
  uint64_t next_id = 1;  // requests, flushes, fetches, fills
  uint64_t next_purge = 1;
  uint64_t syncs = 1;  // begun, and one more
  uint64_t dirty_bytes = 0;
  uint64_t flush_bytes_in_flight = 0;
  Instant lease_until = kForever;
  bool suspended = false;  // leases are held and not good
  // Of leases that are not good: whether others may have been given what they were for, and from
  // when on. Of the session before, until all of it is given up (R2).
  bool over = false;
  std::optional<Instant> over_at;
  std::optional<Instant> fail_at;  // from then on requests fail instead of waiting for them
  bool failing = false;
  std::set<FileId> due;  // files with bytes to flush that the window held back
  // Files with writes that wait for memory, in turns of one write each.
  std::deque<FileId> want_room;
  std::optional<FileId> room_turn;
};

class FileAgent {
 public:
  FileAgent(FileId id, AgentShared& shared);

  void read(Instant now, const ReadEvent& event);
  void write(WriteEvent event);
  std::optional<uint64_t> write_now(Instant now, const WriteNowEvent& event);
  void write_back(Instant now, uint64_t offset, const Bytes& bytes, Timestamp now_wall,
                  AgentActions& actions);
  void open(Token token, Opening opening);
  void close(Opening opening, uint64_t handle, AgentActions& actions);
  void directory_closed(uint64_t handle) { errors_.closed(handle, true); }
  void attributes(Instant now, Token token);
  void own_attributes(Token token, AgentActions& actions);
  void entries(Token token);
  void flush(Token token, AgentActions& actions, Opener who, uint64_t asked);
  int32_t synced(uint64_t begun, int32_t error, uint64_t asked, Opener who, bool by_disk);
  void changed_at_home() {
    known_to_kernel();
    not_synced();
  }
  void truncate(Token token, uint64_t size);
  void truncate_done(Instant now, bool done, uint64_t size, bool under_lock, AgentActions& actions);
  bool tail_is_shown(uint64_t before, uint64_t size);
  void truncation_goes_on();
  void truncation_ended(Instant now, bool done, uint64_t size, AgentActions& actions);
  void size_told(Instant now, uint64_t size, AgentActions& actions);
  void interrupt(Token token, int error, AgentActions& actions);
  void forget(Instant now);

  void purge_returned(Instant now, PurgeId purge);
  void size_pushed(uint64_t push, bool there);
  void size_settled(uint64_t settle) {
    kernel_size_.seen(settle);
    if (access_settle_ && access_settle_->id == settle) access_is_told(access_settle_->access);
  }
  void settle_ended(uint64_t settle) {
    if (setattr_ && setattr_->settle == settle) setattr_.reset();
    if (kernel_size_.ended(settle) && !cut_untold_) cut_off_ = {};
  }
  void granted(Instant now, Grant message, AgentActions& actions);
  void recalled(const Recall& message);
  void flush_acked(const FlushAck& message, AgentActions& actions);
  void fetched(FetchReply message, AgentActions& actions);
  void show_size(const ShowSize& message);
  void announced(const Announced& message);
  void reset(Instant now, Agent::Dirty dirty, AgentActions& actions, bool disk_has_lost = false);
  bool can_be_handed_over() const;
  KeptFile kept() const;
  void take_over(const KeptFile& kept);
  void took_over(Instant now, bool same_session, AgentActions& actions);
  // Leases are not good any more: the kernel must show nothing of what went with them.
  void suspend(Instant now, AgentActions& actions);

  // Carries out whatever has become possible.
  void step(Instant now, AgentActions& actions);
  // Sends dirty bytes: all of them, or as many as the shared window allows. Returns false when some
  // were held back.
  bool send_dirty(PageRange range, bool all, AgentActions& actions);
  // The same for somebody who waits for memory.
  bool make_room(AgentActions& actions) {
    return truncations_ > 0 || send_dirty(PageRange::all(), false, actions);
  }
  bool wants_room() const { return wants_room_; }
  void looks_for_room() { wants_room_ = false; }
  void flush_if_due(Instant now, AgentActions& actions);

  std::optional<Instant> deadline() const;
  bool done() const;  // nothing is known of the file any more: the object may go
  bool has_entries() const { return entries_ != LeaseMode::None; }
  bool may_give_names() const { return has_entries() && !recall_pending(Resource::Entries, kUnit); }
  void names_given() { kernel_has_names_ = true; }
  void names_ended(uint64_t ending);
  void open_told(uint64_t tell, bool there);
  bool clean() const {
    return dirty_.empty() && !dirty_attributes_.has_size && !dirty_attributes_.has_mtime &&
           flights_.empty();
  }
  bool owes() const { return !dirty_.empty() || !flights_.empty() || errors_.owes(opens_); }
  bool waits_to_flush() const {
    return dirty_.has_unsent() || dirty_attributes_.has_mtime || dirty_attributes_.has_size;
  }
  // What the kernel had of an earlier session, or under an earlier daemon, is being purged.
  bool is_giving_up_all() const {
    for (const PendingRecall& recall : recalls_)
      if (recall.id == 0) return true;
    return false;
  }
  // No page of before a reset is left, or the home knows of it, and has all the bytes.
  bool brought_back() const { return (!is_giving_up_all() || claim_held_) && clean(); }
  // The kernel may show what this node has no right to any more: purges that nothing may put off.
  bool must_be_purged(bool leases_good) const {
    return (!leases_good && !kernel_.resident().empty()) || (is_giving_up_all() && !claim_held_);
  }
  void claim_held_back(AgentActions& actions);
  void claimed(uint64_t claim, bool held);
  bool is_open() const { return opens_ > 0; }
  bool is_known_to_kernel() const { return !forgotten_; }
  FileId id() const { return id_; }
  bool may_be_mapped() const { return mapping_opens_ > 0; }
  std::optional<uint32_t> peek_mode() const {
    if (attributes_mode_ == LeaseMode::None) return std::nullopt;
    return attributes_.mode;
  }
  // The kernel keeps something that goes with the attributes (an access control list, or that there
  // is none).
  void attributes_given() { kernel_has_attributes_ = true; }
  bool has_no_xattrs() const { return attributes_mode_ != LeaseMode::None && !has_xattrs_; }
  LeaseMode held(Resource resource, uint64_t page) const;
  void add_counts(AgentCounts& counts) const;
  void check() const;
  // What the kernel keeps of the attributes, if anything, is no longer so.
  void drop_attributes(AgentActions& actions);

 private:
  // Time: nobody's; tells those who look at the attributes that a mapping has changed the file.
  enum class Kind : uint8_t { Fill, Read, Write, Attributes, Entries, Open, Flush, Truncate, Time };
  struct Request {
    Kind kind = Kind::Read;
    Token token = 0;
    uint64_t offset = 0, size = 0;  // bytes; truncate: size is the new one
    PageRange range;                // pages it needs
    Bytes bytes;                    // write
    Timestamp wall;
    bool append = false;
    uint64_t handle = 0;
    bool pinned = false;         // keeps the Attributes lease here
    bool active = false;         // write: being carried out; truncate: sent
    bool asked_message = false;  // needed at least one message
    uint64_t fill = 0;           // id in kernel_
    uint64_t data_request = 0, attributes_request = 0, fetch = 0;  // outstanding, by id
    bool bounced = false;  // its data, and not asked for since
    bool have_data = false;
    bool has_room = false, wants_room = false;  // write: its bytes may be dirty; not yet
    uint64_t data_offset = 0;
    Bytes data;
    uint64_t kernel_end = 0;  // write: where the kernel will think that it ended
    Attributes told;          // attributes: the answer, once it is decided
    Instant arrived;          // attributes
    uint64_t told_order = 0;  // of two answers the greater is the later truth
    uint64_t push = 0;        // attributes: waits for this push of the size
    uint64_t push_size = 0;   // 0: something smaller was told since
    bool pushed = false;
    Opening opening;  // open; without a token nobody waits for the answer
    PageSet purge;    // open: pages that must not stay cached without Exclusive
    // K16. Write: applied, to here; not answered before all know. Open: the size is being pushed.
    uint64_t grown = 0;
    bool growth_begun = false, must_announce = false;
    bool announce_again = false;  // in the session that has followed
    uint64_t announcement = 0, size_push = 0;
    // Open, of a file that has no name any more: the home is asked to keep it; it is gone.
    uint64_t tell = 0;
    bool refused = false;
    uint64_t flush_upto = 0;  // flush: done when no flush up to this id is under way
    Opener who;               // flush
    uint64_t asked = 0;       // flush: of sync_begins()
    int32_t error = 0;        // answer with this
  };
  struct PendingRecall {
    uint64_t id = 0;
    Resource resource = Resource::Data;
    LeaseMode to = LeaseMode::None;
    PageRange range;
    std::optional<Instant> stuck_since;  // K8: waits beside an unanswered truncation
    bool told_busy = false;
  };

  // K15: an append that the kernel cut into pieces goes on. Its Attributes lease stays here between
  // them, for a while.
  struct AppendTurn {
    uint64_t handle = 0;
    uint64_t kernel_end = 0;  // where the kernel thinks that the next piece begins
    Instant until;            // of waiting for that
    Instant last;             // of the whole turn
  };

  // K16: the home wants our kernel to know this size.
  struct Show {
    uint64_t show = 0, size = 0;
    uint64_t push = 0;
  };
  // A push of a size that somebody waits for.
  struct SizePush {
    uint64_t id = 0, size = 0;
    Instant look_at;
    std::optional<Instant> give_up;
    bool looking = false;
    bool overtaken = false;  // something smaller was told since
  };

  bool advance(Instant now, Request& request, AgentActions& actions);  // true: answered, remove it
  bool advance_attributes(Instant now, Request& request, AgentActions& actions);
  bool advance_read(Instant now, Request& request, AgentActions& actions);
  bool advance_write(Instant now, Request& request, AgentActions& actions);
  bool finds_room(Request& request, AgentActions& actions);
  bool has_no_name() const;
  bool may_be_gone() const;
  bool advance_open(Instant now, Request& request, AgentActions& actions);
  bool advance_growth(Instant now, Request& request, AgentActions& actions);
  void answer_write(const Request& request, AgentActions& actions);
  void write_is_answered(Instant now, uint64_t kernel_end);
  bool advance_show(Instant now, Show& show, AgentActions& actions);
  bool growth_must_be_known(Instant now, uint64_t before, uint64_t end, uint64_t kernel_end) const;
  // That all pages of a file of this size may be mapped here. `written`: by a write that is about
  // to be answered.
  bool kernel_knows(Instant now, uint64_t size, uint64_t written = 0) const;
  uint64_t push_size(Instant now, uint64_t size, bool open, AgentActions& actions);
  bool setattr_under_way(Instant now);
  bool pushing(uint64_t push) const;
  bool awaited_push_ended(uint64_t push, bool there);
  bool look_after_pushes(Instant now, AgentActions& actions);
  void forget_announcements();
  // The kernel drops answers under way that tell the attributes (fi->attr_version).
  void inode_changes(Instant now) {
    if (unproved_ && now < unproved_->until)
      sure_size_ = std::min(sure_size_.value_or(UINT64_MAX), unproved_->before);
    unproved_.reset();
  }
  void proved(uint64_t size) {
    if (sure_size_) sure_size_ = std::max(*sure_size_, size);
    if (told_size_ && sure_size_ && *sure_size_ >= *told_size_) sure_size_.reset();
  }
  bool advance_truncate(Request& request, AgentActions& actions);
  bool advance_recall(Instant now, const PendingRecall& recall, AgentActions& actions);
  void tell_busy(Instant now, PendingRecall& recall, AgentActions& actions);
  bool end_late_truncations(Instant now, AgentActions& actions);
  void is_cut(uint64_t size);
  void ack_data(const PendingRecall& recall, AgentActions& actions);
  PageRange give_around(const PendingRecall& recall) const;
  PageRange behind_end(const PendingRecall& recall) const;
  PageRange tail_shown_by(uint64_t end_of_write) const;
  // K15: what the kernel's guess of an append's end takes for pages of the file.
  static PageRange guessed_behind(uint64_t end, uint64_t kernel_end) {
    const PageRange guessed{((end - 1) >> kPageShift) + 1, ((kernel_end - 1) >> kPageShift) + 1};
    return guessed.first < guessed.end ? guessed : PageRange{};
  }
  static PageRange guessed_behind(const Request& write) {
    return write.append ? guessed_behind(write.offset + write.size, write.kernel_end) : PageRange{};
  }
  PageSet purges_wanted(Instant now);

  bool need_attributes(Request& request, LeaseMode mode,
                       AgentActions& actions);  // true: held and pinned
  void ask_data(Request& request, LeaseMode mode, bool want_data, AgentActions& actions);
  bool recall_pending(Resource resource, PageRange range) const;
  bool must_purge(const PendingRecall& recall) const {
    return recall.to == LeaseMode::None || may_write();
  }
  bool may_write() const;
  PageSet not_exclusive(const PageSet& pages) const;
  void keep_resident(PageSet& pages) const;
  void void_data(PageRange range);
  void touch(PageRange range);
  void not_synced() { unsynced_ = shared_.syncs; }
  void note_error(int32_t error);
  void answer_flush(const Request& request, AgentActions& actions);
  void known_to_kernel();
  void set_dirty_bytes(uint64_t before);
  Flush new_flush();
  void send_dirty_attributes(AgentActions& actions);
  void tell_time();
  uint64_t blocks_with(uint64_t dirty_bytes) const;
  void note_flight(const Flush& flush, uint64_t bytes);
  void rescue_dirty(AgentActions& actions);
  uint64_t size_for_sure() const;
  uint64_t cut_on_the_way() const;
  void bring_size_back(uint64_t size);
  // `Source`: Bytes (whole pages are kept) or a span (copied).
  template <class Source>
  void wrote(uint64_t offset, const Source& bytes, Timestamp wall, bool extend);
  template <class Source>
  void apply_write(Instant now, uint64_t offset, const Source& bytes, Timestamp wall,
                   uint64_t kernel_end);
  bool answers_at_once(Instant now, const Request& request) const;
  bool size_is_settled(Instant now, AgentActions& actions);
  bool access_is_settled(Instant now, AgentActions& actions);
  void access_is_told(const Access& access) {
    told_access_ = access;
    access_settle_.reset();
  }
  // The kernel holds it until all that a truncation cuts is cut.
  // `same_call`: by a write that has not ended yet, and has not moved the size.
  void inode_lock_is_held(bool same_call = false) {
    if (told_size_ && !same_call) {
      proved(written_end_);
      told_size_ = std::max(*told_size_, std::exchange(written_end_, 0));
    }
    kernel_size_.lock_is_held();
    setattr_.reset();
    if (!cut_untold_) cut_off_ = {};
  }
  void wake_at(Instant at) { wake_ = wake_ ? std::min(*wake_, at) : at; }
  bool continues(uint64_t handle, uint64_t offset) const {
    return turn_ && turn_->handle == handle && turn_->kernel_end == offset;
  }
  void appended(Instant now, uint64_t handle, uint64_t kernel_offset, uint64_t length);
  void told_at_most(uint64_t size) {
    for (Request& request : requests_)
      if (request.push_size > size) request.push_size = 0;
    if (told_size_) told_size_ = std::min(*told_size_, size);
    for (SizePush& push : size_pushes_) push.overtaken = push.overtaken || push.size > size;
    written_end_ = std::min(written_end_, size);
  }

  FileId id_;
  AgentShared& shared_;
  KernelCache kernel_;
  DirtyStore dirty_;
  LeaseMap leases_;
  LeaseMode attributes_mode_ = LeaseMode::None, entries_ = LeaseMode::None;
  uint64_t entries_request_ = 0;
  uint64_t seen_ = 0;        // the last grant's sequence
  Attributes attributes_;    // valid while attributes_mode_ != None
  uint64_t size_floor_ = 0;  // the file is at least this long, for pages under a data lease
  // The same after a reset, of what is brought back: until the home has granted something again.
  uint64_t floor_before_ = 0;
  DirtyAttributes dirty_attributes_;
  // The kernel wrote back pages when others could hold the attributes: they must give them up
  // before an msync(2) here returns.
  bool untold_time_ = false;
  // At most what the kernel takes the file's size for, since it was last told; unset: not told yet.
  std::optional<uint64_t> told_size_;
  uint64_t written_end_ = 0;  // a write was answered since; its caller sets the size to this
  Instant written_until_;     // and has done so by then
  // The last answer that raised told_size_ without a push, and from what. Until then its asker may
  // not have taken it in, and loses it if the inode changes.
  struct Unproved {
    Instant until;
    uint64_t before = 0;
  };
  std::optional<Unproved> unproved_;
  std::optional<uint64_t> sure_size_;  // that happened: at least so much is there
  // A SETATTR was answered, and may not have been taken in.
  struct Setattr {
    uint64_t settle = 0;
    Instant until;
  };
  std::optional<Setattr> setattr_;
  Instant changed_;  // the last purge's return, or answer that changes the inode
  KernelSize kernel_size_;
  // K19: what the kernel judges by; unset: it knows nothing of the file, or was never told.
  std::optional<Access> told_access_;
  struct AccessSettle {
    uint64_t id = 0;
    Access access;
    Instant until;
  };
  std::optional<AccessSettle> access_settle_;
  uint64_t last_told_ = 0;
  // It may answer stat(2) by itself. Our own WRITEs and SETATTRs end that (fuse_write_update_attr,
  // fuse_do_setattr).
  bool kernel_has_attributes_ = false;
  uint64_t told_blocks_ = 0;  // with them
  bool kernel_has_names_ = false;
  uint64_t ending_ = 0;  // of those names, under way
  PageSet cut_off_;      // pages a truncation of ours cut, which the kernel may still show
  Instant dirty_since_;
  uint32_t opens_ = 0, mapping_opens_ = 0, reading_opens_ = 0;
  uint32_t gone_opens_ = 0;  // refused, and not closed yet
  bool watched_ = false;     // another node has it open for reading; good with Attributes Exclusive
  uint64_t announcing_ = 0;  // at most one at a time
  std::list<Show> shows_;
  std::list<SizePush> size_pushes_;
  bool told_in_use_ = false;
  bool wants_room_ = false;  // is in AgentShared::want_room
  bool has_xattrs_ = true;
  // The kernel does not know the file (any more): what is leased is given back at release_at_.
  bool forgotten_ = true;
  std::optional<Instant> release_at_;
  Instant stepped_at_;
  uint32_t truncations_ = 0;           // unanswered (K8)
  uint32_t going_on_ = 0;              // truncations whose callers do not wait any more
  uint64_t going_on_to_ = UINT64_MAX;  // the smallest size of these
  uint64_t cut_at_ = 0;                // of cut_off_: what is written back behind this is nothing
  PageRange zeroing_;                  // K20: the page of the old end, behind a truncation of ours
  // Where that could not be done: bytes that are nothing when they are written back, until the page
  // is gone.
  struct Tail {
    uint64_t from = 0, end = 0;
    PageRange page() const { return end == 0 ? PageRange{} : PageRange::of_bytes(from, 1); }
  };
  Tail tail_;
  bool tail_may_show() const { return !zeroing_.empty() || tail_.end != 0; }
  // A fill must not hold up what overwrites the page, nor a purge.
  bool holds_up_tail(const Request& request) const {
    return request.kind == Kind::Fill && tail_may_show() &&
           (request.range.overlaps(zeroing_) || request.range.overlaps(tail_.page()) ||
            kernel_.is_purging(request.range));
  }
  bool cut_untold_ = false;  // the kernel does not know of it: these pages go by purges alone
  std::optional<Instant> held_back_since_;  // pages that must go, behind a truncation
  // After a reset: pages of the kernel that were Exclusive here before.
  PageSet kept_pages_;
  uint64_t claim_ = 0;  // under way
  bool claim_held_ = false;
  std::optional<AppendTurn> turn_;
  FileErrors errors_;  // what fsyncs are to tell: a flush failed, or bytes are lost
  // The home has something of the file that was written or seen here, and that no fsync of this
  // node has brought to its disk: since the fsync of that number; 0: nothing.
  uint64_t unsynced_ = 0;
  std::list<Request> requests_;  // in order of arrival
  // Whether one of them may be active: thousands of waiting fills need not look for it each.
  bool some_active_ = false;
  std::list<PendingRecall> recalls_;
  // Flushes under way. Their bytes stay with us: a page that was given up is not in `dirty_` any
  // more, and if the session ends before the home has it nobody else has.
  struct Flight {
    uint64_t bytes = 0;
    std::vector<Extent> extents;
    DirtyAttributes attributes;
  };
  std::map<uint64_t, Flight> flights_;
  bool taking_over_ = false;  // between take_over() and took_over()
  // T5: what the kernel writes back is of a session that was fenced, until all its pages are gone.
  bool fenced_ = false;
  std::deque<PageRange>
      touched_;  // the last direct reads and writes: not given away beyond what is recalled
  std::optional<Instant> wake_;  // a recall waits for this (K13)
};

}  // namespace vremote::coherence
