// What the kernels keep of names and attributes: nobody is asked for what nobody changes, and
// nothing old is ever told.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "posix_support.h"

namespace vremote::live {
namespace {

constexpr unsigned kExchange = 2;

class CacheTest : public PosixTest {
 protected:
  void SetUp() override {
    PosixTest::SetUp();
    // A node whose kernel cannot end names safely is never told to keep any.
    ASSERT_EQ(0, put(a("probe"), ""));
    ASSERT_TRUE(settled(1, [&] { return exists(b("probe")); }))
        << "no lookup of an unchanged directory without an upcall";
  }

  // Whether `look` costs node `node` no upcall, sooner or later: a directory that another node has
  // just changed is contended for a while.
  bool settled(size_t node, const std::function<void()>& look) {
    for (int i = 0; i < 100; ++i) {
      look();
      const uint64_t before = counter(node, "upcalls");
      look();
      if (counter(node, "upcalls") == before) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    return false;
  }
};

TEST_F(CacheTest, RepeatedStatsAndWalksOfWhatNobodyChangesAskNobody) {
  ASSERT_OK(::mkdir(a("dir").c_str(), 0755));
  ASSERT_EQ(0, put(a("dir/f"), "content"));
  for (size_t node : {size_t{0}, size_t{1}}) {
    const std::string path = node == 0 ? a("dir/f") : b("dir/f");
    EXPECT_TRUE(settled(node, [&] { EXPECT_EQ(7, stat_of(path).st_size); }));
    EXPECT_TRUE(settled(node, [&] { EXPECT_FALSE(exists(path + ".none")); })) << "negative names";
  }
}

TEST_F(CacheTest, RepeatedListingsAskNoOtherNode) {
  for (int i = 0; i < 50; ++i) ASSERT_EQ(0, put(a("f" + std::to_string(i)), ""));
  const auto listed = [&] {
    size_t n = 0;
    for (const auto& entry : std::filesystem::directory_iterator(b())) n += entry.exists() ? 1 : 0;
    return n;
  };
  EXPECT_EQ(51u, listed());  // with the probe
  EXPECT_EQ(51u, listed());
  const uint64_t before = counter(1, "messages_out_call");
  EXPECT_EQ(51u, listed());
  EXPECT_EQ(counter(1, "messages_out_call"), before);
  ASSERT_OK(::unlink(a("f7").c_str()));
  EXPECT_EQ(50u, listed());
  ASSERT_OK(::unlink(b("f8").c_str()));
  EXPECT_EQ(49u, listed());
  EXPECT_EQ(0, put(b("g"), ""));
  EXPECT_EQ(50u, listed());
}

TEST_F(CacheTest, AKeptNameEndsWhenAnotherNodeChangesIt) {
  ASSERT_EQ(0, put(a("f"), "1"));
  ASSERT_TRUE(settled(1, [&] {
    EXPECT_TRUE(exists(b("f")));
    EXPECT_FALSE(exists(b("g")));
  }));
  ASSERT_OK(::rename(a("f").c_str(), a("g").c_str()));
  EXPECT_FALSE(exists(b("f")));
  EXPECT_TRUE(exists(b("g")));
  ASSERT_TRUE(settled(1, [&] { EXPECT_TRUE(exists(b("g"))); }));
  ASSERT_OK(::unlink(c("g").c_str()));
  EXPECT_FALSE(exists(b("g")));
  ASSERT_EQ(0, put(c("f"), "2"));
  EXPECT_EQ("2", read_all(b("f")));
}

TEST_F(CacheTest, AKeptNameIsRenamedHereAndChangedThere) {
  ASSERT_OK(::mkdir(a("from").c_str(), 0755));
  ASSERT_OK(::mkdir(a("to").c_str(), 0755));
  ASSERT_EQ(0, put(a("from/x"), "x"));
  ASSERT_EQ(0, put(a("to/y"), "y"));
  const auto look = [&] {
    EXPECT_TRUE(exists(b("from/x")));
    EXPECT_TRUE(exists(b("to/y")));
    EXPECT_FALSE(exists(b("to/x")));
  };
  ASSERT_TRUE(settled(1, look));
  ASSERT_OK(::rename(b("from/x").c_str(), b("to/x").c_str()));
  ASSERT_OK(::unlink(a("to/x").c_str()));
  EXPECT_FALSE(exists(b("to/x"))) << "the right to use the name went along with the rename";
  EXPECT_FALSE(exists(b("from/x")));

  ASSERT_EQ(0, put(a("from/x"), "x"));
  ASSERT_TRUE(settled(1, look));
  ASSERT_OK(::syscall(SYS_renameat2, AT_FDCWD, b("from/x").c_str(), AT_FDCWD, b("to/y").c_str(),
                      kExchange));
  ASSERT_OK(::unlink(a("from/x").c_str()));
  ASSERT_OK(::unlink(a("to/y").c_str()));
  EXPECT_FALSE(exists(b("from/x")));
  EXPECT_FALSE(exists(b("to/y")));
}

TEST_F(CacheTest, ANameMadeAndRemovedHereIsNotKeptByMistake) {
  ASSERT_TRUE(settled(1, [&] { EXPECT_FALSE(exists(b("new"))); }));
  ASSERT_EQ(0, put(b("new"), "1"));
  EXPECT_TRUE(exists(b("new")));
  ASSERT_OK(::unlink(a("new").c_str()));
  EXPECT_FALSE(exists(b("new")));
  ASSERT_TRUE(settled(1, [&] { EXPECT_FALSE(exists(b("new"))); }));
  ASSERT_OK(::mkdir(a("new").c_str(), 0755));
  EXPECT_TRUE(exists(b("new")));
  ASSERT_OK(::rmdir(b("new").c_str()));
  EXPECT_FALSE(exists(b("new")));
}

TEST_F(CacheTest, KeptAttributesEndWhenAnotherNodeChangesThem) {
  ASSERT_EQ(0, put(a("f"), "12345"));
  const auto look = [&] { (void)stat_of(b("f")); };
  ASSERT_TRUE(settled(1, look));
  ASSERT_OK(::chmod(a("f").c_str(), 0600));
  EXPECT_EQ(0600u, stat_of(b("f")).st_mode & 07777);
  ASSERT_TRUE(settled(1, look));
  ASSERT_OK(::truncate(c("f").c_str(), 2));
  EXPECT_EQ(2, stat_of(b("f")).st_size);
  ASSERT_TRUE(settled(1, look));
  ASSERT_OK(::link(a("f").c_str(), a("g").c_str()));
  EXPECT_EQ(2u, stat_of(b("f")).st_nlink);
  ASSERT_TRUE(settled(1, look));
  Fd fd = open_at(c("f"), O_WRONLY | O_APPEND);
  EXPECT_EQ(3, ::write(fd.get(), "abc", 3));
  EXPECT_EQ(5, stat_of(b("f")).st_size);
}

TEST_F(CacheTest, KeptAttributesEndWhenThisNodeWrites) {
  ASSERT_EQ(0, put(b("f"), "12345"));
  ASSERT_TRUE(settled(1, [&] { (void)stat_of(b("f")); }));
  const int64_t before = mtime_ns(stat_of(b("f")));
  Fd fd = open_at(b("f"), O_RDWR);
  EXPECT_EQ(0, write_at(fd, 3, "45678"));
  const struct stat st = stat_of(b("f"));
  EXPECT_EQ(8, st.st_size);
  EXPECT_GT(mtime_ns(st), before);
}

// Each node has the directory's names in its kernel and a change of its own under way in it:
// neither may wait for the other's directory lock.
TEST_F(CacheTest, TwoNodesThatChangeOneDirectoryDoNotWaitForEachOther) {
  for (int round = 0; round < 3; ++round) {
    for (size_t node : {size_t{0}, size_t{1}})
      ASSERT_TRUE(settled(node, [&] {
        const auto path = [&](const char* name) { return node == 0 ? a(name) : b(name); };
        EXPECT_FALSE(exists(path("one")));
        EXPECT_FALSE(exists(path("two")));
      }));
    std::thread other([&] { EXPECT_EQ(0, put(b("two"), "2")); });
    EXPECT_EQ(0, put(a("one"), "1"));
    other.join();
    EXPECT_TRUE(exists(b("one")));
    EXPECT_TRUE(exists(a("two")));
    ASSERT_OK(::unlink(b("one").c_str()));
    ASSERT_OK(::unlink(a("two").c_str()));
    EXPECT_FALSE(exists(a("one")));
    EXPECT_FALSE(exists(b("two")));
  }
}

}  // namespace
}  // namespace vremote::live
