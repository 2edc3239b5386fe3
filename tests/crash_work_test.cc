// Daemons are killed again and again in the middle of work.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "crash_support.h"
#include "upgrade_work.h"

namespace vremote::live {
namespace {

// What is certain through every crash: what was synced, what others wrote, and that whoever lost
// something was told.
Work::Round syncs(const std::string& path) {
  auto fd = std::make_shared<Fd>(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  auto synced = std::make_shared<uint64_t>(0);
  return [fd, synced](uint64_t round) -> std::string {
    const auto failed = [](const char* what) {
      return errno == EIO ? std::string() : fmt::format("{}: {}", what, std::strerror(errno));
    };
    uint64_t found = 0;
    const ssize_t n = ::pread(fd->get(), &found, sizeof found, 0);
    if (n < 0) return failed("pread");
    if (n == sizeof found && (found < *synced || found > round + 1))
      return fmt::format("{} is there, {} was synced, round {}", found, *synced, round);
    const uint64_t next = round + 1;
    if (::pwrite(fd->get(), &next, sizeof next, 0) != sizeof next) return failed("pwrite");
    if (::fsync(fd->get()) != 0) return failed("fsync");
    *synced = next;
    return "";
  };
}

// Reads what another node counts up in a file: by read(2) and in a mapping.
Work::Round follows(const std::string& path) {
  struct Both {
    Fd fd;
    const std::atomic<uint64_t>* mapped;
    uint64_t last = 0;
  };
  auto both = std::make_shared<Both>();
  both->fd = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  both->mapped = static_cast<const std::atomic<uint64_t>*>(
      ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, both->fd.get(), 0));
  return [both](uint64_t round) -> std::string {
    uint64_t found = 0;
    if (round % 2 == 0) {
      found = *both->mapped;
    } else if (::pread(both->fd.get(), &found, sizeof found, 0) != sizeof found) {
      return fmt::format("pread: {}", std::strerror(errno));
    }
    if (found < both->last) return fmt::format("{} after {}", found, both->last);
    both->last = found;
    return "";
  };
}
Work::Round counts_up(const std::string& path) {
  auto fd = std::make_shared<Fd>(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  return [fd](uint64_t round) -> std::string {
    const uint64_t next = round + 1;
    return ::pwrite(fd->get(), &next, sizeof next, 0) == sizeof next
               ? ""
               : fmt::format("pwrite: {}", std::strerror(errno));
  };
}
Work::Round makes(const std::string& directory, const std::string& who) {
  auto dir = std::make_shared<Fd>(::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  return [dir, who](uint64_t round) -> std::string {
    const std::string name = fmt::format("{}-{}", who, round);
    const Fd fd(::openat(dir->get(), name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644));
    if (!fd.valid() && errno != EIO) return fmt::format("open: {}", std::strerror(errno));
    if (::unlinkat(dir->get(), name.c_str(), 0) != 0 && errno != EIO && errno != ENOENT)
      return fmt::format("unlink: {}", std::strerror(errno));
    return "";
  };
}

class CrashesTest : public CrashTest {
 protected:
  void ten_times_in_the_middle_of_work(size_t killed);
};

TEST_F(CrashesTest, OfAnotherNodeInTheMiddleOfWork) { ten_times_in_the_middle_of_work(1); }
TEST_F(CrashesTest, OfTheOriginInTheMiddleOfWork) { ten_times_in_the_middle_of_work(0); }

void CrashesTest::ten_times_in_the_middle_of_work(size_t killed) {
  nodes(2, "[lease]\nterm_ms = 3000\n").start_all();
  ASSERT_EQ(0, ::mkdir(nodes().path(0, 0, "made").c_str(), 0755));
  ASSERT_EQ(0, ::mkdir(nodes().path(0, 0, "list").c_str(), 0755));
  constexpr unsigned kFiles = 500;
  for (unsigned i = 0; i < kFiles; ++i)
    ASSERT_EQ(0, put(nodes().path(0, 0, fmt::format("list/{}", i)), ""));
  ASSERT_EQ(0, put(nodes().path(0, 0, "counted"), std::string(4096, '\0')));
  Work work;
  for (unsigned n : {0u, 1u}) {
    const auto path = [&](const std::string& name) { return nodes().path(n, 0, name); };
    const std::string on = fmt::format("-on-{}", n);
    work.add("syncs" + on, [&] { return syncs(path("synced" + on)); });
    work.add("follows" + on, [&] { return follows(path("counted")); });
    work.add("lists" + on, [&] { return lists(path("list"), kFiles); });
    work.add("makes" + on, [&] { return makes(path("made"), "by" + on); });
  }
  // On the node that lives: what it has written and not synced it still has.
  work.add("counts", [&] { return counts_up(nodes().path(1 - killed, 0, "counted")); });
  work.add("nameless",
           [&] { return uses_a_nameless_file(nodes().path(1 - killed, 0, "nameless")); });
  EXPECT_EQ("", work.who_stands_still(2));
  for (int round = 0; round < 10 && !HasFailure(); ++round) {
    kill_and_start(killed);
    ::usleep(700'000);  // those that die at once are not followed for ever
    EXPECT_EQ("", work.who_stands_still(2)) << "after crash " << round << "\n"
                                            << nodes().log(0) << nodes().log(1);
  }
  EXPECT_EQ("", work.stop()) << nodes().log(0) << nodes().log(1);
}

}  // namespace
}  // namespace vremote::live
