#include "sim/world.h"

#include <fmt/format.h>

#include <algorithm>

namespace vremote::sim {

using namespace coherence;

World::World(uint64_t seed, const Breaks& breaks)
    : scheduler_(std::make_unique<Scheduler>(seed)), breaks_(breaks), limits_(draw_limits(seed)) {
  // Numbers of its own: worlds without such changes stay what they were before there were any.
  if (Prng own(~seed); own.chance(15)) outside_.emplace(own);
  draw();
}

World::~World() = default;

void World::draw() {
  Prng& random = scheduler_->random();
  auto one_of = [&random](std::initializer_list<int64_t> values) {
    return *(values.begin() + static_cast<ptrdiff_t>(random.below(values.size())));
  };

  node_count_ = static_cast<uint32_t>(random.between(2, random.chance(70) ? 3 : 5));
  processes_per_node_ = static_cast<uint32_t>(random.between(1, 3));
  const bool wide = random.chance(3);
  const bool truncates = random.chance(35);
  const auto file_count = static_cast<uint32_t>(random.chance(60) ? 1 : random.between(2, 3));
  for (uint32_t i = 0; i < file_count; ++i) {
    FilePlan file;
    file.append_only = !wide && random.chance(15);
    file.pages = wide ? 600 : random.between(1, 6);
    file.hot_pages = wide ? 40 : random.between(1, file.pages);
    files_.push_back(file);
  }

  for (uint32_t n = 0; n < node_count_; ++n) {
    Habits habits;
    auto weigh = [&](Act act, uint32_t most, uint32_t percent) {
      habits.weights[static_cast<size_t>(act)] =
          random.chance(percent) ? static_cast<uint32_t>(random.between(1, most)) : 0;
    };
    weigh(Act::ReadCached, 30, 85);
    weigh(Act::ReadDirect, 15, 50);
    weigh(Act::Write, 30, 80);
    weigh(Act::Append, 15, 40);
    weigh(Act::Load, 25, 50);
    weigh(Act::Store, 30, 50);
    if (truncates) weigh(Act::Truncate, 10, 70);
    weigh(Act::Fsync, 8, 50);
    weigh(Act::Stat, 10, 60);
    weigh(Act::CloseOne, 12, 60);
    weigh(Act::ReadAhead, 10, 40);
    weigh(Act::Reopen, 10, 40);
    weigh(Act::Splice, 15, 50);
    habits.weights[static_cast<size_t>(Act::ReadCached)] += 1;
    habits.operations = static_cast<uint32_t>(random.between(6, 25));
    habits.read_cells_max = wide ? 128 : 12;
    habits.write_cells_max = wide ? 128 : 12;
    habits.signals = random.chance(15);
    habits_.push_back(habits);
  }

  kernel_options_.readahead_max = wide ? 32 : random.between(1, 4);
  kernel_options_.readahead_in_pieces = random.chance(30);
  kernel_options_.forgets = random.chance(60);
  kernel_options_.size_races = breaks_.size_races;
  kernel_options_.tails = breaks_.tails;
  if (breaks_.small_background) kernel_options_.background_max = 1;

  agent_options_.residency_ns = one_of({0, 20'000, 1'000'000});
  agent_options_.flush_after_ns = one_of({50'000, 1'000'000, 1'000'000'000});
  agent_options_.dirty_max_bytes = random.chance(20) ? 8192 : 256u << 20;
  agent_options_.flush_window_bytes = random.chance(20) ? 8192 : 16u << 20;
  agent_options_.settle_ns = 1'000'000'000;
  agent_options_.push_patience_ns = 0;     // who waits for one for ever is found
  agent_options_.moment_ns = 100'000'000;  // longer than any delay
  agent_options_.mistakes = breaks_.protocol;

  // Only the longest records of files that grow by appends are cut.
  kernel_options_.append_piece = agent_options_.max_write = 2 * kPageSize;

  offers_ = random.chance(30);
  check_every_ = wide ? 16 : 1;
  const uint64_t operations = uint64_t{node_count_} * processes_per_node_ * 40;
  steps_max_ = 200'000 + operations * 2'000;
  plan_ = fmt::format(
      "{} nodes, {} processes each, {} files{}{}{}, readahead {}{}, residency {} us, flush after "
      "{} "
      "us",
      node_count_, processes_per_node_, file_count, wide ? ", wide" : "",
      truncates ? ", truncations" : "", outside_ ? ", changes from outside" : "",
      kernel_options_.readahead_max, kernel_options_.readahead_in_pieces ? " in pieces" : "",
      agent_options_.residency_ns / 1000, agent_options_.flush_after_ns / 1000);
}

void World::send_to_home(NodeId node, ToHome message) {
  const FileId file = file_of(message);
  ++messages_;
  to_home_[node.value]->send(file, [this, node, file, late = std::move(message)]() mutable {
    home_->receive(node, std::move(late));
    home_->home().check();
    check_file(static_cast<uint32_t>(file.inode) - 1);
  });
}

void World::start() {
  Prng& random = scheduler_->random();
  Scheduler& scheduler = *scheduler_;
  home_ = std::make_unique<HomeDriver>(
      scheduler, breaks_,
      [this](NodeId node, FileId file, ToAgent message) {
        ++messages_;
        from_home_[node.value]->send(file, [this, node, file, late = std::move(message)]() mutable {
          nodes_[node.value]->deliver(file, std::move(late));
        });
      },
      limits_);
  for (uint32_t f = 0; f < files_.size(); ++f) {
    std::vector<std::byte> content;
    if (files_[f].append_only) {
      history_.start_append_file(f);
    } else {
      const uint64_t cells = random.chance(30) ? 0 : random.below(files_[f].pages * kCells + 1);
      content.resize((random.chance(50) ? files_[f].pages * kCells : cells) * kCell);
      for (uint64_t at = 0; at < content.size(); at += kCell) {
        fill_cell(std::span<std::byte>(content).subspan(at, kCell),
                  cell_value(1, at / kPageSize, at / kCell % kCells));
      }
      history_.start_register_file(f, content.size());
    }
    home_->create(file_id(f), std::move(content));
  }
  for (uint32_t n = 0; n < node_count_; ++n) {
    to_home_.push_back(std::make_unique<Link>(scheduler));
    from_home_.push_back(std::make_unique<Link>(scheduler));
    Node::Hooks hooks;
    hooks.send = [this](NodeId node, ToHome message) { send_to_home(node, std::move(message)); };
    hooks.changed = [this](NodeId node, FileId file) { check_after(node, file); };
    nodes_.push_back(std::make_unique<Node>(scheduler, history_, breaks_, NodeId{n}, agent_options_,
                                            kernel_options_, std::move(hooks)));
  }
  for (uint32_t n = 0; n < node_count_; ++n) {
    for (uint32_t p = 0; p < processes_per_node_; ++p) {
      processes_.push_back(
          std::make_unique<Process>(scheduler, history_, *nodes_[n], static_cast<int>(n),
                                    static_cast<int>(p), files_, habits_[n], [this](uint32_t file) {
                                      return std::span<const std::byte>(home_->disk(file_id(file)));
                                    }));
    }
  }
  for (auto& process : processes_) scheduler.spawn(process->run());
  for (uint32_t n = 0; n < node_count_; ++n) scheduler.spawn(background(n));
}

// Memory pressure, and a home that offers leases to those who open files.
Co<> World::background(uint32_t node) {
  auto busy = [this] {
    return std::any_of(processes_.begin(), processes_.end(),
                       [](const auto& p) { return !p->done(); });
  };
  // Bounded: in a deadlock this must stop, so that nothing happens any more.
  for (uint32_t i = 0; i < 400 && busy(); ++i) {
    co_await scheduler_->sleep(Delay::Reclaim);
    Prng& random = scheduler_->random();
    nodes_[node]->kernel().reclaim_something();
    if (random.chance(20)) nodes_[node]->kernel().forget_something();
    if (offers_ && random.chance(10)) {
      const auto file = static_cast<uint32_t>(random.below(files_.size()));
      home_->offer(NodeId{node}, file_id(file),
                   random.chance(50) ? Resource::Attributes : Resource::Data,
                   random.chance(50) ? LeaseMode::Exclusive : LeaseMode::Shared);
    }
    if (outside_ && outside_->chance(10)) {
      const auto file = static_cast<uint32_t>(outside_->below(files_.size()));
      home_->changed_outside(file_id(file), outside_->chance(50)
                                                ? OutsideChange{.attributes = true, .data = true}
                                                : OutsideChange{.attributes = true});
    }
  }
}

void World::check_after(NodeId node, FileId file) {
  if (++changes_ % check_every_ == 0) nodes_[node.value]->agent().check();
  if (file == FileId{}) {
    for (uint32_t f = 0; f < files_.size(); ++f) check_file(f);
    return;
  }
  const auto number = static_cast<uint32_t>(file.inode) - 1;
  for (uint64_t page : nodes_[node.value]->kernel().dirty_pages(number)) {
    if (nodes_[node.value]->agent().held(file, Resource::Data, page) != LeaseMode::Exclusive) {
      scheduler_->fail(fmt::format("a dirty page is held Exclusive (K2): n{} f{} page {}",
                                   node.value, number, page));
    }
  }
  check_file(number);
}

// I1 and I5, page by page.
void World::check_file(uint32_t file) {
  if (changes_ % check_every_ != 0) return;
  const FileId id = file_id(file);
  auto check_unit = [&](Resource resource, uint64_t page) {
    LeaseMode strongest = LeaseMode::None;
    uint32_t who = 0;
    for (uint32_t n = 0; n < nodes_.size(); ++n) {
      const LeaseMode mode = nodes_[n]->agent().held(id, resource, page);
      if (mode == LeaseMode::None) continue;
      if (!compatible(strongest, mode)) {
        scheduler_->fail(fmt::format("I1: f{} {} {} is held by n{} and n{} in conflicting modes",
                                     file, resource == Resource::Data ? "page" : "attributes", page,
                                     who, n));
        return;
      }
      strongest = mode;
      who = n;
      if (!covers(home_->home().held(NodeId{n}, id, resource, page), mode)) {
        scheduler_->fail(fmt::format("I5: n{} holds f{} {} {} and the home does not know", n, file,
                                     resource == Resource::Data ? "page" : "attributes", page));
        return;
      }
    }
  };
  check_unit(Resource::Attributes, 0);
  const uint64_t pages = std::min<uint64_t>(files_[file].pages + 2, 48);
  for (uint64_t page = 0; page < pages; ++page) check_unit(Resource::Data, page);
}

bool World::settle() {
  while (!scheduler_->failed() && scheduler_->step()) {
    if (scheduler_->steps() > steps_max_) scheduler_->fail("no endless loop: too many steps");
  }
  if (scheduler_->failed()) return false;
  std::string waiting;
  for (const auto& process : processes_) {
    if (!process->done()) waiting += "\n  " + process->waits_for();
  }
  if (!waiting.empty())
    scheduler_->fail("no deadlock: nothing happens any more, and these wait:" + waiting);
  return !scheduler_->failed();
}

std::string World::dump() const {
  std::string out;
  for (const auto& process : processes_) {
    if (!process->done()) out += "  " + process->waits_for() + "\n";
  }
  for (const auto& node : nodes_) out += node->dump();
  if (home_) out += home_->dump();
  return out;
}

Outcome World::run() {
  start();
  bool good = settle();
  if (good) {
    // Everybody looks at everything once more: what a cache kept wrongly shows now.
    processes_.clear();
    for (uint32_t n = 0; n < node_count_; ++n) {
      processes_.push_back(
          std::make_unique<Process>(*scheduler_, history_, *nodes_[n], static_cast<int>(n), 9,
                                    files_, habits_[n], [this](uint32_t file) {
                                      return std::span<const std::byte>(home_->disk(file_id(file)));
                                    }));
      scheduler_->spawn(processes_.back()->audit());
    }
    good = settle();
  }
  if (good) {
    for (auto& node : nodes_) node->flush_all();
    good = settle();
  }
  if (good) {
    for (uint32_t n = 0; n < node_count_; ++n) {
      if (!nodes_[n]->agent().idle_dirty())
        scheduler_->fail(
            fmt::format("everything is flushed in the end: n{} still has dirty bytes", n));
      if (nodes_[n]->agent().statistics().write_backs_without_exclusive != 0)
        scheduler_->fail(fmt::format("write-back without Exclusive on n{}", n));
      if (nodes_[n]->agent().counts().waiting != 0)
        scheduler_->fail(fmt::format("requests still wait at n{} in the end", n));
    }
    if (!home_->idle() || home_->home().counts().waiting != 0)
      scheduler_->fail("the home still has something to do in the end");
    for (uint32_t f = 0; f < files_.size(); ++f) {
      if (files_[f].append_only) {
        history_.append_file_ended(f, home_->disk(file_id(f)));
      } else {
        history_.register_file_ended(f, home_->disk(file_id(f)));
      }
    }
    if (auto what = history_.check()) scheduler_->fail(*what);
  }
  Outcome outcome;
  outcome.failure = scheduler_->failure();
  if (scheduler_->failed()) outcome.dump = dump();
  WorldCounts& c = outcome.counts;
  c.steps = scheduler_->steps();
  c.operations = history_.operations();
  c.messages = messages_;
  if (home_) c.taken_back = home_->home().counts().taken_back;
  for (const auto& node : nodes_) {
    c.kernel += node->kernel().counts();
    c.agent += node->agent().statistics();
  }
  return outcome;
}

}  // namespace vremote::sim
