// What becomes of a node in worlds of faults: its session, its daemon, its guardian, its power.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>

#include "coherence/operation_needs.h"
#include "sim/node.h"

namespace vremote::sim {

using namespace coherence;

void Node::reset(Agent::Dirty dirty, bool disk_has_lost) {
  scheduler_.trace(number(), -1, "agent   is reset, its bytes are {}",
                   dirty == Agent::Dirty::Kept ? "kept" : "rescued");
  AgentActions actions;
  agent_.reset(now(), dirty, actions, disk_has_lost);
  if (disk_has_lost) brings_back(actions);
  catches_up_ = true;
  take(FileId{}, actions);
  std::vector<uint64_t> again, lost;
  for (const auto& [id, pending] : calls_)
    (is_made_again(pending.call.operation, dirty == Agent::Dirty::Kept, disk_has_lost,
                   breaks_.protocol)
         ? again
         : lost)
        .push_back(id);
  // A file whose last name goes must stay for them.
  for (FileId file : agent_.open_files()) tell_home(ReclaimCall{file, false, {}});
  for (uint64_t id : lost) {
    AgentActions ended;
    replied(Reply{.call = id, .error = EIO, .outcome = {}}, ended);
    take(FileId{}, ended);
  }
  for (uint64_t id : again) {
    Call call = calls_.at(id).call;
    call.heard_below = unheard_.heard_below(id);
    hooks_.send(id_, std::move(call));
  }
}

void Node::look_at_patience() {
  AgentActions actions;
  const bool over = agent_.out_of_patience(now(), actions);
  take(FileId{}, actions);
  if (!over) return failed_before_.reset();
  std::vector<uint64_t> late;
  std::set<FileId> truncated;
  for (const auto& [id, pending] : calls_) {
    if (pending.truncation && !pending.told) truncated.insert(pending.truncation->file);
    if (!pending.truncation && !is_claim(pending.call.operation)) late.push_back(id);
  }
  for (FileId file : truncated) end_truncation(file);
  for (uint64_t id : late) {
    const PendingCall call = std::move(calls_.extract(id).mapped());
    unheard_.heard(id);
    if (call.fsync != 0) {
      fsyncs_.erase(call.fsync);
      kernel_.answer(call.fsync, Answer{.error = ETIME});
    } else if (call.waits != 0) {
      NameResult& result = name_waits_.at(call.waits);
      result.error = EIO;
      scheduler_.resume_after(scheduler_.draw(Delay::WakeUp), result.handle);
    }
  }
  if (guardian_) return failed_before_.reset();  // the daemon has not been given what it holds
  if (failed_before_ && kernel_.waits_since_before(*failed_before_))
    scheduler_.fail(fmt::format("a soft mount does not wait: n{} is out of patience", number()));
  failed_before_ = kernel_.next_token();
}

// Files may end where these bytes do, not behind the end that a truncation of its own leaves which
// is on its way.
void Node::brings_back(const AgentActions& actions) {
  std::map<FileId, uint64_t> ends;
  for (const AgentAction& action : actions)
    if (const auto* send = std::get_if<SendToHome>(&action))
      if (const auto* flush = std::get_if<Flush>(&send->message))
        for (const Extent& extent : flush->extents)
          ends[flush->file] = std::max(ends[flush->file], extent.offset + extent.bytes.size());
  for (const auto& [file, end] : ends) {
    const bool cut = std::ranges::any_of(calls_, [&, file = file, end = end](const auto& entry) {
      const auto& truncation = entry.second.truncation;
      return truncation && truncation->file == file && truncation->size < end;
    });
    if (!cut) history_.brings_back_to(static_cast<uint32_t>(file.inode) - 1, number(), end);
  }
}

void Node::renew(Instant until) {
  AgentActions actions;
  agent_.renew(now(), until, actions);
  take(FileId{}, actions);
}

void Node::guardian_takes_over() {
  if (guardian_) return;
  scheduler_.trace(number(), -1, "guardian takes over");
  guardian_ = true;
  kernel_.daemon_listens();
  kernel_.drop_all_attributes();
  end_truncations();
  // Page by page: a purge that is held up by a fill nobody answers holds up no other.
  for (const auto& [file, page] : kernel_.cached_pages())
    scheduler_.spawn(kernel_.purge(file, {page, page + 1}));
}

// What the guardian has answered is taken back when the daemon looks for it, and before any purge
// counts.
void Node::go_on() {
  if (guardian_) {
    gate_.hold(Door::Kernel);
    scheduler_.after(static_cast<int64_t>(scheduler_.random().below(100'000'000)),
                     [this, stops = stops_] {
                       if (stops == stops_ && !gate_.dead()) take_back();
                     });
  }
  gate_.go_on();
}

void Node::stop() {
  ++stops_;
  gate_.stop();
}

void Node::take_back() {
  if (!guardian_) return;
  guardian_ = false;
  gate_.take_up_all(Door::Kernel);
  kernel_.daemon_listens();
}

void Node::power_lost() {
  gate_.kill();
  kernel_.power_lost();
}

}  // namespace vremote::sim
