#include "net/frame_reader.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/prng.h"

namespace vremote::net {
namespace {

// Gives out `bytes` in pieces of at most `step()` bytes.
class ScriptedStream : public Stream {
 public:
  explicit ScriptedStream(std::vector<std::byte> bytes, uint64_t seed)
      : bytes_(std::move(bytes)), random_(seed) {}
  int fd() const override { return -1; }
  IoResult write(std::span<iovec>) override { return {.error = EPIPE}; }
  IoResult read(std::span<iovec> into) override {
    size_t step = random_.chance(50) ? random_.between(1, 40) : random_.between(1, 60000);
    IoResult result;
    for (iovec& piece : into) {
      size_t n = std::min({piece.iov_len, step - result.bytes, bytes_.size() - at_});
      std::memcpy(piece.iov_base, bytes_.data() + at_, n);
      at_ += n;
      result.bytes += n;
    }
    if (result.bytes == 0) result.end = true;
    return result;
  }

 private:
  std::vector<std::byte> bytes_;
  Prng random_;
  size_t at_ = 0;
};

struct Expected {
  wire::Preamble preamble;
  std::vector<std::byte> header, bulk;
};

std::vector<std::byte> noise(Prng& random, size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.next());
  return bytes;
}

TEST(FrameReaderTest, FramesComeWholeHoweverTheBytesAreCut) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng random(seed);
    std::vector<Expected> frames;
    std::vector<std::byte> bytes;
    for (int i = 0; i < 30; ++i) {
      Expected e;
      size_t header = random.chance(30)  ? 0
                      : random.chance(5) ? random.between(15000, 200000)
                                         : random.between(1, 300);
      size_t bulk = header == 0 || random.chance(50) ? 0
                    : random.chance(10)              ? random.between(1, 200000)
                                                     : random.between(1, 9000);
      e.header = noise(random, header);
      e.bulk = noise(random, bulk);
      e.preamble = {.header_length = static_cast<uint32_t>(header),
                    .bulk_length = static_cast<uint32_t>(bulk),
                    .type = header == 0 ? wire::FrameType::Ack : wire::FrameType::Flush,
                    .sequence = random.below(1000)};
      std::array<std::byte, wire::kPreambleSize> preamble;
      wire::encode_preamble(e.preamble, preamble);
      bytes.insert(bytes.end(), preamble.begin(), preamble.end());
      bytes.insert(bytes.end(), e.header.begin(), e.header.end());
      bytes.insert(bytes.end(), e.bulk.begin(), e.bulk.end());
      frames.push_back(std::move(e));
    }
    ScriptedStream stream(bytes, seed);
    FrameReader reader;
    std::vector<Bytes> kept;  // bulk must stay what it is while later frames are read
    size_t got = 0;
    while (true) {
      auto frame = reader.next();
      ASSERT_TRUE(frame) << frame.error().what;
      if (*frame) {
        ASSERT_LT(got, frames.size());
        const Expected& e = frames[got++];
        ASSERT_EQ((*frame)->preamble, e.preamble) << "seed " << seed;
        ASSERT_TRUE(std::ranges::equal((*frame)->header, e.header)) << "seed " << seed;
        kept.push_back((*frame)->bulk);
        continue;
      }
      if (reader.fill(stream).end) break;
    }
    ASSERT_EQ(got, frames.size()) << "seed " << seed;
    for (size_t i = 0; i < got; ++i)
      ASSERT_TRUE(std::ranges::equal(kept[i].view(), frames[i].bulk)) << "seed " << seed;
  }
}

TEST(FrameReaderTest, WhatIsTooLongIsRefusedBeforeItIsRead) {
  std::array<std::byte, wire::kPreambleSize> preamble;
  wire::encode_preamble({.header_length = 101, .bulk_length = 0, .type = wire::FrameType::Hello},
                        preamble);
  ScriptedStream stream({preamble.begin(), preamble.end()}, 1);
  FrameReader reader({.header_max = 100, .bulk_max = 0});
  while (!reader.fill(stream).end) {
  }
  auto frame = reader.next();
  ASSERT_FALSE(frame);
  EXPECT_EQ(frame.error().code, EPROTO);
}

}  // namespace
}  // namespace vremote::net
