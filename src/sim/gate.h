// A daemon that may be stopped (SIGSTOP) or killed: what happens around it meanwhile waits for it.
#pragma once

#include <array>
#include <deque>
#include <optional>
#include <utility>

#include "sim/scheduler.h"

namespace vremote::sim {

// Where it would hear of an event; order is kept within each only.
enum class Door : uint8_t { Kernel, Network, Own, kCount };

class Gate {
 public:
  // `runs`: all that waited has been taken up.
  explicit Gate(Scheduler& scheduler, Scheduler::Function runs = {})
      : scheduler_(scheduler), runs_(std::move(runs)) {}

  // Runs `event` now, or when the daemon runs again, or never.
  void enter(Door door, Scheduler::Function event) {
    auto& line = waiting_[static_cast<size_t>(door)];
    if (state_ == State::Runs || (state_ == State::TakesUp && door != held_ && line.empty())) {
      event();
    } else if (state_ != State::Dead) {
      line.push_back(std::move(event));
    }
  }
  void stop() {
    if (state_ != State::Dead) state_ = State::Stopped;
  }
  // What waited is taken up first, piece by piece.
  void go_on() {
    if (state_ != State::Stopped) return;
    state_ = State::TakesUp;
    take_up(++turn_);
  }
  // What waits at this door, and comes to it, is not taken up before take_up_all().
  void hold(Door door) { held_ = door; }
  // What waits at this door, now.
  void take_up_all(Door door) {
    if (held_ == door) held_.reset();
    auto& line = waiting_[static_cast<size_t>(door)];
    while (!line.empty()) {
      Scheduler::Function event = std::move(line.front());
      line.pop_front();
      event();
    }
    if (state_ == State::TakesUp) take_up(++turn_);
  }
  void kill() {
    state_ = State::Dead;
    for (auto& line : waiting_) line.clear();
  }
  bool runs() const { return state_ == State::Runs; }
  bool stopped() const { return state_ == State::Stopped; }
  bool dead() const { return state_ == State::Dead; }

 private:
  enum class State : uint8_t { Runs, Stopped, TakesUp, Dead };

  void take_up(uint64_t turn) {
    if (state_ != State::TakesUp || turn != turn_) return;
    std::array<size_t, static_cast<size_t>(Door::kCount)> lines{};
    size_t count = 0;
    for (size_t i = 0; i < waiting_.size(); ++i)
      if (!waiting_[i].empty() && static_cast<Door>(i) != held_) lines[count++] = i;
    if (count == 0) {
      if (held_) return;
      state_ = State::Runs;
      if (runs_) runs_();
      return;
    }
    auto& line = waiting_[lines[scheduler_.random().below(count)]];
    Scheduler::Function event = std::move(line.front());
    line.pop_front();
    event();
    scheduler_.after(Delay::WakeUp, [this, turn] { take_up(turn); });
  }

  Scheduler& scheduler_;
  Scheduler::Function runs_;
  State state_ = State::Runs;
  uint64_t turn_ = 0;
  std::optional<Door> held_;
  std::array<std::deque<Scheduler::Function>, static_cast<size_t>(Door::kCount)> waiting_;
};

// A machine's own clock.
struct Clock {
  int64_t offset_ns = 1'000'000'000;
  int64_t drift_ppm = 0;

  Instant at(Instant world) const {
    constexpr int64_t kMillion = 1'000'000;
    return {offset_ns + world.ns + world.ns / kMillion * drift_ppm +
            world.ns % kMillion * drift_ppm / kMillion};
  }
  // How long the world takes for so much of this clock, and a little more.
  int64_t world_ns(int64_t own_ns) const {
    return own_ns - own_ns / (1'000'000 + drift_ppm) * drift_ppm + 1'000'000;
  }
};

}  // namespace vremote::sim
