// What this node is to others: the home of the files that it exports.
#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "base/private_directory.h"
#include "base/start_thread.h"
#include "node/home/home_limits.h"
#include "node/node.h"

namespace vremote::node {

using namespace coherence;

namespace {

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

}  // namespace

Status NodeDaemon::open_stores() {
  if (auto made = make_private_directory(config_.home_dir); !made) {
    if (made.error().code == EPERM) return bad_key("state_dir", made.error());
    spdlog::warn("key 'state_dir': {}", made.error().what);
  }
  const Machine machine = this_machine();
  std::vector<std::unique_ptr<store::Store>> stores;
  for (size_t i = 0; i < config_.exports.size(); ++i) {
    store::Options options;
    options.judge_callers = config_.exports[i].access.root_squash;
    options.unreferenced_max = files_remembered(machine);
    options.journal = config_.home_dir + "/" + config_.exports[i].name + ".files";
    options.full = [name = config_.exports[i].name](uint64_t limit) {
      spdlog::warn(
          "export {}: of the {} descriptors that this daemon may have too few are left, and "
          "without file handles each file it knows takes one: others cannot be opened (ENFILE) "
          "until the kernels forget some; raise the limit (ulimit -n, LimitNOFILE=)",
          name, limit);
    };
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
    if (const size_t lost = (*store)->lost_of_journal(); lost > 0)
      spdlog::warn(
          "{}: its last {} bytes are not legible, as after a power failure or damage: files that "
          "other nodes have open may be ESTALE there, until they are opened anew",
          options.journal, lost);
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
            "{} breaks the protocol: {}; it is not heard any more, and its session ends when its "
            "leases are over",
            name_of_session(node), reason);
        if (node.value != 0) server_->silence(node.value);
      },
      [this](NodeId node, bool stop) {
        if (node.value == 0) return;
        stop ? server_->pause(node.value) : server_->resume(node.value);
      },
      mistakes_, home_limits(machine, static_cast<uint64_t>(config_.leases_max)));
  std::vector<std::string> names;
  for (const ExportConfig& each : config_.exports) names.push_back(each.name);
  home_->name_exports(std::move(names));
  home_->on_refused_sync([this] { break_disk(); });
  local_agent_ = std::make_unique<AgentService>(
      config_.node, agent_options(), true,
      [this](FileId, ToHome&& message, uint32_t) { receive_own(std::move(message)); },
      environment());
  local_agent_->can_follow(true);
  circles_->add(local_agent_.get(), [this](uint64_t owner) {
    return home_->holds_range({.node = NodeId{0}, .id = owner});
  });
  home_->on_follows([this](NodeId node) {
    return node.value == 0 || (server_->features(node.value) & wire::kFollowsWaits) != 0;
  });
  std::vector<GuardianTable::Export> own;
  for (size_t i = 0; i < config_.exports.size(); ++i) {
    const ExportConfig& each = config_.exports[i];
    exports_.add({each.name, local_agent_.get(), home_->root(i), each.access.read_only});
    own.push_back({each.name, 0, home_->root(i), each.access.read_only});
  }
  if (guardian_ != nullptr) {
    inodes_.show_to(&guardian_->table());
    const uint32_t home = guardian_->table().add_home(config_.node);
    for (GuardianTable::Export& each : own) each.home = home;
    guardian_->table().set_exports(home, own);
    // Nobody but this daemon can give what it has of its own home to others.
    guardian_->table().renew(home, GuardianTable::kForEver);
    inodes_.add_home(local_agent_.get(), home);
  }
  return {};
}

// Before anybody can cache anything.
Status NodeDaemon::watch_exports() {
  try {
    outside_ = std::make_unique<OutsideWatcher>(*home_);
  } catch (const std::system_error& error) {
    return std::unexpected(thread_refused(error.code()));
  }
  for (size_t i = 0; i < config_.exports.size(); ++i)
    if (const std::string& why = outside_->why_not(i); !why.empty())
      spdlog::warn("export {}: changes made in {} itself are not noticed: {}; use the mount",
                   config_.exports[i].name, config_.exports[i].path, why);
  return {};
}

Status NodeDaemon::start_server() {
  remember();
  net::HomeServerOptions options;
  options.address = to_string(config_.listen);
  options.cluster = config_.cluster;
  options.node_name = config_.node;
  options.incarnation = home_incarnation_;
  options.disk_life = disk_life_.number;
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
    spdlog::info("{} at {} opens session {}{}", info.node_name, info.address, info.id,
                 is_peer(info.node_name)
                     ? ""
                     : "; no [[peer]] here has its name: what it exports is not shown");
    // It has a key that is good here, so ours may be good there.
    if (ready_)
      for (const auto& peer : peers_)
        if (peer->config.name == info.node_name) peer->session->hurry();
    SessionsToSave sessions;
    const auto rights = std::make_shared<const NodeRights>(access_, info.node_name);
    {
      std::lock_guard lock(sessions_mutex_);
      node_sessions_[info.id] = {info.lanes, rights};
      session_names_[info.id] = info.node_name;
      has_had_guests_ = true;
      const Grace::Member member{info.node_name, info.incarnation, info.epoch};
      home_->came_back(info.node_name);
      grace_.came(member, net::EventLoop::now());
      members_[info.id] = member;
      sessions = sessions_to_save(Sync::Soon);
    }
    save_sessions(sessions);
  };
  callbacks.may_reclaim = [this](const net::SessionInfo& info) {
    std::lock_guard lock(sessions_mutex_);
    return grace_.may_reclaim({info.node_name, info.incarnation, info.epoch},
                              net::EventLoop::now());
  };
  callbacks.on_message = [this](net::SessionId session, uint32_t, ToHome&& message) {
    receive_from(session, std::move(message));
  };
  callbacks.on_reset = [this](net::SessionId session, const std::string& why) {
    std::string name;
    bool is_back = false;
    std::optional<SessionsToSave> sessions;
    {
      std::lock_guard lock(sessions_mutex_);
      node_sessions_.erase(session);
      if (auto it = session_names_.find(session); it != session_names_.end()) {
        name = std::move(it->second);
        session_names_.erase(it);
      }
      for (const auto& [other, others_name] : session_names_)
        is_back = is_back || others_name == name;
      if (members_.erase(session) > 0) sessions = sessions_to_save(Sync::Now);
    }
    spdlog::warn("session {} of {} is over: {}; its leases are free", session, name, why);
    // Before anybody gets what it had; one that has left had nothing.
    if (sessions) save_sessions(*sessions);
    home_->node_gone(NodeId{session}, name, is_back);
  };
  callbacks.on_hopeless = [this](net::SessionId session, const std::string& why) {
    home_->give_up(NodeId{session}, why);
  };
  server_ = std::make_unique<net::HomeServer>(*door_, loops(), options, std::move(callbacks));
  watch_nodes();  // before the first message comes
  if (auto listening = server_->start(); !listening) return bad_key("listen", listening.error());
  for (auto& loop : loops_) VR_TRY_VOID(loop->start());
  return door_->start();
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

uint32_t NodeDaemon::lane_of(FileId file, uint32_t lanes) {
  return static_cast<uint32_t>(FileIdHash{}(file) / 7 % lanes);
}

bool NodeDaemon::is_peer(const std::string& name) const {
  return std::ranges::find(config_.peers, name, &PeerConfig::name) != config_.peers.end();
}

std::string NodeDaemon::name_of_session(NodeId node) const {
  std::lock_guard lock(sessions_mutex_);
  auto it = session_names_.find(node.value);
  return it == session_names_.end() ? fmt::format("session {}", node.value) : it->second;
}

void NodeDaemon::watch_nodes() {
  HomeService::Watch watch;
  watch.options.term_ns = config_.lease_term_ms * 1'000'000;
  watch.options.warn_ns = config_.recall_warn_ms * 1'000'000;
  watch.options.deadline_ns = config_.recall_deadline_ms * 1'000'000;
  watch.options.hasty = mistakes_.has(Mistake::HandOnTooEarly);
  watch.heard = [this](NodeId node) { return server_->last_heard(node.value); };
  watch.fence = [this](const Patience::Verdict& v) {
    spdlog::error("{} is put out: {} ({}; {:.1f} s)", name_of_session(v.node), v.why,
                  home_->described(v.file), static_cast<double>(v.waited_ns) / 1e9);
    server_->end_session(v.node.value, v.why);
  };
  watch.silence = [this](const Patience::Verdict& v) {
    spdlog::error(
        "{}: {} ({}; {:.1f} s): it is not heard any more, and put out when its leases are over",
        name_of_session(v.node), v.why, home_->described(v.file),
        static_cast<double>(v.waited_ns) / 1e9);
    server_->silence(v.node.value);
  };
  watch.report = [this](const Patience::Verdict& v) {
    spdlog::warn("{}: {} for {:.1f} s ({}); others wait", name_of_session(v.node), v.why,
                 static_cast<double>(v.waited_ns) / 1e9, home_->described(v.file));
  };
  home_->watch(std::move(watch));
}

}  // namespace vremote::node
