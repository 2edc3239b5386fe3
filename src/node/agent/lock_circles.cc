#include "node/agent/lock_circles.h"

#include <algorithm>

#include "base/random_number.h"
#include "node/agent/agent_service.h"

namespace vremote::node {

using namespace coherence;

LockCircles::LockCircles(net::EventLoop& loop)
    : loop_(loop),
      homes_(std::make_shared<const std::vector<Home>>()),
      circles_(random_number(), {.draw = random_number}) {}

void LockCircles::add(AgentService* agent, std::function<bool(uint64_t)> holds) {
  std::lock_guard lock(mutex_);
  std::vector<Home> more = *homes_;
  more.push_back({agent, std::move(holds)});
  homes_ = std::make_shared<const std::vector<Home>>(std::move(more));
}

void LockCircles::stop() {
  std::lock_guard lock(mutex_);
  stopped_ = true;
  timer_.cancel();
}

uint32_t LockCircles::number_of(const AgentService* agent) const {
  return static_cast<uint32_t>(std::ranges::find(*homes_, agent, &Home::agent) - homes_->begin());
}

std::shared_ptr<const std::vector<LockCircles::Home>> LockCircles::homes() const {
  std::lock_guard lock(mutex_);
  return homes_;
}

void LockCircles::begins(AgentService* agent, FileId file, uint64_t call, uint64_t owner) {
  std::lock_guard lock(mutex_);
  circles_.begins(net::EventLoop::now(), {number_of(agent), file, call, owner});
  // Most waits are over before the timer ends: it is not set anew for each.
  if (runs_ || stopped_) return;
  runs_ = true;
  timer_ = loop_.call_after(WaitCircles::kFirstSearchNs, [this] { tick(); });
}

void LockCircles::ends(AgentService* agent, uint64_t call) {
  std::lock_guard lock(mutex_);
  circles_.ends(number_of(agent), call);
}

bool LockCircles::holds_elsewhere(const AgentService* agent, uint64_t owner) const {
  const auto all = homes();
  return std::ranges::any_of(
      *all, [&](const Home& home) { return home.agent != agent && home.holds(owner); });
}

void LockCircles::tick() {
  const auto all = homes();
  WaitCircles::Actions actions;
  {
    std::lock_guard lock(mutex_);
    runs_ = !circles_.idle() && !stopped_;
    if (runs_) timer_ = loop_.call_after(WaitCircles::kFirstSearchNs, [this] { tick(); });
    circles_.tick(
        net::EventLoop::now(),
        [&](uint64_t owner) {
          return std::ranges::any_of(*all, [&](const Home& home) { return home.holds(owner); });
        },
        actions);
  }
  carry_out(actions);
}

void LockCircles::receive(const AgentService* agent, const FollowOwner& message) {
  WaitCircles::Actions actions;
  {
    std::lock_guard lock(mutex_);
    circles_.receive(number_of(agent), message, actions);
  }
  carry_out(actions);
}

void LockCircles::carry_out(WaitCircles::Actions& actions) {
  if (actions.empty()) return;
  const auto all = homes();
  for (WaitCircles::Action& action : actions) {
    if (auto* ask = std::get_if<WaitCircles::Ask>(&action)) {
      (*all)[ask->home].agent->follow(std::move(ask->follow));
    } else {
      const auto& refuse = std::get<WaitCircles::Refuse>(action);
      (*all)[refuse.home].agent->refuse_wait(refuse.file, refuse.call);
    }
  }
}

}  // namespace vremote::node
