// Sizes that kernels must know (K16).
#include "coherence/home_files.h"

namespace vremote::coherence {

void Home::receive(NodeId node, const Announce& message, HomeActions& actions) {
  if (held(node, message.file, Resource::Attributes, 0) != LeaseMode::Exclusive) {
    actions.push_back(CloseSession{node, "announces the size of a file that others may change"});
    return;
  }
  if (announcements_.announces(node, message.file)) {
    actions.push_back(CloseSession{node, "announces one size before another is known"});
    return;
  }
  show(message.file, {.operation = {}, .node = node, .announcement = message.announcement},
       message.size, announcements_.watchers(message.file, node), actions);
}

void Home::receive(NodeId node, const SizeShown& message, HomeActions& actions) {
  if (const auto by = announcements_.shown(node, message.file, message.show))
    shown(message.file, *by, actions);
}

bool Home::announce(OperationId operation, FileId file, uint64_t size, std::optional<NodeId> except,
                    HomeActions& actions) {
  const std::vector<NodeId> watchers = announcements_.watchers(file, except);
  if (watchers.empty() || mistakes_.has(Mistake::GrowUnannounced)) return false;
  show(file, {.operation = operation}, size, watchers, actions);
  return true;
}

void Home::show(FileId file, const Announcements::By& by, uint64_t size,
                const std::vector<NodeId>& watchers, HomeActions& actions) {
  if (watchers.empty()) {
    shown(file, by, actions);
    return;
  }
  // Numbered as recalls are: whoever judges how long a node takes tells them apart by that.
  for (const auto& [node, id] : announcements_.begin(file, by, watchers, next_recall_).waiting)
    actions.push_back(SendShowSize{node, ShowSize{.file = file, .show = id, .size = size}});
}

void Home::shown(FileId file, const Announcements::By& by, HomeActions& actions) {
  if (by.operation) {
    actions.push_back(SizesShown{*by.operation, file});
  } else {
    actions.push_back(
        SendAnnounced{by.node, Announced{.file = file,
                                         .announcement = by.announcement,
                                         .watched = announcements_.watched(file, by.node)}});
  }
}

}  // namespace vremote::coherence
