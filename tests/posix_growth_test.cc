// Files that grow elsewhere: when the call that made a file longer has returned, every node's loads
// and stores find the new pages, and sendfile(2) and its like each byte. Nobody here looks at the
// size: the kernel of the node that reads knows it, or raises SIGBUS, or ends there.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <time.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "posix_mapping.h"
#include "posix_support.h"

namespace vremote::live {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kRounds = 25;
constexpr size_t kMapped = 8 << 20;

struct Way {
  const char* name;
  // Makes the file, which is `size` long, longer by as much as there is to add. True: with the
  // letter 'w'.
  std::function<bool(const Fd& fd, uint64_t size)> grow;
};

std::vector<Way> ways(const Fd& source, const Fd& appends, size_t more) {
  return {
      {"write",
       [more](const Fd& fd, uint64_t size) {
         EXPECT_EQ(0, write_at(fd, size, std::string(more, 'w')));
         return true;
       }},
      {"write behind a hole",
       [more](const Fd& fd, uint64_t size) {
         EXPECT_EQ(0, write_at(fd, size + more - 1, "w"));
         return false;
       }},
      {"append",
       [&appends, more](const Fd&, uint64_t) {
         const std::string text(kPage, 'w');
         EXPECT_EQ(static_cast<ssize_t>(more), ::write(appends.get(), text.data(), more));
         return true;
       }},
      {"ftruncate",
       [more](const Fd& fd, uint64_t size) {
         EXPECT_OK(::ftruncate(fd.get(), static_cast<off_t>(size + more)));
         return false;
       }},
      {"fallocate",
       [more](const Fd& fd, uint64_t size) {
         if (::fallocate(fd.get(), 0, static_cast<off_t>(size), static_cast<off_t>(more)) != 0) {
           EXPECT_OK(::ftruncate(fd.get(), static_cast<off_t>(size + more)));
         }
         return false;
       }},
      {"copy_file_range", [&source, more](const Fd& fd, uint64_t size) {
         off_t from = 0;
         off_t to = static_cast<off_t>(size);
         EXPECT_EQ(static_cast<ssize_t>(more),
                   ::copy_file_range(source.get(), &from, fd.get(), &to, more, 0));
         return true;
       }}};
}

TEST_F(PosixTest, AMappingHasEachPageAsSoonAsAnotherNodeHasMadeIt) {
  using Path = std::function<std::string(const std::string&)>;
  const Path on_a = [&](const std::string& name) { return a(name); };
  const Path on_b = [&](const std::string& name) { return b(name); };
  const Path on_c = [&](const std::string& name) { return c(name); };
  int number = 0;
  for (const auto& [grower, mapper] :
       {std::pair{on_a, on_b}, std::pair{on_b, on_a}, std::pair{on_b, on_c}}) {
    for (const int protection : {PROT_READ, kBoth}) {
      const std::string name = "f" + std::to_string(number++);
      ASSERT_EQ(0, put(grower(name), std::string(100, '.')));
      ASSERT_EQ(0, put(grower(name + ".source"), std::string(kPage, 'w')));
      const Fd source = open_at(grower(name + ".source"), O_RDONLY);
      const Fd writes = open_at(grower(name), O_WRONLY);
      const Fd appends = open_at(grower(name), O_WRONLY | O_APPEND);
      const Fd mapped = open_at(mapper(name), protection == kBoth ? O_RDWR : O_RDONLY);
      const Mapping map(mapped, kMapped, protection);
      ASSERT_TRUE(map.valid());
      ASSERT_EQ('.', map.load(0));
      ASSERT_EQ(-1, map.load(kPage));
      uint64_t size = 100;
      for (const Way& way : ways(source, appends, kPage)) {
        for (uint64_t round = 0; round < kRounds; ++round) {
          const bool letter = way.grow(writes, size);
          size += kPage;
          ASSERT_EQ(letter ? 'w' : 0, map.load(size / kPage * kPage))
              << way.name << ", round " << round << ", " << grower(name) << ", mapped "
              << mapper(name);
          if (protection == kBoth) {
            ASSERT_EQ(0, map.store(size - 2, 's'));
          }
        }
      }
      ASSERT_EQ(-1, map.load(size + kPage)) << "and not more";
    }
  }
}

// How a program gets at the bytes of a file behind the place where it stopped. All but read(2)
// end where its kernel thinks that the file does.
struct Reader {
  const char* name;
  std::function<ssize_t(const Fd& from, uint64_t offset, const Fd& to)> take;
};

std::vector<Reader> readers() {
  return {{"read",
           [](const Fd& from, uint64_t offset, const Fd& to) {
             std::string text(2 * kPage, '?');
             const ssize_t got =
                 ::pread(from.get(), text.data(), text.size(), static_cast<off_t>(offset));
             return got <= 0 ? got : ::pwrite(to.get(), text.data(), static_cast<size_t>(got), 0);
           }},
          {"sendfile",
           [](const Fd& from, uint64_t offset, const Fd& to) {
             auto at = static_cast<off_t>(offset);
             ::lseek(to.get(), 0, SEEK_SET);
             return ::sendfile(to.get(), from.get(), &at, 2 * kPage);
           }},
          {"splice",
           [](const Fd& from, uint64_t offset, const Fd& to) {
             int ends[2];
             EXPECT_OK(::pipe(ends));
             const Fd out(ends[0]), in(ends[1]);
             auto at = static_cast<off_t>(offset);
             const ssize_t got = ::splice(from.get(), &at, in.get(), nullptr, 2 * kPage, 0);
             off_t zero = 0;
             return got <= 0 ? got
                             : ::splice(out.get(), nullptr, to.get(), &zero,
                                        static_cast<size_t>(got), 0);
           }},
          {"copy_file_range", [](const Fd& from, uint64_t offset, const Fd& to) {
             auto at = static_cast<off_t>(offset);
             off_t zero = 0;
             return ::copy_file_range(from.get(), &at, to.get(), &zero, 2 * kPage, 0);
           }}};
}

TEST_F(PosixTest, SendfileAndItsLikeFindEachByteThatAnotherNodeHasAdded) {
  using Path = std::function<std::string(const std::string&)>;
  const Path on_a = [&](const std::string& name) { return a(name); };
  const Path on_b = [&](const std::string& name) { return b(name); };
  const Path on_c = [&](const std::string& name) { return c(name); };
  constexpr uint64_t kMore = 7;
  int number = 0;
  for (const auto& [grower, reader] :
       {std::pair{on_a, on_b}, std::pair{on_b, on_a}, std::pair{on_b, on_c}}) {
    for (const int mode : {O_RDONLY, O_RDWR}) {
      const std::string name = "f" + std::to_string(number++);
      ASSERT_EQ(0, put(grower(name), std::string(100, '.')));
      ASSERT_EQ(0, put(grower(name + ".source"), std::string(kPage, 'w')));
      const Fd source = open_at(grower(name + ".source"), O_RDONLY);
      const Fd writes = open_at(grower(name), O_WRONLY);
      const Fd appends = open_at(grower(name), O_WRONLY | O_APPEND);
      const Fd reads = open_at(reader(name), mode);
      ASSERT_EQ(std::string(100, '.'), read_at(reads, 0, kPage));  // it is cached from here on
      const Fd to = open_at(reader(name + ".to"), O_RDWR | O_CREAT);
      uint64_t size = 100;
      for (const Way& way : ways(source, appends, kMore)) {
        for (const Reader& take : readers()) {
          const bool letter = way.grow(writes, size);
          ASSERT_EQ(static_cast<ssize_t>(kMore), take.take(reads, size, to))
              << take.name << " after " << way.name << ", " << grower(name) << ", read "
              << reader(name);
          if (letter) {
            ASSERT_EQ(std::string(kMore, 'w'), read_at(to, 0, kMore)) << take.name;
          }
          size += kMore;
        }
      }
    }
  }
}

// What that costs: nothing where nobody else has the file open for reading, else one announcement
// for each call.
TEST_F(PosixTest, WhoAppendsAloneTellsNobody) {
  constexpr uint64_t kRecords = 300;
  ASSERT_EQ(0, put(b("f"), "begin\n"));
  EXPECT_EQ("begin\n", read_all(a("f")));  // and is closed again
  const Fd appends = open_at(b("f"), O_RDWR | O_APPEND);
  const auto append = [&] {
    for (uint64_t i = 0; i < kRecords; ++i)
      ASSERT_EQ(10, ::write(appends.get(), "0123456789", 10)) << i;
  };
  ASSERT_EQ(10, ::write(appends.get(), "0123456789", 10));
  uint64_t announced = counter(1, "size_announcements");
  const uint64_t asked = counter(1, "messages_out_lease_request");
  const uint64_t called = counter(1, "messages_out_call");
  append();
  EXPECT_EQ(announced, counter(1, "size_announcements"));
  EXPECT_EQ(asked, counter(1, "messages_out_lease_request"));
  EXPECT_EQ(called, counter(1, "messages_out_call"));
  const Fd watches = open_at(a("f"), O_RDONLY);
  append();
  EXPECT_EQ(announced + kRecords, counter(1, "size_announcements"));
  EXPECT_LE(counter(1, "messages_out_lease_request"), asked + 3);
}

TEST_F(PosixTest, AMappingMadeAfterTheGrowthHasAllPages) {
  ASSERT_EQ(0, put(a("f"), std::string(100, '.')));
  const Fd appends = open_at(a("f"), O_WRONLY | O_APPEND);
  for (uint64_t round = 1; round <= 30; ++round) {
    // The kernel of B has the name, the inode and an old size, and nobody has the file open there.
    const std::string text(kPage, 'w');
    ASSERT_EQ(static_cast<ssize_t>(kPage), ::write(appends.get(), text.data(), kPage));
    const Fd fd = open_at(b("f"), O_RDONLY);
    const Mapping map(fd, kMapped, PROT_READ);
    ASSERT_TRUE(map.valid());
    ASSERT_EQ('w', map.load(round * kPage)) << round;
  }
}

// The kernel takes an append to begin where it thinks that the file ends.
TEST_F(PosixTest, AppendsOfSeveralNodesAreInEveryMappingWhenTheyReturn) {
  ASSERT_EQ(0, put(a("f"), std::string(100, '.')));
  const std::vector<std::string> paths{a("f"), b("f"), c("f")};
  std::vector<Fd> appends, reads;
  std::vector<std::unique_ptr<Mapping>> maps;
  for (const std::string& path : paths) {
    appends.push_back(open_at(path, O_WRONLY | O_APPEND));
    reads.push_back(open_at(path, O_RDONLY));
    maps.push_back(std::make_unique<Mapping>(reads.back(), kMapped, PROT_READ));
    ASSERT_TRUE(maps.back()->valid());
  }
  uint64_t size = 100;
  for (uint64_t round = 0; round < 120; ++round) {
    const std::string text(round % 7 * 600 + 1, static_cast<char>('a' + round % 26));
    ASSERT_EQ(static_cast<ssize_t>(text.size()),
              ::write(appends[round % 3].get(), text.data(), text.size()));
    size += text.size();
    for (const auto& map : maps) ASSERT_EQ(text[0], map->load(size - 1)) << round;
  }
}

// The push of a size waits for the page with the end in it while that is being filled.
TEST_F(PosixTest, GrowthGoesOnWhileOthersTouchThePageThatComesNext) {
  ASSERT_EQ(0, put(a("f"), std::string(kPage, '.')));
  const Fd on_b = open_at(b("f"), O_RDWR), on_c = open_at(c("f"), O_RDONLY);
  std::vector<pid_t> children;
  for (const auto& [fd, protection] : {std::pair{&on_b, kBoth}, std::pair{&on_c, PROT_READ}})
    children.push_back(in_child([&] {
      const Mapping map(*fd, kMapped, protection);
      const time_t give_up = ::time(nullptr) + 60;
      uint64_t page = 1;
      while (page <= 150 && ::time(nullptr) < give_up)
        page += map.load(page * kPage + 1) < 0 ? 0 : 1;
      return page > 150 ? 0 : 1;
    }));
  const Mapping map_b(on_b, kMapped, kBoth), map_c(on_c, kMapped, PROT_READ);
  const Fd writes = open_at(a("f"), O_WRONLY);
  for (uint64_t page = 1; page <= 150; ++page) {
    ASSERT_EQ(0, write_at(writes, page * kPage, std::string(kPage / 2, 'w')));
    ASSERT_EQ('w', map_b.load(page * kPage)) << page;
    ASSERT_EQ('w', map_c.load(page * kPage)) << page;
  }
  for (const pid_t child : children) EXPECT_TRUE(ended_well(child));
}

TEST_F(PosixTest, ChangesOfTheModeBesideGrowthLoseNoPage) {
  ASSERT_EQ(0, put(a("f"), std::string(100, '.')));
  const Fd on_b = open_at(b("f"), O_RDONLY);
  const Mapping map(on_b, kMapped, PROT_READ);
  const pid_t child = in_child([&] {
    for (int i = 0; i < 300; ++i)
      if (::fchmod(on_b.get(), i % 2 == 0 ? 0600 : 0644) != 0) return 1;
    return 0;
  });
  const Fd appends = open_at(a("f"), O_WRONLY | O_APPEND);
  for (uint64_t page = 1; page <= 150; ++page) {
    const std::string text(kPage, 'w');
    ASSERT_EQ(static_cast<ssize_t>(kPage), ::write(appends.get(), text.data(), kPage));
    ASSERT_EQ('w', map.load(page * kPage)) << page;
  }
  EXPECT_TRUE(ended_well(child));
}

}  // namespace
}  // namespace vremote::live
