// What the home here remembers over a restart: which nodes had sessions, and what they bring back
// (docs/protocol.md, "A home that restarts").
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "base/durable_file.h"
#include "base/random_number.h"
#include "node/node.h"

namespace vremote::node {

using namespace coherence;

// A damaged or missing state is told of, and then nobody is waited for: nodes that come back keep
// their bytes for people.
void NodeDaemon::remember() {
  if (config_.exports.empty()) return;
  auto life = begin_disk_life(config_.home_dir + "/disk", boot_id(), random_number());
  if (life) {
    disk_life_ = std::move(*life);
  } else {
    spdlog::warn(
        "{}; nodes will take each start of this daemon for a power failure of this machine",
        life.error().what);
    disk_life_ = {.boot = "unknown", .number = random_number(), .synced = false};
  }
  if (!disk_life_.synced) home_->begin_unsynced();
  auto log = std::make_unique<CallLog>();
  // Whoever does not know what was carried out must not do it again. A disk that has begun a new
  // life is told to nodes so that they do not ask for it (S3).
  const auto askers = [this] {
    std::set<uint64_t> incarnations;
    std::lock_guard lock(sessions_mutex_);
    for (const auto& [id, member] : members_) incarnations.insert(member.incarnation);
    for (const Grace::Member& member : grace_.expected()) incarnations.insert(member.incarnation);
    return incarnations;
  };
  if (auto opened = log->open(config_.home_dir + "/calls", askers, [this] { forget_disk_life(); });
      !opened) {
    forget_disk_life();
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
    SessionsToSave sessions;
    {
      std::lock_guard lock(sessions_mutex_);
      auto it = members_.find(node.value);
      if (it == members_.end()) return;
      grace_.settled(it->second.node);
      if (!left) return;
      spdlog::info("session {} of {} has left", node.value, it->second.node);
      members_.erase(it);
      sessions = sessions_to_save(Sync::Soon);
    }
    save_sessions(sessions);
  });
  home_->on_may_bring_back([this](NodeId node) {
    if (node.value == 0) return true;
    std::lock_guard lock(sessions_mutex_);
    const auto it = members_.find(node.value);
    return it != members_.end() && grace_.may_reclaim(it->second, net::EventLoop::now());
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

NodeDaemon::SessionsToSave NodeDaemon::sessions_to_save(Sync sync) {
  SessionsToSave out{.file = {.term_ms = config_.lease_term_ms, .members = {}},
                     .number = ++sessions_changed_,
                     .sync = sync};
  SessionsFile& file = out.file;
  for (const auto& [id, member] : members_) file.members.push_back(member);
  auto expected = grace_.expected();
  std::erase_if(expected, [&](const Grace::Member& m) { return m.node == config_.node; });
  file.members = with_expected(std::move(file.members), expected);
  return out;
}

void NodeDaemon::save_sessions(const SessionsToSave& sessions) {
  if (config_.exports.empty()) return;
  const std::lock_guard lock(sessions_file_mutex_);
  const bool now = sessions.sync == Sync::Now;
  const std::string path = config_.home_dir + "/sessions";
  Status saved;
  if (sessions.number > sessions_saved_) {
    saved = write_sessions(path, sessions.file, sessions.sync);
    if (saved) sessions_saved_ = sessions.number;
  } else if (now && sessions.number > sessions_synced_) {
    // Newer ones are there, but for their name.
    saved = sync_directory_of(path);
  }
  if (!saved)
    spdlog::error(
        "sessions are not remembered: {}; a restart of this daemon would not wait for them",
        saved.error().what);
  else if (now)
    sessions_synced_ = std::max(sessions_synced_, sessions_saved_);
}

void NodeDaemon::end_grace_if_over() {
  std::vector<net::SessionId> late;
  SessionsToSave sessions;
  {
    std::lock_guard lock(sessions_mutex_);
    if (!in_grace_ || !grace_.over(net::EventLoop::now())) return;
    in_grace_ = false;
    for (const Grace::Member& member : grace_.expected())
      spdlog::warn("{} did not bring back in time what it had: it is free", member.node);
    // Noted as such before others get anything: after another restart they may still think that
    // they can bring it back.
    for (auto& [session, here] : members_) {
      if (!grace_.is_too_late(here)) continue;
      late.push_back(session);
      here.epoch = Grace::Member::kTooLate;
    }
    grace_ = Grace();
    sessions = sessions_to_save(Sync::Now);
  }
  save_sessions(sessions);
  // R5: what they still send is from before.
  for (net::SessionId session : late) home_->is_too_late(NodeId{session});
  spdlog::info("what was brought back is here; requests are served");
  home_->end_grace();
}

}  // namespace vremote::node
