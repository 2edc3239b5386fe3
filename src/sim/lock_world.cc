#include "sim/lock_world.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace vremote::sim {

using namespace coherence;

namespace {

constexpr int64_t kSoon = 500'000;

FileId file_at(size_t file) { return {0, 1, file + 1}; }

const char* text(LockType type) {
  return type == LockType::Read ? "read" : type == LockType::Write ? "write" : "un";
}

}  // namespace

LockWorld::LockWorld(uint64_t seed, const Breaks& breaks)
    : scheduler_(std::make_unique<Scheduler>(seed)),
      breaks_(breaks),
      table_(breaks.protocol),
      more_(seed * 0xD1B54A32D192ED03u + 11),
      gate_(1 << 16, breaks.protocol) {
  draw();
}

LockWorld::~LockWorld() = default;

void LockWorld::draw() {
  Prng& random = scheduler_->random();
  node_count_ = static_cast<uint32_t>(random.between(2, 4));
  processes_per_node_ = static_cast<uint32_t>(random.between(1, 3));
  operations_ = static_cast<uint32_t>(random.between(4, 20));
  files_ = static_cast<uint32_t>(random.between(1, 2));
  flocks_ = random.chance(40);
  ranges_ = !flocks_ || random.chance(50);
  signals_ = random.chance(30);
  deaths_ = random.chance(30);
  for (uint32_t n = 0; n < node_count_; ++n) {
    to_home_.push_back(std::make_unique<Link>(*scheduler_));
    from_home_.push_back(std::make_unique<Link>(*scheduler_));
    for (uint32_t p = 0; p < processes_per_node_; ++p)
      processes_.push_back(
          {.node = n, .owner = p + 1, .held = std::vector<Held>(files_), .doing = {}});
  }
  nodes_.resize(node_count_);
  for (uint32_t n = 0; n < node_count_; ++n) {
    nodes_[n].session = next_session_++;
    node_of_[n] = n;
    members_.began(NodeId{n}, member(n), scheduler_->now());
  }
  restarts_ = more_.chance(40);
  plan_ =
      fmt::format("{} nodes, {} processes each, {} files{}{}{}{}", node_count_, processes_per_node_,
                  files_, ranges_ ? ", ranges" : "", flocks_ ? ", flocks" : "",
                  signals_ ? ", signals" : "", deaths_ ? ", deaths" : "");
  if (restarts_) plan_ += ", restarts";
}

// ---- the home

void LockWorld::reply(LockTable::Ticket ticket, int error) {
  auto it = node_of_.find(ticket.node.value);
  if (it == node_of_.end()) return;
  tell(ticket.node.value,
       [this, node = it->second, ticket, error] { answered(node, ticket.call, error); });
}

void LockWorld::at_home(NodeId node, uint64_t id, const LockCall& c) {
  const LockTable::Ticket ticket{node, id};
  const LockTable::Request request{.file = c.file,
                                   .kind = c.kind,
                                   .owner = {node, c.owner},
                                   .type = c.type,
                                   .range = {c.start, c.end},
                                   .pid = 1,
                                   .wait = c.action == LockAction::Wait,
                                   .ticket = ticket};
  std::vector<LockTable::Ticket> woken, cancelled;
  switch (c.action) {
    case LockAction::Try:
    case LockAction::Wait:
    case LockAction::Reclaim: {
      if (c.action == LockAction::Reclaim && !gate_.may_reclaim()) {
        reply(ticket, ESTALE);
        break;
      }
      const LockTable::Decision decision = table_.set(request, woken);
      scheduler_->trace(-1, static_cast<int>(c.file.inode), "home    n{} o{} {}lock {}-{}: {}",
                        node.value, c.owner, text(c.type), c.start, c.end,
                        static_cast<int>(decision));
      switch (decision) {
        case LockTable::Decision::Done:
          reply(ticket, 0);
          break;
        case LockTable::Decision::Conflict:
          reply(ticket, EAGAIN);
          break;
        case LockTable::Decision::Deadlock:
          ++counts_.lock_circles;
          reply(ticket, EDEADLK);
          break;
        case LockTable::Decision::Waits:
          ++counts_.lock_waits;
          break;
      }
      break;
    }
    case LockAction::Cancel:
      if (table_.cancel(c.file, {node, c.waiting_call}, woken))
        cancelled.push_back({node, c.waiting_call});
      reply(ticket, 0);
      break;
    case LockAction::Release:
      if (!breaks_.deaf_to_death) table_.release(c.file, c.kind, {node, c.owner}, woken, cancelled);
      reply(ticket, 0);
      break;
    case LockAction::Test:
    case LockAction::Refuse:  // of circles over several homes: wait_circles_test.cc
      scheduler_->fail("nobody tests");
      break;
  }
  for (LockTable::Ticket t : woken) reply(t, 0);
  for (LockTable::Ticket t : cancelled) reply(t, EINTR);
  table_.check();
}

Co<> LockWorld::kill_node(uint32_t node) {
  co_await scheduler_->sleep(Delay::Reclaim);
  co_await scheduler_->sleep(Delay::Think);
  scheduler_->trace(static_cast<int>(node), -1, "the node dies");
  for (Process& p : processes_)
    if (p.node == node) {
      p.stopped = p.done = true;
      p.held.assign(files_, Held{});
    }
  co_await scheduler_->sleep(Delay::Reclaim);
  nodes_[node].dead = true;
  end_session(node);
}

// ---- processes

Co<int> LockWorld::call(size_t process, LockCall call, uint64_t id) {
  const uint32_t node = processes_[process].node;
  auto arrival = std::make_shared<Arrival<int>>(*scheduler_);
  calls_[id] = arrival;
  ++counts_.messages;
  submit(node, id, call);
  const int error = co_await arrival->wait();
  // Given, and taken away again before the process went on.
  const uint64_t then = answered_at_.extract(id).mapped();
  co_return error == 0 && then != nodes_[node].fences ? EIO : error;
}

void LockWorld::holds(size_t process, size_t file, LockKind kind, LockRange range, Holds what) {
  Process& self = processes_[process];
  if (self.stopped) return;
  for (uint64_t byte = range.start; byte <= range.end; ++byte) {
    self.held[file][static_cast<size_t>(kind)][byte] = what;
    if (what == Holds::Nothing) continue;
    for (const Process& other : processes_) {
      const Holds theirs = other.held[file][static_cast<size_t>(kind)][byte];
      if (&other == &self || theirs == Holds::Nothing ||
          (theirs == Holds::Read && what == Holds::Read))
        continue;
      scheduler_->fail(fmt::format("locks exclude: byte {} of f{} is locked by n{} o{} and n{} o{}",
                                   byte, file + 1, self.node, self.owner, other.node, other.owner));
    }
  }
}

Co<> LockWorld::lock(size_t process) {
  Prng& random = scheduler_->random();
  Process& self = processes_[process];
  const size_t file = random.below(files_);
  const bool flock = flocks_ && (!ranges_ || random.chance(50));
  const LockKind kind = flock ? LockKind::Flock : LockKind::Range;
  LockRange range{0, kBytes - 1};
  if (!flock) {
    range.start = random.below(kBytes);
    range.end = random.between(range.start, std::min(kBytes - 1, range.start + 3));
  }
  const LockType type = random.chance(50) ? LockType::Read : LockType::Write;
  // Circles through a flock are not looked for, as in the kernel: who waits for one, or holds one,
  // must not be in any.
  const auto holds_some = [&self](LockKind which) {
    return std::any_of(self.held.begin(), self.held.end(), [which](const Held& held) {
      return std::any_of(held[static_cast<size_t>(which)].begin(),
                         held[static_cast<size_t>(which)].end(),
                         [](Holds h) { return h != Holds::Nothing; });
    });
  };
  const bool only_converts = flock && self.held[file][1][0] != Holds::Nothing && files_ == 1 &&
                             !holds_some(LockKind::Range);
  const bool may_wait = !holds_some(LockKind::Flock) && (!flock || !holds_some(LockKind::Range));
  const bool wait = (may_wait || only_converts) && random.chance(70);
  // What a new lock takes the place of is no longer relied on, where it is stronger or may be lost.
  if (flock || type == LockType::Read)
    for (uint64_t byte = range.start; byte <= range.end; ++byte) {
      Holds& held = self.held[file][static_cast<size_t>(kind)][byte];
      if (flock) held = Holds::Nothing;
      if (held == Holds::Write) held = Holds::Read;
    }
  const uint64_t id = next_call_++;
  self.doing = fmt::format("{} {}lock of f{} {}-{}", flock ? "a flock," : "a", text(type), file + 1,
                           range.start, range.end);
  if (wait) {
    self.waits = id;
    self.waits_file = file;
    if (signals_ && random.chance(30)) scheduler_->spawn(interrupt(process, id));
  }
  LockCall operation{.file = file_at(file),
                     .action = wait ? LockAction::Wait : LockAction::Try,
                     .kind = kind,
                     .type = type,
                     .owner = self.owner,
                     .start = range.start,
                     .end = range.end};
  const int error = co_await call(process, operation, id);
  Process& now = processes_[process];
  now.waits = 0;
  if (now.stopped) co_return;
  if (error == 0) {
    holds(process, file, kind, range, type == LockType::Read ? Holds::Read : Holds::Write);
    co_return;
  }
  if (flock) {
    // An exchange that was given up has let go of the old one: some programs leave it at that.
    if (restarts_ && error == EINTR && more_.chance(70)) {
      if (!std::exchange(restarts_soon_, true)) restart_home(kSoon, kSoon);
      co_await scheduler_->sleep(Delay::Reclaim);
      co_return;
    }
    co_await unlock(process, file, kind, range);
  } else if (error == EDEADLK) {
    for (size_t f = 0; f < files_; ++f)
      co_await unlock(process, f, LockKind::Range, LockRange{0, kBytes - 1});
  }
}

Co<> LockWorld::unlock(size_t process, size_t file, LockKind kind, LockRange range) {
  holds(process, file, kind, range, Holds::Nothing);
  LockCall operation{.file = file_at(file),
                     .action = LockAction::Try,
                     .kind = kind,
                     .type = LockType::Unlock,
                     .owner = processes_[process].owner,
                     .start = range.start,
                     .end = range.end};
  processes_[process].doing = "an unlock";
  (void)co_await call(process, operation, next_call_++);
}

// A signal while it waits; the answer and the cancellation may cross.
Co<> LockWorld::interrupt(size_t process, uint64_t id) {
  co_await scheduler_->sleep(Delay::Think);
  Process& self = processes_[process];
  if (self.waits != id || self.stopped) co_return;
  LockCall operation{.file = file_at(self.waits_file),
                     .action = LockAction::Cancel,
                     .owner = self.owner,
                     .waiting_call = id};
  (void)co_await call(process, operation, next_call_++);
}

// The process ends: the kernel gives up all its locks.
Co<> LockWorld::end(size_t process) {
  ++counts_.lock_deaths;
  for (size_t f = 0; f < files_; ++f)
    for (LockKind kind : {LockKind::Range, LockKind::Flock}) {
      if (processes_[process].stopped) co_return;
      holds(process, f, kind, {0, kBytes - 1}, Holds::Nothing);
      LockCall operation{.file = file_at(f),
                         .action = LockAction::Release,
                         .kind = kind,
                         .type = LockType::Unlock,
                         .owner = processes_[process].owner};
      processes_[process].doing = "its end";
      (void)co_await call(process, operation, next_call_++);
    }
}

Co<> LockWorld::live(size_t process) {
  Prng& random = scheduler_->random();
  for (uint32_t i = 0; i < operations_ && !processes_[process].stopped; ++i) {
    co_await scheduler_->sleep(Delay::Think);
    if (processes_[process].stopped) break;
    ++counts_.operations;
    if (random.chance(60)) {
      co_await lock(process);
      continue;
    }
    const size_t file = random.below(files_);
    if (flocks_ && random.chance(50)) {
      co_await unlock(process, file, LockKind::Flock, LockRange{0, kBytes - 1});
      continue;
    }
    const uint64_t start = random.below(kBytes);
    const uint64_t last = random.chance(50) ? kBytes - 1 : random.between(start, kBytes - 1);
    co_await unlock(process, file, LockKind::Range, LockRange{start, last});
  }
  if (!processes_[process].stopped) co_await end(process);
  processes_[process].done = true;
}

std::string LockWorld::waiting() const {
  std::string out;
  for (const Process& p : processes_)
    if (!p.done) out += fmt::format("  n{} o{} waits for {}\n", p.node, p.owner, p.doing);
  return out;
}

bool LockWorld::settle() {
  while (!scheduler_->failed() && scheduler_->step())
    if (scheduler_->steps() > 400'000) scheduler_->fail("no endless loop: too many steps");
  if (scheduler_->failed()) return false;
  if (const std::string who = waiting(); !who.empty())
    scheduler_->fail("no deadlock: nothing happens any more, and these wait:\n" + who);
  return !scheduler_->failed();
}

Outcome LockWorld::run() {
  for (size_t i = 0; i < processes_.size(); ++i) scheduler_->spawn(live(i));
  if (restarts_) draw_restarts();
  if (deaths_)
    scheduler_->spawn(kill_node(static_cast<uint32_t>(scheduler_->random().below(node_count_))));
  if (settle() && (table_.held() != 0 || table_.waiting() != 0))
    scheduler_->fail(fmt::format("a lock dies with its owner: {} are held and {} wait in the end",
                                 table_.held(), table_.waiting()));
  Outcome outcome;
  outcome.failure = scheduler_->failure();
  if (scheduler_->failed()) outcome.dump = waiting();
  outcome.counts = counts_;
  outcome.counts.steps = scheduler_->steps();
  return outcome;
}

}  // namespace vremote::sim
