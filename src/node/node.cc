#include "node/node.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>
#include <utility>

#include "base/random_number.h"
#include "intercept/namespace_json.h"
#include "node/process_setup.h"

namespace vremote::node {

using namespace coherence;

namespace {

constexpr size_t kDiskThreads = 16;
// Messages that wait for a home that is away. Programs that give up and try again add one each
// time.
constexpr size_t kQueuedForHomeMax = 65536;
constexpr int64_t kTickMs = 200;
constexpr int64_t kSweepNs = 60'000'000'000;
// Nobody waits for what such a node has, and it takes memory (and the blocks of unlinked files).
constexpr int64_t kCourtesyNs = int64_t{24} * 3600 * 1'000'000'000;
constexpr int64_t kTellGuardianNs = 100'000'000;
constexpr int64_t kSettledNs = 500'000'000;
constexpr int kPurgeWaitsForWriteBacks = 6016;  // Linux 6.16, "fuse: remove tmp folio" (rule K9)

std::vector<net::EventLoop*> raw(const std::vector<std::unique_ptr<net::EventLoop>>& loops) {
  std::vector<net::EventLoop*> out;
  for (const auto& loop : loops) out.push_back(loop.get());
  return out;
}

std::vector<ExportAccess> access_of(const Config& config) {
  std::vector<ExportAccess> all;
  for (const ExportConfig& e : config.exports) all.push_back(e.access);
  return all;
}

// On a file system that is mounted read-only every flush would fail, long after its write returned:
// who writes is told at once (EROFS), as with `read_only`.
Config as_mounted(Config config) {
  for (ExportConfig& e : config.exports) {
    struct statvfs disk {};
    if (e.access.read_only || ::statvfs(e.path.c_str(), &disk) != 0 ||
        (disk.f_flag & ST_RDONLY) == 0)
      continue;
    spdlog::warn(
        "export {}: {} is on a file system that is mounted read-only: nobody can write to it "
        "(EROFS) until that is changed and this node restarted; read_only = true says that it is "
        "meant",
        e.name, e.path);
    e.access.read_only = true;
    e.access.writers.reset();
  }
  return config;
}

// Two daemons over one directory would be two homes of each file, and neither would know what the
// other gives away. The lock goes with this process; over an upgrade it is taken anew.
Result<Fd> take_export(const std::string& path) {
  Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid())
    return fail(errno, fmt::format("cannot open {}: {}", path, std::strerror(errno)));
  if (::flock(directory.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return fail(EBUSY,
                  fmt::format("another node of this machine exports {} (or a program holds a "
                              "flock(2) on it); stop it or export another directory",
                              path));
    // Some network file systems have no such locks.
    spdlog::debug("export {}: no lock: {}", path, std::strerror(errno));
  }
  return directory;
}

uint32_t lane_of(FileId file, uint32_t lanes) {
  return static_cast<uint32_t>(FileIdHash{}(file) / 7 % lanes);
}

}  // namespace

NodeDaemon::NodeDaemon(const Config& config, Mistakes mistakes, GuardianLink* guardian,
                       std::optional<Handover> before)
    : config_(as_mounted(config)),
      mistakes_(mistakes),
      guardian_(guardian),
      before_(std::move(before)),
      // Of a daemon that was killed the homes must free what it had.
      incarnation_(before_ && !before_->crash ? before_->incarnation : random_number()),
      home_incarnation_(random_number()),
      started_(net::EventLoop::now()),
      lease_clock_started_(AgentService::lease_clock()),
      allow_mmap_(kernel_version() >= kPurgeWaitsForWriteBacks),
      access_(access_of(config)),
      own_rights_(NodeRights::own(access_)),
      dirty_pool_(config_.dirty_max_bytes / 2) {
  if (before_) upgrade_.done = before_->upgrades;
}

NodeDaemon::~NodeDaemon() = default;

Status NodeDaemon::start(std::function<void()> ended) {
  if (!allow_mmap_)
    spdlog::warn(
        "this kernel is older than 6.16: writable shared mappings are refused (ENODEV), all else "
        "is as coherent as ever");
  for (unsigned i = 0; i < config_.loops; ++i)
    loops_.push_back(std::make_unique<net::EventLoop>("vremote-net" + std::to_string(i)));
  disk_threads_ = std::make_unique<HelperThreads>("vremote-disk", kDiskThreads);
  purge_threads_ = std::make_unique<HelperThreads>("vremote-purge", HelperThreads::kUnbounded);
  recovery_ = std::make_unique<RecoveryWriter>(
      config_.recovery_dir, *disk_threads_,
      [this](const std::string& home, FileId file) { return seen(home, file); });
  if (auto prepared = recovery_->prepare(); !prepared)
    spdlog::warn(
        "key 'recovery_dir': {}; what cannot be flushed to an origin in time will be lost instead "
        "of kept there",
        prepared.error().what);
  if (const uint64_t files = recovery_->files(); files > 0)
    spdlog::warn("{} files of unflushed bytes wait in {}: `vremote recover list` shows them", files,
                 config_.recovery_dir);
  kernel_names_ = std::make_unique<KernelNames>(*purge_threads_, *loops_.front(), mistakes_);
  circles_ = std::make_unique<LockCircles>(*loops_.front());
  VR_TRY_VOID(start_tls());
  VR_TRY_VOID(start_control());
  VR_TRY_VOID(open_stores());
  if (before_) hold_files();
  watch_exports();
  VR_TRY_VOID(start_server());
  if (before_) {
    VR_TRY_VOID(make_peers());
    VR_TRY_VOID(begin_after_takeover(std::move(ended)));
  } else {
    VR_TRY_VOID(start_mount(std::move(ended)));
    VR_TRY_VOID(make_peers());
  }
  VR_TRY_VOID(start_peers());
  watch_nodes();
  if (guardian_ != nullptr) loops_.front()->post([this] { tell_guardian(); });
  ready_ = true;
  spdlog::info("node {} serves {} with {} exports and {} peers", config_.node, config_.mount,
               config_.exports.size(), config_.peers.size());
  return {};
}

void NodeDaemon::receive_from(net::SessionId session, ToHome&& message) {
  std::shared_ptr<const NodeRights> rights;
  uint32_t lanes = 0;
  {
    std::lock_guard lock(sessions_mutex_);
    auto it = node_sessions_.find(session);
    if (it == node_sessions_.end()) return;  // gone
    rights = it->second.rights;
    lanes = it->second.lanes;
  }
  const FileId file = file_of(message);
  NodeRights::Verdict verdict = rights->judge(message);
  if (auto* refusal = std::get_if<ToAgent>(&verdict)) {
    if (auto sent = server_->send(session, lane_of(file, lanes), *refusal); !sent)
      spdlog::error("a message cannot be sent: {}", sent.error().what);
  } else if (std::holds_alternative<NodeRights::Pass>(verdict)) {
    home_->receive(NodeId{session}, std::move(message));
  }
}

void NodeDaemon::receive_own(ToHome&& message) {
  NodeRights::Verdict verdict = own_rights_.judge(message);
  if (auto* refusal = std::get_if<ToAgent>(&verdict)) {
    local_agent_->receive(std::move(*refusal));
  } else if (std::holds_alternative<NodeRights::Pass>(verdict)) {
    home_->receive(NodeId{0}, std::move(message));
  }
}

AgentOptions NodeDaemon::agent_options() {
  AgentOptions options;
  options.writable_mappings = allow_mmap_;
  options.settle_ns = fuse::OwnView::possible() ? AgentService::kSettlePatience : 0;
  // One half for whoever needs it, the other in equal parts: a home that is away, whose bytes stay,
  // leaves the others' writers some room.
  options.dirty_max_bytes = config_.dirty_max_bytes / 2 / (config_.peers.size() + 1);
  options.dirty_pool = &dirty_pool_;
  options.flush_after_ns = config_.flush_after_ms * 1'000'000;
  options.mistakes = mistakes_;
  return options;
}

AgentService::Environment NodeDaemon::environment() {
  return {.inodes = &inodes_,
          .purge_threads = purge_threads_.get(),
          .metrics = &metrics_,
          .loops = raw(loops_),
          .notify_channel = [this] { return notify_.load(); },
          .kernel_names = kernel_names_.get(),
          .own_view = [this]() -> fuse::OwnView* {
            return notify_.load() == nullptr ? nullptr : &fuse_->mount_view();
          },
          .rescue = [this](const std::string& home,
                           Rescue&& rescue) { recovery_->keep(home, std::move(rescue)); },
          .guardian = guardian_ != nullptr ? &guardian_->table() : nullptr,
          .take_back =
              [this] {
                if (guardian_ != nullptr && notify_.load() != nullptr && guardian_->has_requests())
                  fuse_->take_back();
              },
          .circles = circles_.get()};
}

// What the user mends there.
std::unexpected<Error> NodeDaemon::bad_key(const std::string& key, const Error& error) const {
  return fail(error.code, fmt::format("{}: key '{}': {}", config_.file, key, error.what));
}

Status NodeDaemon::open_stores() {
  std::error_code error;
  std::filesystem::create_directories(config_.home_dir, error);
  if (!error) ::chmod(config_.home_dir.c_str(), 0700);
  std::vector<std::unique_ptr<store::Store>> stores;
  for (size_t i = 0; i < config_.exports.size(); ++i) {
    store::Options options;
    options.judge_callers = config_.exports[i].access.root_squash;
    options.journal = config_.home_dir + "/" + config_.exports[i].name + ".files";
    if (guardian_ != nullptr) {
      options.nameless = [this](FileId file, int path) { guardian_->keep(file, path); };
      options.nameless_gone = [this](FileId file) { guardian_->let_go(file); };
    }
    auto store = store::Store::open(config_.exports[i].path, static_cast<uint32_t>(i), options);
    if (!store && store.error().code != 0 && !options.journal.empty()) {
      // Without it handles of other nodes do not outlive a crash of this daemon.
      options.journal.clear();
      auto without = store::Store::open(config_.exports[i].path, static_cast<uint32_t>(i), options);
      if (without)
        spdlog::warn(
            "export {}: cannot keep in {} what other nodes have open: {}; it will not outlive this "
            "daemon",
            config_.exports[i].name, config_.home_dir, store.error().what);
      store = std::move(without);
    }
    const std::string key = fmt::format("export[{}].path", i);
    if (!store) return bad_key(key, store.error());
    auto alone = take_export(config_.exports[i].path);
    if (!alone) return bad_key(key, alone.error());
    export_locks_.push_back(std::move(*alone));
    stores.push_back(std::move(*store));
  }
  home_ = std::make_unique<HomeService>(
      std::move(stores), *disk_threads_, metrics_,
      [this](NodeId node, FileId file, ToAgent&& message) {
        if (node.value == 0) {
          local_agent_->receive(std::move(message));
          return;
        }
        uint32_t lanes = 0;
        {
          std::lock_guard lock(sessions_mutex_);
          auto it = node_sessions_.find(node.value);
          if (it == node_sessions_.end()) return;  // gone
          lanes = it->second.lanes;
        }
        if (auto sent = server_->send(node.value, lane_of(file, lanes), message); !sent)
          spdlog::error("a message cannot be sent: {}", sent.error().what);
      },
      [this](NodeId node, const std::string& reason) {
        spdlog::error(
            "session {} breaks the protocol: {}; it is not heard any more, and ends when its "
            "leases are over",
            node.value, reason);
        if (node.value != 0) server_->silence(node.value);
      },
      [this](NodeId node, bool stop) {
        if (node.value == 0) return;
        stop ? server_->pause(node.value) : server_->resume(node.value);
      },
      mistakes_);
  local_agent_ = std::make_unique<AgentService>(
      config_.node, agent_options(), true,
      [this](FileId, ToHome&& message) { receive_own(std::move(message)); }, environment());
  local_agent_->can_follow(true);
  circles_->add(local_agent_.get(), [this](uint64_t owner) {
    return home_->holds_range({.node = NodeId{0}, .id = owner});
  });
  home_->on_follows([this](NodeId node) {
    return node.value == 0 || (server_->features(node.value) & wire::kFollowsWaits) != 0;
  });
  for (size_t i = 0; i < config_.exports.size(); ++i)
    exports_.add({config_.exports[i].name, local_agent_.get(), home_->root(i),
                  config_.exports[i].access.read_only});
  if (guardian_ != nullptr) {
    inodes_.show_to(&guardian_->table());
    const uint32_t home = guardian_->table().add_home(config_.node);
    // Nobody but this daemon can give what it has of its own home to others.
    guardian_->table().renew(home, GuardianTable::kForEver);
    inodes_.add_home(local_agent_.get(), home);
  }
  return {};
}

// Before anybody can cache anything.
void NodeDaemon::watch_exports() {
  outside_ = std::make_unique<OutsideWatcher>(*home_);
  for (size_t i = 0; i < config_.exports.size(); ++i)
    if (const std::string& why = outside_->why_not(i); !why.empty())
      spdlog::warn("export {}: changes made in {} itself are not noticed: {}; use the mount",
                   config_.exports[i].name, config_.exports[i].path, why);
}

// A damaged or missing state is told of, and then nobody is waited for: nodes that come back keep
// their bytes for people.
void NodeDaemon::remember() {
  if (config_.exports.empty()) return;
  auto log = std::make_unique<CallLog>();
  if (auto opened = log->open(config_.home_dir + "/calls"); !opened) {
    spdlog::warn("{}; calls of other nodes that are under way when this daemon dies end with EIO",
                 opened.error().what);
  } else {
    home_->remember_calls(std::move(log), [this](NodeId node) -> uint64_t {
      std::lock_guard lock(sessions_mutex_);
      auto it = members_.find(node.value);
      return it == members_.end() ? 0 : it->second.incarnation;
    });
  }
  home_->on_brought_back([this](NodeId node, bool left) {
    std::lock_guard lock(sessions_mutex_);
    auto it = members_.find(node.value);
    if (it == members_.end()) return;
    grace_.settled(it->second.node);
    if (!left) return;
    members_.erase(it);
    save_sessions();
  });
  auto sessions = read_sessions(config_.home_dir + "/sessions");
  if (!sessions) {
    spdlog::error("{}", sessions.error().what);
    if (!before_) return;
    sessions = SessionsFile{};
  }
  // What this machine's own processes had comes back the same way.
  const bool brings_back = before_ && !before_->crash;
  if (brings_back) sessions->members.push_back({config_.node, incarnation_});
  own_to_settle_ = brings_back;
  if (sessions->members.empty()) {
    home_->no_grace(config_.node);
    return;
  }
  const int64_t ms = std::max({sessions->term_ms, config_.lease_term_ms, config_.grace_ms});
  spdlog::info("{} nodes had sessions here: they have {:.1f} s to bring back what they had",
               sessions->members.size() - (brings_back ? 1 : 0), static_cast<double>(ms) / 1000);
  grace_ = Grace(std::move(sessions->members), net::EventLoop::now() + ms * 1'000'000);
  in_grace_ = true;
  home_->begin_grace();
}

void NodeDaemon::save_sessions() {
  if (config_.exports.empty()) return;
  SessionsFile file{.term_ms = config_.lease_term_ms, .members = {}};
  for (const auto& [id, member] : members_) file.members.push_back(member);
  for (const Grace::Member& member : grace_.expected())
    if (member.node != config_.node &&
        std::ranges::find(file.members, member) == file.members.end())
      file.members.push_back(member);
  if (auto saved = write_sessions(config_.home_dir + "/sessions", file); !saved)
    spdlog::error(
        "sessions are not remembered: {}; a restart of this daemon would not wait for them",
        saved.error().what);
}

void NodeDaemon::end_grace_if_over() {
  std::vector<net::SessionId> late;
  {
    std::lock_guard lock(sessions_mutex_);
    if (!in_grace_ || !grace_.over(net::EventLoop::now())) return;
    in_grace_ = false;
    for (const Grace::Member& member : grace_.expected()) {
      spdlog::warn("{} did not bring back in time what it had: it is free", member.node);
      for (const auto& [session, here] : members_)
        if (here == member) late.push_back(session);
    }
    grace_ = Grace();
    save_sessions();
  }
  // R5: what they still send is from before.
  for (net::SessionId session : late) home_->is_too_late(NodeId{session});
  spdlog::info("what was brought back is here; requests are served");
  home_->end_grace();
}

// To homes that have restarted: when nothing of before is left, they hear of it.
void NodeDaemon::bring_back() {
  settle_own();
  for (auto& peer : peers_) {
    {
      std::lock_guard lock(peer->bond_mutex);
      if (!peer->bond.bringing_back()) continue;
    }
    if (!peer->agent->brings_back()) continue;
    std::optional<FileId> file;
    {
      std::lock_guard lock(peer->mutex);
      if (!peer->exports.empty()) file = peer->exports.front().root;
    }
    {
      std::lock_guard lock(peer->bond_mutex);
      peer->bond.brought_back();
    }
    if (file) peer->agent->call({}, ReclaimCall{*file, true, {}}, [](Reply&&) {});
  }
}

Status NodeDaemon::start_server() {
  remember();
  net::HomeServerOptions options;
  options.address = to_string(config_.listen);
  options.cluster = config_.cluster;
  options.node_name = config_.node;
  options.incarnation = home_incarnation_;
  options.tls = tls_;
  options.lease_term_ms = static_cast<uint32_t>(config_.lease_term_ms);
  options.silence_max_ms = std::min(options.silence_max_ms, config_.lease_term_ms * 4 / 5);
  options.alive_ms = std::min(options.alive_ms, config_.lease_term_ms / 2);
  net::HomeServer::Callbacks callbacks;
  callbacks.exports = [this](const std::string& name) {
    std::vector<wire::Export> out;
    for (size_t i = 0; i < config_.exports.size(); ++i)
      if (access_[i].may_read(name))
        out.push_back({.name = config_.exports[i].name,
                       .export_index = static_cast<uint32_t>(i),
                       .root = home_->root(i),
                       .read_only = !access_[i].may_write(name),
                       .path = config_.exports[i].path});
    return out;
  };
  callbacks.on_session = [this](const net::SessionInfo& info) {
    spdlog::info("{} at {} opens session {}", info.node_name, info.address, info.id);
    std::lock_guard lock(sessions_mutex_);
    node_sessions_[info.id] = {info.lanes,
                               std::make_shared<const NodeRights>(access_, info.node_name)};
    session_names_[info.id] = info.node_name;
    const Grace::Member member{info.node_name, info.incarnation};
    home_->came_back(info.node_name);
    // It was started anew: it has nothing of before.
    if (!grace_.may_reclaim(member, net::EventLoop::now())) grace_.settled(info.node_name);
    members_[info.id] = member;
    save_sessions();
  };
  callbacks.may_reclaim = [this](const std::string& node, uint64_t incarnation) {
    std::lock_guard lock(sessions_mutex_);
    return grace_.may_reclaim({node, incarnation}, net::EventLoop::now());
  };
  callbacks.on_message = [this](net::SessionId session, uint32_t, ToHome&& message) {
    receive_from(session, std::move(message));
  };
  callbacks.on_reset = [this](net::SessionId session, const std::string& why) {
    spdlog::warn("session {} is over: {}; its leases are free", session, why);
    std::string name;
    bool is_back = false;
    {
      std::lock_guard lock(sessions_mutex_);
      node_sessions_.erase(session);
      if (auto it = session_names_.find(session); it != session_names_.end()) {
        name = std::move(it->second);
        session_names_.erase(it);
      }
      for (const auto& [other, others_name] : session_names_)
        is_back = is_back || others_name == name;
      members_.erase(session);
      save_sessions();  // before anybody gets what it had
    }
    home_->node_gone(NodeId{session}, name, is_back);
  };
  callbacks.on_hopeless = [this](net::SessionId session, const std::string& why) {
    home_->give_up(NodeId{session}, why);
  };
  server_ = std::make_unique<net::HomeServer>(raw(loops_), options, std::move(callbacks));
  if (auto listening = server_->start(); !listening)
    return fail(listening.error().code, config_.file + ": key 'listen': " + listening.error().what);
  for (auto& loop : loops_) loop->start();
  return {};
}

void NodeDaemon::connected(Peer& peer, const net::HomeInfo& info) {
  spdlog::info("connected to {} at {} ({}), {} exports", info.node_name,
               to_string(peer.config.address), info.fresh ? "new session" : "session goes on",
               info.exports.size());
  {
    std::lock_guard lock(peer.mutex);
    peer.connected = true;
    peer.since = net::EventLoop::now();
    peer.last_error.clear();
    peer.exports = info.exports;
  }
  // Before this, what the agent sends still belongs to the old session and is dropped; from here on
  // it goes to the new one. The reset asks for everything anew.
  peer.generation = info.generation;
  peer.agent->can_follow((info.features & wire::kFollowsWaits) != 0);
  std::optional<Agent::Dirty> dirty;
  {
    std::lock_guard lock(peer.bond_mutex);
    dirty = peer.bond.connected({.generation = info.generation,
                                 .home_incarnation = info.incarnation,
                                 .may_reclaim = info.may_reclaim,
                                 .term_ns = info.lease_term_ms * int64_t{1'000'000}});
  }
  if (dirty) {
    recovery_->next(peer.config.name);
    peer.agent->reset(*dirty, std::exchange(peer.nothing_sent, false));
  }
  {
    std::lock_guard lock(peer.bond_mutex);
    peer.bond.begun();
  }
  renew(peer, info.generation);
  if (guardian_ != nullptr) tell_guardian_exports(peer, info.exports);
  for (const wire::Export& e : info.exports) {
    const auto before = exports_.find(e.name);
    const bool shown = exports_.add({e.name, peer.agent.get(), e.root, e.read_only});
    if (!shown)
      spdlog::error("export {} of {} is hidden: another node exports that name; rename one of them",
                    e.name, peer.config.name);
    if (before && shown && before->root != e.root) kernel_names_->end_all();
  }
  if (const fuse::Channel* channel = notify_.load())
    (void)channel->invalidate_attributes(FUSE_ROOT_ID);  // one directory more in it
}

Status NodeDaemon::make_peers() {
  for (const PeerConfig& config : config_.peers) {
    auto peer = std::make_unique<Peer>();
    Peer& p = *peer;
    p.config = config;
    p.since = net::EventLoop::now();
    p.bond = Bond(mistakes_);
    net::AgentSessionOptions options;
    options.address = to_string(config.address);
    options.cluster = config_.cluster;
    options.node_name = config_.node;
    options.home_name = config.name;
    options.tls = tls_;
    options.incarnation = incarnation_;
    options.lanes = config_.loops;
    const auto* home = [&]() -> const Handover::Home* {
      if (!before_) return nullptr;
      auto it = std::ranges::find(before_->homes, config.name, &Handover::Home::name);
      return it == before_->homes.end() ? nullptr : &*it;
    }();
    if (before_ && before_->crash) {
      p.bond.take_over({.home_incarnation = 0, .was_broken = true, .bringing_back = false});
      if (home != nullptr) p.exports = home->exports;
      p.generation = ~0u;
      p.nothing_sent = true;
    } else if (home != nullptr) {
      if (!home->session || home->session->lanes.size() != options.lanes)
        return fail(EPROTO, "what the daemon before has left is of another configuration");
      options.kept = home->session;
      p.bond.take_over(home->bond);
      p.exports = home->exports;
      // What it had sent belongs to the session that goes on; of one that is over nothing is sent
      // before the next has begun.
      p.generation = home->bond.was_broken ? ~0u : 1;
    }
    const uint32_t lanes = config_.loops;
    AgentOptions agent = agent_options();
    agent.lease_at_start = false;
    agent.soft_ns = config_.soft_timeout_ms * 1'000'000;
    AgentService::Environment environment_of_peer = environment();
    environment_of_peer.backlogged = [&p] {
      return p.session->queued_messages() > kQueuedForHomeMax;
    };
    p.agent = std::make_unique<AgentService>(
        config.name, agent, false,
        [&p, lanes](FileId file, ToHome&& message) {
          if (auto sent = p.session->send(lane_of(file, lanes), message, p.generation); !sent)
            spdlog::error("a message cannot be sent: {}", sent.error().what);
        },
        std::move(environment_of_peer));
    circles_->add(p.agent.get(),
                  [agent = p.agent.get()](uint64_t owner) { return agent->holds_range(owner); });
    if (guardian_ != nullptr) {
      p.home = guardian_->table().add_home(config.name);
      inodes_.add_home(p.agent.get(), p.home);
    }
    net::AgentSession::Callbacks callbacks;
    callbacks.on_message = [&p](uint32_t, ToAgent&& message) {
      p.agent->receive(std::move(message));
    };
    callbacks.on_connected = [this, &p](const net::HomeInfo& info) { connected(p, info); };
    callbacks.on_disconnected = [&p](const Error& why) {
      std::lock_guard lock(p.mutex);
      if (p.connected) p.since = net::EventLoop::now();
      p.connected = false;
      p.last_error = why.what;
      spdlog::warn("{}: {}", p.config.name, why.what);
    };
    callbacks.on_renewed = [this, &p](uint32_t generation) { renew(p, generation); };
    callbacks.on_reset = [this, &p](const std::string& why) {
      {
        // Before the next session can renew anything.
        std::lock_guard lock(p.bond_mutex);
        p.bond.broken();
      }
      if (guardian_ != nullptr) guardian_->table().renew(p.home, GuardianTable::clock().ns);
      p.agent->renew(Instant{});
      spdlog::warn("{}: {}; the leases it gave are void", p.config.name, why);
    };
    p.session = std::make_unique<net::AgentSession>(raw(loops_), options, std::move(callbacks));
    peers_.push_back(std::move(peer));
  }
  return {};
}

Status NodeDaemon::start_peers() {
  for (const auto& peer : peers_)
    if (auto started = peer->session->start(); !started)
      return fail(started.error().code,
                  config_.file + ": key 'peer.address': " + started.error().what);
  return {};
}

Instant NodeDaemon::leases_end(Peer& peer) {
  std::lock_guard lock(peer.bond_mutex);
  return Bond::leases_end(peer.session->renewed_at(), peer.bond.term_ns());
}

void NodeDaemon::renew(Peer& peer, uint32_t generation) {
  std::optional<Instant> until;
  {
    std::lock_guard lock(peer.bond_mutex);
    until = peer.bond.renewed(generation, peer.session->renewed_at(), AgentService::lease_clock());
  }
  if (!until) return;
  // First, lest the daemon stops in between.
  if (guardian_ != nullptr) guardian_->table().renew(peer.home, until->ns);
  peer.agent->renew(*until);
}

void NodeDaemon::watch_nodes() {
  HomeService::Watch watch;
  watch.options.term_ns = config_.lease_term_ms * 1'000'000;
  watch.options.warn_ns = config_.recall_warn_ms * 1'000'000;
  watch.options.deadline_ns = config_.recall_deadline_ms * 1'000'000;
  watch.options.hasty = mistakes_.has(Mistake::HandOnTooEarly);
  watch.heard = [this](NodeId node) { return server_->last_heard(node.value); };
  const auto name_of = [this](NodeId node) {
    std::lock_guard lock(sessions_mutex_);
    auto it = session_names_.find(node.value);
    return it == session_names_.end() ? fmt::format("session {}", node.value) : it->second;
  };
  watch.fence = [this, name_of](const Patience::Verdict& v) {
    spdlog::error("{} is put out: {} (inode {} of export {}; {:.1f} s)", name_of(v.node), v.why,
                  v.file.inode, v.file.export_index, static_cast<double>(v.waited_ns) / 1e9);
    server_->end_session(v.node.value, v.why);
  };
  watch.silence = [this, name_of](const Patience::Verdict& v) {
    spdlog::error(
        "{}: {} (inode {} of export {}; {:.1f} s): it is not heard any more, and put out "
        "when its leases are over",
        name_of(v.node), v.why, v.file.inode, v.file.export_index,
        static_cast<double>(v.waited_ns) / 1e9);
    server_->silence(v.node.value);
  };
  watch.report = [name_of](const Patience::Verdict& v) {
    spdlog::warn("{}: {} for {:.1f} s (inode {} of export {}); others wait", name_of(v.node), v.why,
                 static_cast<double>(v.waited_ns) / 1e9, v.file.inode, v.file.export_index);
  };
  home_->watch(std::move(watch));
  loops_.front()->post([this] { tick(); });
}

void NodeDaemon::tick() {
  const Instant now = net::EventLoop::now();
  home_->tick(now);
  end_grace_if_over();
  bring_back();
  if (config_.soft_timeout_ms > 0)
    for (auto& peer : peers_)
      if (AgentService::lease_clock() >
          std::max(leases_end(*peer), lease_clock_started_) + config_.soft_timeout_ms * 1'000'000)
        peer->agent->fail_calls();
  if (now - swept_ > kSweepNs) {
    swept_ = now;
    for (const net::SessionInfo& session : server_->sessions())
      if (const auto heard = server_->last_heard(session.id); heard && now - *heard > kCourtesyNs)
        server_->end_session(session.id, "its node was not heard of for a day");
  }
  tick_timer_ = loops_.front()->call_after(kTickMs * 1'000'000, [this] { tick(); });
}

// For the recovery file: how people would find the file.
RecoveryWriter::Seen NodeDaemon::seen(const std::string& home, FileId file) {
  if (notify_.load() == nullptr) return {};
  for (AgentService* agent : agents()) {
    if (agent->home_name() != home) continue;
    const std::optional<uint64_t> node = inodes_.find(agent, file);
    if (!node) return {};
    auto fd = fuse_->mount_view().open(*node);
    if (!fd) return {};
    std::array<char, 4096> path;
    const ssize_t length =
        ::readlink(fmt::format("/proc/self/fd/{}", fd->get()).c_str(), path.data(), path.size());
    struct statx st {};
    RecoveryWriter::Seen out;
    if (length > 0) out.path.assign(path.data(), static_cast<size_t>(length));
    if (!out.path.starts_with(config_.mount + "/") || out.path.ends_with(" (deleted)"))
      out.path.clear();
    if (::statx(fd->get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &st) == 0)
      out.inode = st.stx_ino;
    return out;
  }
  return {};
}

Status NodeDaemon::start_mount(std::function<void()> ended) {
  fuse::MountOptions options;
  options.name = "vremote:" + config_.node;
  options.allow_suid = config_.mount_suid;
  auto mount = fuse::Mount::mount(config_.mount, options);
  if (!mount) return bad_key("mount", mount.error());
  mount_.emplace(std::move(*mount));
  FuseServerOptions server;
  // A request wakes another reader than the one that has just become free: on two processors a
  // second reader costs more than it gives.
  server.threads = std::max(1u, config_.loops / 2);
  server.readahead_kib = config_.readahead_kib;
  server.allow_mmap = allow_mmap_;
  server.loop = loops_.front().get();
  server.guardian = guardian_;
  server.helpers = purge_threads_.get();
  server.circles = circles_.get();
  fuse_ =
      std::make_unique<FuseServer>(*mount_, exports_, inodes_, *kernel_names_, metrics_, server);
  VR_TRY_VOID(fuse_->start(std::move(ended)));
  notify_ = fuse_->channel();
  for (const std::string& lack : fuse_->lacks()) spdlog::warn("this kernel: {}", lack);
  return {};
}

// That this daemon lives.
void NodeDaemon::tell_guardian() {
  GuardianTable& table = guardian_->table();
  table.alive(GuardianTable::clock());
  // What the daemon before died of is not met by going on with its mount, or not at once.
  if (ready_ && net::EventLoop::now() - started_ > kSettledNs) table.set_early_deaths(0);
  if (guardian_->guarded() && table.guardian_in_charge())
    purge_threads_->submit([this] { fuse_->take_back(); });
  guardian_timer_ = loops_.front()->call_after(kTellGuardianNs, [this] { tell_guardian(); });
}

Status NodeDaemon::start_control() {
  control::Access access{.mode = config_.control_mode,
                         .group = {},
                         // What only tells. What changes something, or names files of others
                         // ("blocked"), is for the node's user.
                         .open_requests = {"ping", "status", "namespace"}};
  if (!config_.control_group.empty()) {
    VR_TRY(group, group_number(config_.control_group));
    access.group = group;
  }
  auto server = control::ControlServer::start(
      config_.control_socket, [this](const std::string& request) { return control(request); },
      std::move(access));
  if (!server)
    return bad_key(config_.control_socket == config_.state_dir + "/control.sock" ? "state_dir"
                                                                                 : "control.socket",
                   server.error());
  control_ = std::move(*server);
  return {};
}

bool NodeDaemon::stop(int64_t patience_ms) {
  ready_ = false;
  const Instant deadline = net::EventLoop::now() + patience_ms * 1'000'000;
  if (mount_) {
    // The kernel writes back what is dirty in mappings: the server goes on serving meanwhile.
    auto how = mount_->unmount();
    if (!how) {
      spdlog::error("unmount of {}: {}", config_.mount, how.error().what);
    } else if (*how == fuse::UnmountHow::Lazy) {
      spdlog::warn("{} is in use: it ends for its last users with an error", config_.mount);
      // A program that went on writing would keep the rest from ever being flushed.
      if (fuse_) fuse_->refuse_writes();
      purge_everything(std::min<int64_t>(patience_ms, 1000));
    }
  }
  for (AgentService* agent : agents()) agent->flush_all();
  bool clean = false;
  Instant next_word = net::EventLoop::now() + 1'000'000'000;
  for (;;) {
    clean = true;
    for (AgentService* agent : agents()) clean = clean && agent->idle_dirty();
    const Instant now = net::EventLoop::now();
    if (clean || now >= deadline) break;
    if (now >= next_word) {
      next_word = now + 1'000'000'000;
      uint64_t left = 0;
      for (AgentService* agent : agents()) left += agent->counts().dirty_bytes;
      spdlog::info("flushing: {} KiB left", left >> 10);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  if (!clean)
    for (AgentService* agent : agents())
      if (const uint64_t left = agent->counts().dirty_bytes; left > 0)
        spdlog::error("{} bytes for {} were not flushed: it could not be reached in time", left,
                      agent->home_name());
  if (mount_) (void)mount_->abort();
  if (fuse_) fuse_->join();
  if (!clean) {
    // Nobody will flush them any more.
    for (auto& peer : peers_)
      if (!peer->agent->idle_dirty()) peer->agent->reset(Agent::Dirty::Fenced);
    if (!recovery_->wait(std::max<int64_t>(patience_ms, 1000)))
      spdlog::error("some of them could not be kept in {}: they are lost", config_.recovery_dir);
  }
  if (clean) {
    // What programs did, and were told to be done, until the mount ended.
    for (AgentService* agent : agents()) agent->flush_all();
    for (int64_t waited = 0; waited < std::min<int64_t>(patience_ms, 1000); waited += 2) {
      clean =
          std::ranges::all_of(agents(), [](AgentService* agent) { return agent->idle_dirty(); });
      if (clean) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  if (outside_) outside_->stop();
  leave_homes(std::min<int64_t>(patience_ms, 1000));
  // What other nodes have written here and not flushed is better on this disk before this node is
  // gone.
  if (home_ && server_ && !home_->gather(std::min<int64_t>(patience_ms, 2000)))
    spdlog::warn("some nodes did not give their dirty data back in time; they keep it");
  control_.reset();
  if (!loops_.empty())
    loops_.front()->run_and_wait([this] {
      tick_timer_.cancel();
      if (circles_) circles_->stop();
    });
  for (auto& peer : peers_) peer->session->stop();
  if (server_) server_->stop();
  // Timers and helpers bring work to one another until the last of them has ended: each still finds
  // the other, which takes no more.
  for (auto& loop : loops_) {
    loop->stop();
    loop->join();
  }
  purge_threads_->stop();
  disk_threads_->stop();
  return clean;
}

// What is still open or mapped must not go on being read from the page cache once nobody keeps it
// true. Dirty mapped pages come back to us as write-backs, and go to their origins with the rest.
void NodeDaemon::purge_everything(int64_t patience_ms) {
  const fuse::Channel* channel = notify_.load();
  if (channel == nullptr) return;
  auto waiting = std::make_shared<std::atomic<int>>(1);
  purge_threads_->submit([channel, waiting, nodes = inodes_.nodes()] {
    for (uint64_t node : nodes) (void)channel->invalidate_data(node, 0, 0);
    waiting->fetch_sub(1);
  });
  for (int64_t waited = 0; waiting->load() > 0 && waited < patience_ms; waited += 2)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

// Tells the homes that nothing is held any more, so that no other node waits for this one.
void NodeDaemon::leave_homes(int64_t patience_ms) {
  auto waiting = std::make_shared<std::atomic<int>>(0);
  for (auto& peer : peers_) {
    std::optional<FileId> file;
    {
      std::lock_guard lock(peer->mutex);
      if (peer->connected && !peer->exports.empty()) file = peer->exports.front().root;
    }
    if (!file) continue;
    waiting->fetch_add(1);
    peer->agent->call({}, LeaveCall{*file}, [waiting](Reply&&) { waiting->fetch_sub(1); });
  }
  for (int64_t waited = 0; waiting->load() > 0 && waited < patience_ms; waited += 2)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

std::vector<AgentService*> NodeDaemon::agents() const {
  std::vector<AgentService*> out;
  if (local_agent_) out.push_back(local_agent_.get());
  for (const auto& peer : peers_)
    if (peer->agent) out.push_back(peer->agent.get());
  return out;
}

// ---- the control socket

std::string NodeDaemon::control(const std::string& request) {
  auto name = control::request_name(request);
  if (!name) return control::error_reply(name.error().what);
  if (*name == "ping") return "{\"pong\":true}";
  if (*name == "upgrade_state") return upgrade_state();
  if (!ready_) {
    if (*name == "status")
      return control::to_json(control::NodeStatus{
          .node = config_.node, .cluster = config_.cluster, .mount = config_.mount});
    return control::error_reply("the node is starting or ending");
  }
  if (*name == "status") return control::to_json(status());
  if (*name == "namespace") return namespace_json();
  if (*name == "blocked") return blocked();
  if (*name == "upgrade") return ask_upgrade(request);
  if (*name == "keys") return reload_keys();
  return control::error_reply(
      "unknown request '" + *name +
      "'; known are status, blocked, namespace, upgrade, upgrade_state, keys and ping");
}

std::string NodeDaemon::namespace_json() const {
  intercept::Namespace names;
  names.mount = config_.mount;
  for (const ExportConfig& e : config_.exports) names.exports.push_back({e.name, e.path, true});
  for (const auto& peer : peers_) {
    std::lock_guard lock(peer->mutex);
    for (const wire::Export& e : peer->exports) names.exports.push_back({e.name, e.path, false});
  }
  return intercept::to_json(names);
}

control::NodeStatus NodeDaemon::status() const {
  control::NodeStatus s;
  const Instant now = net::EventLoop::now();
  s.node = config_.node;
  s.cluster = config_.cluster;
  s.incarnation = incarnation_;
  s.version = VREMOTE_VERSION;
  s.pid = getpid();
  s.uptime_ms = (now - started_) / 1'000'000;
  s.mount = config_.mount;
  s.tls = config_.tls;
  s.ready = true;
  const auto sessions = server_->sessions();
  std::array<uint64_t, wire::kFrameTypes> messages_in{}, messages_out{};
  for (const auto& peer : peers_) {
    control::PeerStatus p;
    p.name = peer->config.name;
    p.address = to_string(peer->config.address);
    {
      std::lock_guard lock(peer->mutex);
      p.connected = peer->connected;
      p.since_ms = (now - peer->since) / 1'000'000;
      p.last_error = peer->last_error;
    }
    net::LaneStats sum;
    for (const net::LaneStats& lane : peer->session->stats()) sum += lane;
    for (const net::SessionInfo& session : sessions)
      if (session.node_name == p.name)
        for (const net::LaneStats& lane : server_->stats(session.id)) sum += lane;
    p.encrypted = sum.encrypted;
    p.older_key = sum.older_key;
    p.bytes_in = sum.bytes_in;
    p.bytes_out = sum.bytes_out;
    // Messages of the protocol; pings and acknowledgements of the transport count as bytes only.
    for (size_t type = 0; type < wire::kFrameTypes; ++type) {
      const auto frame = static_cast<wire::FrameType>(type);
      if (!wire::is_to_home(frame) && !wire::is_to_agent(frame)) continue;
      p.messages_in += sum.messages_in[type];
      p.messages_out += sum.messages_out[type];
      messages_in[type] += sum.messages_in[type];
      messages_out[type] += sum.messages_out[type];
    }
    s.peers.push_back(std::move(p));
  }
  const HomeCounts home = home_->counts();
  for (size_t i = 0; i < config_.exports.size(); ++i)
    s.exports.push_back({config_.exports[i].name, config_.exports[i].path,
                         home_->store_counts(i).known, sessions.size(),
                         outside_->why_not(i).empty(), outside_->why_not(i)});
  AgentStatistics statistics;
  AgentCounts counts;
  for (AgentService* agent : agents()) {
    counts += agent->counts();
    statistics += agent->statistics();
  }
  s.leases.shared = {counts.shared_ranges, counts.shared_pages};
  s.leases.exclusive = {counts.exclusive_ranges, counts.exclusive_pages};
  s.dirty_bytes += counts.dirty_bytes;
  s.leases.granted_shared = {home.shared_ranges, home.shared_pages};
  s.leases.granted_exclusive = {home.exclusive_ranges, home.exclusive_pages};
  s.resident_ranges = counts.resident_pages;
  control::add_metrics(metrics_, s);
  auto set = [&](std::string_view name, uint64_t value) {
    for (auto& [key, counter] : s.counters) {
      if (key != name) continue;
      counter = value;
      return;
    }
    s.counters.emplace_back(name, value);
  };
  set("fills", statistics.fills);
  set("direct_reads", statistics.direct_reads);
  set("direct_writes", statistics.direct_writes);
  set("write_backs", statistics.write_backs);
  set("hits_without_message",
      statistics.hits_without_message + metrics_.get(Counter::HitsWithoutMessage));
  set("recalls_received", statistics.recalls);
  set("purges", statistics.purges);
  set("size_pushes", statistics.size_pushes);
  set("size_announcements", statistics.announcements);
  set("fetches", statistics.fetches);
  set("flushes", statistics.flushes);
  set("flush_bytes", statistics.flush_bytes);
  set("lease_requests", statistics.lease_requests);
  set("void_fetches", statistics.void_fetches);
  set("write_backs_without_exclusive", statistics.write_backs_without_exclusive);
  set("resident_pages", counts.resident_pages);
  set("requests_waiting", counts.waiting);
  set("leases_suspended", counts.suspended);
  set("lease_suspensions", statistics.suspensions);
  set("rescued_bytes", statistics.rescued_bytes);
  set("guarded", guardian_ != nullptr && guardian_->guarded() ? 1 : 0);
  set("recovery_files", recovery_->files());
  set("outside_overflows", outside_->overflows());
  set("home_files", home.files);
  set("home_requests_waiting", home.waiting);
  set("home_recalls_pending", home.recalls);
  const HomeService::LockCounts locks = home_->lock_counts();
  set("home_locks", locks.held);
  set("home_locks_waiting", locks.waiting);
  set("kernel_inodes", inodes_.size());
  set("purge_threads", purge_threads_->threads());
  const KernelNames::Counts names = kernel_names_->counts();
  set("kernel_names", names.names);
  set("kernel_name_expiries", names.expiries);
  set("kernel_name_epochs", names.epochs);
  for (size_t type = 0; type < wire::kFrameTypes; ++type) {
    const auto frame = static_cast<wire::FrameType>(type);
    if (!wire::is_to_home(frame) && !wire::is_to_agent(frame)) continue;
    std::string name = wire::to_string(frame);
    std::replace(name.begin(), name.end(), ' ', '_');
    std::replace(name.begin(), name.end(), '-', '_');
    set("messages_in_" + name, messages_in[type]);
    set("messages_out_" + name, messages_out[type]);
  }
  return s;
}

}  // namespace vremote::node
