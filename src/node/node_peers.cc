// The homes of other nodes: sessions with them, and until when what they gave is good.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "node/node.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Messages that wait for a home that is away. Programs that give up and try again add one each
// time.
constexpr size_t kQueuedForHomeMax = 65536;

}  // namespace

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
    uint32_t first_session = 0;
    const auto* home = [&]() -> const Handover::Home* {
      if (!before_) return nullptr;
      auto it = std::ranges::find(before_->homes, config.name, &Handover::Home::name);
      return it == before_->homes.end() ? nullptr : &*it;
    }();
    if (before_ && before_->crash) {
      p.bond.take_over({.was_broken = true});
      if (home != nullptr) p.exports = home->exports;
      first_session = ~0u;
      p.nothing_sent = true;
    } else if (home != nullptr) {
      if (!home->session || home->session->lanes.size() != options.lanes)
        return fail(EPROTO, "what the daemon before has left is of another configuration");
      options.kept = home->session;
      p.bond.take_over(home->bond);
      p.exports = home->exports;
      // What it had sent belongs to the session that goes on; of one that is over nothing is sent
      // before the next has begun.
      first_session = home->bond.was_broken ? ~0u : 1;
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
        [&p, lanes](FileId file, ToHome&& message, uint32_t session) {
          if (auto sent = p.session->send(lane_of(file, lanes), message, session); !sent)
            spdlog::error("a message cannot be sent: {}", sent.error().what);
        },
        std::move(environment_of_peer));
    p.agent->begin_session(first_session);
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
      spdlog::info("{}: {}; what it gave is asked for anew", p.config.name, why);
    };
    p.session = std::make_unique<net::AgentSession>(loops(), options, std::move(callbacks));
    peers_.push_back(std::move(peer));
  }
  return {};
}

Status NodeDaemon::start_peers() {
  for (const auto& peer : peers_)
    if (auto started = peer->session->start(); !started)
      return bad_key("peer.address", started.error());
  return {};
}

void NodeDaemon::connected(Peer& peer, const net::HomeInfo& info) {
  spdlog::info("connected to {} at {} ({}), {} exports", info.node_name,
               to_string(peer.config.address), info.fresh ? "new session" : "session goes on",
               info.exports.size());
  {
    std::lock_guard lock(peer.mutex);
    peer.last_error.clear();
    peer.exports = info.exports;
  }
  peer.agent->can_follow((info.features & wire::kFollowsWaits) != 0);
  std::optional<Agent::Dirty> dirty;
  bool disk_has_lost = false;
  {
    std::lock_guard lock(peer.bond_mutex);
    dirty = peer.bond.connected({.generation = info.generation,
                                 .home_incarnation = info.incarnation,
                                 .may_reclaim = info.may_reclaim,
                                 .term_ns = info.lease_term_ms * int64_t{1'000'000},
                                 .disk_life = info.disk_life});
    disk_has_lost = peer.bond.disk_has_lost();
  }
  if (disk_has_lost)
    spdlog::warn(
        "{} has started anew after a power failure: what was flushed there and not synced may be "
        "lost; fsync tells whom it concerns (EIO)",
        peer.config.name);
  // Of a session that there was.
  if (dirty == Agent::Dirty::Kept) {
    spdlog::info("{} has been restarted or upgraded: it is brought back what this node had",
                 peer.config.name);
  } else if (dirty && !peer.nothing_sent) {
    spdlog::warn(
        "{} has ended the session of before: what was not flushed to it is kept here (`vremote "
        "recover`), locks are lost",
        peer.config.name);
  }
  if (dirty) {
    recovery_->next(peer.config.name);
    // Until then, what the agent sends still belongs to the old session and is dropped. This asks
    // for everything anew.
    peer.agent->reset(*dirty, {.session = info.generation,
                               .nothing_sent = std::exchange(peer.nothing_sent, false),
                               .disk_has_lost = disk_has_lost});
  } else {
    peer.agent->begin_session(info.generation);
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
  // Whoever is told so finds its exports.
  std::lock_guard lock(peer.mutex);
  peer.connected = true;
  peer.since = net::EventLoop::now();
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

}  // namespace vremote::node
