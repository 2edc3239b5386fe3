// Many threads on one store: every operation at once, few files, a cache that is too small.
#include <atomic>
#include <thread>
#include <vector>

#include "base/prng.h"
#include "store/test_support.h"

namespace vremote::store::test {
namespace {

using namespace coherence;

class ThreadsTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    if (IsSkipped()) return;
    store.reset();
    store = std::move(*Store::open(dir.path(), 3,
                                   {.open_files_max = 16,
                                    .unreferenced_max = 64,
                                    .departed_files_max = 0,
                                    .use_handles = GetParam()}));
  }
  template <typename Body>
  void in_threads(int count, Body body) {
    std::vector<std::thread> threads;
    for (int t = 0; t < count; ++t) threads.emplace_back(body, t);
    for (auto& thread : threads) thread.join();
  }
};
INSTANTIATE_TEST_SUITE_P(, ThreadsTest, testing::Bool(), how);

TEST_P(ThreadsTest, DisjointWritesAllArrive) {
  std::vector<FileId> files;
  for (int i = 0; i < 40; ++i) files.push_back(make("f" + std::to_string(i)));
  in_threads(8, [&](int t) {
    Prng prng(static_cast<uint64_t>(t) + 1);
    for (int i = 0; i < 400; ++i) {
      FileId file = files[prng.below(files.size())];
      uint64_t slot = prng.below(64);
      std::string piece(512, static_cast<char>('A' + t));
      EXPECT_EQ(put(file, (slot * 8 + static_cast<uint64_t>(t)) * 512, piece), 0);
      EXPECT_EQ(content(file, (slot * 8 + static_cast<uint64_t>(t)) * 512, 512), piece);
      if (prng.chance(10)) store->forget(files[prng.below(files.size())]);
      if (prng.chance(10)) {
        FileId other = files[prng.below(files.size())];
        if (store->pin(other)) store->unpin(other);
      }
    }
  });
  EXPECT_EQ(store->counts().pinned, 1u);
}

TEST_P(ThreadsTest, GrowingNeverCutsAWriteOff) {
  FileId f = make("f");
  std::atomic<uint64_t> end{0};
  std::atomic<bool> stop{false};
  // Always a little beyond what the writer has written, and short of what it writes next.
  std::thread grower([&] {
    while (!stop.load()) {
      DirtyAttributes size;
      size.has_size = true;
      size.size = end.load() + 500;
      EXPECT_EQ(code(store->apply(f, size)), 0);
    }
  });
  for (int i = 0; i < 20'000; ++i) {
    uint64_t next = end.load() + 1000;
    EXPECT_EQ(put(f, next - 1, "x"), 0);
    uint64_t size = store->stat(f)->size;
    EXPECT_GE(size, next) << "cut off in round " << i;
    if (size < next) break;
    end = next;
  }
  stop = true;
  grower.join();
  EXPECT_EQ(content(f, end - 1, 1), "x");
}

TEST_P(ThreadsTest, AStaleFileStaysStaleWhileItsNumberIsGivenToAnother) {
  TempDir elsewhere;
  std::atomic<bool> stop{false};
  std::vector<std::thread> makers;
  for (int t = 0; t < 2; ++t) {
    makers.emplace_back([&, t] {
      auto name = [&](int i) { return elsewhere / (std::to_string(t) + "-" + std::to_string(i)); };
      while (!stop.load()) {
        for (int i = 0; i < 64; ++i)
          Fd made(::open(name(i).c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
        for (int i = 0; i < 64; ++i) ::unlink(name(i).c_str());
      }
    });
  }
  for (int round = 0; round < 2000; ++round) {
    FileId file = make("f", "x");
    EXPECT_EQ(remove("f"), 0);
    for (int look = 0; look < 4; ++look) {
      EXPECT_EQ(store->stat(file).value_or(Attributes{.nlink = 1}).nlink, 0u);
      EXPECT_EQ(code(store->read(file, 0, 1)), ESTALE);
    }
  }
  stop = true;
  for (auto& maker : makers) maker.join();
}

TEST_P(ThreadsTest, CallersDoNotMix) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  ASSERT_EQ(::chmod(dir.path().c_str(), 0777), 0);
  in_threads(8, [&](int t) {
    Caller who{.uid = 2000u + static_cast<uint32_t>(t),
               .gid = 3000u + static_cast<uint32_t>(t),
               .groups = {}};
    for (int i = 0; i < 100; ++i) {
      auto made =
          store->execute(who, CreateCall{store->root(), std::to_string(t) + "-" + std::to_string(i),
                                         S_IFREG | 0600, 0, true});
      ASSERT_TRUE(made);
      EXPECT_EQ(std::get<Node>(*made).attributes.uid, who.uid);
      EXPECT_EQ(std::get<Node>(*made).attributes.gid, who.gid);
    }
  });
}

TEST_P(ThreadsTest, NamesComeAndGoWithoutHarm) {
  std::atomic<uint64_t> created{0}, odd{0};
  in_threads(6, [&](int t) {
    Prng prng(static_cast<uint64_t>(t) + 100);
    for (int i = 0; i < 600; ++i) {
      std::string name = "n" + std::to_string(prng.below(10)),
                  other = "n" + std::to_string(prng.below(10));
      int result = 0;
      switch (prng.below(6)) {
        case 0:
          if (auto made = create(name, S_IFREG | 0644, prng.chance(50)); made) {
            ++created;
            result = put(made->file, prng.below(10000), "data");
          } else {
            result = code(made);
          }
          break;
        case 1:
          result = remove(name);
          break;
        case 2:
          result = rename(name, other);
          break;
        case 3:
          result = rename(name, other, RENAME_EXCHANGE);
          break;
        case 4:
          if (auto found = lookup(name); found) {
            if (store->pin(found->file)) {
              // Pinned: it can lose its names, but not go.
              if (auto st = store->stat(found->file); !st) odd++;
              if (auto data = store->read(found->file, 0, 100); !data) odd++;
              store->unpin(found->file);
            }
          }
          break;
        default:
          result = code(run(ReadDirectoryCall{store->root(), 0, 4096}));
          break;
      }
      if (result != 0 && result != ENOENT && result != EEXIST && result != ESTALE) {
        ADD_FAILURE() << std::strerror(result);
      }
    }
  });
  EXPECT_GT(created.load(), 0u);
  EXPECT_EQ(odd.load(), 0u);
  EXPECT_EQ(store->counts().pinned, 1u);
}

}  // namespace
}  // namespace vremote::store::test
