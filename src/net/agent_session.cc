#include "net/agent_session.h"

#include <fmt/core.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/random_number.h"
#include "net/dialer.h"
#include "net/lane.h"
#include "wire/codec.h"

namespace vremote::net {
namespace {

// Grows from session to session of one incarnation, so that a home can tell a Hello that is late.
uint64_t first_epoch() { return static_cast<uint64_t>(EventLoop::now().ns); }

}  // namespace

// Each lane dials and lives on its own loop. What the lanes share, the session, is under `mutex_`;
// the callbacks that concern the whole session run on the first loop, in the order in which things
// happened (they are posted under the lock).
class AgentSession::Impl : public std::enable_shared_from_this<AgentSession::Impl> {
 public:
  Impl(std::vector<EventLoop*> loops, AgentSessionOptions options, Callbacks callbacks)
      : loops_(std::move(loops)), options_(std::move(options)), callbacks_(std::move(callbacks)) {
    VR_CHECK(!loops_.empty());
    if (options_.lanes == 0) options_.lanes = static_cast<uint32_t>(loops_.size());
    options_.lanes = std::min(options_.lanes, wire::kLanesMax);
    for (uint32_t i = 0; i < options_.lanes; ++i) {
      auto& link = links_.emplace_back(std::make_unique<Link>());
      link->lane = std::make_shared<Lane>(
          *loops_[i % loops_.size()], Lane::Options{.index = i,
                                                    .ping_interval_ms = options_.ping_interval_ms,
                                                    .silence_max_ms = options_.silence_max_ms});
      link->index = i;
      link->backoff_ms = options_.backoff_min_ms;
      link->lane->set_handlers(
          {.on_message = [this, l = link.get()](const auto& frame) { return deliver(*l, frame); },
           .on_lost = [this, l = link.get()](const Error& e,
                                             bool hopeless) { lost(*l, e, hopeless); },
           .on_renewed = [this] { renewed(); }});
      if (options_.kept) {
        VR_CHECK(options_.kept->lanes.size() == options_.lanes);
        KeptSession::Lane& kept = options_.kept->lanes[i];
        link->lane->take_over({kept.received, kept.first, std::move(kept.queue)});
      }
      link->lane->open(generation_);
    }
    if (!options_.kept) return;
    epoch_ = options_.kept->epoch;
    if (options_.kept->welcomed)
      welcomed_ = Welcomed{options_.kept->incarnation, options_.kept->session};
  }

  Status start() {
    VR_TRY(address, parse_address(options_.address));
    if (address.port == 0)
      return fail(EINVAL, fmt::format("address '{}': port 0 cannot be dialled", options_.address));
    if (options_.tls != nullptr && options_.home_name.empty())
      return fail(EINVAL, "under TLS the home must be named");
    wire::Hello sample = hello_of(*links_[0]);
    if (auto encoded = wire::encode(sample); !encoded) return std::unexpected(encoded.error());
    for (auto& link : links_) {
      Link* l = link.get();
      link->dialer = std::make_shared<Dialer>(
          link->lane->loop(), resolver_, address, options_.tls, options_.home_name,
          options_.connect_timeout_ms,
          Dialer::Callbacks{
              .hello = [this, l]() -> Result<wire::Hello> { return greet(*l); },
              .welcomed = [this, l](Dialer::Welcomed w) { welcomed(*l, std::move(w)); },
              .refused = [this, l](const wire::Refuse& r) { refused(*l, r); },
              .failed = [this, l](const Error& e) { failed(*l, e); }});
    }
    for (auto& link : links_) post_dial(*link);
    return {};
  }

  void stop() {
    {
      std::lock_guard lock(mutex_);
      if (stopped_) return;
      stopped_ = true;
    }
    for (auto& link : links_) {
      link->lane->loop().run_and_wait([l = link.get()] {
        l->redial.cancel();
        if (l->dialer) l->dialer->cancel();
        l->lane->close();
      });
    }
    resolver_.stop();
    // A callback that is running now ends first; those still posted find `stopped_`.
    loops_[0]->run_and_wait([] {});
  }

  Status send(uint32_t lane, const coherence::ToHome& message, uint32_t generation) {
    VR_CHECK(lane < links_.size());
    VR_TRY(encoded, wire::encode(message));
    links_[lane]->lane->send(std::move(encoded), generation);
    return {};
  }

  void hurry() {
    for (auto& link : links_)
      link->lane->loop().post([self = shared_from_this(), l = link.get()] {
        if (!l->redial_waits || self->is_stopped()) return;
        l->redial.cancel();
        l->backoff_ms = self->options_.backoff_min_ms;
        self->dial(*l);
      });
  }
  uint32_t lanes() const { return options_.lanes; }
  size_t queued_messages() const {
    size_t sum = 0;
    for (const auto& link : links_) sum += link->lane->queued().messages;
    return sum;
  }
  std::optional<KeptSession> kept() const {
    std::lock_guard lock(mutex_);
    if (resetting_) return std::nullopt;
    KeptSession out{.epoch = epoch_,
                    .welcomed = welcomed_.has_value(),
                    .incarnation = welcomed_ ? welcomed_->incarnation : 0,
                    .session = welcomed_ ? welcomed_->session : 0,
                    .lanes = {}};
    for (const auto& link : links_) {
      Lane::Kept lane = link->lane->kept();
      out.lanes.push_back({lane.received, lane.first, std::move(lane.queue)});
    }
    return out;
  }
  bool connected() const {
    std::lock_guard lock(mutex_);
    return connected_ > 0;
  }
  Instant renewed_at() const {
    Instant oldest = links_[0]->lane->renewed_at();
    for (const auto& link : links_) oldest = std::min(oldest, link->lane->renewed_at());
    return oldest;
  }
  std::vector<LaneStats> stats() const {
    std::vector<LaneStats> all;
    for (const auto& link : links_) all.push_back(link->lane->stats());
    return all;
  }
  void break_connection(uint32_t lane) {
    VR_CHECK(lane < links_.size());
    links_[lane]->lane->loop().post([self = shared_from_this(), l = links_[lane].get()] {
      l->lane->lose({ECONNRESET, "broken for a test"});
    });
  }

 private:
  // What belongs to one lane; used on its loop only.
  struct Link {
    uint32_t index = 0;
    std::shared_ptr<Lane> lane;
    std::shared_ptr<Dialer> dialer;
    Timer redial;
    bool redial_waits = false;
    int64_t backoff_ms = 0;
    uint32_t greeted_generation = 0;  // the session that the last Hello was about
    Instant greeted_at;               // boot_now() before it was sent
    Instant attached_at;
  };
  struct Welcomed {
    uint64_t incarnation;
    uint32_t session;
    bool operator==(const Welcomed&) const = default;
  };

  // Runs on the first loop unless the session was stopped meanwhile. Under the lock, so that events
  // keep their order.
  void notify_locked(EventLoop::Task task) {
    loops_[0]->post([self = shared_from_this(), task = std::move(task)]() mutable {
      if (!self->is_stopped()) task();
    });
  }
  bool is_stopped() const {
    std::lock_guard lock(mutex_);
    return stopped_;
  }

  // A lane's renewal belongs to the session that it belongs to: closing it for a reset comes after
  // this, on the same loop, and voids renewed_at().
  void renewed() {
    uint32_t generation = 0;
    {
      std::lock_guard lock(mutex_);
      if (stopped_ || resetting_) return;
      generation = generation_;
    }
    if (callbacks_.on_renewed && renewed_at().ns != 0) callbacks_.on_renewed(generation);
  }

  Status deliver(Link& link, const FrameReader::Frame& frame) {
    VR_TRY(message, wire::decode_to_agent(frame.preamble.type, frame.header, frame.bulk));
    link.lane->taken(frame);
    callbacks_.on_message(link.index, std::move(message));
    return {};
  }

  // ---- dialling, on the lane's loop ----

  // The first lane begins the session, the others join it: a Hello that may begin one is sent only
  // when what the one before it brought is heard no more. So a node that has heard of a session, be
  // it of a home that is no more, has asked no other home for one of the same epoch since.
  bool may_dial_locked(const Link& link) const { return link.index == 0 || welcomed_.has_value(); }
  void post_dial(Link& link) {
    link.lane->loop().post([self = shared_from_this(), l = &link] { self->dial(*l); });
  }
  void dial(Link& link) {
    link.redial_waits = false;
    {
      std::lock_guard lock(mutex_);
      if (stopped_ || resetting_ || !may_dial_locked(link)) return;
    }
    link.dialer->dial();
  }
  // `refused`: somebody must mend something first, so it is asked ever more seldom; not at once,
  // for the mending may be under way on several nodes.
  void dial_later(Link& link, bool refused = false) {
    // Half of it at random, so that a restarted home is not met by all its agents at once.
    int64_t delay_ms =
        link.backoff_ms / 2 +
        static_cast<int64_t>(random_number() % static_cast<uint64_t>(link.backoff_ms / 2 + 1));
    link.backoff_ms = std::min(link.backoff_ms * 2,
                               refused ? options_.refused_backoff_ms : options_.backoff_max_ms);
    link.redial_waits = true;
    link.redial =
        link.lane->loop().call_after(delay_ms * 1'000'000, [this, l = &link] { dial(*l); });
  }

  wire::Hello hello_of(const Link& link) const {
    std::lock_guard lock(mutex_);
    wire::Hello hello;
    hello.cluster = options_.cluster;
    hello.node_name = options_.node_name;
    hello.incarnation = options_.incarnation;
    hello.session_epoch = epoch_;
    hello.resume = welcomed_.has_value();
    hello.lane = link.index;
    hello.lanes = options_.lanes;
    hello.home_name = options_.home_name;
    return hello;
  }
  wire::Hello greet(Link& link) {
    // From here on the old connection, if any, brings nothing more: the number below would be
    // wrong.
    link.lane->detach();
    wire::Hello hello = hello_of(link);
    hello.received = link.lane->received();
    link.greeted_at = EventLoop::boot_now();
    std::lock_guard lock(mutex_);
    link.greeted_generation = hello.session_epoch == epoch_ ? generation_ : 0;
    return hello;
  }

  void welcomed(Link& link, Dialer::Welcomed answer) {
    const wire::Welcome& w = answer.welcome;
    Welcomed who{.incarnation = w.incarnation, .session = w.session};
    {
      std::unique_lock lock(mutex_);
      if (stopped_ || resetting_ || link.greeted_generation != generation_) return;
      if (w.version != wire::kProtocolVersion) {
        report_locked({EPROTONOSUPPORT,
                       fmt::format("{} speaks protocol version {}", options_.address, w.version)});
        lock.unlock();
        return dial_later(link);
      }
      if (welcomed_ && *welcomed_ != who) {
        return begin_reset_locked("the home has begun another session");
      }
    }
    // A term is worth several pings, and what is lost with a connection must be noticed within it.
    if (const int64_t term_ms = w.lease_term_ms; term_ms > 0)
      link.lane->set_pace(std::min(std::max<int64_t>(term_ms / 5, 1), options_.ping_interval_ms),
                          std::min(std::max<int64_t>(term_ms * 4 / 5, 1), options_.silence_max_ms));
    Status attached =
        link.lane->attach(std::move(answer.stream), std::move(answer.reader), w.received, {});
    if (attached) link.lane->renew(link.greeted_at);
    std::lock_guard lock(mutex_);
    if (stopped_ || resetting_ || link.greeted_generation != generation_) return;
    if (!attached) return begin_reset_locked(attached.error().what);
    link.attached_at = EventLoop::now();
    bool fresh = !welcomed_.has_value();
    welcomed_ = who;
    if (fresh)
      for (size_t i = 1; i < links_.size(); ++i) post_dial(*links_[i]);
    if (connected_++ > 0) return;
    reported_.clear();
    spdlog::debug("home {} ({}) connected, session {}{}", w.node_name, options_.address, w.session,
                  fresh ? "" : " resumed");
    notify_locked([this, info = HomeInfo{.node_name = w.node_name,
                                         .incarnation = w.incarnation,
                                         .session = w.session,
                                         .generation = generation_,
                                         .fresh = fresh,
                                         .lease_term_ms = w.lease_term_ms,
                                         .may_reclaim = w.may_reclaim,
                                         .disk_life = w.disk_life,
                                         .features = w.features & wire::kFeatures,
                                         .exports = w.exports}] {
      if (callbacks_.on_connected) callbacks_.on_connected(info);
    });
  }

  void refused(Link& link, const wire::Refuse& refuse) {
    {
      std::lock_guard lock(mutex_);
      if (stopped_ || resetting_) return;
      if (refuse.reason == wire::RefuseReason::SessionUnknown &&
          link.greeted_generation == generation_)
        return begin_reset_locked(
            "it has been restarted or upgraded, or has ended the session of before");
      report_locked({refuse.reason == wire::RefuseReason::Busy ? EBUSY : ECONNREFUSED,
                     fmt::format("{} refuses us ({}): {}", options_.address,
                                 wire::to_string(refuse.reason), refuse.text)});
    }
    // NameTaken may be this very node before its restart, whose end the home has not seen yet.
    const bool passes =
        refuse.reason == wire::RefuseReason::Busy || refuse.reason == wire::RefuseReason::NameTaken;
    dial_later(link, !passes);
  }

  void failed(Link& link, const Error& error) {
    {
      std::lock_guard lock(mutex_);
      if (stopped_ || resetting_) return;
      report_locked(error);
    }
    // Another key, or none: somebody must mend that first.
    dial_later(link, error.code == EACCES || error.code == EPROTONOSUPPORT);
  }

  // Tells once why nobody is there.
  void report_locked(const Error& error) {
    if (connected_ > 0 || error.what == reported_) return;
    reported_ = error.what;
    spdlog::debug("home {}: {}", options_.address, error.what);
    notify_locked([this, error] {
      if (callbacks_.on_disconnected) callbacks_.on_disconnected(error);
    });
  }

  void lost(Link& link, const Error& error, bool hopeless) {
    // A connection that held for a while is dialled again at once; one that breaks as soon as it
    // stands waits longer and longer.
    bool held = EventLoop::now() - link.attached_at > options_.backoff_max_ms * 1'000'000;
    {
      std::lock_guard lock(mutex_);
      if (stopped_ || resetting_) return;
      if (error.code == EPROTO)
        spdlog::error("home {}, lane {}: {}", options_.address, link.index, error.what);
      if (hopeless) return begin_reset_locked(error.what);
      VR_CHECK(connected_ > 0);
      if (--connected_ == 0) report_locked(error);
    }
    if (held) link.backoff_ms = options_.backoff_min_ms;
    held ? dial(link) : dial_later(link);
  }

  // ---- reset: every lane is closed on its loop, the last one tells the layer above on the first
  // loop ----

  void begin_reset_locked(const std::string& why) {
    if (resetting_ || stopped_) return;
    resetting_ = true;
    spdlog::debug("home {}: session reset: {}", options_.address, why);
    reset_why_ = why;
    auto left = std::make_shared<std::atomic<size_t>>(links_.size());
    for (auto& link : links_) {
      link->lane->loop().post([self = shared_from_this(), l = link.get(), left] {
        l->redial.cancel();
        l->redial_waits = false;
        l->dialer->cancel();
        l->lane->close();
        l->backoff_ms = self->options_.backoff_min_ms;
        if (left->fetch_sub(1) == 1) self->finish_reset();
      });
    }
  }
  void finish_reset() {
    std::lock_guard lock(mutex_);
    epoch_ = std::max(epoch_ + 1, first_epoch());
    if (++generation_ == 0) generation_ = 1;  // 0 stands for any
    welcomed_.reset();
    connected_ = 0;
    notify_locked([this, why = std::exchange(reset_why_, {})] {
      if (callbacks_.on_reset) callbacks_.on_reset(why);
      std::lock_guard again(mutex_);
      if (stopped_) return;
      resetting_ = false;
      for (auto& link : links_) {
        link->lane->open(generation_);
        post_dial(*link);
      }
    });
  }

  const std::vector<EventLoop*> loops_;
  AgentSessionOptions options_;
  const Callbacks callbacks_;
  Resolver resolver_;
  std::vector<std::unique_ptr<Link>> links_;

  mutable std::mutex mutex_;  // taken before a lane's own
  bool stopped_ = false;
  bool resetting_ = false;
  uint64_t epoch_ = first_epoch();
  uint32_t generation_ = 1;
  std::optional<Welcomed> welcomed_;
  uint32_t connected_ = 0;  // lanes
  std::string reset_why_;   // of the reset under way
  std::string reported_;    // the last reason given to on_disconnected
};

AgentSession::AgentSession(std::vector<EventLoop*> loops, AgentSessionOptions options,
                           Callbacks callbacks)
    : impl_(std::make_shared<Impl>(std::move(loops), std::move(options), std::move(callbacks))) {}
AgentSession::~AgentSession() { stop(); }

Status AgentSession::start() { return impl_->start(); }
void AgentSession::stop() { impl_->stop(); }
uint32_t AgentSession::lanes() const { return impl_->lanes(); }
Status AgentSession::send(uint32_t lane, const coherence::ToHome& message, uint32_t generation) {
  return impl_->send(lane, message, generation);
}
size_t AgentSession::queued_messages() const { return impl_->queued_messages(); }
std::optional<KeptSession> AgentSession::kept() const { return impl_->kept(); }
void AgentSession::hurry() { impl_->hurry(); }
bool AgentSession::connected() const { return impl_->connected(); }
Instant AgentSession::renewed_at() const { return impl_->renewed_at(); }
std::vector<LaneStats> AgentSession::stats() const { return impl_->stats(); }
void AgentSession::break_connection(uint32_t lane) { impl_->break_connection(lane); }

}  // namespace vremote::net
