// The control request "blocked": both sides' accounts of who waits, with names for people.
#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <fstream>

#include "control/blocked.h"
#include "control/table.h"
#include "node/node.h"

namespace vremote::node {
namespace {

constexpr size_t kAskedMax = 2000;        // of each agent and of the home
constexpr int64_t kWorthTelling = 50;     // ms; what is shorter is work, not waiting
constexpr int64_t kPathsPatience = 1000;  // ms

std::string process_name(uint32_t tid) {
  if (tid == 0) return {};
  std::ifstream file(fmt::format("/proc/{}/comm", tid));
  std::string name;
  std::getline(file, name);
  return name;
}

// The process a thread belongs to; the thread itself when it is gone.
uint32_t process_of(uint32_t tid) {
  if (tid == 0) return 0;
  std::ifstream file(fmt::format("/proc/{}/status", tid));
  std::string line;
  while (std::getline(file, line))
    if (line.starts_with("Tgid:")) {
      uint32_t pid = 0;
      return std::sscanf(line.c_str(), "Tgid: %u", &pid) == 1 ? pid : tid;
    }
  return tid;
}

int64_t ms_since(Instant now, int64_t ns) {
  return std::max<int64_t>(0, (now.ns - ns) / 1'000'000);
}

}  // namespace

// What one waits for, and the file, which is named later.
struct NodeDaemon::Blocked {
  control::BlockedEntry entry;
  FileId file;
  AgentService* agent = nullptr;  // null: at the home
};

void NodeDaemon::add_blocked(AgentService& agent, const std::string& home, Peer* peer, Instant now,
                             std::vector<Blocked>& found) const {
  std::string why;
  if (peer != nullptr) {
    std::lock_guard lock(peer->mutex);
    if (!peer->connected)
      why = "not connected for " + control::human_duration((now - peer->since) / 1'000'000);
  }
  for (const AgentService::Waits& wait : agent.waits(kAskedMax)) {
    control::BlockedEntry entry{.side = "agent", .what = wait.what, .export_name = {}, .path = {}};
    entry.inode = wait.file.inode;
    if (wait.bytes) entry.range = {wait.bytes->first, wait.bytes->second};
    entry.who = {config_.node, process_of(wait.tid), process_name(wait.tid)};
    entry.waits_for = {{home, 0, ""}};
    entry.why = why;
    entry.for_ms = ms_since(now, wait.since_ns);
    if (entry.for_ms < kWorthTelling) continue;
    entry.export_name = exports_.name_of(&agent, wait.file.export_index);
    found.push_back({std::move(entry), wait.file, &agent});
  }
}

void NodeDaemon::add_blocked_at_home(Instant now, std::vector<Blocked>& found) const {
  std::map<uint32_t, std::string> names{{0, config_.node}};
  for (const net::SessionInfo& session : server_->sessions()) names[session.id] = session.node_name;
  const auto party = [&](const HomeService::Waits::Party& p) {
    auto it = names.find(p.node.value);
    control::Party out{it != names.end() ? it->second : fmt::format("session {}", p.node.value),
                       p.pid, ""};
    if (p.node.value == 0) out.process = process_name(p.pid);
    return out;
  };
  for (const HomeService::Waits& wait : home_->waits(kAskedMax)) {
    control::BlockedEntry entry{.side = "home", .what = wait.what, .export_name = {}, .path = {}};
    if (wait.file.export_index < config_.exports.size())
      entry.export_name = config_.exports[wait.file.export_index].name;
    entry.inode = wait.file.inode;
    if (wait.pages)
      entry.range = {wait.pages->byte_offset(),
                     wait.pages->end >= kPageEnd
                         ? static_cast<uint64_t>(INT64_MAX)
                         : wait.pages->byte_offset() + wait.pages->byte_length() - 1};
    if (wait.bytes) entry.range = {wait.bytes->first, wait.bytes->second};
    entry.who = party(wait.who);
    for (const auto& p : wait.waits_for) {
      control::Party whom = party(p);
      if (std::ranges::find(entry.waits_for, whom) == entry.waits_for.end())
        entry.waits_for.push_back(std::move(whom));
    }
    if (wait.in_line) entry.why = "in line";
    if (wait.at_disk) entry.why = "its disk";
    entry.for_ms = wait.since ? ms_since(now, wait.since->ns) : 0;
    if (entry.for_ms < kWorthTelling) continue;
    found.push_back({std::move(entry), wait.file, nullptr});
  }
}

// Asked of the disk or the mount, by a thread that may hang.
void NodeDaemon::name_files(std::vector<Blocked>& found) const {
  struct Paths {
    std::mutex mutex;
    std::condition_variable done;
    std::vector<std::string> known;
    bool all = false;
  };
  auto paths = std::make_shared<Paths>();
  purge_threads_->submit([this, paths, found] {
    for (const Blocked& named : found) {
      std::string path;
      if (named.agent == nullptr) {
        path = home_->path_of(named.file);
      } else {
        path = path_in_kernel(named.agent, named.file);
      }
      std::lock_guard lock(paths->mutex);
      paths->known.push_back(std::move(path));
    }
    std::lock_guard lock(paths->mutex);
    paths->all = true;
    paths->done.notify_all();
  });
  {
    std::unique_lock lock(paths->mutex);
    paths->done.wait_for(lock, std::chrono::milliseconds(kPathsPatience),
                         [&] { return paths->all; });
    for (size_t i = 0; i < paths->known.size(); ++i) found[i].entry.path = paths->known[i];
  }
}

std::string NodeDaemon::blocked() const {
  control::Blocked told{.node = config_.node, .entries = {}};
  const Instant now = net::EventLoop::now();
  std::vector<Blocked> found;
  add_blocked(*local_agent_, config_.node, nullptr, now, found);
  for (const auto& peer : peers_)
    add_blocked(*peer->agent, peer->config.name, peer.get(), now, found);
  add_blocked_at_home(now, found);
  std::ranges::stable_sort(
      found, [](const Blocked& a, const Blocked& b) { return a.entry.for_ms > b.entry.for_ms; });
  told.more = found.size() > control::kBlockedMax;
  if (told.more) found.resize(control::kBlockedMax);
  name_files(found);
  for (Blocked& one : found) told.entries.push_back(std::move(one.entry));
  return control::to_json(told);
}

}  // namespace vremote::node
