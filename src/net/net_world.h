// For tests: loops, homes and agents on the loopback, and waiting for what happens without sleeping
// for it.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "net/agent_session.h"
#include "net/home_server.h"

namespace vremote::net {

// Everything the tests look at, in the order it happened, under one lock.
class Journal {
 public:
  template <typename F>
  void note(F&& change) {
    std::lock_guard lock(mutex_);
    change();
    changed_.notify_all();
  }
  // False after a minute: the test has failed.
  template <typename F>
  [[nodiscard]] bool until(F&& holds) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(60), std::forward<F>(holds));
  }
  template <typename F>
  auto look(F&& read) {
    std::lock_guard lock(mutex_);
    return read();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

// Polls for what no callback tells (counters).
[[nodiscard]] bool eventually(const std::function<bool()>& holds);

struct Loops {
  explicit Loops(size_t n, const char* name);
  ~Loops();
  std::vector<EventLoop*> all() const;
  std::vector<std::unique_ptr<EventLoop>> loops;
};

// The key of all test nodes, and what the node `own_name` makes of it.
const ClusterKey& test_key();
std::shared_ptr<const Tls> test_tls(const std::string& own_name);
// With VREMOTE_TEST_TLS in the environment the worlds below speak TLS unless told otherwise; else
// plain. The tests run both ways (CMakeLists.txt).
bool under_tls();

struct TestHome {
  struct Seen {
    std::vector<std::string> events;  // "session 1 n1", "reset 1"
    std::map<std::pair<SessionId, uint32_t>, std::vector<coherence::ToHome>> messages;
    size_t count = 0;
    uint32_t connected = 0;
  };
  explicit TestHome(uint64_t incarnation = 1, uint16_t port = 0,
                    std::function<void(HomeServerOptions&)> tweak = {});
  ~TestHome();
  std::string address() const;

  Journal journal;
  Seen seen;  // through journal
  // Called after a message was noted; may send.
  std::function<void(SessionId, uint32_t, const coherence::ToHome&)> on_message;
  std::function<void(const SessionInfo&)> on_session;  // called before it is noted
  Loops door{1, "door"}, loops{2, "home"};
  std::unique_ptr<HomeServer> server;
};

struct TestAgent {
  struct Seen {
    std::vector<std::string>
        events;  // "connected fresh", "connected again", "disconnected …", "reset"
    std::vector<HomeInfo> infos;
    std::map<uint32_t, std::vector<coherence::ToAgent>> messages;
    size_t count = 0;
  };
  explicit TestAgent(std::string address, std::string name = "n1", uint64_t incarnation = 11,
                     std::function<void(AgentSessionOptions&)> tweak = {});
  ~TestAgent();

  Journal journal;
  Seen seen;
  std::function<void(uint32_t, const coherence::ToAgent&)> on_message;
  Loops loops{2, "agent"};
  std::unique_ptr<AgentSession> session;
};

// A numbered message of `size` bytes of data that its number decides, and the check on the other
// side.
coherence::ToHome numbered_to_home(uint64_t number, size_t size = 0);
coherence::ToAgent numbered_to_agent(uint64_t number, size_t size = 0);
// The number; 0 when the data is not what it must be.
uint64_t number_of(const coherence::ToHome& message);
uint64_t number_of(const coherence::ToAgent& message);
// Empty when the messages are 1, 2, 3, …, `count`; else what is wrong.
template <typename Messages>
std::string wrong_order(const Messages& messages, uint64_t count) {
  uint64_t expected = 1;
  for (const auto& m : messages) {
    if (number_of(m) != expected)
      return "message " + std::to_string(number_of(m)) + " where " + std::to_string(expected) +
             " was expected";
    ++expected;
  }
  return expected == count + 1
             ? ""
             : std::to_string(expected - 1) + " messages instead of " + std::to_string(count);
}

}  // namespace vremote::net
