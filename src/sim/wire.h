// One direction of one lane between two machines, as src/net gives it to those above: in order, as
// late as you like. A partition delays, and so does a connection that breaks: what was under way is
// sent again over the next. Only the end of a session loses, and then a suffix.
#pragma once

#include <algorithm>
#include <deque>
#include <memory>

#include "sim/scheduler.h"

namespace vremote::sim {

class Wire {
 public:
  explicit Wire(Scheduler& scheduler) : scheduler_(scheduler) {}

  // `deliver` may be called twice, by a session layer that makes the second of these mistakes.
  void send(Scheduler::Function deliver) {
    under_way_.push_back(std::make_shared<Scheduler::Function>(std::move(deliver)));
    expect();
  }
  struct Mistakes {
    bool forgets = false;  // what was under way is not sent again
    bool doubles = false;  // what had arrived, and was not acknowledged yet, is sent again
  };
  // Until open(), which is the next connection.
  void break_connection(const Mistakes& mistakes) {
    if (mistakes.forgets) cut();
    if (mistakes.doubles)
      for (; !arrived_.empty(); arrived_.pop_back()) {
        under_way_.push_front(arrived_.back());
        expect();
      }
    block();
  }
  // What is under way, too, arrives only after open().
  void block() { ++blocked_; }
  void open() {
    if (--blocked_ > 0) return;
    for (size_t late = std::exchange(late_, 0); late > 0; --late) expect();
  }
  // What is under way now will arrive, whatever becomes of what is sent later.
  void keep() { kept_ = under_way_.size(); }
  // Now, before what other wires bring.
  void deliver_kept() {
    while (kept_ > 0) take_first();
  }
  // The connection is gone for good, and with it the last of what was under way.
  void cut() {
    under_way_.resize(under_way_.size() - scheduler_.random().below(under_way_.size() - kept_ + 1));
  }

 private:
  void expect() {
    last_ns_ = std::max(last_ns_, scheduler_.now().ns + scheduler_.draw(Delay::Link));
    // Equal times keep their order in the scheduler.
    scheduler_.after(last_ns_ - scheduler_.now().ns, [this] { arrive(); });
  }
  void arrive() {
    if (blocked_ > 0) {
      ++late_;
      return;
    }
    if (!under_way_.empty()) take_first();
  }
  void take_first() {
    const std::shared_ptr<Scheduler::Function> deliver = std::move(under_way_.front());
    under_way_.pop_front();
    if (kept_ > 0) --kept_;
    arrived_.push_back(deliver);
    if (arrived_.size() > kUnacknowledged) arrived_.pop_front();
    (*deliver)();
  }

  Scheduler& scheduler_;
  static constexpr size_t kUnacknowledged = 3;
  std::deque<std::shared_ptr<Scheduler::Function>> under_way_, arrived_;
  int64_t last_ns_ = 0;
  size_t kept_ = 0;
  size_t late_ = 0;
  uint32_t blocked_ = 0;
};

}  // namespace vremote::sim
