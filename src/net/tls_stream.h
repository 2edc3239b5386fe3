// One connection under TLS: what Tls makes, and what its callbacks need of it.
#pragma once

#include <openssl/ssl.h>

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>
#include <vector>

#include "net/tls.h"

namespace vremote::net {

class TlsStream : public Stream {
 public:
  // Takes over `ssl`. A client has `ends` and a key to show, a server learns them.
  // `key`: the number of the key it shows (Tls::connect()).
  TlsStream(std::shared_ptr<const Tls> tls, Fd fd, SSL* ssl, Dialled ends, size_t key);
  TlsStream(std::shared_ptr<const Tls> tls, Fd fd, SSL* ssl);
  ~TlsStream() override;

  int fd() const override { return fd_.get(); }
  IoResult read(std::span<iovec> into) override;
  IoResult write(std::span<iovec> from) override;
  bool pending() const override { return sent_ < sending_.size(); }
  bool buffered() const override { return !drained_ && established_; }
  bool encrypted() const override { return true; }
  bool stale() const override;
  bool of_older_key() const override;
  const Dialled* proven() const override { return established_ ? &ends_ : nullptr; }

  // For the callbacks of the handshake.
  static TlsStream* of(const SSL* ssl);
  const ClusterKey::Shown& shown() const { return shown_; }
  std::optional<Secret> recognize(std::string_view identity);

 private:
  struct Method;  // the BIO: reads from the socket, writes to out_
  static int bio_read(BIO* bio, char* data, int size);
  static int bio_write(BIO* bio, const char* data, int size);

  void attach_bio();
  // True once the handshake is done; else `result` says what to wait for, or how it failed. Under
  // the lock.
  bool shake_hands(IoResult& result);
  IoResult broken(int ssl_result);  // remembers and explains the failure
  IoResult encrypt(const void* data, size_t size);
  bool send_pending(IoResult& result);  // false: the socket is full, or failed
  void renew_keys();

  const std::shared_ptr<const Tls> tls_;
  const std::shared_ptr<const KeyRing> ring_;  // as it was at the beginning
  const ClusterKey* key_ = nullptr;            // of ring_: what the connection is made of
  const uint64_t rekey_bytes_;
  const bool is_server_;
  Fd fd_;
  SSL* ssl_;
  Dialled ends_;
  ClusterKey::Shown shown_;

  std::mutex mutex_;                // ssl_ and what follows
  std::vector<unsigned char> out_;  // records for the socket
  bool socket_empty_ = false;       // asking it again would only say EAGAIN
  bool peer_closed_ = false;        // the socket has ended
  int socket_error_ = 0;
  IoResult failed_;  // error != 0: for good

  // The reader's; before the handshake's end there is one thread only.
  bool established_ = false;
  bool drained_ = false;

  // The writer's.
  std::vector<unsigned char> sending_;  // records on their way
  size_t sent_ = 0;                     // of them
  std::vector<unsigned char> early_;    // written before the handshake's end
  uint64_t since_rekey_ = 0;
};

}  // namespace vremote::net
