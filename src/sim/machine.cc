#include "sim/machine.h"

#include <fmt/format.h>

#include <algorithm>

#include "sim/origin.h"

namespace vremote::sim {

using namespace coherence;

Machine::Machine(FaultSetting& setting, Origin& origin, uint32_t number, Clock clock)
    : setting_(setting), origin_(origin), number_(number), clock_(clock) {
  for (uint32_t lane = 0; lane < setting.lanes; ++lane) {
    up_.push_back(std::make_unique<Wire>(setting.scheduler));
    down_.push_back(std::make_unique<Wire>(setting.scheduler));
  }
}

void Machine::begin_life(const Habits& habits, uint32_t processes) {
  Life& life = *lives_.emplace_back(std::make_unique<Life>());
  life.label = static_cast<int>(number_ + 10 * (lives_.size() - 1));
  life.incarnation = uint64_t{number_ + 1} << 32 | lives_.size();
  life.bond = Bond(setting_.breaks.protocol);
  life.attached.assign(setting_.lanes, false);
  life.greeted.assign(setting_.lanes, Instant{});
  life.renewed.assign(setting_.lanes, Instant{});
  life_ = &life;
  Node::Hooks hooks;
  hooks.send = [this, &life](NodeId, ToHome message) { send(life, std::move(message)); };
  hooks.changed = [this](NodeId, FileId file) { setting_.changed(file); };
  hooks.rescue = [this](const Rescue& rescue) {
    for (const Extent& e : rescue.extents)
      setting_.history.rescued(static_cast<uint32_t>(rescue.file.inode) - 1, e.offset,
                               e.bytes.view());
  };
  hooks.syncs = setting_.power;
  AgentOptions agent = setting_.agent;
  KernelOptions kernel = setting_.kernel;
  agent.soft_ns = habits.soft_ns;
  kernel.soft = habits.soft_ns > 0;
  life.node = std::make_unique<Node>(setting_.scheduler, setting_.history, setting_.breaks,
                                     NodeId{static_cast<uint32_t>(life.label)}, agent, kernel,
                                     std::move(hooks), clock_);
  life.soft = kernel.soft;
  setting_.scheduler.trace(life.label, -1, "starts");
  for (uint32_t lane = 0; lane < setting_.lanes; ++lane) greet(life, lane);
  tick(life);
  for (uint32_t p = 0; p < processes; ++p) {
    life.processes.push_back(std::make_unique<Process>(
        setting_.scheduler, setting_.history, *life.node, life.label, static_cast<int>(p),
        setting_.files, habits, [this](uint32_t file) {
          return setting_.power ? origin_.synced_disk(file_id(file)) : origin_.disk(file_id(file));
        }));
    setting_.scheduler.spawn(life.processes.back()->run());
  }
}

// ---- faults ----

void Machine::guardian_after(Life& life, int64_t world_ns) {
  if (setting_.breaks.no_guardian) return;
  // It looks at the daemon now and then.
  const auto late = static_cast<int64_t>(
      setting_.scheduler.random().below(static_cast<uint64_t>(setting_.term_ns / 20)));
  setting_.scheduler.after(std::max<int64_t>(world_ns, 0) + late, [&life, stops = life.stops] {
    Gate& gate = life.node->gate();
    if (gate.dead() || (gate.stopped() && life.stops == stops)) life.node->guardian_takes_over();
  });
}

// Programs go on reading what their kernel has.
Co<> Machine::hits_meanwhile(Life& life) {
  for (;;) {
    Scheduler::Sleep pause{setting_.scheduler,
                           static_cast<int64_t>(setting_.scheduler.random().below(
                               static_cast<uint64_t>(setting_.term_ns / 4)))};
    co_await pause;
    if (&life != life_ || life.node->gate().runs() || setting_.over) co_return;
    for (uint32_t file = 0; file < setting_.files.size(); ++file)
      life.node->kernel().hit_something(file);
  }
}

void Machine::stop() {
  if (!lives() || stopped()) return;
  setting_.scheduler.trace(life_->label, -1, "is stopped");
  life_->node->stop();
  ++life_->stops;
  guardian_after(*life_, clock_.world_ns(life_->leases_until - life_->node->now()));
  setting_.scheduler.spawn(hits_meanwhile(*life_));
}

void Machine::go_on() {
  if (!stopped()) return;
  setting_.scheduler.trace(life_->label, -1, "goes on");
  life_->node->go_on();
}

void Machine::lose_power() {
  if (life_ == nullptr) return;
  setting_.scheduler.trace(life_->label, -1, "loses power");
  for (auto& process : life_->processes) process->die();
  life_->node->power_lost();
  life_ = nullptr;
  for (auto& wire : up_) wire->cut();
}

void Machine::kill_daemon() {
  if (!lives()) return;
  setting_.scheduler.trace(life_->label, -1, "daemon is killed");
  life_->node->gate().kill();
  for (auto& wire : up_) wire->cut();
  guardian_after(*life_, 0);
  setting_.scheduler.spawn(hits_meanwhile(*life_));
}

void Machine::cut_off(Way way) {
  setting_.scheduler.trace(static_cast<int>(number_), -1, "cut off {}",
                           way == Way::Up     ? "upwards"
                           : way == Way::Down ? "downwards"
                                              : "both ways");
  if (way != Way::Down)
    for (auto& wire : up_) wire->block();
  if (way != Way::Up)
    for (auto& wire : down_) wire->block();
}

void Machine::reach_again(Way way) {
  setting_.scheduler.trace(static_cast<int>(number_), -1, "reached again");
  if (way != Way::Down)
    for (auto& wire : up_) wire->open();
  if (way != Way::Up)
    for (auto& wire : down_) wire->open();
}

void Machine::break_connection(uint32_t lane, int64_t lasts_ns) {
  setting_.scheduler.trace(static_cast<int>(number_), -1, "a connection breaks");
  const Wire::Mistakes mistakes{.forgets = setting_.breaks.forgets_unacknowledged,
                                .doubles = setting_.breaks.doubles_messages};
  for (Wire* wire : {up_[lane].get(), down_[lane].get()}) {
    wire->break_connection(mistakes);
    setting_.scheduler.after(lasts_ns, [wire] { wire->open(); });
  }
}

// ---- its side of the session ----

template <typename Event>
void Machine::hears(uint64_t incarnation, Event event) {
  if (life_ == nullptr || life_->incarnation != incarnation) return;
  life_->node->gate().enter(Door::Network,
                            [life = life_, event = std::move(event)]() mutable { event(*life); });
}

// As AgentSession::Impl::may_dial_locked().
void Machine::greet(Life& life, uint32_t lane) {
  if (lane != 0 && life.session == 0) return;
  life.greeted[lane] = life.node->now();
  up_[lane]->send([this, inc = life.incarnation, lane, epoch = life.epoch, known = life.session,
                   sent = life.node->now(), label = life.label] {
    origin_.hello(number_, label, inc, epoch, lane, sent, known);
  });
}

void Machine::tick(Life& life) {
  setting_.scheduler.after(clock_.world_ns(setting_.term_ns / 5), [this, &life] {
    if (setting_.over) return;
    life.node->gate().enter(Door::Own, [this, &life] {
      if (life.soft) life.node->look_at_patience();
      // As NodeDaemon::bring_back().
      if (life.bond.bringing_back() && life.node->brings_back()) {
        life.bond.brought_back();
        life.node->tell_home(ReclaimCall{directory_id(), true, {}});
      }
      for (uint32_t lane = 0; lane < setting_.lanes; ++lane) {
        if (!life.attached[lane]) {
          greet(life, lane);
          continue;
        }
        up_[lane]->send(
            [this, inc = life.incarnation, lane, session = life.session, sent = life.node->now()] {
              origin_.ping(number_, inc, session, lane, sent);
            });
      }
      tick(life);
    });
  });
}

void Machine::welcome(uint64_t incarnation, uint32_t lane, uint32_t epoch, uint32_t session,
                      uint64_t home_incarnation, bool may_reclaim, uint64_t disk_life,
                      Instant sent) {
  hears(incarnation, [=, this](Life& life) {
    if (epoch != life.epoch || sent < life.greeted[lane]) return;
    if (life.session != 0 && life.session != session)
      return over(life, "the home has begun another session");
    const bool first = life.session == 0;
    life.session = session;
    life.attached[lane] = true;
    life.renewed[lane] = std::max(life.renewed[lane], sent);
    if (first) {
      for (uint32_t other = 1; other < setting_.lanes; ++other) greet(life, other);
      connected(life, home_incarnation, may_reclaim, disk_life);
    } else {
      renew(life);
    }
  });
}

// As NodeDaemon::connected().
void Machine::connected(Life& life, uint64_t home_incarnation, bool may_reclaim,
                        uint64_t disk_life) {
  setting_.scheduler.trace(life.label, -1, "session {} stands", life.session);
  const auto dirty = life.bond.connected({.generation = life.epoch,
                                          .home_incarnation = home_incarnation,
                                          .may_reclaim = may_reclaim,
                                          .term_ns = setting_.term_ns,
                                          .disk_life = disk_life});
  for (ToHome& message : std::exchange(life.before_first, {})) send(life, std::move(message));
  if (dirty) {
    if (*dirty == Agent::Dirty::Fenced)
      setting_.history.told_of_loss(life.label, life.connected_at);
    setting_.reclaims += *dirty == Agent::Dirty::Kept ? 1 : 0;
    life.node->reset(*dirty, life.bond.disk_has_lost());
  }
  life.connected_at = setting_.history.tick();
  life.bond.begun();
  renew(life);
}

void Machine::renew(Life& life) {
  const Instant oldest = *std::ranges::min_element(life.renewed);
  const auto until = life.bond.renewed(life.epoch, oldest, life.node->now());
  if (!until) return;
  life.leases_until = *until;
  life.node->renew(*until);
}

void Machine::answered(uint64_t incarnation, uint32_t lane, uint32_t session, Instant sent) {
  hears(incarnation, [=, this](Life& life) {
    if (session != life.session) return;
    life.renewed[lane] = std::max(life.renewed[lane], sent);
    renew(life);
  });
}

void Machine::session_unknown(uint64_t incarnation, uint32_t session) {
  hears(incarnation, [=, this](Life& life) {
    if (session == life.session && session != 0) over(life, "the home does not know it any more");
  });
}

void Machine::over(Life& life, const char* why) {
  setting_.scheduler.trace(life.label, -1, "session {} is over: {}", life.session, why);
  life.bond.broken();
  life.session = 0;
  ++life.epoch;
  life.attached.assign(setting_.lanes, false);
  life.renewed.assign(setting_.lanes, Instant{});
  life.leases_until = {};
  life.node->renew(Instant{});
  for (uint32_t lane = 0; lane < setting_.lanes; ++lane) greet(life, lane);
}

void Machine::send(Life& life, ToHome message) {
  if (life.session == 0) {
    // Of the old session; the reset asks for all of it anew.
    if (life.epoch == 1) life.before_first.push_back(std::move(message));
    return;
  }
  ++setting_.messages;
  const uint32_t lane = setting_.lane_of(file_of(message));
  up_[lane]->send(
      [this, lane, session = life.session, inc = life.incarnation, late = std::move(message)] {
        origin_.message(number_, inc, session, lane, late);
      });
}

void Machine::message(uint64_t incarnation, uint32_t session, FileId file, ToAgent message) {
  hears(incarnation, [session, file, late = std::move(message)](Life& life) mutable {
    if (session == life.session) life.node->deliver(file, std::move(late));
  });
}

std::string Machine::dump() const {
  if (life_ == nullptr) return fmt::format("  machine {} is off\n", number_);
  std::string out = fmt::format("  n{} session {} epoch {}{}\n", life_->label, life_->session,
                                life_->epoch, stopped() ? " stopped" : "");
  for (const auto& process : life_->processes)
    if (!process->done()) out += "  " + process->waits_for() + "\n";
  return out + life_->node->dump();
}

}  // namespace vremote::sim
