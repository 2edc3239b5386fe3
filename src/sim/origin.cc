#include "sim/origin.h"

#include <fmt/format.h>

#include <algorithm>

namespace vremote::sim {

using namespace coherence;

Origin::Origin(FaultSetting& setting, Clock clock)
    : setting_(setting),
      clock_(clock),
      gate_(setting.scheduler),
      driver_(std::make_unique<HomeDriver>(setting.scheduler, setting.breaks,
                                           [this](NodeId node, FileId file, ToAgent message) {
                                             send(node, file, std::move(message));
                                           })),
      patience_({.term_ns = setting.term_ns,
                 .warn_ns = setting.term_ns / 2,
                 .deadline_ns = 4 * setting.term_ns,
                 .hasty = setting.breaks.has(Mistake::HandOnTooEarly)}) {}

void Origin::create(FileId file, std::vector<std::byte> content) {
  driver_->create(file, std::move(content));
}

void Origin::meets(std::vector<std::unique_ptr<Machine>>& machines) {
  machines_ = &machines;
  tick();
}

void Origin::stop() {
  setting_.scheduler.trace(-1, -1, "home    is stopped");
  gate_.stop();
}

void Origin::go_on() {
  setting_.scheduler.trace(-1, -1, "home    goes on");
  gate_.go_on();
}

Origin::Session* Origin::find(uint32_t id) {
  auto it = std::ranges::find(sessions_, id, &Session::id);
  return it == sessions_.end() ? nullptr : &*it;
}

Origin::Session* Origin::of_machine(uint32_t machine) {
  auto it = std::ranges::find(sessions_, machine, &Session::machine);
  return it == sessions_.end() ? nullptr : &*it;
}

std::optional<NodeId> Origin::session_of(uint64_t incarnation) const {
  auto it = std::ranges::find(sessions_, incarnation, &Session::incarnation);
  if (it == sessions_.end()) return std::nullopt;
  return NodeId{it->id};
}

// As HomeService::tick().
void Origin::tick() {
  setting_.scheduler.after(clock_.world_ns(setting_.term_ns / 50), [this] {
    if (setting_.over) return;
    gate_.enter(Door::Own, [this] {
      std::vector<Patience::Blocker> blockers;
      for (const Home::PendingRecall& recall : driver_->home().pending_recalls(4096))
        blockers.push_back({recall.id, recall.node, recall.file});
      const auto heard = [this](NodeId node) -> std::optional<Instant> {
        const Session* session = find(node.value);
        if (session == nullptr) return std::nullopt;
        return *std::ranges::min_element(session->heard);
      };
      for (const Patience::Verdict& verdict : patience_.judge(now(), blockers, heard))
        if (verdict.fence) {
          end_session(verdict.node.value, verdict.why);
        } else if (verdict.silence) {
          setting_.scheduler.trace(-1, -1, "home    does not hear session {} any more: {}",
                                   verdict.node.value, verdict.why);
          find(verdict.node.value)->silenced = true;
        }
      tick();
    });
  });
}

void Origin::hello(uint32_t machine, int label, uint64_t incarnation, uint32_t epoch, uint32_t lane,
                   Instant sent, uint32_t known) {
  gate_.enter(Door::Network,
              [=, this] { greeted(machine, label, incarnation, epoch, lane, sent, known); });
}

// As HomeServer::Impl::greet().
void Origin::greeted(uint32_t machine, int label, uint64_t incarnation, uint32_t epoch,
                     uint32_t lane, Instant sent, uint32_t known) {
  Machine& guest = *(*machines_)[machine];
  Session* session = of_machine(machine);
  const auto unknown = [&] {
    guest.down(lane).send(
        [&guest, incarnation, known] { guest.session_unknown(incarnation, known); });
  };
  if (known != 0 && (session == nullptr || session->id != known)) return unknown();
  if (session != nullptr && session->incarnation == incarnation && epoch < session->epoch)
    return unknown();
  // Sent by one that was there before.
  if (session != nullptr && session->incarnation > incarnation) return;
  if (session != nullptr && (session->incarnation != incarnation || session->epoch != epoch)) {
    end_session(session->id, session->incarnation != incarnation
                                 ? "the node has restarted"
                                 : "the node has begun another session");
    session = nullptr;
  }
  if (session != nullptr && session->silenced) return;  // Busy: it comes again
  if (session == nullptr) {
    sessions_.push_back({next_session_++, machine, label, incarnation, epoch,
                         std::vector<Instant>(setting_.lanes, now())});
    session = &sessions_.back();
    setting_.scheduler.trace(-1, -1, "home    session {} of n{} begins", session->id, label);
  }
  session->heard[lane] = now();
  guest.down(lane).send([&guest, incarnation, lane, epoch, id = session->id, home = incarnation_,
                         sent] { guest.welcome(incarnation, lane, epoch, id, home, false, sent); });
}

void Origin::ping(uint32_t machine, uint64_t incarnation, uint32_t id, uint32_t lane,
                  Instant sent) {
  gate_.enter(Door::Network, [=, this] {
    Machine& guest = *(*machines_)[machine];
    Session* session = find(id);
    if (session == nullptr) {
      guest.down(lane).send([&guest, incarnation, id] { guest.session_unknown(incarnation, id); });
      return;
    }
    if (session->silenced) return;
    session->heard[lane] = now();
    guest.down(lane).send(
        [&guest, incarnation, lane, id, sent] { guest.answered(incarnation, lane, id, sent); });
  });
}

void Origin::message(uint32_t, uint64_t, uint32_t id, uint32_t lane, ToHome message) {
  gate_.enter(Door::Network, [this, id, lane, late = std::move(message)]() mutable {
    Session* session = find(id);
    if (session == nullptr || session->silenced) return;
    session->heard[lane] = now();
    const FileId file = file_of(late);
    if (std::holds_alternative<Flush>(late)) patience_.progress(NodeId{id}, file, now());
    driver_->receive(NodeId{id}, std::move(late));
    driver_->home().check();
    setting_.changed(file);
  });
}

void Origin::send(NodeId node, FileId file, ToAgent message) {
  const Session* session = find(node.value);
  if (session == nullptr || session->silenced) return;
  ++setting_.messages;
  Machine& guest = *(*machines_)[session->machine];
  guest.down(setting_.lane_of(file))
      .send([&guest, incarnation = session->incarnation, id = session->id, file,
             late = std::move(message)]() mutable {
        guest.message(incarnation, id, file, std::move(late));
      });
}

void Origin::end_session(uint32_t id, const std::string& why) {
  const Session session = *find(id);
  ++fences_;
  setting_.scheduler.trace(-1, -1, "home    session {} of n{} is over: {}", id, session.label, why);
  std::erase_if(sessions_, [&](const Session& s) { return s.id == id; });
  setting_.history.lost(session.label);
  driver_->node_gone(NodeId{id});
  driver_->home().check();
  setting_.changed({});
}

void Origin::forget_the_dead(const std::function<bool(uint64_t incarnation)>& lives) {
  std::vector<uint32_t> dead;
  for (const Session& session : sessions_)
    if (!lives(session.incarnation)) dead.push_back(session.id);
  for (uint32_t id : dead) end_session(id, "its node is no more");
}

}  // namespace vremote::sim
