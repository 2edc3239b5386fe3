// Bytes that no honest peer sends. A decoder may refuse them or find a message in them, but what it
// finds is within the bounds: it can be encoded again. Memory errors are left to the sanitizers'
// builds.
#include <gtest/gtest.h>

#include "base/prng.h"
#include "wire/codec.h"
#include "wire/handshake.h"
#include "wire/wire_samples.h"

namespace vremote::wire {
namespace {

// Memory of exactly this size, so that AddressSanitizer sees one byte too far.
std::unique_ptr<std::byte[]> exact(std::span<const std::byte> bytes) {
  auto memory = std::make_unique<std::byte[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), memory.get());
  return memory;
}

struct Outcomes {
  int refused = 0, taken = 0;
};

void try_decode(FrameType type, std::span<const std::byte> header, const Bytes& bulk,
                Outcomes& outcomes) {
  auto memory = exact(header);
  std::span<const std::byte> view(memory.get(), header.size());
  if (is_to_home(type)) {
    auto message = decode_to_home(type, view, bulk);
    message ? ++outcomes.taken : ++outcomes.refused;
    if (!message) return;
    auto again = encode(*message);
    // Overlapping slices of one bulk may add up to more than a bulk holds; nothing else that was
    // taken may be refused.
    ASSERT_TRUE(again || again.error().code == EMSGSIZE) << again.error().what;
  } else {
    auto message = decode_to_agent(type, view, bulk);
    message ? ++outcomes.taken : ++outcomes.refused;
    if (!message) return;
    auto again = encode(*message);
    ASSERT_TRUE(again || again.error().code == EMSGSIZE) << again.error().what;
  }
}

std::vector<Frame> all_frames() {
  std::vector<Frame> frames;
  for (const auto& m : sample_to_home()) frames.push_back(as_received(*encode(m)));
  for (const auto& m : sample_to_agent()) frames.push_back(as_received(*encode(m)));
  return frames;
}

TEST(MutationTest, EveryTruncationIsHarmless) {
  Outcomes outcomes;
  for (const Frame& frame : all_frames())
    for (size_t size = 0; size < frame.header.size(); ++size)
      try_decode(frame.preamble.type, std::span(frame.header).first(size), frame.bulk, outcomes);
  EXPECT_GT(outcomes.refused, 1000);
}

TEST(MutationTest, EveryByteMayHaveEveryExtremeValue) {
  Outcomes outcomes;
  for (Frame& frame : all_frames())
    for (size_t at = 0; at < frame.header.size(); ++at) {
      std::byte was = frame.header[at];
      for (int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
        frame.header[at] = static_cast<std::byte>(value);
        try_decode(frame.preamble.type, frame.header, frame.bulk, outcomes);
      }
      frame.header[at] = was;
    }
  EXPECT_GT(outcomes.refused, 1000);
  EXPECT_GT(outcomes.taken, 1000);
}

TEST(MutationTest, RandomDamageIsHarmless) {
  Outcomes outcomes;
  auto frames = all_frames();
  for (uint64_t seed = 1; seed <= 20000; ++seed) {
    Prng random(seed);
    Frame frame = frames[random.below(frames.size())];
    for (uint64_t n = random.between(1, 6); n > 0; --n)
      frame.header[random.below(frame.header.size())] = static_cast<std::byte>(random.next());
    if (random.chance(10)) frame.bulk = frame.bulk.part(0, random.below(frame.bulk.size() + 1));
    // A header taken for another type's.
    FrameType type =
        random.chance(20) ? frames[random.below(frames.size())].preamble.type : frame.preamble.type;
    try_decode(type, frame.header, frame.bulk, outcomes);
    if (HasFailure()) FAIL() << "seed " << seed;
  }
  EXPECT_GT(outcomes.refused, 1000);
  EXPECT_GT(outcomes.taken, 100);
}

TEST(MutationTest, RandomBytesAreHarmless) {
  Outcomes outcomes;
  for (uint64_t seed = 1; seed <= 20000; ++seed) {
    Prng random(seed);
    std::vector<std::byte> bytes(random.below(200));
    for (std::byte& b : bytes)
      b = static_cast<std::byte>(random.chance(50) ? random.below(16) : random.next());
    for (FrameType type : {FrameType::Flush, FrameType::Call, FrameType::Grant, FrameType::Reply})
      try_decode(type, bytes, {}, outcomes);
    auto memory = exact(bytes);
    std::span<const std::byte> view(memory.get(), bytes.size());
    if (auto hello = decode_hello(view)) {
      EXPECT_TRUE(encode(*hello));
    }
    if (auto welcome = decode_welcome(view)) {
      EXPECT_TRUE(encode(*welcome));
    }
    if (auto refuse = decode_refuse(view)) {
      EXPECT_TRUE(encode(*refuse));
    }
  }
  EXPECT_GT(outcomes.refused, 1000);
}

}  // namespace
}  // namespace vremote::wire
