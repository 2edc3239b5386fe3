// Processes that wait for byte-range locks in a circle over files of several origins, through
// mounts of several nodes: no home alone sees the circle (coherence/wait_circles.h).
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <vector>

#include "posix_support.h"

namespace vremote::live {
namespace {

// A process that locks what it is told to.
class Party {
 public:
  Party(size_t node, const std::string& name) {
    std::array<int, 2> ends{};
    EXPECT_OK(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()));
    pid_ = in_child([&] {
      ::close(ends[0]);
      return obey(ends[1], node, name);
    });
    ::close(ends[1]);
    end_ = Fd(ends[0]);
  }
  ~Party() {
    end_.reset();  // it ends, unless it waits
    (void)::kill(pid_, SIGKILL);
    (void)status_of(pid_);
  }
  Party(const Party&) = delete;
  Party& operator=(const Party&) = delete;

  // Asks for byte 0 of the origin's file: errno or 0, when it has an answer.
  void asks(size_t origin, short type) {
    const Order order{origin, type};
    EXPECT_EQ(ssize_t{sizeof order}, ::send(end_.get(), &order, sizeof order, 0));
  }
  int answer() {
    int error = -1;
    EXPECT_EQ(ssize_t{sizeof error}, ::recv(end_.get(), &error, sizeof error, 0));
    return error;
  }
  int gets(size_t origin, short type) {
    asks(origin, type);
    return answer();
  }
  bool has_answer(int within_ms) {
    struct pollfd p {
      end_.get(), POLLIN, 0
    };
    return ::poll(&p, 1, within_ms) == 1;
  }
  pid_t pid() const { return pid_; }

 private:
  struct Order {
    size_t origin = 0;
    short type = F_UNLCK;
  };
  static int obey(int end, size_t node, const std::string& name) {
    struct sigaction nothing {};
    nothing.sa_handler = [](int) {};
    ::sigaction(SIGUSR1, &nothing, nullptr);
    std::array<Fd, 3> files;
    for (size_t origin = 0; origin < files.size(); ++origin)
      files[origin] = open_at(PosixTest::cluster->path(node, origin, name), O_RDWR);
    Order order;
    while (::recv(end, &order, sizeof order, 0) == sizeof order) {
      struct flock lock {};
      lock.l_type = order.type;
      lock.l_whence = SEEK_SET;
      lock.l_len = 1;
      const int error = error_of(::fcntl(files[order.origin].get(), F_SETLKW, &lock));
      if (::send(end, &error, sizeof error, MSG_NOSIGNAL) != sizeof error) break;
    }
    return 0;
  }

  pid_t pid_ = -1;
  Fd end_;
};

// Beyond any search of the moment: the first begins after 100 ms.
constexpr int kManySearchesMs = 1500;
constexpr int kSoonMs = 60'000;  // a loaded machine is slow; a circle that is not found is for ever

class CirclesTest : public PosixTest {
 protected:
  void SetUp() override {
    PosixTest::SetUp();
    name_ = std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + ".lock";
    for (size_t origin = 0; origin < 3; ++origin)
      ASSERT_EQ(0, put(cluster->path(origin, origin, name_), "xx"));
  }
  Party& party(size_t node) {
    parties_.push_back(std::make_unique<Party>(node, name_));
    return *parties_.back();
  }
  // Returns when the home knows that it waits, behind no other of these tests.
  static testing::AssertionResult waits(Party& party, size_t origin, short type) {
    party.asks(origin, type);
    if (auto waits = waits_for_its_node(party.pid(), "fcntl_setlk"); !waits) return waits;
    for (int i = 0; i < kSoonMs / 10; ++i) {
      if (counter(origin, "home_locks_waiting") == 1) return testing::AssertionSuccess();
      ::usleep(10'000);
    }
    return testing::AssertionFailure() << "no lock is waited for at node " << origin + 1;
  }
  // Each of the parties holds what the one before it wants: the last one closes the circle.
  static void close_circle(std::initializer_list<Party*> parties) {
    const size_t n = parties.size();
    size_t holds = 0;
    for (Party* party : parties) ASSERT_EQ(0, party->gets(holds++, F_WRLCK));
    size_t wants = 1;
    for (Party* party : parties) {
      if (wants < n) {
        ASSERT_TRUE(waits(*party, wants, F_WRLCK));
      } else {
        party->asks(0, F_WRLCK);  // it may be refused before anybody looks
      }
      ++wants;
    }
  }

  std::string name_;
  std::vector<std::unique_ptr<Party>> parties_;
};

TEST_F(CirclesTest, OverTwoOriginsWhoClosedItIsRefused) {
  Party &first = party(1), &second = party(2);
  close_circle({&first, &second});
  ASSERT_TRUE(second.has_answer(kSoonMs));
  EXPECT_EQ(EDEADLK, second.answer());
  EXPECT_FALSE(first.has_answer(kManySearchesMs)) << "one victim is enough";
  EXPECT_EQ(0, second.gets(1, F_UNLCK));
  EXPECT_EQ(0, first.answer());
}

TEST_F(CirclesTest, OverThreeOriginsWhoClosedItIsRefused) {
  Party &first = party(0), &second = party(1), &third = party(2);
  close_circle({&first, &second, &third});
  ASSERT_TRUE(third.has_answer(kSoonMs));
  EXPECT_EQ(EDEADLK, third.answer());
  EXPECT_FALSE(first.has_answer(kManySearchesMs));
  EXPECT_FALSE(second.has_answer(0));
  EXPECT_EQ(0, third.gets(2, F_UNLCK));
  EXPECT_EQ(0, second.answer());
  EXPECT_EQ(0, second.gets(1, F_UNLCK));
  EXPECT_EQ(0, first.answer());
}

TEST_F(CirclesTest, OfProcessesOfOneNodeAreRefused) {
  for (size_t node : {0u, 2u}) {
    Party &first = party(node), &second = party(node);
    close_circle({&first, &second});
    ASSERT_TRUE(second.has_answer(kSoonMs));
    EXPECT_EQ(EDEADLK, second.answer());
    for (size_t origin : {0u, 1u}) EXPECT_EQ(0, second.gets(origin, F_UNLCK));
    EXPECT_EQ(0, first.answer());
    for (size_t origin : {0u, 1u}) EXPECT_EQ(0, first.gets(origin, F_UNLCK));
  }
}

TEST_F(CirclesTest, AWaitThatIsInNoneIsLeftAloneAndCanBeInterrupted) {
  Party &holder = party(1), &waiter = party(2), &behind = party(0);
  ASSERT_EQ(0, holder.gets(0, F_WRLCK));
  ASSERT_EQ(0, waiter.gets(1, F_WRLCK));
  ASSERT_TRUE(waits(waiter, 0, F_WRLCK));
  ASSERT_TRUE(waits(behind, 1, F_WRLCK));
  EXPECT_FALSE(waiter.has_answer(kManySearchesMs));
  ASSERT_OK(::kill(waiter.pid(), SIGUSR1));
  EXPECT_EQ(EINTR, waiter.answer());
  EXPECT_EQ(0, waiter.gets(1, F_UNLCK));
  EXPECT_EQ(0, behind.answer());
}

// A circle that ends by itself: who stands in it dies.
TEST_F(CirclesTest, ADeathOpensOne) {
  Party &first = party(1), &second = party(2);
  ASSERT_EQ(0, first.gets(0, F_WRLCK));
  {
    Party third(0, name_);
    ASSERT_EQ(0, third.gets(2, F_WRLCK));
    ASSERT_EQ(0, second.gets(1, F_WRLCK));
    ASSERT_TRUE(waits(first, 2, F_WRLCK));
    ASSERT_TRUE(waits(second, 0, F_WRLCK));
    EXPECT_FALSE(second.has_answer(kManySearchesMs)) << "no circle yet";
  }
  EXPECT_EQ(0, first.answer()) << "the third is dead";
  for (size_t origin : {0u, 2u}) EXPECT_EQ(0, first.gets(origin, F_UNLCK));
  EXPECT_EQ(0, second.answer());
}

// A local kernel knows no line: a reader that holds a lock of another origin may not be made to
// wait behind a writer that waits for a third's read lock.
TEST_F(CirclesTest, WhoHoldsALockOfAnotherOriginPassesTheLine) {
  Party &reader = party(0), &writer = party(1), &other = party(2);
  ASSERT_EQ(0, reader.gets(0, F_RDLCK));
  ASSERT_TRUE(waits(writer, 0, F_WRLCK));
  ASSERT_EQ(0, other.gets(1, F_RDLCK));
  other.asks(0, F_RDLCK);
  ASSERT_TRUE(other.has_answer(kSoonMs));
  EXPECT_EQ(0, other.answer());
  EXPECT_EQ(0, other.gets(0, F_UNLCK));
  EXPECT_EQ(0, reader.gets(0, F_UNLCK));
  EXPECT_EQ(0, writer.answer());
}

}  // namespace
}  // namespace vremote::live
