// TLS 1.3 between nodes, under the secrets of a cluster key (cluster_key.h).
//
// 1. Only TLS 1.3, only AEAD ciphers, only a pre-shared key together with an ephemeral key exchange
//    (what is recorded today stays secret when the key is lost tomorrow). No certificates, no
//    tickets, no early data (which could be replayed).
// 2. The handshake is carried on by read() and write(): what is written before its end waits, and
//    nothing is read before its end. Whoever has not the key never gets a byte of ours that is not
//    part of the handshake.
// 3. After a record that is damaged, out of order or repeated the stream is of no more use.
// 4. When the keys of this node change, a connection that is not of the newest is made anew.
// 5. Traffic keys are renewed long before the number of records that AES-GCM is good for (RFC 8446,
//    5.5).
//
// Encryption runs on the thread that sends or receives. The OpenSSL object is under a lock because
// those may be two; the socket's own calls for sending are made outside of it.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "net/key_ring.h"
#include "net/stream.h"

namespace vremote::net {

class Tls : public std::enable_shared_from_this<Tls> {
 public:
  // Of the node `own_name`. Thread-safe from then on.
  static Result<std::shared_ptr<Tls>> make(KeyRing keys, std::string own_name);
  ~Tls();

  // From now on; connections of others than the newest become stale().
  void set_keys(KeyRing keys);
  size_t keys() const;  // how many
  // Shows the key of this number, 0 the newest (the oldest, when there are not so many).
  Result<std::unique_ptr<Stream>> connect(Fd fd, const std::string& home_name,
                                          size_t key = 0) const;
  Result<std::unique_ptr<Stream>> accept(Fd fd) const;

  const std::string& own_name() const { return own_name_; }
  // For tests: renews the traffic keys after so many bytes written.
  void set_rekey_bytes(uint64_t bytes) { rekey_bytes_ = bytes; }

 private:
  friend class TlsStream;
  struct Contexts;
  Tls(KeyRing keys, std::string own_name);
  std::shared_ptr<const KeyRing> ring() const;

  mutable std::mutex mutex_;
  std::shared_ptr<const KeyRing> ring_;
  const std::string own_name_;
  uint64_t rekey_bytes_ = uint64_t{16} << 30;
  std::unique_ptr<Contexts> contexts_;
};

// What a connection that has just been accepted begins with. Looks without taking it.
enum class FirstBytes { Tls, PlainHello, Other };
FirstBytes look_at_first_bytes(int fd);
// A TLS client that met a node without TLS is told so in its own language, as far as it will hear.
void refuse_tls(int fd);

}  // namespace vremote::net
