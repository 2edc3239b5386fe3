#include "net/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <array>
#include <cstring>

#include "net/tls_stream.h"
#include "wire/frame.h"

namespace vremote::net {
namespace {

// Both with SHA-256, which the secrets are for; AES where the processor helps with it.
constexpr const char* kSuites = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
constexpr const char* kGroups = "X25519:P-256";

std::string openssl_error() {
  char text[256] = "no memory";
  if (unsigned long code = ERR_get_error(); code != 0) ERR_error_string_n(code, text, sizeof text);
  ERR_clear_error();
  return text;
}

// The session that stands for the secret. Freed by OpenSSL.
SSL_SESSION* session_of(SSL* ssl, const Secret& secret) {
  constexpr unsigned char kAes128GcmSha256[] = {0x13, 0x01};
  SSL_SESSION* session = SSL_SESSION_new();
  if (session == nullptr) return nullptr;
  if (SSL_SESSION_set1_master_key(session, secret.data(), Secret::kSize) == 1 &&
      SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, kAes128GcmSha256)) == 1 &&
      SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1)
    return session;
  SSL_SESSION_free(session);
  return nullptr;
}

// Client: which secret we show. Asked again after a HelloRetryRequest, then with its digest.
int use_session(SSL* ssl, const EVP_MD* digest, const unsigned char** id, size_t* id_size,
                SSL_SESSION** session) {
  *session = nullptr;
  const TlsStream* stream = TlsStream::of(ssl);
  if (digest != nullptr && !EVP_MD_is_a(digest, "SHA256")) return 0;
  *session = session_of(ssl, stream->shown().secret);
  if (*session == nullptr) return 0;
  *id = reinterpret_cast<const unsigned char*>(stream->shown().identity.data());
  *id_size = stream->shown().identity.size();
  return 1;
}

// Server: the secret behind what they show. None: the handshake fails, for there is no other way.
int find_session(SSL* ssl, const unsigned char* id, size_t id_size, SSL_SESSION** session) {
  *session = nullptr;
  auto known = TlsStream::of(ssl)->recognize({reinterpret_cast<const char*>(id), id_size});
  if (!known) return 1;
  *session = session_of(ssl, *known);
  return *session != nullptr ? 1 : 0;
}

Status configure(SSL_CTX* context) {
  if (context == nullptr || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context, kSuites) != 1 ||
      SSL_CTX_set1_groups_list(context, kGroups) != 1 || SSL_CTX_set_num_tickets(context, 0) != 1)
    return fail(EIO, "OpenSSL cannot do TLS 1.3: " + openssl_error());
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION |
                                   SSL_OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_max_early_data(context, 0);
  SSL_CTX_set_recv_max_early_data(context, 0);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_read_ahead(context, 1);
  return {};
}

}  // namespace

struct Tls::Contexts {
  SSL_CTX* client = nullptr;
  SSL_CTX* server = nullptr;
  ~Contexts() {
    SSL_CTX_free(client);
    SSL_CTX_free(server);
  }
};

Tls::Tls(KeyRing keys, std::string own_name)
    : ring_(std::make_shared<const KeyRing>(std::move(keys))),
      own_name_(std::move(own_name)),
      contexts_(std::make_unique<Contexts>()) {}
Tls::~Tls() = default;

std::shared_ptr<const KeyRing> Tls::ring() const {
  std::lock_guard lock(mutex_);
  return ring_;
}
void Tls::set_keys(KeyRing keys) {
  auto next = std::make_shared<const KeyRing>(std::move(keys));
  std::lock_guard lock(mutex_);
  ring_ = std::move(next);
}
size_t Tls::keys() const { return ring()->keys().size(); }

Result<std::shared_ptr<Tls>> Tls::make(KeyRing keys, std::string own_name) {
  std::shared_ptr<Tls> tls(new Tls(std::move(keys), std::move(own_name)));
  tls->contexts_->client = SSL_CTX_new(TLS_client_method());
  tls->contexts_->server = SSL_CTX_new(TLS_server_method());
  VR_TRY_VOID(configure(tls->contexts_->client));
  VR_TRY_VOID(configure(tls->contexts_->server));
  // No authority is known to us, so that no certificate of a home is ever good. Nodes are never
  // asked for one: without the secret the handshake fails earlier.
  SSL_CTX_set_verify(tls->contexts_->client, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_psk_use_session_callback(tls->contexts_->client, use_session);
  SSL_CTX_set_psk_find_session_callback(tls->contexts_->server, find_session);
  return tls;
}

Result<std::unique_ptr<Stream>> Tls::connect(Fd fd, const std::string& home_name,
                                             size_t key) const {
  SSL* ssl = SSL_new(contexts_->client);
  if (ssl == nullptr) return fail(ENOMEM, "cannot begin TLS: " + openssl_error());
  Dialled ends{.from = own_name_, .to = home_name};
  return std::unique_ptr<Stream>(
      std::make_unique<TlsStream>(shared_from_this(), std::move(fd), ssl, std::move(ends), key));
}

Result<std::unique_ptr<Stream>> Tls::accept(Fd fd) const {
  SSL* ssl = SSL_new(contexts_->server);
  if (ssl == nullptr) return fail(ENOMEM, "cannot begin TLS: " + openssl_error());
  return std::unique_ptr<Stream>(
      std::make_unique<TlsStream>(shared_from_this(), std::move(fd), ssl));
}

FirstBytes look_at_first_bytes(int fd) {
  std::array<std::byte, wire::kPreambleSize> front{};
  const ssize_t n = ::recv(fd, front.data(), front.size(), MSG_PEEK | MSG_DONTWAIT);
  // A handshake record of TLS 1.x: as a preamble it would announce a header of 64 KiB and more.
  if (n >= 3 && front[0] == std::byte{0x16} && front[1] == std::byte{3} && front[2] != std::byte{0})
    return FirstBytes::Tls;
  if (n == static_cast<ssize_t>(front.size()))
    if (auto preamble = wire::decode_preamble(front);
        preamble && preamble->type == wire::FrameType::Hello)
      return FirstBytes::PlainHello;
  return FirstBytes::Other;
}

void refuse_tls(int fd) {
  // A fatal alert, protocol_version (RFC 8446, 6). A new socket takes it whole.
  constexpr unsigned char kAlert[] = {21, 3, 3, 0, 2, 2, 70};
  (void)::send(fd, kAlert, sizeof kAlert, MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace vremote::net
