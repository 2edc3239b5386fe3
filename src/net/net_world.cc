#include "net/net_world.h"

#include <chrono>
#include <cstdlib>
#include <thread>

#include "base/check.h"
#include "base/prng.h"

namespace vremote::net {

using namespace coherence;  // NOLINT: the messages, and nothing else, are meant

bool eventually(const std::function<bool()>& holds) {
  auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

Loops::Loops(size_t n, const char* name) {
  for (size_t i = 0; i < n; ++i) {
    loops.push_back(std::make_unique<EventLoop>(name + std::to_string(i)));
    VR_CHECK(loops.back()->start());
  }
}
Loops::~Loops() = default;
std::vector<EventLoop*> Loops::all() const {
  std::vector<EventLoop*> out;
  for (const auto& loop : loops) out.push_back(loop.get());
  return out;
}

const ClusterKey& test_key() {
  static const ClusterKey key = *ClusterKey::generate("lab");
  return key;
}
std::shared_ptr<const Tls> test_tls(const std::string& own_name) {
  auto tls = Tls::make(test_key(), own_name);
  VR_CHECK_MSG(tls.has_value(), tls ? "" : tls.error().what.c_str());
  return *tls;
}
bool under_tls() { return std::getenv("VREMOTE_TEST_TLS") != nullptr; }

TestHome::TestHome(uint64_t incarnation, uint16_t port,
                   std::function<void(HomeServerOptions&)> tweak) {
  HomeServerOptions options{.address = "127.0.0.1:" + std::to_string(port),
                            .cluster = "lab",
                            .node_name = "home",
                            .incarnation = incarnation,
                            .tls = under_tls() ? test_tls("home") : nullptr};
  if (tweak) tweak(options);
  HomeServer::Callbacks callbacks;
  callbacks.exports = [](const std::string&) {
    return std::vector<wire::Export>{{.name = "data",
                                      .export_index = 0,
                                      .root = {0, 1, 2},
                                      .read_only = true,
                                      .path = "/srv/data"}};
  };
  callbacks.on_session = [this](const SessionInfo& info) {
    if (on_session) on_session(info);
    journal.note([&] {
      seen.events.push_back("session " + std::to_string(info.id) + " " + info.node_name);
    });
  };
  callbacks.on_reset = [this](SessionId id, const std::string&) {
    journal.note([&] { seen.events.push_back("reset " + std::to_string(id)); });
  };
  callbacks.on_connection = [this](SessionId, bool up) {
    journal.note([&] { seen.connected += up ? 1 : ~0u; });
  };
  callbacks.on_message = [this](SessionId id, uint32_t lane, ToHome&& message) {
    if (on_message) on_message(id, lane, message);
    journal.note([&] {
      seen.messages[{id, lane}].push_back(std::move(message));
      ++seen.count;
    });
  };
  server = std::make_unique<HomeServer>(*door.all()[0], loops.all(), options, callbacks);
  auto status = server->start();
  VR_CHECK_MSG(status.has_value(), status ? "" : status.error().what.c_str());
}
TestHome::~TestHome() { server->stop(); }
std::string TestHome::address() const { return "127.0.0.1:" + std::to_string(server->port()); }

TestAgent::TestAgent(std::string address, std::string name, uint64_t incarnation,
                     std::function<void(AgentSessionOptions&)> tweak) {
  AgentSessionOptions options{.address = std::move(address),
                              .cluster = "lab",
                              .node_name = name,
                              .home_name = under_tls() ? "home" : "",
                              .tls = under_tls() ? test_tls(name) : nullptr,
                              .incarnation = incarnation,
                              .lanes = 3,
                              .backoff_min_ms = 2,
                              .backoff_max_ms = 20,
                              .refused_backoff_ms = 20,
                              .ping_interval_ms = 20};
  if (tweak) tweak(options);
  AgentSession::Callbacks callbacks;
  callbacks.on_message = [this](uint32_t lane, ToAgent&& message) {
    if (on_message) on_message(lane, message);
    journal.note([&] {
      seen.messages[lane].push_back(std::move(message));
      ++seen.count;
    });
  };
  callbacks.on_connected = [this](const HomeInfo& info) {
    journal.note([&] {
      seen.events.push_back(info.fresh ? "connected fresh" : "connected again");
      seen.infos.push_back(info);
    });
  };
  callbacks.on_disconnected = [this](const Error& error) {
    journal.note([&] { seen.events.push_back("disconnected " + error.what); });
  };
  callbacks.on_reset = [this](const std::string&) {
    journal.note([&] { seen.events.push_back("reset"); });
  };
  session = std::make_unique<AgentSession>(loops.all(), options, callbacks);
  auto status = session->start();
  VR_CHECK_MSG(status.has_value(), status ? "" : status.error().what.c_str());
}
TestAgent::~TestAgent() { session->stop(); }

namespace {

Bytes data_of(uint64_t number, size_t size) {
  Prng random(number);
  std::vector<std::byte> bytes(size);
  // A few random bytes spread over the data find what is shifted or torn, and cost little under a
  // sanitizer.
  for (size_t i = 0; i < size; i += 1 + size / 64) bytes[i] = static_cast<std::byte>(random.next());
  return Bytes::copy_of(bytes);
}
bool right(uint64_t number, const Bytes& bytes) {
  Bytes expected = data_of(number, bytes.size());
  return bytes.empty() || std::memcmp(expected.data(), bytes.data(), bytes.size()) == 0;
}

}  // namespace

ToHome numbered_to_home(uint64_t number, size_t size) {
  if (size == 0) return Fetch{.file = {0, 1, 2}, .fetch = number, .range = {0, 1}};
  Flush flush{.file = {0, 1, 2}, .flush = number, .extents = {}, .attributes = {}};
  Bytes data = data_of(number, size);
  size_t half = size / 2;  // several pieces for the gather
  flush.extents.push_back({.offset = 0, .bytes = data.part(0, half)});
  flush.extents.push_back({.offset = half, .bytes = data.part(half, size - half)});
  return flush;
}
ToAgent numbered_to_agent(uint64_t number, size_t size) {
  if (size == 0) return FlushAck{.file = {0, 1, 2}, .flush = number, .error = 0};
  return FetchReply{.file = {0, 1, 2},
                    .fetch = number,
                    .error = 0,
                    .data_offset = 0,
                    .data = data_of(number, size)};
}
uint64_t number_of(const ToHome& message) {
  if (auto* fetch = std::get_if<Fetch>(&message)) return fetch->fetch;
  const Flush& flush = std::get<Flush>(message);
  std::vector<std::byte> all;
  for (const Extent& e : flush.extents)
    all.insert(all.end(), e.bytes.view().begin(), e.bytes.view().end());
  return right(flush.flush, Bytes::copy_of(all)) ? flush.flush : 0;
}
uint64_t number_of(const ToAgent& message) {
  if (auto* ack = std::get_if<FlushAck>(&message)) return ack->flush;
  const FetchReply& reply = std::get<FetchReply>(message);
  return right(reply.fetch, reply.data) ? reply.fetch : 0;
}

}  // namespace vremote::net
