// One /dev/fuse descriptor: requests come in, replies and notifications go out.
//
// A connection has one descriptor per event loop (clone()). A request must be answered on the
// channel that received it; notifications may use any channel of the connection and any thread: all
// functions are const calls into the kernel and safe to call at once.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <type_traits>

#include "base/fd.h"
#include "base/result.h"

namespace vremote::fuse {

class Channel {
 public:
  explicit Channel(Fd fd) : fd_(std::move(fd)) {}

  // Opens /dev/fuse. The errors say what to do about them.
  static Result<Channel> open();
  // Another descriptor of the same connection, with a queue of its own for requests in progress.
  // After the mount only.
  Result<Channel> clone() const;

  // For epoll: readable when a request waits, EPOLLERR when the connection is gone.
  int fd() const { return fd_.get(); }

  // Unmounted, or aborted.
  bool is_gone() const;

  // Reads one request into `buffer` (at least kReceiveBufferSize) and returns its length. EAGAIN:
  // none waits. EINTR: a signal. ENODEV: unmounted. ECONNABORTED: aborted.
  Result<size_t> receive(std::span<std::byte> buffer) const;

  // Replies. `unique` is RequestHeader::wire_unique(). A request that is gone meanwhile (aborted
  // connection) is not an error.
  Status reply_error(uint64_t unique, int error) const;  // error: an errno, positive
  Status reply(uint64_t unique, std::span<const iovec> parts) const;
  Status reply(uint64_t unique, std::span<const std::byte> bytes) const;
  Status reply(uint64_t unique) const;  // success, no data
  template <typename T>
  requires(std::is_trivially_copyable_v<T>&& std::is_class_v<T> &&
           !std::is_convertible_v<const T&, std::span<const iovec>> &&
           !std::is_convertible_v<const T&, std::span<const std::byte>>) Status
      reply(uint64_t unique, const T& out)
  const { return reply(unique, std::as_bytes(std::span<const T, 1>(&out, 1))); }

  // Notifications. A node or name the kernel does not know is a success: nothing of it is cached.

  // Drops the cached pages (and attributes) of a range; length 0 means to the end of the file.
  // BLOCKS on each page with an unanswered fill and on the write-back of each dirty page, until
  // this daemon answers them: helper threads only, never an event loop (K14).
  Status invalidate_data(uint64_t node, uint64_t offset, uint64_t length) const;
  // Drops attributes only (and the cached target of a link). Never blocks.
  Status invalidate_attributes(uint64_t node) const;
  // Lets the kernel look the name up again at its next use, and says whether it had it (needs
  // Capabilities::expire_only). BLOCKS on the directory's inode lock, which a pending create,
  // unlink, rename, lookup or readdir there holds.
  Result<bool> expire_name(uint64_t directory, std::string_view name) const;
  // Puts bytes into the page cache and grows the kernel's size of the file when they end beyond it.
  // BLOCKS as invalidate_data does.
  Status store(uint64_t node, uint64_t offset, std::span<const std::byte> bytes) const;
  // Makes the kernel's size of the file at least `size` (> 0) and touches no byte of it. A
  // NOTIFY_STORE of the last byte whose source cannot be read: the kernel raises the size first
  // (fs/fuse/dev.c, fuse_notify_store) and then fails to copy. BLOCKS while a fill of the last page
  // is unanswered.
  Status push_size(uint64_t node, uint64_t size) const;
  // Makes the kernel deliver again what was read from any channel and not answered (needs
  // Capabilities::resend).
  Status resend() const;
  // Drops every cached name at its next use, without a lock (needs Capabilities::inc_epoch).
  Status inc_epoch() const;

 private:
  Status send(uint64_t unique, int32_t code, std::span<const iovec> parts) const;
  Status notify(int32_t code, std::initializer_list<std::span<const std::byte>> parts) const;

  Fd fd_;
};

}  // namespace vremote::fuse
