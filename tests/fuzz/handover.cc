// What one daemon of a node leaves to the next: the new one may be another program, and what it
// takes over must not be able to end it.
#include "node/handover/handover.h"

#include <unistd.h>

#include <set>
#include <string>

#include "base/check.h"
#include "coherence/agent.h"
#include "fuzz/targets.h"
#include "wire/frame.h"

namespace vremote::fuzz {
namespace {

using namespace coherence;
using node::Handover;

void check_promises(const Handover& h) {
  std::set<int> seen;
  for (const int fd : h.descriptors()) VR_CHECK(fd > STDERR_FILENO && seen.insert(fd).second);
  VR_CHECK(!h.mount.channels.empty());
  for (const auto& inode : h.inodes) VR_CHECK(inode.home < h.homes.size());
  for (const auto& home : h.homes) {
    VR_CHECK(!home.name.empty());
    if (!home.session) continue;
    VR_CHECK(!home.session->lanes.empty() && home.session->lanes.size() <= wire::kLanesMax);
    for (const auto& lane : home.session->lanes)
      VR_CHECK(lane.first > 0 && lane.first + lane.queue.size() <= wire::kSequenceMax + 1);
  }
}

// As the next daemon does with it (node_handover.cc), but for the kernel and the network.
void go_on_with(const node::KeptHome& kept, bool same_session) {
  const Instant now{1'000'000'000};
  AgentActions actions;
  Agent agent{AgentOptions{}};
  for (const KeptFile& file : kept.files) agent.take_over(file, kept.next_id);
  agent.check();
  agent.took_over(now, same_session, actions);
  for (const KeptFile& file : kept.files) {
    for (const Recall& recall : file.recalls) agent.receive(now, recall, actions);
    for (const ShowSize& show : file.shows) agent.receive(now, show, actions);
  }
  // Purges that this begins, and what follows.
  for (size_t i = 0; i < actions.size(); ++i)
    if (const auto* purge = std::get_if<StartPurge>(&actions[i])) {
      const StartPurge begun = *purge;
      agent.purge_returned(now, begun.purge, begun.file, actions);
    }
  agent.check();
  (void)agent.kept_files();
}

}  // namespace

void handover(std::span<const std::byte> bytes) {
  const Exact exact(bytes);
  const auto record = node::decode_handover(exact.view());
  if (!record) {
    VR_CHECK(record.error().code > 0 && !record.error().what.empty());
    VR_CHECK(record.error().what.find('\n') == std::string::npos);
    return;
  }
  check_promises(*record);
  // What was taken can be left again, and what is left twice is the same.
  const auto once = node::encode(*record);
  VR_CHECK(once.has_value());
  const auto again = node::decode_handover(*once);
  VR_CHECK(again.has_value());
  const auto twice = node::encode(*again);
  VR_CHECK(twice.has_value() && *twice == *once);
  for (const auto& home : record->homes)
    for (const bool same_session : {true, false}) go_on_with(home.kept, same_session);
}

}  // namespace vremote::fuzz
