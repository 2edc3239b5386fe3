#include "sim/origin.h"

#include <fmt/format.h>

#include <algorithm>

namespace vremote::sim {

using namespace coherence;

Origin::Daemon::Daemon(Origin& origin)
    : incarnation(origin.daemons_.size() + 1),
      gate(origin.setting_.scheduler),
      driver(
          origin.setting_.scheduler, origin.setting_.breaks,
          [&origin, this](NodeId node, FileId file, ToAgent message) {
            if (origin.daemon_ == this) origin.send(node, file, std::move(message));
          },
          HomeDriver::Calls{&origin.calls_,
                            [this](NodeId node) { return members.incarnation_of(node); },
                            [this] {
                              std::set<uint64_t> incarnations;
                              for (const Grace::Member& member : members.to_note())
                                incarnations.insert(member.incarnation);
                              return incarnations;
                            }},
          origin.setting_.limits),
      patience({.term_ns = origin.setting_.term_ns,
                .warn_ns = origin.setting_.term_ns / 2,
                .deadline_ns = 4 * origin.setting_.term_ns,
                .hasty = origin.setting_.breaks.has(Mistake::HandOnTooEarly)}),
      grace(1 << 16, origin.setting_.breaks.protocol) {}

Origin::Origin(FaultSetting& setting, Clock clock) : setting_(setting), clock_(clock) {
  daemon_ = daemons_.emplace_back(std::make_unique<Daemon>(*this)).get();
}

void Origin::create(FileId file, std::vector<std::byte> content) {
  daemon_->driver.create(file, std::move(content));
}

void Origin::meets(std::vector<std::unique_ptr<Machine>>& machines) {
  machines_ = &machines;
  tick(*daemon_);
}

void Origin::stop() {
  setting_.scheduler.trace(-1, -1, "home    is stopped");
  daemon_->gate.stop();
}

void Origin::go_on() {
  setting_.scheduler.trace(-1, -1, "home    goes on");
  daemon_->gate.go_on();
}

void Origin::kill() {
  kill_in_ = 0;
  dying_ = false;
  if (!lives()) return;
  setting_.scheduler.trace(-1, -1, "home    is killed");
  daemon_->gate.kill();
  durable_ = daemon_->driver.killed();
  // In the moment of its death it may have been carrying one out.
  if (!calls_.done.empty() && setting_.scheduler.random().chance(30))
    std::next(calls_.done.begin(),
              static_cast<ptrdiff_t>(setting_.scheduler.random().below(calls_.done.size())))
        ->second.ended = false;
  for (const Session& session : daemon_->sessions) {
    Machine& guest = *(*machines_)[session.machine];
    // Not covered (docs/protocol.md): bytes of a page that was given up, written by the next holder
    // too, and not acknowledged. So every acknowledgement arrives, and what was sent before it.
    for (uint32_t lane = 0; lane < setting_.lanes; ++lane) {
      guest.down(lane).deliver_kept();
      guest.down(lane).cut();
    }
  }
}

// The notes of sessions are synced; those of calls are not (node/home/home_state.h).
void Origin::lose_power() {
  kill();
  setting_.scheduler.trace(-1, -1, "home    loses power");
  for (const auto& [file, disk] : durable_.files)
    disk.platter.for_each_unsynced(
        [&, f = static_cast<uint32_t>(file.inode) - 1](uint64_t, std::span<const std::byte> page) {
          setting_.history.exposed(f, page);
        });
  durable_.lose_power(setting_.power_dice);
  std::erase_if(calls_.done, [this](const auto&) { return setting_.power_dice.chance(50); });
  ++disk_life_;
  has_lost_ = true;
}

// As HomeService::give_up().
void Origin::give_up(uint32_t machine) {
  Session* session = of_machine(machine);
  if (session == nullptr || session->silenced) return;
  setting_.scheduler.trace(-1, -1, "home    gives session {} of n{} up", session->id,
                           session->label);
  if (setting_.breaks.frees_at_once) return end_session(session->id, "it breaks the protocol");
  daemon_->patience.give_up(NodeId{session->id}, now(), "it breaks the protocol");
  session->silenced = true;
}

void Origin::start_again() {
  kill_in_ = 0;
  dying_ = false;
  if (lives()) return;
  ++restarts_;
  daemon_ = daemons_.emplace_back(std::make_unique<Daemon>(*this)).get();
  setting_.scheduler.trace(-1, -1, "home    starts again, {} nodes had a session", noted_.size());
  daemon_->driver.restored(std::move(durable_));
  if (setting_.power)
    setting_.scheduler.after(
        static_cast<int64_t>(setting_.power_dice.below(static_cast<uint64_t>(setting_.term_ns))),
        [daemon = daemon_] { daemon->driver.sync_everything(); });
  if (!noted_.empty()) {
    daemon_->members.restarted(noted_, now() + setting_.term_ns);
    daemon_->grace.close();
  } else {
    lost_is_seen();
  }
  tick(*daemon_);
}

// From now on nodes are given what is left. Until then those that had it may show it.
void Origin::lost_is_seen() {
  if (std::exchange(has_lost_, false)) setting_.history.power_lost();
}

Origin::Session* Origin::find(uint32_t id) {
  auto it = std::ranges::find(daemon_->sessions, id, &Session::id);
  return it == daemon_->sessions.end() ? nullptr : &*it;
}

Origin::Session* Origin::of_machine(uint32_t machine) {
  auto it = std::ranges::find(daemon_->sessions, machine, &Session::machine);
  return it == daemon_->sessions.end() ? nullptr : &*it;
}

std::optional<NodeId> Origin::session_of(uint64_t incarnation) const {
  auto it = std::ranges::find(daemon_->sessions, incarnation, &Session::incarnation);
  if (it == daemon_->sessions.end()) return std::nullopt;
  return NodeId{it->id};
}

bool Origin::waits_for(uint64_t incarnation) const {
  const auto& members = lives() ? daemon_->members.expected() : noted_;
  return std::ranges::any_of(
      members, [&](const Grace::Member& member) { return member.incarnation == incarnation; });
}

// As HomeService::tick() and NodeDaemon::tick().
void Origin::tick(Daemon& daemon) {
  setting_.scheduler.after(clock_.world_ns(setting_.term_ns / 50), [this, &daemon] {
    if (setting_.over) return;
    daemon.gate.enter(Door::Own, [this, &daemon] {
      std::vector<Patience::Blocker> blockers;
      for (const Home::PendingRecall& recall : daemon.driver.home().pending_recalls(4096))
        blockers.push_back({recall.id, recall.node, recall.file, recall.behind});
      const auto heard = [this](NodeId node) -> std::optional<Instant> {
        const Session* session = find(node.value);
        if (session == nullptr) return std::nullopt;
        return *std::ranges::min_element(session->heard);
      };
      for (const Patience::Verdict& verdict : daemon.patience.judge(now(), blockers, heard))
        if (verdict.fence) {
          end_session(verdict.node.value, verdict.why);
        } else if (verdict.silence) {
          setting_.scheduler.trace(-1, -1, "home    does not hear session {} any more: {}",
                                   verdict.node.value, verdict.why);
          find(verdict.node.value)->silenced = true;
        }
      end_grace_if_over();
      tick(daemon);
    });
  });
}

void Origin::hello(uint32_t machine, int label, uint64_t incarnation, uint32_t epoch, uint32_t lane,
                   Instant sent, uint32_t known) {
  daemon_->gate.enter(
      Door::Network, [=, this] { greeted(machine, label, incarnation, epoch, lane, sent, known); });
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
  const Grace::Member member{fmt::format("machine {}", machine), incarnation,
                             setting_.breaks.forgets_epochs ? 0 : epoch};
  if (session == nullptr) {
    daemon_->sessions.push_back({next_session_++, machine, label, incarnation, epoch,
                                 std::vector<Instant>(setting_.lanes, now())});
    session = &daemon_->sessions.back();
    setting_.scheduler.trace(-1, -1, "home    session {} of n{} begins", session->id, label);
    labels_[incarnation] = label;
    const std::vector<Grace::Member> before = daemon_->members.expected();
    daemon_->members.began(NodeId{session->id}, member, now());
    for (const Grace::Member& was : before)
      if (std::ranges::find(daemon_->members.expected(), was) == daemon_->members.expected().end())
        not_coming_back(was, false);
    noted_ = daemon_->members.to_note();
    if (epoch > 1 && setting_.session_begins_again) setting_.session_begins_again(machine);
  }
  session->heard[lane] = now();
  guest.down(lane).send(
      [&guest, incarnation, lane, epoch, id = session->id, home = daemon_->incarnation,
       may_reclaim = daemon_->members.may_reclaim(member, now()), disk_life = disk_life_,
       sent] { guest.welcome(incarnation, lane, epoch, id, home, may_reclaim, disk_life, sent); });
}

void Origin::ping(uint32_t machine, uint64_t incarnation, uint32_t id, uint32_t lane,
                  Instant sent) {
  daemon_->gate.enter(Door::Network, [=, this] {
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
  daemon_->gate.enter(Door::Network, [this, id, lane, late = std::move(message)]() mutable {
    received(id, lane, std::move(late));
  });
}

void Origin::received(uint32_t id, uint32_t lane, ToHome message) {
  Session* session = find(id);
  if (session == nullptr || session->silenced) return;
  session->heard[lane] = now();
  switch (daemon_->grace.admit(NodeId{id}, message)) {
    case GraceGate::Verdict::Serve:
      receive_now(NodeId{id}, std::move(message));
      break;
    case GraceGate::Verdict::Kept:
      break;
    case GraceGate::Verdict::TooMany:
      setting_.scheduler.fail("no node has so much to ask for");
      break;
  }
}

// As HomeService::receive_now().
void Origin::receive_now(NodeId node, ToHome message) {
  const auto* call = std::get_if<Call>(&message);
  if (call != nullptr && std::holds_alternative<SetAttributesCall>(call->operation)) {
    truncations_.insert({node.value, call->call});
    if (setting_.truncation_comes) setting_.truncation_comes();
  }
  if (call != nullptr && std::holds_alternative<SyncCall>(call->operation))
    syncs_.insert({node.value, call->call});
  const auto* flush = std::get_if<Flush>(&message);
  const bool given_up = std::holds_alternative<RecallAck>(message) ||
                        (flush != nullptr && flush->attributes.has_size);
  if (kill_in_ > 0 && (given_up || !kill_by_given_up_) && --kill_in_ == 0) {
    dying_ = true;
    setting_.scheduler.after(setting_.scheduler.draw(Delay::HomeQueue), [this] {
      if (dying_) die();
    });
  }
  const FileId file = file_of(message);
  if (std::holds_alternative<Flush>(message)) daemon_->patience.progress(node, file, now());
  const auto* reclaim = call == nullptr ? nullptr : std::get_if<ReclaimCall>(&call->operation);
  if (reclaim != nullptr) {
    int32_t error = 0;
    setting_.scheduler.trace(-1, -1, "home    from n{}: {}", node.value, describe(message));
    if (reclaim->done) {
      (void)daemon_->members.brought_back(node, false);
      noted_ = daemon_->members.to_note();
    } else if (!reclaim->pages.empty()) {
      error = !daemon_->grace.may_reclaim()                                    ? ESTALE
              : daemon_->driver.reclaimed(node, reclaim->file, reclaim->pages) ? 0
                                                                               : EBUSY;
    } else {
      daemon_->driver.opened(node, reclaim->file);
    }
    send(node, file, Reply{.call = call->call, .error = error, .outcome = {}});
    return;
  }
  daemon_->driver.receive(node, std::move(message));
  daemon_->driver.home().check();
  setting_.changed(file);
}

void Origin::send(NodeId node, FileId file, ToAgent message) {
  Session* session = find(node.value);
  if (session == nullptr || session->silenced) return;
  ++setting_.messages;
  const bool must_arrive = std::holds_alternative<FlushAck>(message);
  if (const auto* reply = std::get_if<Reply>(&message);
      reply != nullptr && syncs_.erase({node.value, reply->call}) > 0 && setting_.sync_done)
    setting_.sync_done();
  if (const auto* reply = std::get_if<Reply>(&message);
      reply != nullptr && truncations_.erase({node.value, reply->call}) > 0 &&
      setting_.truncation_done)
    setting_.truncation_done(session->machine);
  Machine& guest = *(*machines_)[session->machine];
  Wire& down = guest.down(setting_.lane_of(file));
  down.send([&guest, incarnation = session->incarnation, id = session->id, file,
             late = std::move(message)] { guest.message(incarnation, id, file, late); });
  if (must_arrive) down.keep();
}

void Origin::end_session(uint32_t id, const std::string& why) {
  const Session session = *find(id);
  ++fences_;
  setting_.scheduler.trace(-1, -1, "home    session {} of n{} is over: {}", id, session.label, why);
  std::erase_if(daemon_->sessions, [&](const Session& s) { return s.id == id; });
  daemon_->members.ended(NodeId{id});
  noted_ = daemon_->members.to_note();
  // One that may bring back what it had before this daemon's start has not lost it yet.
  if (!waits_for(session.incarnation)) setting_.history.lost(session.label);
  daemon_->grace.node_gone(NodeId{id});
  daemon_->driver.node_gone(NodeId{id});
  daemon_->driver.home().check();
  setting_.changed({});
}

// ---- after a restart ----

void Origin::not_coming_back(const Grace::Member& member, bool is_here) {
  setting_.scheduler.trace(-1, -1, "home    n{} brings nothing back", labels_[member.incarnation]);
  setting_.history.lost(labels_[member.incarnation], is_here);
}

void Origin::end_grace_if_over() {
  const auto missing = daemon_->members.grace_ended(now());
  if (!missing) return;
  setting_.scheduler.trace(-1, -1, "home    the grace is over");
  noted_ = daemon_->members.to_note();
  lost_is_seen();
  for (const Grace::Member& member : *missing) {
    // It may be here, and have brought back a part.
    const auto session = session_of(member.incarnation);
    not_coming_back(member, session.has_value());
    if (session) give_up(find(session->value)->machine);
  }
  while (auto kept = daemon_->grace.next()) receive_now(kept->first, std::move(kept->second));
}

void Origin::forget_the_dead(const std::function<bool(uint64_t incarnation)>& alive) {
  std::vector<uint32_t> dead;
  for (const Session& session : daemon_->sessions)
    if (!alive(session.incarnation)) dead.push_back(session.id);
  for (uint32_t id : dead) end_session(id, "its node is no more");
}

}  // namespace vremote::sim
