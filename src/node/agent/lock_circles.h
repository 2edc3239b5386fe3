// This node's part in finding circles of waiting lock owners over several homes
// (coherence/wait_circles.h): knows every wait of this node, and carries searches between its
// agents and their homes.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "coherence/wait_circles.h"
#include "net/event_loop.h"

namespace vremote::node {

class AgentService;

// Thread-safe.
class LockCircles {
 public:
  // `loop` is where searches begin; it has stopped, or stop() was called there, before this ends.
  explicit LockCircles(net::EventLoop& loop);

  // `holds`: whether the owner holds byte ranges at the agent's home.
  void add(AgentService* agent, std::function<bool(uint64_t owner)> holds);
  void stop();

  // Of a byte range; before the home is asked, and when it has answered.
  void begins(AgentService* agent, FileId file, uint64_t call, uint64_t owner);
  void ends(AgentService* agent, uint64_t call);
  bool holds_elsewhere(const AgentService* agent, uint64_t owner) const;
  // From the agent's home. Not with any lock that a message to a home needs.
  void receive(const AgentService* agent, const coherence::FollowOwner& message);

 private:
  struct Home {
    AgentService* agent = nullptr;
    std::function<bool(uint64_t)> holds;
  };
  uint32_t number_of(const AgentService* agent) const;  // with mutex_
  void tick();
  void carry_out(coherence::WaitCircles::Actions& actions);
  std::shared_ptr<const std::vector<Home>> homes() const;

  net::EventLoop& loop_;
  mutable std::mutex mutex_;
  std::shared_ptr<const std::vector<Home>> homes_;  // never fewer
  coherence::WaitCircles circles_;
  net::Timer timer_;
  bool runs_ = false, stopped_ = false;  // the timer
};

}  // namespace vremote::node
