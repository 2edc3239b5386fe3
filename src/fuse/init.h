// What we and the kernel agree on at INIT (docs/kernel_cache.md, the INIT paragraph).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "fuse/protocol.h"
#include "fuse/request.h"

namespace vremote::fuse {

struct InitOptions {
  // Requests that may wait for a lease must never occupy the last background slot that a write-back
  // needs (K7).
  uint16_t max_background = 65535;
  uint32_t max_readahead = kMaxTransfer;
  // fs.fuse.max_pages_limit of this kernel (Mount::kernel_max_pages()): the kernel silently cuts
  // max_pages down to it.
  uint32_t max_pages_limit = kMaxPages;
  // MAP_SHARED writing on direct handles. False on kernels before 6.16, where a purge does not wait
  // for write-backs (K9).
  bool allow_mmap = true;
};

struct Capabilities {
  uint32_t minor = 0;  // of the protocol, the lower of the two sides
  uint32_t max_pages = 0;
  uint32_t max_write = 0;       // bytes of one WRITE
  uint32_t max_read_ahead = 0;  // bytes; the bdi's read_ahead_kb must stay within it (K6)
  bool direct_io_allow_mmap = false;
  bool resend = false;       // Channel::resend(), RequestHeader::resent
  bool expire_only = false;  // Channel::expire_name()
  bool inc_epoch = false;    // Channel::inc_epoch()
  bool handle_killpriv_v2 = false;
  bool abort_error = false;  // receive() tells an abort (ECONNABORTED) from an unmount (ENODEV)
};

struct Negotiation {
  fuse_init_out reply{};
  // The kernel speaks a newer major version: send the reply and wait for a second INIT; the rest is
  // unset.
  bool again = false;
  Capabilities capabilities;
  std::vector<std::string> lacks;  // what this kernel cannot do and what it means, a sentence each
};

// Fails (EPROTO) when the kernel is too old to be coherent on.
Result<Negotiation> negotiate(const Init& init, const InitOptions& options);

}  // namespace vremote::fuse
