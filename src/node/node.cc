#include "node/node.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/random_number.h"
#include "node/config/config_error.h"
#include "node/process_setup.h"

namespace vremote::node {

using namespace coherence;

namespace {

constexpr size_t kDiskThreads = 16;
constexpr int64_t kTickMs = 200;
constexpr int64_t kEndPatienceMs = 2000;
constexpr int64_t kSweepNs = 60'000'000'000;
// Nobody waits for what such a node has, and it takes memory (and the blocks of unlinked files).
constexpr int64_t kCourtesyNs = int64_t{24} * 3600 * 1'000'000'000;
constexpr int kPurgeWaitsForWriteBacks = 6016;  // Linux 6.16, "fuse: remove tmp folio" (rule K9)

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
      allow_mmap_(kernel_version() >= kPurgeWaitsForWriteBacks),
      access_(access_of(config)),
      own_rights_(NodeRights::own(access_)),
      dirty_pool_(config_.dirty_max_bytes / 2) {
  if (before_) upgrade_.done = before_->upgrades;
}

NodeDaemon::~NodeDaemon() = default;

// Loops and readers of the mount; the door, the control socket, the watch of the exports, one
// helper of each kind; the guardian, and its own. Each peer's name may take one that looks it up.
size_t NodeDaemon::threads(const Config& config) {
  return config.loops + readers_of(config) + 8 + config.peers.size();
}

Status NodeDaemon::start(std::function<void()> ended) {
  if (!allow_mmap_)
    spdlog::warn(
        "this kernel is older than 6.16: writable shared mappings are refused (ENODEV), all else "
        "is as coherent as ever");
  for (unsigned i = 0; i < config_.loops; ++i)
    loops_.push_back(std::make_unique<net::EventLoop>("vremote-net" + std::to_string(i)));
  door_ = std::make_unique<net::EventLoop>("vremote-door");
  disk_threads_ = std::make_unique<HelperThreads>("vremote-disk", kDiskThreads);
  purge_threads_ = std::make_unique<HelperThreads>("vremote-purge", HelperThreads::kUnbounded);
  VR_TRY_VOID(disk_threads_->begin());
  VR_TRY_VOID(purge_threads_->begin());
  recovery_ = std::make_unique<RecoveryWriter>(
      config_.recovery_dir, *disk_threads_,
      [this](const std::string& home, FileId file) { return seen(home, file); });
  if (auto prepared = recovery_->prepare(); !prepared)
    spdlog::warn(
        "key 'recovery_dir': {}; what cannot be flushed to an origin in time will be lost instead "
        "of kept there",
        prepared.error().what);
  if (const uint64_t files = recovery_->files(); files > 0)
    spdlog::warn("{} files of unflushed bytes wait: `vremote recover --dir {} list` shows them",
                 files, config_.recovery_dir);
  kernel_names_ = std::make_unique<KernelNames>(
      *purge_threads_, *loops_.front(), guardian_ != nullptr ? &guardian_->table() : nullptr,
      mistakes_);
  circles_ = std::make_unique<LockCircles>(*loops_.front());
  VR_TRY_VOID(start_tls());
  VR_TRY_VOID(start_control());
  VR_TRY_VOID(open_stores());
  if (before_) hold_files();
  VR_TRY_VOID(watch_exports());
  VR_TRY_VOID(start_server());
  if (before_) {
    VR_TRY_VOID(make_peers());
    VR_TRY_VOID(begin_after_takeover(std::move(ended)));
  } else {
    VR_TRY_VOID(start_mount(std::move(ended)));
    VR_TRY_VOID(make_peers());
  }
  VR_TRY_VOID(start_peers());
  loops_.front()->post([this] { tick(); });
  if (guardian_ != nullptr) loops_.front()->post([this] { tell_guardian(); });
  ready_ = true;
  spdlog::info("node {} serves {} with {} exports and {} peers", config_.node, config_.mount,
               config_.exports.size(), config_.peers.size());
  return {};
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
          .loops = loops(),
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
          .circles = circles_.get(),
          .locks_lost = [this](AgentService* agent, const LocksAtHome::AllHeld& lost,
                               const std::string& why) { return locks_lost(agent, lost, why); }};
}

// What the user mends there.
std::unexpected<Error> NodeDaemon::bad_key(const std::string& key, const Error& error) const {
  return node::bad_key(config_, key, error);
}

void NodeDaemon::tick() {
  const Instant now = net::EventLoop::now();
  home_->tick(now);
  if (has_had_guests_) home_->sync_when_due(now);
  end_grace_if_over();
  bring_back();
  for (auto& peer : peers_) {
    if (config_.soft_timeout_ms > 0) peer->agent->fail_late_calls();
    peer->agent->let_closers_go();
  }
  if (now - swept_ > kSweepNs) {
    swept_ = now;
    for (const net::SessionInfo& session : server_->sessions())
      if (const auto heard = server_->last_heard(session.id); heard && now - *heard > kCourtesyNs)
        server_->end_session(session.id, "its node was not heard of for a day");
  }
  disk_threads_->help();
  purge_threads_->help();
  tick_timer_ = loops_.front()->call_after(kTickMs * 1'000'000, [this] { tick(); });
}

bool NodeDaemon::stop(int64_t patience_ms) {
  const bool was_ready = ready_;
  ready_ = false;
  const Instant deadline = net::EventLoop::now() + patience_ms * 1'000'000;
  note_paths(std::min<int64_t>(patience_ms, 1000));
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
  bool served = false;
  if (mount_) {
    if (auto aborted = mount_->abort(notify_.load()); !aborted) {
      spdlog::warn("{}: {}", config_.mount, aborted.error().what);
      mount_->detach_unseen();
      served = fuse_ && !fuse_->join(kEndPatienceMs);
    }
  }
  if (fuse_ && !served) fuse_->join();
  if (!clean) {
    // Nobody will flush them any more.
    for (auto& peer : peers_)
      if (!peer->agent->idle_dirty()) peer->agent->reset(Agent::Dirty::Fenced, {});
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
  if (door_) {
    door_->stop();
    door_->join();
  }
  purge_threads_->stop();
  disk_threads_->stop();
  if (home_ && has_had_guests_ && disk_life_is_known_) leave_disk();
  if (served) {
    // Readers that wait in the kernel have no other end than that of the last descriptor.
    spdlog::warn("{} is still used, and ends with this process", config_.mount);
    if (guardian_ != nullptr) guardian_->quit();
    spdlog::default_logger()->flush();
    ::_exit(clean && was_ready ? 0 : 1);
  }
  return clean;
}

// So that a machine that is started anew in order is not taken for one that lost its power.
void NodeDaemon::leave_disk() {
  const auto synced = home_->sync_all();
  if (!synced) {
    spdlog::error("not all that was written here gets to the disk: {}; nodes are told (EIO)",
                  std::strerror(synced.error().code));
    break_disk();
  }
  // What it has refused once it does not tell again.
  std::lock_guard lock(disk_mutex_);
  if (disk_is_broken_) return;
  if (const auto noted = end_disk_life(config_.home_dir + "/disk", disk_life_); !noted)
    spdlog::warn("{}", noted.error().what);
}

void NodeDaemon::break_disk() {
  std::lock_guard lock(disk_mutex_);
  if (std::exchange(disk_is_broken_, true) || !disk_life_is_known_) return;
  const auto noted = break_disk_life(config_.home_dir + "/disk", disk_life_, random_number());
  if (noted) return;
  spdlog::warn("{}", noted.error().what);
  forget_disk_life();
}

void NodeDaemon::forget_disk_life() {
  disk_life_is_known_ = false;
  (void)::unlink((config_.home_dir + "/disk").c_str());
}

std::vector<net::EventLoop*> NodeDaemon::loops() const {
  std::vector<net::EventLoop*> out;
  for (const auto& loop : loops_) out.push_back(loop.get());
  return out;
}

std::vector<AgentService*> NodeDaemon::agents() const {
  std::vector<AgentService*> out;
  if (local_agent_) out.push_back(local_agent_.get());
  for (const auto& peer : peers_)
    if (peer->agent) out.push_back(peer->agent.get());
  return out;
}

}  // namespace vremote::node
