#include "net/tls_stream.h"

#include <openssl/err.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace vremote::net {
namespace {

constexpr size_t kRecord = 16384;                // plain bytes in the largest record
constexpr size_t kBatch = size_t{128} << 10;     // encrypted before it is sent
constexpr size_t kReadAhead = size_t{64} << 10;  // per read of the socket
constexpr size_t kEarlyMax = size_t{64} << 10;

constexpr const char* kWrongKeyHere =
    "it has not the key of this cluster, or it and this node are both guests; compare 'vremote "
    "cluster show' on both";
constexpr const char* kWrongKeyThere =
    "it does not take our key: another cluster's, or it and this node are both guests; compare "
    "'vremote cluster show' on both";
constexpr const char* kPlainThere =
    "it does not speak TLS: its configuration says tls = \"off\"; write the same on all nodes";
constexpr const char* kClosedInHandshake = "connection closed in the TLS handshake";
constexpr const char* kNotTls = "it does not speak TLS";
constexpr const char* kDamaged = "a damaged or forged record was received";

// Alerts by which the other side says that the key is the trouble.
bool is_about_key(int alert) {
  return alert == SSL_AD_HANDSHAKE_FAILURE || alert == SSL_AD_ILLEGAL_PARAMETER ||
         alert == SSL_AD_DECRYPT_ERROR || alert == SSL_AD_UNKNOWN_PSK_IDENTITY ||
         alert == SSL_AD_INTERNAL_ERROR || alert == SSL_AD_MISSING_EXTENSION;
}

}  // namespace

struct TlsStream::Method {
  BIO_METHOD* bio = nullptr;
  Method() : bio(BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "vremote")) {
    VR_CHECK(bio != nullptr);
    VR_CHECK(BIO_meth_set_read(bio, &TlsStream::bio_read) == 1 &&
             BIO_meth_set_write(bio, &TlsStream::bio_write) == 1 &&
             BIO_meth_set_ctrl(bio, [](BIO*, int command, long, void*) -> long {
               return command == BIO_CTRL_FLUSH ? 1 : 0;
             }) == 1);
  }
  ~Method() { BIO_meth_free(bio); }
};

TlsStream::TlsStream(std::shared_ptr<const Tls> tls, Fd fd, SSL* ssl, Dialled ends, size_t key)
    : tls_(std::move(tls)),
      ring_(tls_->ring()),
      key_(&ring_->keys()[std::min(key, ring_->keys().size() - 1)]),
      rekey_bytes_(tls_->rekey_bytes_),
      is_server_(false),
      fd_(std::move(fd)),
      ssl_(ssl),
      ends_(std::move(ends)),
      shown_(key_->dial(ends_)) {
  attach_bio();
  SSL_set_connect_state(ssl_);
}

TlsStream::TlsStream(std::shared_ptr<const Tls> tls, Fd fd, SSL* ssl)
    : tls_(std::move(tls)),
      ring_(tls_->ring()),
      rekey_bytes_(tls_->rekey_bytes_),
      is_server_(true),
      fd_(std::move(fd)),
      ssl_(ssl) {
  attach_bio();
  SSL_set_accept_state(ssl_);
}

TlsStream::~TlsStream() { SSL_free(ssl_); }

void TlsStream::attach_bio() {
  static const Method method;
  BIO* bio = BIO_new(method.bio);
  VR_CHECK(bio != nullptr);
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_, bio, bio);
  VR_CHECK(SSL_set_app_data(ssl_, this) == 1);
}

TlsStream* TlsStream::of(const SSL* ssl) { return static_cast<TlsStream*>(SSL_get_app_data(ssl)); }

std::optional<Secret> TlsStream::recognize(std::string_view identity) {
  auto known = ring_->recognize(identity, tls_->own_name());
  if (!known) return std::nullopt;
  key_ = known->key;
  ends_ = std::move(known->by.ends);
  return known->by.secret;
}

bool TlsStream::of_older_key() const { return key_ != nullptr && *key_ != tls_->ring()->newest(); }
bool TlsStream::stale() const { return tls_->ring() != ring_ && of_older_key(); }

int TlsStream::bio_read(BIO* bio, char* data, int size) {
  auto* self = static_cast<TlsStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  if (self->socket_empty_) {
    BIO_set_retry_read(bio);
    return -1;
  }
  while (true) {
    const ssize_t n = ::recv(self->fd_.get(), data, static_cast<size_t>(size), MSG_DONTWAIT);
    if (n > 0) {
      self->socket_empty_ = n < size;
      return static_cast<int>(n);
    }
    if (n == 0) {
      self->peer_closed_ = true;
      return 0;
    }
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      self->socket_empty_ = true;
      BIO_set_retry_read(bio);
      return -1;
    }
    self->socket_error_ = errno;
    return -1;
  }
}

int TlsStream::bio_write(BIO* bio, const char* data, int size) {
  auto* self = static_cast<TlsStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  const auto* bytes = reinterpret_cast<const unsigned char*>(data);
  self->out_.insert(self->out_.end(), bytes, bytes + size);
  return size;
}

IoResult TlsStream::broken(int ssl_result) {
  const int kind = SSL_get_error(ssl_, ssl_result);
  const unsigned long code = ERR_peek_error();
  const int reason = ERR_GET_REASON(code);
  const bool shaking = !established_;
  ERR_clear_error();
  if (socket_error_ != 0) {
    failed_ = {.error = socket_error_};
  } else if (kind == SSL_ERROR_ZERO_RETURN || peer_closed_) {
    if (shaking) {
      failed_ = {.error = ECONNRESET, .why = kClosedInHandshake};
    } else {
      return {.end = true};
    }
  } else if (!shaking) {
    failed_ = {.error = EBADMSG, .why = kDamaged};
  } else if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_HTTP_REQUEST ||
             reason == SSL_R_RECORD_LENGTH_MISMATCH || reason == SSL_R_UNSUPPORTED_PROTOCOL ||
             reason == SSL_R_PACKET_LENGTH_TOO_LONG) {
    failed_ = {.error = EPROTONOSUPPORT, .why = kNotTls};
  } else if (reason > SSL_AD_REASON_OFFSET) {  // they have sent an alert
    const int alert = reason - SSL_AD_REASON_OFFSET;
    if (alert == SSL_AD_PROTOCOL_VERSION)
      failed_ = {.error = EPROTONOSUPPORT, .why = kPlainThere};
    else if (is_about_key(alert))
      failed_ = {.error = EACCES, .why = is_server_ ? kWrongKeyHere : kWrongKeyThere};
    else
      failed_ = {.error = EPROTONOSUPPORT, .why = "the TLS handshake failed"};
  } else {
    failed_ = {.error = EACCES, .why = is_server_ ? kWrongKeyHere : kWrongKeyThere};
  }
  return failed_;
}

bool TlsStream::shake_hands(IoResult& result) {
  ERR_clear_error();
  const int done = SSL_do_handshake(ssl_);
  const bool waits = done != 1 && SSL_get_error(ssl_, done) == SSL_ERROR_WANT_READ;
  IoResult how;
  // Certificates do not come to an end, so that a finished handshake was one with the secret; were
  // it otherwise we would not speak.
  if (done == 1 && SSL_session_reused(ssl_) != 1) {
    failed_ = {.error = EACCES, .why = kWrongKeyHere};
    how = failed_;
  } else if (done != 1 && !waits) {
    how = broken(done);
  }
  // Also the alert that says why it failed. So little that a new socket takes it whole.
  if (!out_.empty()) {
    const ssize_t n = ::send(fd_.get(), out_.data(), out_.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    const bool whole = n == static_cast<ssize_t>(out_.size());
    out_.clear();
    if (!whole && how.error == 0) {
      failed_ = {.error = n < 0 ? errno : EIO};
      how = failed_;
    }
  }
  if (how.error != 0) {
    result = how;
    return false;
  }
  if (waits) {
    result = {.would_block = true};
    return false;
  }
  established_ = true;
  shown_ = {};
  // Small while they were strangers.
  SSL_set_default_read_buffer_len(ssl_, kReadAhead);
  return true;
}

IoResult TlsStream::read(std::span<iovec> into) {
  IoResult result;
  std::unique_lock lock(mutex_);
  socket_empty_ = false;
  if (failed_.error != 0) return failed_;
  if (!established_) {
    drained_ = false;
    if (!shake_hands(result)) return result;
    if (!early_.empty()) {
      std::vector<unsigned char> early;
      early.swap(early_);
      iovec piece{early.data(), early.size()};
      lock.unlock();
      // A new socket takes it; if not, the next write() sends the rest.
      // Its bytes are none that were read.
      if (const IoResult said = write(std::span(&piece, 1)); said.error != 0)
        return {.error = said.error, .why = said.why};
      lock.lock();
    }
  }
  drained_ = false;
  for (const iovec& piece : into) {
    auto* at = static_cast<unsigned char*>(piece.iov_base);
    size_t left = piece.iov_len;
    while (left > 0) {
      size_t n = 0;
      ERR_clear_error();
      const int ok = SSL_read_ex(ssl_, at, left, &n);
      if (ok != 1) {
        if (SSL_get_error(ssl_, ok) == SSL_ERROR_WANT_READ) {
          drained_ = true;
          result.would_block = true;
          return result;
        }
        const IoResult how = broken(ok);
        // First what came before it; then, when asked again, this.
        return result.bytes > 0 ? result : how;
      }
      result.bytes += n;
      at += n;
      left -= n;
      lock.unlock();  // a writer may want to get on between two records
      lock.lock();
    }
  }
  return result;
}

IoResult TlsStream::encrypt(const void* data, size_t size) {
  std::lock_guard lock(mutex_);
  if (failed_.error != 0) return failed_;
  const auto* at = static_cast<const unsigned char*>(data);
  while (size > 0) {
    size_t n = 0;
    ERR_clear_error();
    if (const int ok = SSL_write_ex(ssl_, at, size, &n); ok != 1) {
      // The socket is not asked here, so there is nothing that it could wait for.
      (void)broken(ok);
      if (failed_.error == 0) failed_ = {.error = EIO, .why = "TLS has failed"};
      return failed_;
    }
    at += n;
    size -= n;
  }
  return {};
}

void TlsStream::renew_keys() {
  std::lock_guard lock(mutex_);
  // The other side renews its own by what it writes itself.
  if (SSL_key_update(ssl_, SSL_KEY_UPDATE_NOT_REQUESTED) == 1) since_rekey_ = 0;
}

bool TlsStream::send_pending(IoResult& result) {
  if (sent_ == sending_.size()) {
    sending_.clear();
    sent_ = 0;
    std::lock_guard lock(mutex_);
    sending_.swap(out_);
  }
  while (sent_ < sending_.size()) {
    const ssize_t n = ::send(fd_.get(), sending_.data() + sent_, sending_.size() - sent_,
                             MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      result.would_block = true;
      return false;
    }
    if (n < 0) {
      result.error = errno;
      return false;
    }
    sent_ += static_cast<size_t>(n);
  }
  return true;
}

IoResult TlsStream::write(std::span<iovec> from) {
  IoResult result;
  if (!established_) {
    for (const iovec& piece : from) {
      const auto* at = static_cast<const unsigned char*>(piece.iov_base);
      early_.insert(early_.end(), at, at + piece.iov_len);
      result.bytes += piece.iov_len;
    }
    if (early_.size() > kEarlyMax) return {.error = EOVERFLOW};
    std::lock_guard lock(mutex_);
    IoResult begun;
    if (is_server_ || shake_hands(begun) || begun.would_block) return result;
    return begun;
  }
  // Small pieces are put together: a record costs a header and a tag, and its own start of the
  // cipher.
  std::array<unsigned char, kRecord> together;
  size_t i = 0, offset = 0;
  while (true) {
    if (!send_pending(result)) return result;
    if (i == from.size()) return result;
    size_t batch = 0;
    while (i < from.size() && batch < kBatch) {
      const auto* at = static_cast<const unsigned char*>(from[i].iov_base) + offset;
      size_t size = std::min(from[i].iov_len - offset, kBatch);
      if (size >= kRecord || i + 1 == from.size()) {
        if (size > kRecord) size -= size % kRecord;
        if (IoResult done = encrypt(at, size); done.error != 0) return done;
        offset += size;
      } else {
        size = 0;
        while (i < from.size() && size < kRecord) {
          const size_t n = std::min(from[i].iov_len - offset, kRecord - size);
          std::memcpy(together.data() + size,
                      static_cast<const unsigned char*>(from[i].iov_base) + offset, n);
          size += n;
          offset += n;
          if (offset < from[i].iov_len) break;
          ++i;
          offset = 0;
        }
        if (IoResult done = encrypt(together.data(), size); done.error != 0) return done;
      }
      if (i < from.size() && offset == from[i].iov_len) {
        ++i;
        offset = 0;
      }
      batch += size;
    }
    result.bytes += batch;
    since_rekey_ += batch;
    if (since_rekey_ >= rekey_bytes_) renew_keys();
  }
}

}  // namespace vremote::net
