#include "sim/fault_world.h"

#include <fmt/format.h>

#include <algorithm>

namespace vremote::sim {

using namespace coherence;

FaultWorld::FaultWorld(uint64_t seed, const Breaks& breaks, bool power)
    : scheduler_(std::make_unique<Scheduler>(seed)),
      breaks_(breaks),
      power_(power),
      more_(seed * 0xD1B54A32D192ED03u + 7),
      setting_{.scheduler = *scheduler_,
               .history = history_,
               .dice = Prng(seed * 0x9E3779B97F4A7C15u + 1),
               .power_dice = Prng(seed * 0xA0761D6478BD642Fu + 3),
               .soft_dice = Prng(seed * 0x8CB92BA72F3D8DD7u + 5),
               .breaks = breaks,
               .agent = {},
               .kernel = {},
               .limits = draw_limits(seed),
               .files = {},
               .changed = {}} {
  draw();
}

FaultWorld::~FaultWorld() = default;

// ---- what the seed says ----

Clock FaultWorld::draw_clock() {
  // The margin is three tenths of the term for both ends of it and the purges.
  const int64_t most = breaks_.wild_clocks ? 400'000 : 10'000;
  return {.offset_ns = static_cast<int64_t>(scheduler_->random().between(1, 1'000'000'000'000)),
          .drift_ppm = static_cast<int64_t>(
                           scheduler_->random().below(static_cast<uint64_t>(2 * most + 1))) -
                       most};
}

Habits FaultWorld::draw_habits() {
  Prng& random = scheduler_->random();
  Habits habits;
  const auto weigh = [&](Act act, uint32_t most, uint32_t percent) {
    habits.weights[static_cast<size_t>(act)] =
        random.chance(percent) ? static_cast<uint32_t>(random.between(1, most)) : 0;
  };
  weigh(Act::ReadCached, 30, 85);
  weigh(Act::ReadDirect, 15, 50);
  weigh(Act::Write, 30, 80);
  weigh(Act::Append, 15, 30);
  weigh(Act::Load, 25, 50);
  weigh(Act::Store, 30, 50);
  weigh(Act::Fsync, 12, 70);
  weigh(Act::Stat, 10, 50);
  weigh(Act::CloseOne, 10, 50);
  weigh(Act::ReadAhead, 8, 30);
  weigh(Act::Reopen, 8, 30);
  weigh(Act::Names, 10, 40);
  habits.weights[static_cast<size_t>(Act::ReadCached)] += 1;
  habits.operations = static_cast<uint32_t>(random.between(6, 30));
  habits.faults = true;
  habits.pause_ns = setting_.term_ns;
  return habits;
}

void FaultWorld::draw() {
  Prng& random = scheduler_->random();
  machine_count_ = static_cast<uint32_t>(random.between(2, random.chance(70) ? 3 : 4));
  processes_ = static_cast<uint32_t>(random.between(1, 2));
  const bool truncates = random.chance(power_ ? 60 : 30);
  const auto file_count = static_cast<uint32_t>(random.chance(60) ? 1 : 2);
  for (uint32_t f = 0; f < file_count; ++f) {
    FilePlan file;
    file.pages = random.between(1, 4);
    file.hot_pages = random.between(1, file.pages);
    setting_.files.push_back(file);
  }
  setting_.lanes = static_cast<uint32_t>(random.between(1, 2));
  for (uint32_t m = 0; m < machine_count_; ++m) {
    habits_.push_back(draw_habits());
    if (truncates)
      habits_.back().weights[static_cast<size_t>(Act::Truncate)] =
          static_cast<uint32_t>(random.below(8));
  }
  const bool stores_too = truncates && more_.chance(50);
  if (stores_too) draw_mapped_truncations();
  setting_.kernel.readahead_max = random.between(1, 4);
  setting_.kernel.readahead_in_pieces = random.chance(30);
  setting_.kernel.forgets = random.chance(60);
  setting_.kernel.errors = true;
  setting_.kernel.tails = breaks_.tails;
  AgentOptions& agent = setting_.agent;
  agent.lease_at_start = false;
  agent.residency_ns = random.chance(50) ? 1'000'000 : 0;
  agent.flush_after_ns = random.chance(50) ? 1'000'000'000 : 10'000'000;
  agent.dirty_max_bytes = random.chance(15) ? 8192 : 256u << 20;
  agent.flush_window_bytes = random.chance(15) ? 8192 : 16u << 20;
  agent.settle_ns = 1'000'000'000;
  agent.push_patience_ns = 0;     // who waits for one for ever is found
  agent.moment_ns = 100'000'000;  // longer than any delay
  agent.mistakes = breaks_.protocol;
  setting_.kernel.append_piece = agent.max_write = 2 * kPageSize;
  setting_.changed = [this](FileId file) {
    if (file != FileId{}) return check_file(static_cast<uint32_t>(file.inode) - 1);
    for (uint32_t f = 0; f < setting_.files.size(); ++f) check_file(f);
  };
  setting_.power = setting_.power_dice.chance(25) || power_;
  if (setting_.power)
    for (Habits& habits : habits_) {
      habits.syncs_names = setting_.power_dice.chance(50);
      if (setting_.power_dice.chance(70)) habits.weights[static_cast<size_t>(Act::Fsync)] += 8;
    }
  if (truncates) end_sessions_at_truncations(stores_too, more_.chance(50));
  if (power_) {
    processes_ = 3;
    lose_power_behind_syncs();
    end_as_sessions_begin_again();
  }
  const bool soft = draw_soft_mounts();
  steps_max_ = 3'000'000;
  plan_ = fmt::format("{} machines, {} processes each, {} files, {} lanes{}{}, flush after {} ms",
                      machine_count_, processes_, file_count, setting_.lanes,
                      truncates ? ", truncations" : "", soft ? ", soft mounts" : "",
                      agent.flush_after_ns / 1'000'000);
}

// By dice of their own: a world without them is the one that its seed always was.
bool FaultWorld::draw_soft_mounts() {
  Prng& dice = setting_.soft_dice;
  if (!dice.chance(25)) return false;
  for (Habits& habits : habits_)
    if (dice.chance(60))
      habits.soft_ns = static_cast<int64_t>(
          dice.between(1, static_cast<uint64_t>(setting_.term_ns) * (dice.chance(50) ? 1 : 3) / 2));
  return true;
}

// Most of them last about as long as it takes until somebody notices.
void FaultWorld::draw_faults() {
  Prng& random = scheduler_->random();
  const auto term = static_cast<uint64_t>(setting_.term_ns);
  const uint64_t count = random.between(1, 6);
  const bool cuts = random.chance(70), stops = random.chance(50), ends = random.chance(40);
  const bool restarts = random.chance(40);
  const uint64_t span = term * random.between(2, 10);
  for (uint64_t i = 0; i < count; ++i) {
    const auto at = static_cast<int64_t>(random.below(span));
    const uint64_t kind = random.below(10);
    const auto lasts = static_cast<int64_t>(
        kind < 3   ? random.below(term / 2)
        : kind < 5 ? random.between(term * 7 / 10, term)
                   : random.between(term / 2, kind < 8 ? term * 3 / 2 : 4 * term));
    const auto m = static_cast<uint32_t>(random.below(machine_count_));
    enum class Fault : uint8_t { CutOff, Stop, StopOrigin, PowerLoss, KillDaemon, KillOrigin };
    std::vector<Fault> choice;
    if (cuts) choice.insert(choice.end(), 3, Fault::CutOff);
    if (stops) choice.insert(choice.end(), {Fault::Stop, Fault::Stop, Fault::StopOrigin});
    if (ends) choice.insert(choice.end(), {Fault::PowerLoss, Fault::KillDaemon});
    if (restarts) choice.insert(choice.end(), 2, Fault::KillOrigin);
    if (choice.empty()) choice.push_back(Fault::CutOff);
    faults_end_ns_ = std::max(faults_end_ns_, at + lasts);
    const Fault fault = choice[random.below(choice.size())];
    ++faults_;
    switch (fault) {
      case Fault::CutOff: {
        const auto way = static_cast<Machine::Way>(random.below(3));
        scheduler_->after(at, [this, m, way] { machines_[m]->cut_off(way); });
        scheduler_->after(at + lasts, [this, m, way] { machines_[m]->reach_again(way); });
        break;
      }
      case Fault::Stop:
        scheduler_->after(at, [this, m] { machines_[m]->stop(); });
        scheduler_->after(at + lasts, [this, m] { machines_[m]->go_on(); });
        break;
      case Fault::StopOrigin:
        scheduler_->after(at, [this] { origin_->stop(); });
        scheduler_->after(at + lasts, [this] { origin_->go_on(); });
        break;
      case Fault::KillOrigin:
        // In the midst of its work, if there is any before half of the time is over.
        if (setting_.dice.chance(70)) {
          const bool given_up = setting_.dice.chance(60);
          const uint64_t messages = setting_.dice.between(1, given_up ? 6 : 40);
          scheduler_->after(at, [=, this] { origin_->kill_after(messages, given_up); });
          scheduler_->after(at + lasts / 2, [this] { origin_->kill_if_due(); });
        } else {
          scheduler_->after(at, [this] { origin_->kill(); });
        }
        scheduler_->after(at + lasts, [this] { origin_->start_again(); });
        faults_end_ns_ = std::max(faults_end_ns_, at + lasts + 2 * setting_.term_ns);
        break;
      case Fault::PowerLoss:
      case Fault::KillDaemon:
        scheduler_->after(at, [this, m, fault] {
          if (!machines_[m]->lives()) return;
          fault == Fault::PowerLoss ? machines_[m]->lose_power() : machines_[m]->kill_daemon();
        });
        ++starting_;
        // A guardian's purge is over before the next daemon has ended it.
        scheduler_->after(at + lasts + setting_.term_ns / 5, [this, m] {
          --starting_;
          start_again(m);
        });
        faults_end_ns_ = std::max(faults_end_ns_, at + lasts + setting_.term_ns);
        break;
    }
  }
}

void FaultWorld::draw_broken_connections() {
  Prng& dice = setting_.dice;
  const auto term = static_cast<uint64_t>(setting_.term_ns);
  for (uint64_t left = dice.between(1, 6); left > 0; --left) {
    const auto m = static_cast<uint32_t>(dice.below(machine_count_));
    const auto lane = static_cast<uint32_t>(dice.below(setting_.lanes));
    const auto at = static_cast<int64_t>(dice.below(4 * term));
    const auto lasts = static_cast<int64_t>(dice.below(term / 4));
    ++faults_;
    scheduler_->after(at, [=, this] { machines_[m]->break_connection(lane, lasts); });
    faults_end_ns_ = std::max(faults_end_ns_, at + lasts);
  }
}

// Of the origin, mostly soon after it has taken something that it has not synced.
void FaultWorld::draw_power_losses() {
  Prng& dice = setting_.power_dice;
  const auto term = static_cast<uint64_t>(setting_.term_ns);
  for (uint64_t left = dice.between(1, 2); left > 0; --left) {
    const auto at = static_cast<int64_t>(dice.below(5 * term));
    const auto lasts =
        static_cast<int64_t>(dice.chance(50) ? dice.below(term / 2) : dice.below(2 * term));
    ++faults_;
    if (dice.chance(75)) {
      const uint64_t messages = dice.between(1, 30);
      scheduler_->after(at, [=, this] { origin_->kill_after(messages, false, true); });
    } else {
      scheduler_->after(at, [this] { origin_->lose_power(); });
    }
    scheduler_->after(at + lasts / 2, [this] { origin_->kill_if_due(); });
    scheduler_->after(at + lasts, [this] { origin_->start_again(); });
    faults_end_ns_ = std::max(faults_end_ns_, at + lasts + 2 * setting_.term_ns);
  }
}

// What was synced is on the disk then, and what came a moment later is not.
void FaultWorld::lose_power_behind_syncs() {
  setting_.sync_done = [this, left = 3]() mutable {
    if (left == 0 || !setting_.power_dice.chance(20)) return;
    --left;
    ++faults_;
    const auto lasts = static_cast<int64_t>(
        setting_.power_dice.below(static_cast<uint64_t>(setting_.term_ns) * 3 / 2));
    origin_->kill_after(setting_.power_dice.between(1, 12), false, true);
    scheduler_->after(lasts / 2, [this] { origin_->kill_if_due(); });
    scheduler_->after(lasts, [this] { origin_->start_again(); });
    faults_end_ns_ = std::max(faults_end_ns_, scheduler_->now().ns + lasts + 2 * setting_.term_ns);
  };
}

// The node does not hear that it has another session, and the origin ends.
void FaultWorld::end_as_sessions_begin_again() {
  setting_.session_begins_again = [this, left = 2](uint32_t m) mutable {
    if (left == 0 || !setting_.power_dice.chance(70)) return;
    --left;
    ++faults_;
    const auto lasts = static_cast<int64_t>(
        setting_.power_dice.below(static_cast<uint64_t>(setting_.term_ns) / 2));
    machines_[m]->cut_off(Machine::Way::Down);
    scheduler_->after(lasts / 4, [this] { origin_->kill(); });
    scheduler_->after(lasts, [this, m] {
      origin_->start_again();
      machines_[m]->reach_again(Machine::Way::Down);
    });
    faults_end_ns_ = std::max(faults_end_ns_, scheduler_->now().ns + lasts + 2 * setting_.term_ns);
  };
}

void FaultWorld::draw_breach() {
  const auto m = static_cast<uint32_t>(setting_.dice.below(machine_count_));
  const auto at =
      static_cast<int64_t>(setting_.dice.below(4 * static_cast<uint64_t>(setting_.term_ns)));
  ++faults_;
  scheduler_->after(at, [this, m] {
    if (origin_->runs()) origin_->give_up(m);
  });
  faults_end_ns_ = std::max(faults_end_ns_, at + 2 * setting_.term_ns);
}

// Truncations of files whose dirty mapped pages the kernel holds back meanwhile (K8).
void FaultWorld::draw_mapped_truncations() {
  processes_ = 2;
  for (Habits& habits : habits_) {
    const auto often = [&](Act act, uint32_t least) {
      uint32_t& weight = habits.weights[static_cast<size_t>(act)];
      weight = std::max(weight, least);
    };
    often(Act::Store, 20);
    often(Act::Load, 15);
    often(Act::Truncate, 8);
    habits.operations += 10;
  }
}

// So that a truncation is done and its node does not hear of it; or `at_origin`, that the origin
// ends with it.
void FaultWorld::end_sessions_at_truncations(bool often, bool at_origin) {
  const auto lasts = [this](uint64_t least, uint64_t most) {
    return static_cast<int64_t>(setting_.dice.between(least, most));
  };
  const auto term = static_cast<uint64_t>(setting_.term_ns);
  setting_.truncation_done = [=, this, left = often ? 4 : 2](uint32_t m) mutable {
    if (left == 0 || !setting_.dice.chance(60)) return;
    --left;
    ++faults_;
    const int64_t until = lasts(term / 2, 2 * term);
    machines_[m]->cut_off(Machine::Way::Down);
    scheduler_->after(until, [this, m] { machines_[m]->reach_again(Machine::Way::Down); });
    faults_end_ns_ = std::max(faults_end_ns_, scheduler_->now().ns + until);
  };
  if (!often || !at_origin) return;
  setting_.truncation_comes = [=, this, left = 2]() mutable {
    if (left == 0 || !setting_.dice.chance(40)) return;
    --left;
    ++faults_;
    const int64_t until = lasts(0, term / 2);
    origin_->kill_after(1, false);
    scheduler_->after(until, [this] { origin_->start_again(); });
    faults_end_ns_ = std::max(faults_end_ns_, scheduler_->now().ns + until + 2 * setting_.term_ns);
  };
}

void FaultWorld::start_again(uint32_t m) {
  Machine& machine = *machines_[m];
  if (machine.lives()) return;
  machine.lose_power();  // a mount whose daemon is dead ends with the next one's start
  Habits habits = habits_[m];
  habits.operations = static_cast<uint32_t>(scheduler_->random().between(3, 10));
  machine.begin_life(habits, processes_);
  scheduler_->spawn(background(m));
}

void FaultWorld::start() {
  Prng& random = scheduler_->random();
  origin_ = std::make_unique<Origin>(setting_, draw_clock());
  for (uint32_t f = 0; f < setting_.files.size(); ++f) {
    std::vector<std::byte> content(random.below(setting_.files[f].pages * kCells + 1) * kCell);
    for (uint64_t at = 0; at < content.size(); at += kCell)
      fill_cell(std::span<std::byte>(content).subspan(at, kCell),
                cell_value(1, at / kPageSize, at / kCell % kCells));
    history_.start_register_file(f, content.size());
    origin_->create(file_id(f), std::move(content));
  }
  origin_->create(directory_id(), {});
  for (uint32_t m = 0; m < machine_count_; ++m)
    machines_.push_back(std::make_unique<Machine>(setting_, *origin_, m, draw_clock()));
  origin_->meets(machines_);
  if (!power_ || more_.chance(50)) draw_faults();
  if (setting_.power) draw_power_losses();
  if (setting_.dice.chance(15)) draw_breach();
  if (setting_.dice.chance(30)) draw_broken_connections();
  for (uint32_t m = 0; m < machine_count_; ++m) {
    machines_[m]->begin_life(habits_[m], processes_);
    scheduler_->spawn(background(m));
  }
}

// Memory pressure.
Co<> FaultWorld::background(uint32_t m) {
  const Machine::Life* life = machines_[m]->life();
  for (uint32_t i = 0; i < 200 && machines_[m]->life() == life; ++i) {
    Scheduler::Sleep pause{*scheduler_, static_cast<int64_t>(scheduler_->random().below(
                                            static_cast<uint64_t>(setting_.term_ns / 10)))};
    co_await pause;
    if (machines_[m]->life() != life || setting_.over) co_return;
    life->node->kernel().reclaim_something();
    if (scheduler_->random().chance(20)) life->node->kernel().forget_something();
  }
}

// ---- what must hold ----

// I1 and I5 of those whose leases are good, by true time.
void FaultWorld::check_file(uint32_t file) {
  if (file >= setting_.files.size()) return;
  const FileId id = file_id(file);
  const auto check_unit = [&](Resource resource, uint64_t page) {
    LeaseMode strongest = LeaseMode::None;
    int who = 0;
    for (const auto& machine : machines_) {
      const Machine::Life* life = machine->life();
      if (life == nullptr || !life->node->leases_good()) continue;
      const LeaseMode mode = life->node->agent().held(id, resource, page);
      if (mode == LeaseMode::None) continue;
      const char* unit = resource == Resource::Data ? "page" : "attributes";
      if (!compatible(strongest, mode))
        return scheduler_->fail(
            fmt::format("I1: n{} and n{} have good leases on f{} {} {} in conflicting modes", who,
                        life->label, file, unit, page));
      strongest = mode;
      who = life->label;
      // It has not heard yet that its home has restarted, which waits for it (R1).
      if (origin_->waits_for(life->incarnation)) continue;
      const auto session = origin_->session_of(life->incarnation);
      if (!session)
        return scheduler_->fail(
            fmt::format("T2: n{} has good leases (on f{} {} {}) and no session any more",
                        life->label, file, unit, page));
      if (!covers(origin_->driver().home().held(*session, id, resource, page), mode))
        return scheduler_->fail(fmt::format("I5: n{} holds f{} {} {} and the home does not know",
                                            life->label, file, unit, page));
    }
  };
  check_unit(Resource::Attributes, 0);
  for (uint64_t page = 0; page < setting_.files[file].pages + 1; ++page)
    check_unit(Resource::Data, page);
  for (const auto& machine : machines_)
    if (machine->life() != nullptr) machine->life()->node->agent().check();
}

bool FaultWorld::processes_done() const {
  if (starting_ > 0) return false;
  for (const auto& machine : machines_) {
    if (!machine->lives()) return false;
    for (const auto& process : machine->life()->processes)
      if (!process->done()) return false;
  }
  return true;
}

bool FaultWorld::at_rest() const {
  for (const auto& machine : machines_) {
    const Agent& agent = machine->life()->node->agent();
    if (!agent.idle_dirty() || agent.counts().waiting != 0) return false;
  }
  return origin_->driver().idle() && origin_->driver().home().counts().waiting == 0;
}

template <typename Done>
bool FaultWorld::run_until(const char* what, Done done) {
  // A process rests for a term now and then, and may wait for several fences one after the other.
  const int64_t deadline = std::max(scheduler_->now().ns, faults_end_ns_) + 100 * setting_.term_ns;
  while (!scheduler_->failed() && !done()) {
    if (!scheduler_->step() || scheduler_->now().ns > deadline)
      scheduler_->fail(fmt::format("when all faults are over everybody gets on: {}", what));
    if (scheduler_->steps() > steps_max_) scheduler_->fail("no endless loop: too many steps");
  }
  return !scheduler_->failed();
}

std::string FaultWorld::dump() const {
  std::string out;
  for (const auto& machine : machines_) out += machine->dump();
  if (origin_) out += origin_->dump();
  return out;
}

Outcome FaultWorld::run() {
  start();
  bool good = run_until("these still do their work", [this] {
    return scheduler_->now().ns > faults_end_ns_ && processes_done();
  });
  if (good) {
    for (auto& machine : machines_) {
      Machine::Life& life = *machine->life();
      life.processes.clear();
      life.processes.push_back(std::make_unique<Process>(
          *scheduler_, history_, *life.node, life.label, 9, setting_.files,
          habits_[machine->number()], [this](uint32_t f) { return origin_->disk(file_id(f)); }));
      scheduler_->spawn(life.processes.back()->audit());
    }
    good =
        run_until("these still look at everything once more", [this] { return processes_done(); });
  }
  if (good) {
    for (auto& machine : machines_) machine->life()->node->flush_all();
    good = run_until("everything is flushed in the end", [this] { return at_rest(); });
  }
  setting_.over = true;
  if (good) {
    origin_->forget_the_dead([this](uint64_t incarnation) {
      return std::ranges::any_of(machines_, [&](const auto& machine) {
        return machine->life()->incarnation == incarnation;
      });
    });
    for (uint32_t f = 0; f < setting_.files.size(); ++f)
      history_.register_file_ended(f, origin_->disk(file_id(f)));
    if (auto what = history_.check()) scheduler_->fail(*what);
  }
  Outcome outcome;
  outcome.failure = scheduler_->failure();
  if (scheduler_->failed()) outcome.dump = dump();
  WorldCounts& c = outcome.counts;
  c.steps = scheduler_->steps();
  c.operations = history_.operations();
  c.messages = setting_.messages;
  c.faults = faults_;
  c.fences = origin_->fences();
  c.restarts = origin_->restarts();
  c.power_losses = origin_->power_losses();
  c.reclaims = setting_.reclaims;
  c.taken_back = origin_->driver().home().counts().taken_back;
  for (const auto& machine : machines_) {
    for (const auto& life : machine->lives_so_far()) {
      c.kernel += life->node->kernel().counts();
      c.agent += life->node->agent().statistics();
    }
  }
  return outcome;
}

}  // namespace vremote::sim
