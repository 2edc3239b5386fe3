#include "fuse/buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <thread>

namespace vremote::fuse {
namespace {

TEST(BufferTest, APayloadBehindTheWriteHeadersBeginsAPage) {
  BufferPool pool(4);
  ReceiveBuffer buffer = pool.take();
  const auto memory = buffer.next();
  EXPECT_EQ(memory.size(), kReceiveBufferSize);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data() + kReceiveHeadroom) % 4096, 0u);
}

TEST(BufferTest, BigPartsShareTheMemoryAndAreNotOverwritten) {
  BufferPool pool(4);
  ReceiveBuffer buffer = pool.take();
  const auto first = buffer.next();
  std::ranges::fill(first, std::byte{1});
  const auto payload = first.subspan(kReceiveHeadroom);
  const Bytes kept = buffer.cut(payload);
  EXPECT_EQ(kept.data(), payload.data());

  const auto second = buffer.next();
  EXPECT_NE(second.data(), first.data());
  std::ranges::fill(second, std::byte{2});
  EXPECT_TRUE(std::ranges::all_of(kept.view(), [](std::byte b) { return b == std::byte{1}; }));
}

TEST(BufferTest, SmallPartsAreCopiedAndTheMemoryStays) {
  BufferPool pool(4);
  ReceiveBuffer buffer = pool.take();
  const auto first = buffer.next();
  first[100] = std::byte{7};
  const Bytes kept = buffer.cut(first.subspan(100, 10));
  EXPECT_NE(kept.data(), first.data() + 100);
  EXPECT_EQ(buffer.next().data(), first.data());
  first[100] = std::byte{8};
  EXPECT_EQ(kept.view()[0], std::byte{7});
}

TEST(BufferTest, MemoryComesBackWithItsLastReference) {
  BufferPool pool(4);
  ReceiveBuffer buffer = pool.take();
  const std::byte* const memory = buffer.next().data();
  std::optional<Bytes> kept = buffer.cut(buffer.next().first(kMaxTransfer));
  std::optional<Bytes> also = kept->part(4096, 4096);
  EXPECT_NE(buffer.next().data(), memory);
  EXPECT_EQ(pool.idle(), 0u);
  kept.reset();
  EXPECT_EQ(pool.idle(), 0u);
  std::thread([&] { also.reset(); }).join();
  EXPECT_EQ(pool.idle(), 1u);
  EXPECT_EQ(pool.take().next().data(), memory);
}

TEST(BufferTest, APartGivenBackBeforeTheNextRequestKeepsTheSameMemory) {
  BufferPool pool(1);
  ReceiveBuffer buffer = pool.take();
  const std::byte* const memory = buffer.next().data();
  { const Bytes gone = buffer.cut(buffer.next().first(kMaxTransfer)); }
  EXPECT_EQ(buffer.next().data(), memory);
}

TEST(BufferTest, KeepsAtMostIdleMax) {
  BufferPool pool(2);
  {
    const ReceiveBuffer a = pool.take(), b = pool.take(), c = pool.take();
    EXPECT_EQ(pool.idle(), 0u);
  }
  EXPECT_EQ(pool.idle(), 2u);
}

TEST(BufferTest, BytesOutliveThePool) {
  std::optional<Bytes> kept;
  {
    BufferPool pool(2);
    ReceiveBuffer buffer = pool.take();
    const auto memory = buffer.next();
    std::ranges::fill(memory, std::byte{9});
    kept = buffer.cut(memory.first(kMaxTransfer));
  }
  EXPECT_EQ(kept->view()[kMaxTransfer - 1], std::byte{9});
}

}  // namespace
}  // namespace vremote::fuse
