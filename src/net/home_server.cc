#include "net/home_server.h"

#include <fmt/core.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "base/check.h"
#include "net/address.h"
#include "net/knocks.h"
#include "net/lane.h"
#include "wire/codec.h"

namespace vremote::net {
namespace {

// Each costs some KiB per lane; with TLS off, anybody who knows the cluster's name can ask for one.
constexpr size_t kSessionsMax = 4096;

struct Session {
  SessionInfo info;
  uint64_t epoch = 0;
  Instant created;
  std::vector<std::shared_ptr<Lane>> lanes;

  std::atomic<bool> silenced{false};
  std::atomic<uint64_t> features{0};  // grow when the node's daemon is upgraded

  // The door's.
  bool ending = false;
  std::string end_why;
  std::vector<Guest> waiting;  // for the end: the node has come back as another

  std::mutex mutex;
  uint32_t connected = 0;  // lanes
};

}  // namespace

// The door accepts, keeps the list of sessions and runs their callbacks; each lane lives on a loop
// of its own.
class HomeServer::Impl : public std::enable_shared_from_this<HomeServer::Impl> {
 public:
  Impl(EventLoop& door, std::vector<EventLoop*> loops, HomeServerOptions options,
       Callbacks callbacks)
      : door_(door),
        loops_(std::move(loops)),
        options_(std::move(options)),
        callbacks_(std::move(callbacks)),
        knocks_(door_, options_.handshake_timeout_ms, options_.tls,
                [this](Guest guest) { greet(std::move(guest)); }) {}

  Status start() {
    VR_TRY(address, parse_address(options_.address));
    VR_TRY(candidates, resolve(address, true, true));
    auto listener = listen_on(candidates[0]);
    if (!listener && listener.error().code == EAFNOSUPPORT && address.host.empty()) {
      // A kernel without IPv6.
      VR_TRY(v4, resolve({"0.0.0.0", address.port}, false, true));
      listener = listen_on(v4[0]);
    }
    if (!listener) return std::unexpected(listener.error());
    listener_ = std::move(*listener);
    VR_TRY(local, local_address(listener_.get()));
    VR_TRY(port, parse_address(local.text()));
    port_ = port.port;
    spdlog::info("listening on {}", local.text());
    Status watching;
    door_.run_and_wait([&] { watching = watch_listener(); });
    return watching;
  }

  void stop() {
    if (stopped_.exchange(true)) return;
    door_.run_and_wait([this] {
      listening_.reset();
      pause_.cancel();
      listener_.reset();
      knocks_.clear();
      // by_name_ has all of them, also those that are ending.
      for (auto& [name, session] : by_name_) session->waiting.clear();
    });
    for (auto& [name, session] : by_name_)
      for (auto& lane : session->lanes) lane->loop().run_and_wait([&lane] { lane->close(); });
    // A callback that is running now ends first; those still posted find `stopped_`.
    door_.run_and_wait([] {});
  }

  uint16_t port() const { return port_; }

  Status send(SessionId id, uint32_t lane, const coherence::ToAgent& message) {
    VR_TRY(encoded, wire::encode(message));
    if (auto session = find(id)) {
      VR_CHECK(lane < session->lanes.size());
      if (session->silenced) return {};  // it gets no connection any more
      Lane& to = *session->lanes[lane];
      to.send(std::move(encoded));
      const Lane::Queued queued = to.queued();
      if (queued.bytes > options_.queued_max_bytes ||
          queued.messages > options_.queued_max_messages)
        end_later(*session, fmt::format("it does not take what it has asked for: {} messages of {} "
                                        "MiB wait for it on one lane",
                                        queued.messages, queued.bytes >> 20));
    }
    return {};
  }

  void pause(SessionId id, bool on) {
    auto session = find(id);
    if (!session) return;
    for (const auto& lane : session->lanes) on ? lane->pause() : lane->resume();
  }

  void silence(SessionId id) {
    auto session = find(id);
    if (!session || session->silenced.exchange(true)) return;
    for (const auto& lane : session->lanes)
      lane->loop().post([session, lane] {
        lane->lose({ECONNABORTED, "it is not heard any more"});
      });
  }

  void end_session(SessionId id, const std::string& why) {
    door_.post([self = shared_from_this(), id, why] {
      if (self->stopped_) return;
      if (auto session = self->find(id)) self->begin_end(session, why);
    });
  }

  uint64_t features(SessionId id) const {
    auto session = find(id);
    return session ? session->features.load() : 0;
  }
  std::optional<Instant> last_heard(SessionId id) const {
    auto session = find(id);
    if (!session) return std::nullopt;
    Instant oldest = session->lanes[0]->last_heard();
    for (const auto& lane : session->lanes) oldest = std::min(oldest, lane->last_heard());
    return oldest;
  }
  std::vector<SessionInfo> sessions() const {
    std::shared_lock lock(mutex_);
    std::vector<SessionInfo> all;
    for (const auto& [id, session] : by_id_) all.push_back(session->info);
    std::ranges::sort(all, {}, &SessionInfo::id);
    return all;
  }
  std::vector<LaneStats> stats(SessionId id) const {
    std::vector<LaneStats> all;
    if (auto session = find(id))
      for (const auto& lane : session->lanes) all.push_back(lane->stats());
    return all;
  }

 private:
  using SessionPtr = std::shared_ptr<Session>;

  SessionPtr find(SessionId id) const {
    std::shared_lock lock(mutex_);
    auto it = by_id_.find(id);
    return it == by_id_.end() ? nullptr : it->second;
  }

  // ---- accepting, at the door ----

  Status watch_listener() {
    VR_TRY(watch, door_.watch(listener_.get(), [this] { accept_all(); }));
    listening_ = std::move(watch);
    return {};
  }

  void accept_all() {
    for (int i = 0; i < 64; ++i) {
      SocketAddress peer;
      peer.length = sizeof peer.storage;
      Fd socket(::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&peer.storage), &peer.length,
                          SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (socket.valid()) {
        tune(socket.get());
        knocks_.add(std::move(socket), peer.text());
        continue;
      }
      if (errno == EAGAIN || errno == EWOULDBLOCK) return;
      // No descriptors or memory: the connection stays in the queue, and the listener readable.
      // Everything else is the misfortune of one connection (accept(2)).
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
        return pause(std::strerror(errno));
    }
  }
  void pause(const std::string& why) {
    spdlog::warn("not accepting connections for a moment: {}", why);
    listening_.reset();
    pause_ = door_.call_after(200'000'000, [this] {
      if (auto status = watch_listener(); !status) pause(status.error().what);
    });
  }

  void greet(Guest guest) {
    if (stopped_) return;
    // It waited for a session to end, or arrived with its sender's end: nobody wants a session.
    if (peer_has_closed(guest.stream->fd())) return;
    const wire::Hello& hello = guest.hello;
    // Before anything is believed: who speaks must be who it has proved to be (ClusterKey, 4).
    if (const Dialled* proven = guest.stream->proven()) {
      if (proven->to != options_.node_name)
        return turn_away_wrong_node(std::move(guest), proven->to);
      if (proven->from != hello.node_name) {
        auto text =
            fmt::format("it has the key of {} and says to be {}", proven->from, hello.node_name);
        return turn_away(std::move(guest), wire::RefuseReason::BadHello, text);
      }
    } else if (options_.tls != nullptr) {
      return turn_away(std::move(guest), wire::RefuseReason::NotEncrypted,
                       "this node speaks only TLS");
    }
    if (hello.version != wire::kProtocolVersion)
      return turn_away(
          std::move(guest), wire::RefuseReason::Version,
          fmt::format("{} speaks protocol version {}", options_.node_name, wire::kProtocolVersion));
    if (hello.cluster != options_.cluster) {
      // The name of our cluster is not for strangers; theirs they know.
      auto text =
          fmt::format("{} is not a node of cluster '{}'", options_.node_name, hello.cluster);
      return turn_away(std::move(guest), wire::RefuseReason::Cluster, text);
    }
    if (!hello.home_name.empty() && hello.home_name != options_.node_name)
      return turn_away_wrong_node(std::move(guest), hello.home_name);
    auto it = by_name_.find(hello.node_name);
    SessionPtr session = it == by_name_.end() ? nullptr : it->second;
    bool same = session && session->info.incarnation == hello.incarnation &&
                session->epoch == hello.session_epoch;
    if (same && session->info.lanes != hello.lanes)
      return turn_away(std::move(guest), wire::RefuseReason::BadHello,
                       "another number of lanes than before");
    if (hello.resume && (!same || session->ending))
      return turn_away(std::move(guest), wire::RefuseReason::SessionUnknown, "the session is over");
    // Sent before the node began the session we have: it must not end that one.
    if (session && session->info.incarnation == hello.incarnation &&
        hello.session_epoch < session->epoch)
      return turn_away(std::move(guest), wire::RefuseReason::SessionUnknown,
                       "the node has begun another session since");
    if (session && (!same || session->ending)) {
      if (session->waiting.size() >= wire::kLanesMax)
        return turn_away(std::move(guest), wire::RefuseReason::Busy,
                         "the older session is still ending");
      bool restarted = session->info.incarnation != hello.incarnation;
      // Two nodes of one name would end each other's sessions for ever. The connections of one that
      // is dead are closed by its kernel, or fall silent.
      if (restarted && !session->ending && alive(*session)) {
        auto text = fmt::format(
            "a node named {} is already connected from {}; give this one another name or stop the "
            "other",
            hello.node_name, session->info.address);
        return turn_away(std::move(guest), wire::RefuseReason::NameTaken, text);
      }
      // It has given up the old session, and its kernel may not have yet what went with that.
      if (!restarted && !session->ending && callbacks_.on_hopeless &&
          leases_may_be_good(*session)) {
        if (!session->silenced)
          callbacks_.on_hopeless(session->info.id, "the node has begun another session");
        return turn_away_silenced(std::move(guest));
      }
      session->waiting.push_back(std::move(guest));
      return begin_end(session,
                       restarted ? "the node has restarted" : "the node has begun another session");
    }
    if (session && session->silenced) return turn_away_silenced(std::move(guest));
    if (!session && by_name_.size() >= kSessionsMax)
      return turn_away(std::move(guest), wire::RefuseReason::Busy, "too many nodes");
    if (!session) session = create(guest);
    join(session, std::move(guest));
  }

  // By value: what names the wanted node may belong to the guest.
  void turn_away_wrong_node(Guest&& guest, const std::string wanted) {
    auto text =
        fmt::format("this is node {}, not {}; correct the name or the address of the [[peer]]",
                    options_.node_name, wanted);
    turn_away(std::move(guest), wire::RefuseReason::WrongNode, text);
  }

  void turn_away_silenced(Guest&& guest) {
    turn_away(std::move(guest), wire::RefuseReason::Busy,
              "it has not given back what others need, or broke the protocol, and is waited for no "
              "more: its session ends when its leases are over");
  }

  // Tells the log once what it tells the guest each time: those who are refused come again.
  void turn_away(Guest guest, wire::RefuseReason reason, const std::string& text) {
    const bool news = turned_away_.is_news(guest.hello.node_name, host_of(guest.address) + text,
                                           EventLoop::now());
    if (news && reason == wire::RefuseReason::SessionUnknown) {
      // So it is after each restart and upgrade of this node: nobody has to do anything.
      spdlog::info("node {} at {} asks for a session of before ({}): it gets a new one",
                   guest.hello.node_name, guest.address, text);
    } else if (news) {
      spdlog::warn("node {} at {} refused ({}): {}", guest.hello.node_name, guest.address,
                   wire::to_string(reason), text);
    }
    refuse(std::move(guest), reason, text);
  }

  bool alive(Session& session) const {
    {
      std::lock_guard lock(session.mutex);
      if (session.connected == 0) return false;
    }
    Instant latest = session.lanes[0]->last_heard();
    for (const auto& lane : session.lanes) latest = std::max(latest, lane->last_heard());
    return EventLoop::now() - latest < options_.alive_ms * 1'000'000;
  }

  bool leases_may_be_good(const Session& session) const {
    Instant oldest = session.lanes[0]->last_heard();
    for (const auto& lane : session.lanes) oldest = std::min(oldest, lane->last_heard());
    return EventLoop::now() - oldest <= options_.lease_term_ms * int64_t{1'000'000};
  }

  SessionPtr create(const Guest& guest) {
    auto session = std::make_shared<Session>();
    session->info = {.id = next_id_++,
                     .node_name = guest.hello.node_name,
                     .incarnation = guest.hello.incarnation,
                     .epoch = guest.hello.session_epoch,
                     .lanes = guest.hello.lanes,
                     .address = guest.address};
    session->epoch = guest.hello.session_epoch;
    for (uint32_t i = 0; i < guest.hello.lanes; ++i) {
      auto lane = std::make_shared<Lane>(*loops_[i % loops_.size()],
                                         Lane::Options{.index = i,
                                                       .ping_interval_ms = 0,  // the agent pings
                                                       .silence_max_ms = options_.silence_max_ms});
      // The lane belongs to the session, which outlives every handler: stop() and the session's end
      // close the lanes first.
      lane->set_handlers(
          {.on_message = [this, s = session.get(),
                          i](const auto& frame) { return deliver(*s, i, frame); },
           .on_lost = [this, s = session.get(), i](const Error& e,
                                                   bool hopeless) { lost(*s, i, e, hopeless); }});
      lane->open(1);
      session->lanes.push_back(std::move(lane));
    }
    by_name_[session->info.node_name] = session;
    turned_away_.forget(session->info.node_name);
    {
      std::unique_lock lock(mutex_);
      by_id_[session->info.id] = session;
    }
    spdlog::debug("node {} at {}: session {}", session->info.node_name, session->info.address,
                  session->info.id);
    if (callbacks_.on_session) callbacks_.on_session(session->info);
    return session;
  }

  void join(const SessionPtr& session, Guest guest) {
    wire::Welcome welcome{
        .node_name = options_.node_name,
        .incarnation = options_.incarnation,
        .session = session->info.id,
        .resumed = guest.hello.resume,
        .received = 0,
        .lease_term_ms = options_.lease_term_ms,
        .exports = callbacks_.exports ? callbacks_.exports(session->info.node_name)
                                      : std::vector<wire::Export>(),
        .may_reclaim = callbacks_.may_reclaim && callbacks_.may_reclaim(session->info),
        .disk_life = options_.disk_life};
    EventLoop& loop = session->lanes[guest.hello.lane]->loop();
    loop.post([self = shared_from_this(), session, guest = std::move(guest),
               welcome = std::move(welcome)]() mutable {
      self->attach(session, std::move(guest), std::move(welcome));
    });
  }

  // ---- on the lane's loop ----

  void attach(const SessionPtr& session, Guest guest, wire::Welcome welcome) {
    if (stopped_) return;
    uint32_t index = guest.hello.lane;
    Lane& lane = *session->lanes[index];
    // It was on its way here when the session was silenced; it comes again.
    if (session->silenced)
      return refuse(std::move(guest), wire::RefuseReason::Busy, "its session ends");
    // An older connection that we believe to be alive: the node knows better. What it brought so
    // far counts.
    lane.drain();
    if (lane.attached()) lane.lose({ECONNRESET, "replaced by a new connection"});
    session->features = guest.hello.features & wire::kFeatures;
    welcome.received = lane.received();
    welcome.newer_key = guest.stream->of_older_key();
    auto encoded = wire::encode(welcome);
    if (!encoded) {
      spdlog::error("cannot welcome node {}: {}", session->info.node_name, encoded.error().what);
      return refuse(std::move(guest), wire::RefuseReason::Busy, "the home cannot name its exports");
    }
    count_connected(*session, +1);
    Status status = lane.attach(std::move(guest.stream), std::move(guest.reader),
                                guest.hello.received, std::move(encoded->header));
    if (status) return;
    count_connected(*session, -1);
    // ECANCELED: the session has just ended; the node hears of it when it tries again.
    if (status.error().code != ECANCELED) end_later(*session, status.error().what);
  }

  Status deliver(Session& session, uint32_t index, const FrameReader::Frame& frame) {
    if (session.silenced) return {};  // its connections are about to go
    VR_TRY(message, wire::decode_to_home(frame.preamble.type, frame.header, frame.bulk));
    session.lanes[index]->taken(frame);
    callbacks_.on_message(session.info.id, index, std::move(message));
    return {};
  }

  void lost(Session& session, uint32_t index, const Error& error, bool hopeless) {
    if (error.code == EPROTO)
      spdlog::error("node {}, lane {}: {}", session.info.node_name, index, error.what);
    count_connected(session, -1);
    if (hopeless) end_later(session, error.what);
  }

  void count_connected(Session& session, int change) {
    std::lock_guard lock(session.mutex);
    bool before = session.connected > 0;
    session.connected += static_cast<uint32_t>(change);
    bool after = session.connected > 0;
    if (before == after || !callbacks_.on_connection) return;
    // Posted under the lock: in the order of the changes.
    door_.post([self = shared_from_this(), id = session.info.id, after] {
      if (!self->stopped_ && self->find(id)) self->callbacks_.on_connection(id, after);
    });
  }

  void end_later(const Session& session, const std::string& why) {
    door_.post([self = shared_from_this(), id = session.info.id, why] {
      if (self->stopped_) return;
      auto found = self->find(id);
      if (!found) return;
      if (!self->callbacks_.on_hopeless) return self->begin_end(found, why);
      if (!found->silenced) self->callbacks_.on_hopeless(id, why);
    });
  }

  // ---- the end of a session, at the door: its lanes are closed on their loops, then the
  // layer above is told ----

  void begin_end(const SessionPtr& session, const std::string& why) {
    if (session->ending) return;
    session->ending = true;
    spdlog::debug("node {}: session {} is over: {}", session->info.node_name, session->info.id,
                  why);
    session->end_why = why;
    {
      std::unique_lock lock(mutex_);
      by_id_.erase(session->info.id);
    }
    auto left = std::make_shared<std::atomic<size_t>>(session->lanes.size());
    for (auto& lane : session->lanes) {
      lane->loop().post([self = shared_from_this(), session, lane, left] {
        lane->close();
        if (left->fetch_sub(1) != 1) return;
        self->door_.post([self, session] { self->finish_end(session); });
      });
    }
  }
  void finish_end(const SessionPtr& session) {
    if (stopped_) return;
    if (callbacks_.on_reset) callbacks_.on_reset(session->info.id, session->end_why);
    by_name_.erase(session->info.node_name);
    auto waiting = std::move(session->waiting);
    for (Guest& guest : waiting) greet(std::move(guest));
  }

  EventLoop& door_;
  const std::vector<EventLoop*> loops_;
  const HomeServerOptions options_;
  const Callbacks callbacks_;
  std::atomic<bool> stopped_{false};
  uint16_t port_ = 0;

  // The door's.
  Fd listener_;
  Watch listening_;
  Timer pause_;
  Knocks knocks_;
  std::map<std::string, SessionPtr> by_name_;  // also those that are ending
  SessionId next_id_ = 1;
  Told turned_away_;  // by node name

  mutable std::shared_mutex mutex_;
  std::unordered_map<SessionId, SessionPtr> by_id_;
};

HomeServer::HomeServer(EventLoop& door, std::vector<EventLoop*> loops, HomeServerOptions options,
                       Callbacks callbacks)
    : impl_(std::make_shared<Impl>(door, std::move(loops), std::move(options),
                                   std::move(callbacks))) {}
HomeServer::~HomeServer() { stop(); }

Status HomeServer::start() { return impl_->start(); }
void HomeServer::stop() { impl_->stop(); }
uint16_t HomeServer::port() const { return impl_->port(); }
Status HomeServer::send(SessionId session, uint32_t lane, const coherence::ToAgent& message) {
  return impl_->send(session, lane, message);
}
void HomeServer::pause(SessionId session) { impl_->pause(session, true); }
void HomeServer::resume(SessionId session) { impl_->pause(session, false); }
void HomeServer::silence(SessionId session) { impl_->silence(session); }
void HomeServer::end_session(SessionId session, const std::string& why) {
  impl_->end_session(session, why);
}
uint64_t HomeServer::features(SessionId session) const { return impl_->features(session); }

std::optional<Instant> HomeServer::last_heard(SessionId session) const {
  return impl_->last_heard(session);
}
std::vector<SessionInfo> HomeServer::sessions() const { return impl_->sessions(); }
std::vector<LaneStats> HomeServer::stats(SessionId session) const { return impl_->stats(session); }

}  // namespace vremote::net
