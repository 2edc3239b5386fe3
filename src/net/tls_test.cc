// TLS as a byte stream: what comes out is what went in, or nothing.
#include "net/tls.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <optional>
#include <thread>
#include <vector>

#include "base/prng.h"

namespace vremote::net {
namespace {

using testing::HasSubstr;

// Two connected sockets.
std::array<Fd, 2> sockets() {
  int fds[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
  return {Fd(fds[0]), Fd(fds[1])};
}

struct Ends {
  std::unique_ptr<Stream> client, server;
};
Ends connect(const std::shared_ptr<const Tls>& a, const std::shared_ptr<const Tls>& b,
             const std::string& home = "b") {
  auto [left, right] = sockets();
  return {std::move(*a->connect(std::move(left), home)), std::move(*b->accept(std::move(right)))};
}
std::shared_ptr<const Tls> tls_of(const ClusterKey& key, const char* name) {
  return *Tls::make(key, name);
}

IoResult say(Stream& stream, std::string_view text) {
  iovec piece{const_cast<char*>(text.data()), text.size()};
  return stream.write(std::span(&piece, 1));
}
// Appends what can be had without waiting.
IoResult hear(Stream& stream, std::string& text) {
  // A short read of the socket counts as its last until the loop says that there is more: twice.
  for (int quiet = 0;;) {
    char block[5000];
    iovec piece{block, sizeof block};
    IoResult result = stream.read(std::span(&piece, 1));
    text.append(block, result.bytes);
    if (result.end || result.error != 0) return result;
    if (result.would_block && ++quiet == 2) return result;
  }
}
// Lets both ends go on until neither has anything to say; what the server has heard.
struct Heard {
  std::string by_server, by_client;
  IoResult server, client;
};
Heard settle(Ends& ends) {
  Heard heard;
  for (int i = 0; i < 4; ++i) {
    if (heard.server.error == 0) heard.server = hear(*ends.server, heard.by_server);
    if (heard.client.error == 0) heard.client = hear(*ends.client, heard.by_client);
  }
  return heard;
}

class TlsTest : public testing::Test {
 protected:
  const ClusterKey key_ = *ClusterKey::generate("lab");
  const std::shared_ptr<const Tls> a_ = tls_of(key_, "a"), b_ = tls_of(key_, "b");
};

TEST_F(TlsTest, WhatIsSaidBeforeTheHandshakeArrivesAfterIt) {
  Ends ends = connect(a_, b_);
  EXPECT_EQ(say(*ends.client, "hello").bytes, 5u);
  EXPECT_EQ(ends.client->proven(), nullptr);
  Heard heard = settle(ends);
  EXPECT_EQ(heard.by_server, "hello");
  ASSERT_NE(ends.server->proven(), nullptr);
  EXPECT_EQ(*ends.server->proven(), (Dialled{"a", "b"}));
  EXPECT_EQ(*ends.client->proven(), (Dialled{"a", "b"}));
  EXPECT_TRUE(ends.client->encrypted());
  say(*ends.server, "welcome");
  EXPECT_EQ(settle(ends).by_client, "welcome");
}

// Over TCP a socket takes the end of the handshake from one who does not know yet that the other
// has hung up, and refuses what is said next.
TEST_F(TlsTest, WhatCannotBeSaidAfterTheHandshakeWasNotHeard) {
  const Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{.sin_family = AF_INET,
                      .sin_port = 0,
                      .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)},
                      .sin_zero = {}};
  socklen_t size = sizeof address;
  auto* name = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(listener.get(), name, size), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), name, &size), 0);
  Fd left(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::connect(left.get(), name, size), 0);
  Fd right(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  Ends ends{std::move(*a_->connect(std::move(left), "b")),
            std::move(*b_->accept(std::move(right)))};
  say(*ends.client, "hello");
  std::string heard;
  EXPECT_TRUE(hear(*ends.server, heard).would_block);
  ends.server.reset();
  char block[100];
  iovec piece{block, sizeof block};
  const IoResult result = ends.client->read(std::span(&piece, 1));
  EXPECT_TRUE(result.error == EPIPE || result.error == ECONNRESET) << result.error;
  EXPECT_EQ(result.bytes, 0u);
}

TEST_F(TlsTest, AnotherKeyGetsNoFurtherThanTheHandshake) {
  const ClusterKey same_name = *ClusterKey::generate("lab");
  const ClusterKey other_name = *ClusterKey::generate("shop");
  for (const ClusterKey& key : {same_name, other_name}) {
    Ends ends = connect(tls_of(key, "a"), b_);
    say(*ends.client, "hello");
    Heard heard = settle(ends);
    EXPECT_EQ(heard.server.error, EACCES);
    EXPECT_EQ(heard.client.error, EACCES);
    EXPECT_THAT(describe(heard.client), HasSubstr("does not take our key"));
    EXPECT_THAT(describe(heard.server), HasSubstr("has not the key of this cluster"));
    EXPECT_EQ(heard.by_server, "");
    EXPECT_EQ(ends.server->proven(), nullptr);
    EXPECT_EQ(ends.client->proven(), nullptr);
  }
}

TEST_F(TlsTest, AGuestProvesItsOwnNameAndNoOther) {
  const ClusterKey guest = key_.for_guest("g");
  {
    Ends ends = connect(tls_of(guest, "g"), b_);
    say(*ends.client, "hello");
    EXPECT_EQ(settle(ends).by_server, "hello");
    EXPECT_EQ(*ends.server->proven(), (Dialled{"g", "b"}));
  }
  {
    Ends ends = connect(tls_of(guest, "a"), b_);
    say(*ends.client, "hello");
    EXPECT_EQ(settle(ends).server.error, EACCES);
  }
  {  // Members reach a guest's exports.
    Ends ends = connect(a_, tls_of(guest, "g"), "g");
    say(*ends.client, "hello");
    EXPECT_EQ(settle(ends).by_server, "hello");
  }
  {  // A guest cannot stand in for a home.
    Ends ends = connect(a_, tls_of(guest, "g"), "b");
    say(*ends.client, "hello");
    EXPECT_NE(settle(ends).client.error, 0);
    EXPECT_EQ(ends.client->proven(), nullptr);
  }
}

// The guest g knows the secrets of dials to itself, and uses one at another home in a's name.
TEST_F(TlsTest, AGuestsDialToItselfIsRecognizedElsewhere) {
  Ends ends = connect(tls_of(key_, "a"), b_, "g");  // the same secret and identity as g can make
  say(*ends.client, "hello");
  settle(ends);
  ASSERT_NE(ends.server->proven(), nullptr);
  EXPECT_EQ(ends.server->proven()->to, "g") << "a home named b must refuse it (HomeServer)";
}

TEST_F(TlsTest, AnOlderKeyIsTakenWhileItIsThere) {
  const KeyRing both = *KeyRing(key_).renewed();
  const auto home = *Tls::make(both, "b");
  auto greets = [&](const std::shared_ptr<const Tls>& agent, size_t key) {
    auto [left, right] = sockets();
    Ends ends{std::move(*agent->connect(std::move(left), "b", key)),
              std::move(*home->accept(std::move(right)))};
    say(*ends.client, "hello");
    const bool heard = settle(ends).by_server == "hello";
    EXPECT_EQ(heard, ends.server->proven() != nullptr);
    return heard ? std::move(ends) : Ends();
  };
  Ends by_old = greets(a_, 0);
  ASSERT_TRUE(by_old.server);
  EXPECT_TRUE(by_old.server->of_older_key());
  EXPECT_FALSE(by_old.server->stale()) << "it was made of what there was";
  const auto agent = *Tls::make(both, "a");
  Ends by_new = greets(agent, 0);
  ASSERT_TRUE(by_new.server);
  EXPECT_FALSE(by_new.server->of_older_key());
  ASSERT_TRUE(greets(agent, 1).server);
  home->set_keys(both.without_older());
  EXPECT_TRUE(by_old.server->stale());
  EXPECT_FALSE(by_new.server->stale());
  EXPECT_FALSE(greets(a_, 0).server);
  EXPECT_FALSE(greets(agent, 1).server);
  EXPECT_TRUE(greets(agent, 0).server);
  // This end learns it too, when its own keys change.
  EXPECT_FALSE(by_old.client->stale());
  EXPECT_FALSE(by_new.client->stale());
}

TEST_F(TlsTest, BytesOfAllSizesArriveWholeWhileBothSidesTalk) {
  auto rekeying = std::const_pointer_cast<Tls>(tls_of(key_, "a"));
  rekeying->set_rekey_bytes(100'000);  // some hundred times below
  auto [left, right] = sockets();
  auto client = std::move(*rekeying->connect(std::move(left), "b"));
  auto server = std::move(*b_->accept(std::move(right)));
  constexpr size_t kTotal = size_t{40} << 20;
  auto wait = [](int fd, short events) {
    pollfd p{.fd = fd, .events = events, .revents = 0};
    return ::poll(&p, 1, 60000) == 1;
  };
  auto byte_at = [](size_t i) { return static_cast<unsigned char>(i * 31 + (i >> 13)); };
  auto writer = [&](Stream& stream, uint64_t seed) {
    Prng random(seed);
    std::vector<unsigned char> data(300000);
    size_t done = 0;
    while (done < kTotal || stream.pending()) {
      std::vector<iovec> pieces;
      size_t size = 0;
      for (int i = 0; i < 6 && done < kTotal; ++i) {
        const size_t n =
            std::min<size_t>(random.chance(50) ? random.between(1, 200) : random.between(1, 49000),
                             kTotal - done - size);
        if (n == 0) break;
        for (size_t k = 0; k < n; ++k) data[size + k] = byte_at(done + size + k);
        pieces.push_back({data.data() + size, n});
        size += n;
      }
      IoResult result = stream.write(pieces);
      ASSERT_EQ(result.error, 0);
      ASSERT_LE(result.bytes, size);
      done += result.bytes;
      if (result.would_block) {
        ASSERT_TRUE(wait(stream.fd(), POLLOUT));
      }
    }
  };
  auto reader = [&](Stream& stream, uint64_t seed) {
    Prng random(seed);
    std::vector<unsigned char> data(200000);
    size_t done = 0;
    while (done < kTotal) {
      const size_t first = random.between(1, 100000);
      iovec pieces[] = {{data.data(), first}, {data.data() + first, random.between(1, 90000)}};
      IoResult result = stream.read(pieces);
      ASSERT_EQ(result.error, 0);
      ASSERT_FALSE(result.end);
      for (size_t i = 0; i < result.bytes; ++i) ASSERT_EQ(data[i], byte_at(done + i)) << done + i;
      done += result.bytes;
      if (result.would_block) {
        ASSERT_FALSE(stream.buffered());
        if (done < kTotal) {
          ASSERT_TRUE(wait(stream.fd(), POLLIN));
        }
      }
    }
  };
  {
    std::string nothing;
    say(*client, "");
    for (int i = 0; i < 3; ++i) {
      hear(*server, nothing);
      hear(*client, nothing);
    }
    ASSERT_NE(server->proven(), nullptr);
    ASSERT_NE(client->proven(), nullptr);
  }
  std::thread threads[] = {
      std::thread([&] { writer(*client, 1); }), std::thread([&] { writer(*server, 2); }),
      std::thread([&] { reader(*client, 3); }), std::thread([&] { reader(*server, 4); })};
  for (std::thread& t : threads) t.join();
}

// Sits between the two and hands on what the test wants.
class Tampered : public TlsTest {
 protected:
  Tampered() {
    auto [left, left_inner] = sockets();
    auto [right, right_inner] = sockets();
    client_ = std::move(*a_->connect(std::move(left), "b"));
    server_ = std::move(*b_->accept(std::move(right)));
    from_client_ = std::move(left_inner);
    to_server_ = std::move(right_inner);
    say(*client_, "");
    std::string nothing;
    for (int i = 0; i < 4; ++i) {
      forward(from_client_, to_server_);
      hear(*server_, nothing);
      forward(to_server_, from_client_);
      hear(*client_, nothing);
    }
    EXPECT_NE(server_->proven(), nullptr);
  }
  static std::vector<unsigned char> take(Fd& from) {
    std::vector<unsigned char> bytes(100000);
    ssize_t n = ::recv(from.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    bytes.resize(n > 0 ? static_cast<size_t>(n) : 0);
    return bytes;
  }
  static void give(Fd& to, const std::vector<unsigned char>& bytes) {
    EXPECT_EQ(::send(to.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(bytes.size()));
  }
  static void forward(Fd& from, Fd& to) {
    auto bytes = take(from);
    if (!bytes.empty()) give(to, bytes);
  }
  std::vector<unsigned char> record(std::string_view text) {
    say(*client_, text);
    auto bytes = take(from_client_);
    EXPECT_GT(bytes.size(), text.size());
    return bytes;
  }
  IoResult server_hears(std::string& text) { return hear(*server_, text); }

  std::unique_ptr<Stream> client_, server_;
  Fd from_client_, to_server_;
};

TEST_F(Tampered, WhatIsSaidIsNotToBeSeen) {
  const std::string text(1000, 'v');
  auto bytes = record(text);
  std::string wire(bytes.begin(), bytes.end());
  EXPECT_EQ(wire.find("vvvv"), std::string::npos);
  give(to_server_, bytes);
  std::string heard;
  EXPECT_EQ(server_hears(heard).error, 0);
  EXPECT_EQ(heard, text);
}

TEST_F(Tampered, ADamagedRecordIsNotBelieved) {
  auto bytes = record("0123456789");
  bytes[bytes.size() / 2] ^= 1;
  give(to_server_, bytes);
  std::string text;
  IoResult result = server_hears(text);
  EXPECT_EQ(result.error, EBADMSG);
  EXPECT_EQ(text, "");
  // For good, also if the rest is as it should be.
  give(to_server_, record("again"));
  EXPECT_EQ(server_hears(text).error, EBADMSG);
  EXPECT_EQ(text, "");
  EXPECT_EQ(say(*server_, "x").error, EBADMSG);
}

TEST_F(Tampered, ARecordThatIsRepeatedIsNotBelieved) {
  auto bytes = record("pay");
  give(to_server_, bytes);
  give(to_server_, bytes);
  std::string text;
  EXPECT_EQ(server_hears(text).error, EBADMSG);
  EXPECT_EQ(text, "pay");
}

TEST_F(Tampered, ARecordThatIsLeftOutIsMissed) {
  (void)record("one");
  give(to_server_, record("two"));
  std::string text;
  EXPECT_EQ(server_hears(text).error, EBADMSG);
  EXPECT_EQ(text, "");
}

TEST_F(Tampered, ACutStreamIsNoMoreThanALostConnection) {
  auto bytes = record("half");
  bytes.resize(bytes.size() - 3);
  give(to_server_, bytes);
  to_server_.reset();
  std::string text;
  IoResult result = server_hears(text);
  EXPECT_TRUE(result.end || result.error != 0);
  EXPECT_EQ(text, "");
}

// A client that offers what we never take: certificates, TLS 1.2, a key without an ephemeral one.
TEST_F(TlsTest, OnlyTls13WithTheKeyIsSpoken) {
  auto try_client = [&](auto&& configure) {
    auto [left, right] = sockets();
    auto server = std::move(*b_->accept(std::move(right)));
    SSL_CTX* context = SSL_CTX_new(TLS_client_method());
    SSL* ssl = SSL_new(context);
    configure(ssl);
    SSL_set_fd(ssl, left.get());
    SSL_set_connect_state(ssl);
    std::string text;
    IoResult result;
    for (int i = 0; i < 4; ++i) {
      SSL_do_handshake(ssl);
      result = hear(*server, text);
      if (result.error != 0) break;
    }
    SSL_free(ssl);
    SSL_CTX_free(context);
    EXPECT_EQ(server->proven(), nullptr);
    return result.error;
  };
  EXPECT_NE(try_client([](SSL*) {}), 0) << "no key at all";
  EXPECT_NE(try_client([](SSL* ssl) { SSL_set_max_proto_version(ssl, TLS1_2_VERSION); }), 0);
}

TEST_F(TlsTest, NoiseIsRefused) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng random(seed);
    auto [left, right] = sockets();
    auto server = std::move(*b_->accept(std::move(right)));
    std::vector<unsigned char> noise(random.between(1, 3000));
    for (auto& b : noise) b = static_cast<unsigned char>(random.next());
    if (random.chance(70))
      std::memcpy(noise.data(), "\x16\x03\x01", std::min<size_t>(3, noise.size()));
    ASSERT_GT(::send(left.get(), noise.data(), noise.size(), MSG_NOSIGNAL), 0);
    left.reset();
    std::string text;
    IoResult result = hear(*server, text);
    EXPECT_TRUE(result.error != 0 || result.end) << seed;
    EXPECT_EQ(server->proven(), nullptr) << seed;
  }
}

TEST_F(TlsTest, ANodeWithoutTlsIsToldApart) {
  auto [left, right] = sockets();
  auto client = std::move(*a_->connect(std::move(left), "b"));
  say(*client, "hello");
  EXPECT_EQ(look_at_first_bytes(right.get()), FirstBytes::Tls);
  refuse_tls(right.get());
  right.reset();
  std::string text;
  IoResult result = hear(*client, text);
  EXPECT_EQ(result.error, EPROTONOSUPPORT);
  EXPECT_THAT(describe(result), HasSubstr("tls = \"off\""));
}

}  // namespace
}  // namespace vremote::net
