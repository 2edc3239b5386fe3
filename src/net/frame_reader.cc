#include "net/frame_reader.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace vremote::net {
namespace {

// Several headers per read; small enough that little page data lands in it.
constexpr size_t kBufferSize = size_t{16} << 10;

}  // namespace

FrameReader::FrameReader(FrameLimits limits) : limits_(limits), buffer_(kBufferSize) {}

void FrameReader::drop_delivered() {
  if (!delivered_) return;
  begin_ += in_buffer_;
  current_.reset();
  bulk_.reset();
  bulk_have_ = in_buffer_ = 0;
  delivered_ = false;
}

// Lets `size` bytes from begin_ on fit into the buffer.
void FrameReader::make_room(size_t size) {
  if (begin_ == end_) {
    begin_ = end_ = 0;
    if (buffer_.size() > kBufferSize && size <= kBufferSize) {  // after an unusually long header
      buffer_.resize(kBufferSize);
      buffer_.shrink_to_fit();
    }
  }
  if (begin_ + size <= buffer_.size()) return;
  std::memmove(buffer_.data(), buffer_.data() + begin_, available());
  end_ -= begin_;
  begin_ = 0;
  if (size > buffer_.size()) buffer_.resize(size);
}

IoResult FrameReader::fill(Stream& stream) {
  drop_delivered();
  size_t bulk_missing = bulk_ ? current_->bulk_length - bulk_have_ : 0;
  size_t need = current_ ? wire::kPreambleSize + current_->header_length : wire::kPreambleSize;
  // Room for what the frame needs and, behind it, for the frames that follow.
  make_room(std::max(need, available() + kBufferSize / 4));

  iovec pieces[2];
  size_t count = 0;
  if (bulk_missing > 0) pieces[count++] = {bulk_.get() + bulk_have_, bulk_missing};
  pieces[count++] = {buffer_.data() + end_, buffer_.size() - end_};
  IoResult result = stream.read(std::span(pieces, count));
  size_t to_bulk = std::min(result.bytes, bulk_missing);
  bulk_have_ += to_bulk;
  end_ += result.bytes - to_bulk;
  return result;
}

Result<std::optional<FrameReader::Frame>> FrameReader::next() {
  drop_delivered();
  if (!current_) {
    if (available() < wire::kPreambleSize) return std::nullopt;
    VR_TRY(preamble, wire::decode_preamble(std::span<const std::byte, wire::kPreambleSize>(
                         buffer_.data() + begin_, wire::kPreambleSize)));
    if (preamble.header_length > limits_.header_max || preamble.bulk_length > limits_.bulk_max)
      return fail(EPROTO, "frame too long at this point");
    current_ = preamble;
  }
  size_t front = wire::kPreambleSize + current_->header_length;
  if (in_buffer_ == 0) {
    if (available() < front) return std::nullopt;
    in_buffer_ = front;
    if (current_->bulk_length > 0) {
      bulk_ = std::make_shared_for_overwrite<std::byte[]>(current_->bulk_length);
      bulk_have_ = std::min<size_t>(available() - front, current_->bulk_length);
      std::memcpy(bulk_.get(), buffer_.data() + begin_ + front, bulk_have_);
      in_buffer_ += bulk_have_;
    }
  }
  if (bulk_have_ < current_->bulk_length) return std::nullopt;

  delivered_ = true;
  Frame frame{
      .preamble = *current_,
      .header = std::span(buffer_.data() + begin_ + wire::kPreambleSize, current_->header_length),
      .bulk = {}};
  if (bulk_) {
    std::span<const std::byte> view(bulk_.get(), current_->bulk_length);
    frame.bulk = Bytes(std::move(bulk_), view);
  }
  return frame;
}

}  // namespace vremote::net
