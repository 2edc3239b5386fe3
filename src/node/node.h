// One node: its homes, agents, sessions and mount, joined.
//
// Where its parts are: node.cc (beginning and end), node_home.cc (what it is to others),
// node_grace.cc (what that remembers over a restart), node_peers.cc (what others are to it),
// node_mount.cc, node_keys.cc, node_control.cc (what programs ask it), node_status.cc and
// node_blocked.cc (`vremote status`), node_handover.cc (`vremote upgrade`, and after a crash).
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/metrics.h"
#include "coherence/bond.h"
#include "coherence/grace.h"
#include "control/server.h"
#include "control/status.h"
#include "fuse/mount.h"
#include "net/agent_session.h"
#include "net/event_loop.h"
#include "net/home_server.h"
#include "node/agent/agent_service.h"
#include "node/agent/inode_table.h"
#include "node/agent/kernel_names.h"
#include "node/agent/lock_circles.h"
#include "node/agent/shared_dirty_pool.h"
#include "node/base/helper_threads.h"
#include "node/config/access.h"
#include "node/config/config.h"
#include "node/handover/handover.h"
#include "node/home/disk_life.h"
#include "node/home/home_service.h"
#include "node/home/outside_watcher.h"
#include "node/mount/exports.h"
#include "node/mount/fuse_server.h"
#include "node/recovery/recovery_writer.h"

namespace vremote::node {

class NodeDaemon {
 public:
  // `guardian`: outlives the node; may be none. `before`: what the last daemon of this very process
  // has left.
  NodeDaemon(const Config& config, coherence::Mistakes mistakes, GuardianLink* guardian,
             std::optional<Handover> before = {});
  ~NodeDaemon();

  // Opens the exports, listens, dials the peers, mounts and serves. `ended` is called once when the
  // mount ends by itself.
  Status start(std::function<void()> ended);
  // How many a start needs, with the guardian's.
  static size_t threads(const Config& config);
  // Unmounts and brings everything dirty to its origin, bounded by `patience_ms`. Returns false
  // when bytes were left.
  bool stop(int64_t patience_ms);

  // The program that somebody wants this process to become; SIGUSR2 says that there is one.
  std::optional<std::string> wanted_upgrade();
  // Becomes it. Returns when that is not possible, and tells who asked; all goes on as before then.
  // From the process's first thread.
  void upgrade(const std::string& binary);

 private:
  struct Peer {
    PeerConfig config;
    std::unique_ptr<AgentService> agent;
    std::unique_ptr<net::AgentSession> session;
    uint32_t home = GuardianTable::kHomesMax;  // its number in the guardian's table
    std::mutex mutex;                          // what follows
    bool connected = false;
    Instant since;
    std::string last_error;
    std::vector<wire::Export> exports;
    bool nothing_sent = false;  // there was no session yet, and programs wait already
    std::mutex bond_mutex;
    coherence::Bond bond;
  };

  // What comes of other nodes and of this one: to the home, as far as their rights go.
  void receive_from(net::SessionId session, coherence::ToHome&& message);
  void receive_own(coherence::ToHome&& message);
  Status start_tls();
  std::string reload_keys();
  std::unexpected<Error> bad_key(const std::string& key, const Error& error) const;
  Status open_stores();
  Status watch_exports();
  Status start_server();
  Status make_peers();
  Status start_peers();
  static unsigned readers_of(const Config& config);
  void make_fuse(unsigned threads);
  Status start_mount(std::function<void()> ended);
  // node_handover.cc
  Status take_over_homes();
  void hold_files();
  Status take_over_mount();
  Status take_from_guardian();
  size_t tell_losses();
  Status begin_after_takeover(std::function<void()> ended);
  void settle_own();
  Error hand_over(const std::string& binary);
  bool must_let_go();
  void let_go(Instant end);
  bool wait_until_quiet(int64_t patience_ms, std::string& why);
  std::string not_quiet();
  class LoopsBlocked;
  Result<Handover> leave() const;
  std::string ask_upgrade(const std::string& request);
  std::string upgrade_state() const;
  Status start_control();
  coherence::AgentOptions agent_options();
  AgentService::Environment environment();
  void connected(Peer& peer, const net::HomeInfo& info);
  void renew(Peer& peer, uint32_t generation);
  std::string name_of_session(NodeId node) const;
  bool is_peer(const std::string& name) const;  // of this node's file
  void watch_nodes();
  // What the homes here remember of an earlier incarnation, and note for a later one.
  void remember();
  // Now where what a session had is given to others: after a power failure it must not come back
  // and claim that. Not where one begins (its node would keep its bytes for people), or leaves with
  // nothing (it would be waited for): a cluster that starts has thousands.
  struct SessionsToSave {
    SessionsFile file;
    uint64_t number = 0;  // of the state that is saved
    Sync sync = Sync::Now;
  };
  SessionsToSave sessions_to_save(Sync sync);          // with sessions_mutex_
  void save_sessions(const SessionsToSave& sessions);  // without: every message needs that
  void end_grace_if_over();
  void leave_disk();
  // It has refused something, and does not say so twice: the next daemon's nodes are to hear of it.
  void break_disk();
  void forget_disk_life();
  bool disk_is_busy() const { return disk_threads_->busy() || home_->is_syncing(); }
  void bring_back();
  void tick();
  RecoveryWriter::Seen seen(const std::string& home, FileId file);
  // For the log, which names so many files of one event. Asks the kernel, and may wait for it.
  static constexpr size_t kNamedInTheLog = 20;
  std::string described(const std::string& home, FileId file);
  std::set<uint64_t> locks_lost(AgentService* agent, const LocksAtHome::AllHeld& lost,
                                const std::string& why);
  std::string path_in_kernel(AgentService* agent, FileId file) const;
  void note_paths(int64_t patience_ms);
  std::string control(const std::string& request);
  control::NodeStatus status() const;  // node_status.cc
  net::LaneStats lanes_of(const net::SessionInfo& session) const;
  net::LaneStats lanes_with(const Peer& peer, const std::vector<net::SessionInfo>& sessions) const;
  // node_blocked.cc
  std::string blocked() const;
  struct Blocked;
  void add_blocked(AgentService& agent, const std::string& home, Peer* peer, Instant now,
                   std::vector<Blocked>& found) const;
  void add_blocked_at_home(Instant now, std::vector<Blocked>& found) const;
  void name_files(std::vector<Blocked>& found) const;
  std::string namespace_json() const;
  std::vector<AgentService*> agents() const;
  std::vector<net::EventLoop*> loops() const;
  // All messages of a file use the same lane.
  static uint32_t lane_of(FileId file, uint32_t lanes);
  void tell_guardian();
  void tell_guardian_exports(const Peer& peer, const std::vector<wire::Export>& exports);
  void leave_homes(int64_t patience_ms);
  void purge_everything(int64_t patience_ms);

  const Config config_;
  const coherence::Mistakes mistakes_;
  GuardianLink* const guardian_;
  std::optional<Handover> before_;   // until it was taken over
  const uint64_t incarnation_;       // as an agent: as long as programs use the mount
  const uint64_t home_incarnation_;  // of the homes here: new with each daemon
  DiskLife disk_life_;
  std::atomic<bool> disk_life_is_known_ = true;  // to the next daemon
  std::mutex disk_mutex_;
  bool disk_is_broken_ = false;  // with disk_mutex_
  std::atomic<bool> has_had_guests_{false};
  const Instant started_;
  Metrics metrics_;
  bool allow_mmap_ = false;
  std::atomic<bool> ready_{false};
  std::atomic<const fuse::Channel*> notify_{nullptr};
  std::shared_ptr<net::Tls> tls_;  // null: plain
  const std::vector<ExportAccess> access_;
  const NodeRights own_rights_;
  SharedDirtyPool dirty_pool_;

  // In the order in which each needs those above it; destroyed in reverse.
  InodeTable inodes_;
  Exports exports_;
  std::vector<std::unique_ptr<net::EventLoop>> loops_;
  std::unique_ptr<net::EventLoop> door_;  // of other nodes' sessions here; may wait for the disk
  std::unique_ptr<HelperThreads> disk_threads_, purge_threads_;
  std::unique_ptr<RecoveryWriter> recovery_;
  std::mutex last_paths_mutex_;
  std::map<std::pair<std::string, FileId>, std::string> last_paths_;  // before the mount ended
  std::unique_ptr<KernelNames> kernel_names_;
  std::unique_ptr<LockCircles> circles_;
  std::unique_ptr<AgentService> local_agent_;
  std::vector<Fd> export_locks_;
  std::unique_ptr<HomeService> home_;
  std::unique_ptr<OutsideWatcher> outside_;
  std::unique_ptr<net::HomeServer> server_;
  mutable std::mutex sessions_mutex_;
  uint64_t sessions_changed_ = 0;   // how often; with it
  std::mutex sessions_file_mutex_;  // not with it
  uint64_t sessions_saved_ = 0, sessions_synced_ = 0;
  std::map<uint32_t, std::string> session_names_;
  std::map<uint32_t, coherence::Grace::Member> members_;  // the sessions that have leases
  coherence::Grace grace_;
  bool in_grace_ = false;
  std::atomic<bool> own_to_settle_{false};  // this machine's own agent brings back what it had
  net::Timer tick_timer_;
  Instant swept_;  // the first loop's
  struct SessionOfNode {
    uint32_t lanes = 0;
    std::shared_ptr<const NodeRights> rights;
  };
  std::map<uint32_t, SessionOfNode> node_sessions_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::optional<fuse::Mount> mount_;
  std::unique_ptr<FuseServer> fuse_;
  std::unique_ptr<control::ControlServer> control_;
  net::Timer guardian_timer_;

  struct Upgrade {
    bool running = false;
    std::string binary, refused;  // of the last one
    uint32_t done = 0;
    int64_t paused_ns = 0;  // the kernel, by the last one
  };
  mutable std::mutex upgrade_mutex_;
  Upgrade upgrade_;
};

}  // namespace vremote::node
