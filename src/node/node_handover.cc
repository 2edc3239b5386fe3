// `vremote upgrade`: this daemon becomes another program, in place, under a mount in use
// (docs/architecture.md, "Upgrades").
//
// Everything up to exec(2) can be taken back: a daemon that cannot be handed over goes on.
#include <fmt/format.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/start_thread.h"
#include "node/handover/new_program.h"
#include "node/node.h"

namespace vremote::node {

using namespace coherence;

namespace {

// How long a moment is looked for in which nothing is half done. Purges for other nodes' requests
// wait meanwhile; not those of leases that are over (let_go()).
constexpr int64_t kPatienceMs = 8'000;
// How long the kernel's requests may wait before another look; more each time, up to the latter.
constexpr int64_t kPauseMs = 200, kPauseMaxMs = 1600;
constexpr int64_t kLoopsMs = 500;

void sleep_ms(int64_t ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

}  // namespace

// ---- leaving

// While it lives, no loop runs anything; what was posted before has run.
class NodeDaemon::LoopsBlocked {
 public:
  // In this order: who is told things by others comes after them.
  explicit LoopsBlocked(const std::vector<net::EventLoop*>& loops)
      : state_(std::make_shared<State>()) {
    size_t blocked = 0;
    for (net::EventLoop* loop : loops) {
      loop->post([state = state_] {
        std::unique_lock lock(state->mutex);
        ++state->blocked;
        state->changed.notify_all();
        state->changed.wait(lock, [&] { return state->released; });
      });
      ++blocked;
      std::unique_lock lock(state_->mutex);
      state_->changed.wait(lock, [&] { return state_->blocked == blocked; });
    }
  }
  ~LoopsBlocked() {
    std::lock_guard lock(state_->mutex);
    state_->released = true;
    state_->changed.notify_all();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    size_t blocked = 0;
    bool released = false;
  };
  std::shared_ptr<State> state_;
};

std::optional<std::string> NodeDaemon::wanted_upgrade() {
  std::lock_guard lock(upgrade_mutex_);
  if (!upgrade_.running) return std::nullopt;
  return upgrade_.binary;
}

void NodeDaemon::upgrade(const std::string& binary) {
  spdlog::info("upgrade to {}", binary);
  const Error why = hand_over(binary);
  spdlog::error("no upgrade: {}; this daemon goes on", why.what);
  std::lock_guard lock(upgrade_mutex_);
  upgrade_.running = false;
  upgrade_.refused = why.what;
}

std::string NodeDaemon::ask_upgrade(const std::string& request) {
  std::string binary = control::request_text(request, "binary");
  if (binary.empty()) return control::error_reply("an upgrade must name the program ('binary')");
  {
    std::lock_guard lock(upgrade_mutex_);
    if (upgrade_.running) return control::error_reply("an upgrade is under way already");
    upgrade_.running = true;
    upgrade_.refused.clear();
    upgrade_.binary = std::move(binary);
  }
  std::string later;
  if (const std::string keys = keys_of_a_restart(config_); !keys.empty()) {
    later = fmt::format(
        "of what was changed in {} since the node was started, {} has to wait for a restart of the "
        "node: an upgrade leaves its guardian and its mount as they are",
        config_.file, keys);
    spdlog::warn("{}", later);
  }
  // The first thread does it: only for that one exec(2) keeps the process as others know it.
  ::kill(::getpid(), SIGUSR2);
  return nlohmann::json{{"upgrading", true}, {"waits_for_restart", later}}.dump();
}

std::string NodeDaemon::upgrade_state() const {
  std::lock_guard lock(upgrade_mutex_);
  return nlohmann::json{
      {"upgrades", upgrade_.done},   {"running", upgrade_.running},
      {"refused", upgrade_.refused}, {"ready", ready_.load()},
      {"version", VREMOTE_VERSION},  {"pid", ::getpid()},
      {"node", config_.node},        {"paused_ms", upgrade_.paused_ns / 1'000'000}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Why the daemon cannot be left just now; empty: it can. Nobody reads the kernel's requests.
std::string NodeDaemon::not_quiet() {
  if (guardian_ != nullptr && guardian_->table().guardian_in_charge())
    return "its guardian stands in for it";
  if (guardian_ != nullptr && !guardian_->knows_files())
    return "its guardian has not heard of all files without a name";
  if (!fuse_->can_be_handed_over())
    return "an operation is done and its caller not told yet: another node does not answer";
  for (AgentService* agent : agents()) {
    if (agent->must_let_go())
      return fmt::format("what is cached of {} has to go first", agent->home_name());
    if (!agent->idle_dirty())
      return fmt::format("written bytes do not get to {}: is it away?", agent->home_name());
    if (!agent->can_be_handed_over())
      return fmt::format("a write to a file of {} is half done", agent->home_name());
  }
  if (!home_->can_be_handed_over())
    return "an operation is done and its caller not told yet: another node does not answer";
  if (purge_threads_->busy())
    return "the kernel does not end a purge: it waits for a read that waits for another node";
  for (const auto& peer : peers_)
    if (!peer->session->kept())
      return fmt::format("the session with {} is being made anew", peer->config.name);
  return {};
}

bool NodeDaemon::must_let_go() {
  return std::ranges::any_of(agents(), [](AgentService* agent) { return agent->must_let_go(); });
}

// While leases are good, other nodes wait for the purges that are held. When they are over nobody
// does, and an origin that has restarted does not serve this node before these purges are done.
void NodeDaemon::let_go(Instant end) {
  if (!must_let_go()) return;
  for (AgentService* agent : agents()) agent->hold(false);
  while (net::EventLoop::now() < end && must_let_go()) sleep_ms(1);
  for (AgentService* agent : agents()) agent->hold(true);
}

bool NodeDaemon::wait_until_quiet(int64_t patience_ms, std::string& why) {
  for (int64_t waited = 0;; ++waited) {
    if (waited % 16 == 0)
      for (AgentService* agent : agents()) agent->flush_all();
    why = not_quiet();
    if (why.empty()) return true;
    if (waited >= patience_ms || must_let_go()) return false;
    sleep_ms(1);
  }
}

Error NodeDaemon::hand_over(const std::string& binary) {
  if (!ready_) return {EAGAIN, "the node is starting or ending"};
  if (!fuse_->capabilities().resend)
    return {EOPNOTSUPP,
            "this kernel cannot deliver requests again, which Linux 6.9 and later can: restart the "
            "node instead"};
  if (auto same = check_same_config(config_); !same) return same.error();
  if (auto checked = check_new_program(binary, config_); !checked) return checked.error();

  // The new program would have those of this one; but at the limit somebody else is quicker.
  if (auto had = threads_can_be_had(threads(config_)); !had) return had.error();

  for (AgentService* agent : agents()) agent->hold(true);
  const Instant end = net::EventLoop::now() + kPatienceMs * 1'000'000;
  Error why{EBUSY, "the node is too busy"};
  for (int64_t pause_ms = kPauseMs; net::EventLoop::now() < end;
       pause_ms = std::min(pause_ms * 2, kPauseMaxMs)) {
    let_go(end);
    // First while programs go on.
    for (AgentService* agent : agents()) agent->flush_all();
    for (Instant soon = net::EventLoop::now() + kPauseMs * 1'000'000;
         net::EventLoop::now() < soon && purge_threads_->busy() && !must_let_go();)
      sleep_ms(1);
    // exec(2) would wait for its thread, with the programs.
    while (home_->is_syncing() && net::EventLoop::now() < end) {
      let_go(end);
      sleep_ms(2);
    }
    if (home_->is_syncing()) {
      why.what = "the disk of an export is busy";
      break;
    }
    const Instant began = net::EventLoop::now();
    if (!fuse_->pause(kPauseMs)) continue;
    const int64_t left_ms = (end - net::EventLoop::now()) / 1'000'000;
    if (wait_until_quiet(std::min(pause_ms, left_ms), why.what)) {
      std::vector<net::EventLoop*> all = loops();
      std::ranges::reverse(all);
      all.push_back(door_.get());
      const LoopsBlocked blocked(all);
      // What they had begun ends; nothing new can begin but a look at changes made outside, which
      // the next daemon need not know of.
      for (int64_t waited = 0;
           waited < kLoopsMs && (disk_is_busy() || !not_quiet().empty()) && !must_let_go();
           ++waited)
        sleep_ms(1);
      why.what = disk_is_busy() ? "the disk does not end what was asked of it" : not_quiet();
      if (why.what.empty()) {
        auto left = leave();
        if (left) {
          left->began_ns = began.ns;
          auto bytes = encode(*left);
          auto memory = bytes ? write_handover(*bytes) : Result<Fd>(std::unexpected(bytes.error()));
          if (memory) {
            spdlog::info("becoming {}: {} inodes, {} KiB of state", binary, left->inodes.size(),
                         bytes->size() >> 10);
            why = become(binary, config_, left->descriptors(), memory->get());
          } else {
            why = memory.error();
          }
        } else {
          why = left.error();
        }
        fuse_->resume();
        break;
      }
    }
    fuse_->resume();
    sleep_ms(5);
  }
  for (AgentService* agent : agents()) agent->hold(false);
  return why;
}

Result<Handover> NodeDaemon::leave() const {
  Handover out;
  out.node = config_.node;
  out.cluster = config_.cluster;
  out.mount_path = mount_->path();
  out.incarnation = incarnation_;
  out.mount = fuse_->kept();
  {
    std::lock_guard lock(upgrade_mutex_);
    out.upgrades = upgrade_.done + 1;
  }
  std::map<const AgentService*, uint32_t> numbers;
  Handover::Home& own = out.homes.emplace_back();
  own.name = config_.node;
  own.kept = local_agent_->kept();
  own.kept.locks = home_->own_locks();
  numbers[local_agent_.get()] = 0;
  for (const auto& peer : peers_) {
    numbers[peer->agent.get()] = static_cast<uint32_t>(out.homes.size());
    Handover::Home& home = out.homes.emplace_back();
    home.name = peer->config.name;
    home.kept = peer->agent->kept();
    home.session = peer->session->kept();
    if (!home.session) return fail(EAGAIN, "a session is being made anew");
    {
      std::lock_guard lock(peer->mutex);
      home.exports = peer->exports;
    }
    std::lock_guard lock(peer->bond_mutex);
    home.bond = peer->bond.kept();
  }
  for (const InodeTable::Kept& kept : inodes_.kept(&out.next_node))
    out.inodes.push_back(
        {kept.inode.node, kept.lookups, numbers.at(kept.inode.agent), kept.inode.file});
  if (guardian_ != nullptr && guardian_->descriptor() >= 0)
    out.guardian = Handover::Guardian{guardian_->descriptor(), guardian_->table().descriptor(),
                                      guardian_->pid()};
  for (const store::Store::Held& held : home_->held())
    out.held.push_back({held.file, held.descriptor, held.pinned});
  return out;
}

// ---- taking over

Status NodeDaemon::take_over_homes() {
  for (const Handover::Home& home : before_->homes) {
    AgentService* agent = nullptr;
    for (AgentService* candidate : agents())
      if (candidate->home_name() == home.name) agent = candidate;
    if (agent == nullptr)
      return fail(EPROTO, fmt::format("the daemon before knew {}, this one does not", home.name));
    agent->take_over(home.kept);
    for (const wire::Export& e : home.exports)
      (void)exports_.add({e.name, agent, e.root, e.read_only});
  }
  return {};
}

// Before other nodes can ask for them: they come back as soon as this one listens, with bytes.
void NodeDaemon::hold_files() {
  for (const Handover::Held& held : before_->held)
    home_->hold(held.file, Fd(held.descriptor), held.pinned);
}

Status NodeDaemon::take_over_mount() {
  std::unordered_map<uint64_t, uint32_t> slots;
  if (guardian_ != nullptr) slots = guardian_->table().begin_anew();
  std::map<std::string, AgentService*> by_name;
  for (AgentService* agent : agents()) by_name[agent->home_name()] = agent;
  for (const Handover::Inode& i : before_->inodes) {
    auto slot = slots.find(i.node);
    const uint32_t known = slot == slots.end() ? GuardianTable::kNoSlot : slot->second;
    if (slot != slots.end()) slots.erase(slot);
    if (!inodes_.take_over({{i.node, by_name.at(before_->homes[i.home].name), i.file}, i.lookups},
                           known))
      return fail(EPROTO, "two inodes are one in what the daemon before has left");
  }
  inodes_.go_on_at(before_->next_node);
  if (guardian_ != nullptr)
    for (const auto& [node, slot] : slots) guardian_->table().remove_inode(slot);
  VR_TRY(mount, fuse::Mount::take_over(before_->mount_path, before_->mount.connection));
  mount_.emplace(std::move(mount));
  make_fuse(static_cast<unsigned>(before_->mount.channels.size()));
  fuse_->take_over(before_->mount);
  notify_ = fuse_->channel();
  for (const Handover::Home& home : before_->homes)
    for (const LockCall& lock : home.kept.locks)
      if (const auto node = inodes_.find(by_name.at(home.name), lock.file))
        fuse_->lock_is_held(*node, lock);
  return {};
}

// For a daemon that comes after a crash of this one.
void NodeDaemon::tell_guardian_exports(const Peer& peer, const std::vector<wire::Export>& exports) {
  std::vector<GuardianTable::Export> all;
  all.reserve(exports.size());
  for (const wire::Export& e : exports) all.push_back({e.name, peer.home, e.root, e.read_only});
  guardian_->table().set_exports(peer.home, all);
}

// The daemon before was killed: from here on this one answers, and a guardian of its own has what
// it will need. Not before: were this one to die now, the other guardian would go on.
Status NodeDaemon::take_from_guardian() {
  AfterCrash& crash = *before_->crash;
  GuardianTable& table = guardian_->table();
  const auto slots = table.slots();
  for (const Handover::Home& home : before_->homes) {
    AgentService* agent = nullptr;
    for (AgentService* candidate : agents())
      if (candidate->home_name() == home.name) agent = candidate;
    for (const KeptFile& file : home.kept.files) {
      const auto node = inodes_.find(agent, file.file);
      const auto slot = node ? slots.find(*node) : slots.end();
      if (slot == slots.end()) continue;
      table.set_opens(slot->second, {file.opens, file.reading_opens, file.mapping_opens});
      table.set_owes(slot->second, file.errors.error != 0);
    }
  }
  for (const auto& peer : peers_) tell_guardian_exports(*peer, peer->exports);
  table.set_early_deaths(crash.early_deaths);
  fuse_->after_crash(std::move(crash.unseen));
  VR_TRY_VOID(fuse_->arm_guardian());
  if (!crash.has_it()) return fail(EPIPE, "the guardian of the last daemon did not wait");
  return {};
}

// Whose bytes died with the daemon before; how many there are. Names are asked of the kernel, which
// asks this daemon.
size_t NodeDaemon::tell_losses() {
  std::vector<std::pair<std::string, FileId>> lost;
  for (const Handover::Home& home : before_->homes)
    for (const KeptFile& file : home.kept.files)
      if (file.errors.error != 0) lost.emplace_back(home.name, file.file);
  const size_t count = lost.size();
  lost.resize(std::min(count, kNamedInTheLog));
  purge_threads_->submit([this, lost = std::move(lost)] {
    for (const auto& [home, file] : lost)
      spdlog::error(
          "{}: bytes that programs had written and not flushed did not get to {} before the last "
          "daemon was killed: fsync tells them (EIO); if its guardian could keep some, "
          "`vremote recover --dir {} list` shows them",
          described(home, file), home, config_.recovery_dir);
  });
  return count;
}

// First all that was known, then all that was asked, then the purges, then other nodes.
Status NodeDaemon::begin_after_takeover(std::function<void()> ended) {
  VR_TRY_VOID(take_over_homes());
  VR_TRY_VOID(take_over_mount());
  if (before_->crash) VR_TRY_VOID(take_from_guardian());
  VR_TRY_VOID(fuse_->deliver_again());
  const bool same_sessions = !before_->crash;
  for (AgentService* agent : agents())
    agent->took_over(same_sessions && agent != local_agent_.get());
  VR_TRY_VOID(fuse_->serve_on(std::move(ended)));
  if (before_->crash) {
    spdlog::warn(
        "went on with the mount of the last daemon, which was killed: {} inodes; {} with bytes "
        "that are lost, {} locks that are",
        before_->inodes.size(), tell_losses(), before_->mount.lost.size());
    before_.reset();
    return {};
  }
  const int64_t paused = net::EventLoop::now().ns - before_->began_ns;
  spdlog::info("took over from the daemon before: {} inodes; programs waited for {} ms",
               before_->inodes.size(), paused / 1'000'000);
  std::lock_guard lock(upgrade_mutex_);
  upgrade_.paused_ns = paused;
  before_.reset();
  return {};
}

// What this machine had of its own exports is brought back when its kernel shows nothing of before.
void NodeDaemon::settle_own() {
  if (!own_to_settle_ || !local_agent_->brings_back()) return;
  own_to_settle_ = false;
  std::lock_guard lock(sessions_mutex_);
  grace_.settled(config_.node);
}

}  // namespace vremote::node
