#include "coherence/dirty_store.h"

#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <optional>

#include "base/prng.h"
#include "coherence/test_text.h"

namespace vremote::coherence {
namespace {

using test::pages;
using test::repeated;
using test::runs;

TEST(DirtyStoreTest, DirtyBytesLieOverTheBaseAndTheBaseOverZeros) {
  DirtyStore store;
  store.write(100, repeated('W', 50));
  EXPECT_EQ(runs(store.compose(0, 4096, 0, repeated('A', 1000))), "100*A 50*W 850*A 3096*0");
  EXPECT_EQ(runs(store.compose(90, 20, 4096, repeated('A', 10))), "10*0 10*W");
  EXPECT_TRUE(store.compose(0, 0, 0, {}).empty());
}

TEST(DirtyStoreTest, PiecesOfOnePageGrowTogether) {
  DirtyStore store;
  store.write(0, repeated('A', 10));
  store.write(20, repeated('B', 10));
  EXPECT_FALSE(store.covers(0, 30));
  store.write(10, repeated('C', 10));
  EXPECT_TRUE(store.covers(0, 30));
  EXPECT_FALSE(store.covers(0, 31));
  uint64_t taken = 0;
  auto extents = store.take_unsent(PageRange::all(), 1, ~uint64_t{0}, &taken);
  ASSERT_EQ(extents.size(), 1u);
  EXPECT_EQ(extents[0].offset, 0u);
  EXPECT_EQ(runs(std::vector{extents[0].bytes}), "10*A 10*C 10*B");
  EXPECT_EQ(taken, 30u);
}

TEST(DirtyStoreTest, ABigWriteIsKeptAndFlushedInOnePiece) {
  DirtyStore store;
  const Bytes big = repeated('A', 64 << 10);
  store.write(8192, big);
  uint64_t taken = 0;
  auto extents = store.take_unsent(PageRange::all(), 1, ~uint64_t{0}, &taken);
  ASSERT_EQ(extents.size(), 1u);
  EXPECT_EQ(extents[0].bytes.data(), big.data()) << "no copy";
  EXPECT_EQ(extents[0].bytes.size(), big.size());
}

TEST(DirtyStoreTest, AFlushUnderWayDoesNotSeeALaterWrite) {
  DirtyStore store;
  store.write(0, repeated('A', 100));
  uint64_t taken = 0;
  auto extents = store.take_unsent(PageRange::all(), 1, ~uint64_t{0}, &taken);
  store.write(50, repeated('B', 10));
  EXPECT_EQ(runs(std::vector{extents[0].bytes}), "100*A");
  EXPECT_EQ(runs(store.compose(0, 100, 0, {})), "50*A 10*B 40*A");
}

TEST(DirtyStoreTest, APageWrittenSinceItsFlushStaysDirtyAfterTheAck) {
  DirtyStore store;
  store.write(0, repeated('A', 8192));
  uint64_t taken = 0;
  store.take_unsent(PageRange::all(), 1, ~uint64_t{0}, &taken);
  EXPECT_FALSE(store.has_unsent());
  store.write(0, repeated('B', 1));
  EXPECT_TRUE(store.has_unsent());
  PageSet clean;
  clean.add(pages(1, 1));
  EXPECT_EQ(store.acked(1), clean);
  EXPECT_TRUE(store.overlaps(pages(0, 0)));
  EXPECT_TRUE(store.acked(1).empty()) << "an ack counts once";
}

TEST(DirtyStoreTest, AfterAResetEverythingIsSentAgain) {
  DirtyStore store;
  store.write(0, repeated('A', 4096));
  uint64_t taken = 0;
  store.take_unsent(PageRange::all(), 1, ~uint64_t{0}, &taken);
  store.resend();
  EXPECT_TRUE(store.acked(1).empty()) << "the old session's ack says nothing";
  EXPECT_EQ(store.take_unsent(PageRange::all(), 2, ~uint64_t{0}, &taken).size(), 1u);
}

TEST(DirtyStoreTest, TruncationCutsInsideAPage) {
  DirtyStore store;
  store.write(0, repeated('A', 100));
  store.write(200, repeated('B', 100));
  store.write(4096, repeated('C', 4096));
  store.truncate(250);
  EXPECT_EQ(runs(store.compose(0, 4096, 0, {})), "100*A 100*0 50*B 3846*0");
  EXPECT_FALSE(store.overlaps(pages(1, 1)));
  store.truncate(200);
  EXPECT_FALSE(store.covers(200, 1));
  store.truncate(0);
  EXPECT_TRUE(store.empty());
  EXPECT_FALSE(store.has_unsent());
}

TEST(DirtyStoreTest, TheRangeAroundAPageEndsAtTheNextDirtyOne) {
  DirtyStore store;
  store.write(3 * kPageSize, repeated('A', 1));
  store.write(9 * kPageSize, repeated('A', 1));
  EXPECT_EQ(store.clean_around(pages(5, 6)), pages(4, 8));
  EXPECT_EQ(store.clean_around(pages(9, 9)), test::pages_from(4));
  EXPECT_EQ(store.clean_around(pages(2, 20)), PageRange::all());
}

// ---- random operations against plain arrays of bytes

// The store, the home's disk behind it, and the same as plain bytes: what readers must see, which
// bytes are dirty, and which flush carries a page.
class Model {
 public:
  explicit Model(uint64_t seed) : prng_(seed) {}

  void step() {
    switch (prng_.below(8)) {
      case 0:
      case 1:
      case 2:
        write();
        break;
      case 3:
        send();
        break;
      case 4:
      case 5:
        ack();
        break;
      case 6:
        if (flights_.empty() && prng_.chance(30)) truncate();
        break;
      default:
        if (prng_.chance(10)) reset();
        break;
    }
  }

  void check() const {
    // Readers see the last write of every byte, wherever it is by now; `base` is a random window of
    // the disk, cut as replies are.
    const uint64_t length = kBytes;
    ASSERT_EQ(flat(store_.compose(0, length, 0, Bytes::copy_of(disk_))), seen_);
    PageSet dirty;
    bool unsent = false;
    for (uint64_t page = 0; page < kPages; ++page) {
      if (!flush_of_[page]) continue;
      dirty.add({page, page + 1});
      unsent = unsent || *flush_of_[page] == 0;
    }
    ASSERT_EQ(store_.pages(), dirty);
    ASSERT_EQ(store_.has_unsent(), unsent);
    ASSERT_EQ(store_.bytes(), dirty.page_count() * kPageSize);
    for (int i = 0; i < 4; ++i) {
      const uint64_t offset = prng_.below(kBytes),
                     size = 1 + prng_.below(std::min<uint64_t>(kBytes - offset, 6000));
      bool covered = true;
      for (uint64_t at = offset; at < offset + size; ++at) covered = covered && dirty_[at];
      ASSERT_EQ(store_.covers(offset, size), covered);
    }
  }

  // Everything home at last.
  void finish() {
    send(true);
    while (!flights_.empty()) ack();
    ASSERT_TRUE(store_.empty());
    ASSERT_EQ(disk_, seen_);
  }

 private:
  static constexpr uint64_t kPages = 20;
  static constexpr uint64_t kBytes = kPages * kPageSize;
  using Flat = std::vector<std::byte>;
  struct Flight {
    uint64_t id;
    std::vector<Extent> extents;
    std::vector<Flat> copies;  // of the extents, when they were taken
    bool stale = false;  // sent in a session that is over: it may or may not have reached the disk
  };

  static Flat flat(const std::vector<Bytes>& pieces) {
    Flat out;
    for (const Bytes& piece : pieces)
      out.insert(out.end(), piece.view().begin(), piece.view().end());
    return out;
  }

  void write() {
    const bool big = prng_.chance(20);
    const uint64_t size =
        big ? (32 << 10) + prng_.below(8192) : 1 + prng_.below(prng_.chance(50) ? 200 : 9000);
    uint64_t offset = prng_.below(kBytes - size + 1);
    if (prng_.chance(40)) offset &= ~(kPageSize - 1);
    const std::byte value{static_cast<unsigned char>(1 + prng_.below(255))};
    const Bytes bytes = repeated(static_cast<char>(value), size);
    if (prng_.chance(50)) {
      store_.write(offset, bytes);
    } else {
      store_.write(offset, bytes.view());
    }
    for (uint64_t at = offset; at < offset + size; ++at) {
      seen_[at] = value;
      dirty_[at] = true;
    }
    const PageRange range = PageRange::of_bytes(offset, size);
    for (uint64_t page = range.first; page < range.end; ++page) flush_of_[page] = 0;
  }

  void send(bool all = false) {
    PageRange range = PageRange::all();
    uint64_t most = ~uint64_t{0};
    if (!all && prng_.chance(50)) {
      range.first = prng_.below(kPages);
      range.end = range.first + 1 + prng_.below(kPages - range.first);
    }
    if (!all && prng_.chance(50)) most = kPageSize * (1 + prng_.below(4));
    uint64_t taken = 0;
    Flight flight{.id = next_flush_++, .extents = {}, .copies = {}};
    flight.extents = store_.take_unsent(range, flight.id, most, &taken);
    uint64_t bytes = 0;
    Flat end_of_last;
    uint64_t last_end = 0;
    for (const Extent& extent : flight.extents) {
      ASSERT_GE(extent.offset, last_end) << "extents come in order";
      last_end = extent.offset + extent.bytes.size();
      ASSERT_LE(last_end, kBytes);
      bytes += extent.bytes.size();
      flight.copies.emplace_back(extent.bytes.view().begin(), extent.bytes.view().end());
      for (uint64_t at = extent.offset; at < last_end; ++at) {
        ASSERT_TRUE(dirty_[at]) << "only written bytes are sent";
        ASSERT_TRUE(range.contains(at >> kPageShift));
        ASSERT_TRUE(flush_of_[at >> kPageShift] == 0 || flush_of_[at >> kPageShift] == flight.id)
            << "nothing is sent twice";
        flush_of_[at >> kPageShift] = flight.id;
      }
    }
    ASSERT_EQ(taken, bytes);
    ASSERT_TRUE(most == ~uint64_t{0} || bytes <= most);
    // A flight of nothing is no flight; ids of real ones are acked in order, as the home applies
    // them.
    if (!flight.extents.empty()) flights_.push_back(std::move(flight));
  }

  void ack() {
    if (flights_.empty()) return;
    Flight flight = std::move(flights_.front());
    flights_.pop_front();
    for (size_t i = 0; i < flight.extents.size(); ++i) {
      const Extent& extent = flight.extents[i];
      // Copy on write: what was taken has not changed since.
      ASSERT_TRUE(std::equal(flight.copies[i].begin(), flight.copies[i].end(),
                             extent.bytes.view().begin(), extent.bytes.view().end()));
      std::copy(flight.copies[i].begin(), flight.copies[i].end(),
                disk_.begin() + static_cast<ptrdiff_t>(extent.offset));
    }
    if (flight.stale) return;
    PageSet clean;
    for (uint64_t page = 0; page < kPages; ++page) {
      if (flush_of_[page] != flight.id) continue;
      flush_of_[page].reset();
      clean.add({page, page + 1});
      std::fill_n(dirty_.begin() + static_cast<ptrdiff_t>(page << kPageShift), kPageSize, false);
    }
    flight.extents.clear();
    ASSERT_EQ(store_.acked(flight.id), clean);
  }

  void truncate() {
    const uint64_t size = prng_.below(kBytes);
    store_.truncate(size);
    for (uint64_t at = size; at < kBytes; ++at) {
      seen_[at] = disk_[at] = std::byte{0};
      dirty_[at] = false;
    }
    for (uint64_t page = size >> kPageShift; page < kPages; ++page) {
      const auto begin = dirty_.begin() + static_cast<ptrdiff_t>(page << kPageShift);
      if (std::find(begin, begin + kPageSize, true) == begin + kPageSize) flush_of_[page].reset();
    }
  }

  void reset() {
    store_.resend();
    for (Flight& flight : flights_) flight.stale = true;
    for (auto& flush : flush_of_)
      if (flush) flush = 0;
  }

  mutable Prng prng_;
  DirtyStore store_;
  Flat disk_ = Flat(kBytes), seen_ = Flat(kBytes);
  std::vector<bool> dirty_ = std::vector<bool>(kBytes);
  std::array<std::optional<uint64_t>, kPages> flush_of_;  // of a dirty page; 0: not sent
  std::deque<Flight> flights_;
  uint64_t next_flush_ = 1;
};

TEST(DirtyStoreTest, AgreesWithPlainBytesOnRandomOperations) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    Model model(seed);
    for (int i = 0; i < 60; ++i) {
      model.step();
      ASSERT_NO_FATAL_FAILURE(model.check()) << "seed " << seed << " step " << i;
    }
    ASSERT_NO_FATAL_FAILURE(model.finish()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace vremote::coherence
