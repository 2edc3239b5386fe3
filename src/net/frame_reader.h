// Cuts a byte stream into frames. Headers pass through a small buffer; page data goes from the
// socket straight to the memory where it stays, except for the few KiB that arrived together with
// their header.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "net/stream.h"
#include "wire/frame.h"

namespace vremote::net {

struct FrameLimits {
  size_t header_max = wire::kHeaderMax;
  size_t bulk_max = wire::kBulkMax;
};

class FrameReader {
 public:
  struct Frame {
    wire::Preamble preamble;
    std::span<const std::byte> header;  // until the next call of next() or fill()
    Bytes bulk;
    size_t size() const { return wire::kPreambleSize + header.size() + bulk.size(); }
  };

  explicit FrameReader(FrameLimits limits = {});
  // Holds for the frames not yet begun.
  void set_limits(FrameLimits limits) { limits_ = limits; }

  // Reads once. Call it only after next() found nothing.
  IoResult fill(Stream& stream);
  // The next whole frame; nothing when more bytes are needed; EPROTO when the peer breaks the
  // rules.
  Result<std::optional<Frame>> next();

 private:
  size_t available() const { return end_ - begin_; }
  void drop_delivered();
  void make_room(size_t size);

  FrameLimits limits_;
  std::vector<std::byte> buffer_;
  size_t begin_ = 0, end_ = 0;  // the bytes of buffer_ not yet dropped

  // The frame being read; it begins at begin_.
  std::optional<wire::Preamble> current_;
  std::shared_ptr<std::byte[]> bulk_;
  size_t bulk_have_ = 0;
  size_t in_buffer_ =
      0;  // how much of the buffer is its preamble, header and copied part of the bulk
  bool delivered_ = false;
};

}  // namespace vremote::net
