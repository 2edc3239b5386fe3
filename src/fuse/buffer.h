// Buffers to receive requests into, whose WRITE payloads can be kept without a copy.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "base/bytes.h"
#include "fuse/protocol.h"

namespace vremote::fuse {

// The kernel refuses reads into less than the headers of a WRITE and max_write bytes.
inline constexpr size_t kReceiveHeadroom = sizeof(fuse_in_header) + sizeof(fuse_write_in);
inline constexpr size_t kReceiveBufferSize = kReceiveHeadroom + kMaxTransfer;

class BufferPool;

// Memory for one request. Placed so that the payload of a WRITE starts at a page boundary.
class ReceiveBuffer {
 public:
  ReceiveBuffer(ReceiveBuffer&&) = default;
  ReceiveBuffer& operator=(ReceiveBuffer&&) = default;

  // kReceiveBufferSize bytes to receive the next request into. When cut() lent a part of the last
  // one, this is other memory; so views of the last request end here.
  std::span<std::byte> next();

  // `part` (of the request in this buffer) as Bytes that outlive it. A big part shares the buffer's
  // memory; a small one is copied, or a few bytes would hold a megabyte.
  Bytes cut(std::span<const std::byte> part);

 private:
  friend class BufferPool;
  struct Pool;
  explicit ReceiveBuffer(std::shared_ptr<Pool> pool);

  std::shared_ptr<Pool> pool_;
  std::shared_ptr<std::byte[]> memory_;
  bool lent_ = false;
};

// Recycles the memory of buffers whose last reference is gone. Any thread may drop that reference,
// also after the pool's end.
class BufferPool {
 public:
  // Keeps at most `idle_max` unused blocks (of 1 MiB and a page).
  explicit BufferPool(size_t idle_max);
  ReceiveBuffer take();
  size_t idle() const;

 private:
  std::shared_ptr<ReceiveBuffer::Pool> pool_;
};

}  // namespace vremote::fuse
