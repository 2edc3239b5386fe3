// A home's side: listens, checks who knocks, and keeps one session per agent node over all its
// reconnects.
//
// A session lasts until the node comes back with another incarnation or session epoch, or until
// end_session(). A broken connection alone ends nothing: messages wait for the next one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "coherence/messages.h"
#include "net/counters.h"
#include "net/event_loop.h"
#include "net/tls.h"
#include "wire/handshake.h"

namespace vremote::net {

// Counts from 1 and is never used twice; good as a coherence NodeId::value.
using SessionId = uint32_t;

struct SessionInfo {
  SessionId id = 0;
  std::string node_name;
  uint64_t incarnation = 0;
  uint64_t epoch = 0;   // wire::Hello::session_epoch
  uint32_t lanes = 1;   // the agent's choice
  std::string address;  // of its first connection
};

struct HomeServerOptions {
  std::string address;  // "host:port", "[::]:port" (both families), ":port"; port 0 takes any
  std::string cluster;
  std::string node_name;
  uint64_t incarnation = 0;
  uint64_t disk_life = 0;          // wire::Welcome
  std::shared_ptr<const Tls> tls;  // null: plain; else whoever does not prove to have the key is
                                   // shown the door, and who does is the node it has proved to be
  uint32_t lease_term_ms = 10000;  // told to the agents
  int64_t handshake_timeout_ms = 5000;
  int64_t silence_max_ms =
      8000;  // a connection that says nothing for so long is closed; the session stays
  // A node that was heard of so recently over a connection that stands is alive: another start of a
  // node of its name is refused. Agents ping every 2 seconds.
  int64_t alive_ms = 5000;
  // What one lane keeps for a node that does not take it: asking for more ends its session.
  uint64_t queued_max_bytes = uint64_t{1} << 30;
  size_t queued_max_messages = size_t{1} << 20;
};

class HomeServer {
 public:
  // on_message runs on the lane's loop (lane % loops), the others at the door. All of them may call
  // send().
  struct Callbacks {
    // Asked at every handshake: what the node `name` is told of.
    std::function<std::vector<wire::Export>(const std::string& name)> exports;
    // Whether a node may bring back what it had before this home restarted.
    std::function<bool(const SessionInfo&)> may_reclaim = {};
    // A new session, before its first message.
    std::function<void(const SessionInfo&)> on_session;
    std::function<void(SessionId, uint32_t lane, coherence::ToHome&&)> on_message;
    // The session is void, after its last message: the node came back as another, or end_session().
    // The next session of the same node is announced after this.
    std::function<void(SessionId, const std::string& why)> on_reset;
    // The session cannot go on: the node breaks the rules again and again, does not take what it
    // asked for, or has begun another although its leases may be good. Who is told silences it, and
    // ends it when what the node has may be given to others. Unset: it ends at once. Perhaps more
    // than once.
    std::function<void(SessionId, const std::string& why)> on_hopeless = {};
    // The session's first lane came up, or its last went down (for status). Optional.
    std::function<void(SessionId, bool connected)> on_connection;
  };

  // At `door`, strangers and guests are answered and sessions begin and end. Its callbacks may wait
  // for a disk, then those who come wait; a loop that also carries lanes would keep all nodes
  // waiting, until they believe that the home is dead.
  HomeServer(EventLoop& door, std::vector<EventLoop*> loops, HomeServerOptions options,
             Callbacks callbacks);
  HomeServer(const HomeServer&) = delete;
  HomeServer& operator=(const HomeServer&) = delete;
  ~HomeServer();  // stop()

  // Binds and listens: EADDRINUSE, EADDRNOTAVAIL, EINVAL with a sentence that names the address.
  Status start();
  // Closes everything; no callback runs after it returns. Not from a callback.
  void stop();
  uint16_t port() const;

  // Like AgentSession::send(). A message for a session that is gone is dropped. Any thread.
  Status send(SessionId session, uint32_t lane, const coherence::ToAgent& message);

  // Stops reading what the node sends, on all its lanes, until resume(): its messages wait in its
  // own memory. Never for long, and never for something that a message of its own must bring. Any
  // thread.
  void pause(SessionId session);
  void resume(SessionId session);

  // Ends the session's connections and lets it have no others, so that last_heard() stays what it
  // is and the node's leases run out. The session stays, until end_session(). Any thread.
  void silence(SessionId session);

  // Makes the session void, as when its lease expired: on_reset follows, and the node is told when
  // it comes back. Any thread.
  void end_session(SessionId session, const std::string& why);

  // When the quietest lane of the session was last heard: the home's start of the lease term. Empty
  // when the session is gone.
  std::optional<Instant> last_heard(SessionId session) const;
  // What both sides understand (wire::kFeatures), by the latest Hello; 0 when the session is gone.
  uint64_t features(SessionId session) const;
  std::vector<SessionInfo> sessions() const;
  // Per lane; empty when the session is gone.
  std::vector<LaneStats> stats(SessionId session) const;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace vremote::net
