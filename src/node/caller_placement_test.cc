#include "node/caller_placement.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <future>
#include <thread>
#include <vector>

namespace vremote::node {
namespace {

std::vector<int> processors_of(pid_t tid) {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> out;
  if (::sched_getaffinity(tid, sizeof set, &set) != 0) return out;
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) out.push_back(i);
  return out;
}

void bind(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  ASSERT_EQ(::sched_setaffinity(0, sizeof set, &set), 0);
}

// A thread that runs on one processor and waits.
class Caller {
 public:
  explicit Caller(int processor) {
    std::promise<pid_t> tid;
    auto told = tid.get_future();
    thread_ = std::thread([this, processor, tid = std::move(tid)]() mutable {
      bind(processor);
      tid.set_value(::gettid());
      end_.get_future().wait();
    });
    tid_ = told.get();
  }
  ~Caller() {
    end_.set_value();
    thread_.join();
  }
  uint32_t tid() const { return static_cast<uint32_t>(tid_); }

 private:
  std::promise<void> end_;
  pid_t tid_ = 0;
  std::thread thread_;
};

class CallerPlacementTest : public testing::Test {
 protected:
  void SetUp() override {
    if (all_.size() < 2) GTEST_SKIP() << "one processor: nowhere to move to";
  }
  void TearDown() override {
    EXPECT_EQ(processors_of(0), all_) << "the test's own thread was moved";
  }

  static void many(CallerPlacement& placement, uint32_t tid) {
    for (int i = 0; i < 1000; ++i) placement.request_from(tid);
  }

  const std::vector<int> all_ = processors_of(0);
};

TEST_F(CallerPlacementTest, FollowsALoneCaller) {
  std::thread([&] {
    CallerPlacement placement;
    for (int processor : {all_[0], all_[1]}) {
      const Caller caller(processor);
      many(placement, caller.tid());
      EXPECT_EQ(processors_of(0), std::vector<int>{processor});
      EXPECT_EQ(::sched_getcpu(), processor);
    }
  }).join();
}

TEST_F(CallerPlacementTest, IsFreeAgainWhenAnotherCallerComes) {
  std::thread([&] {
    CallerPlacement placement;
    const Caller first(all_[0]), second(all_[1]);
    many(placement, first.tid());
    placement.request_from(second.tid());
    EXPECT_EQ(processors_of(0), all_);
  }).join();
}

TEST_F(CallerPlacementTest, StaysFreeBetweenSeveralCallers) {
  std::thread([&] {
    CallerPlacement placement;
    const Caller first(all_[0]), second(all_[0]);
    for (int i = 0; i < 1000; ++i) {
      placement.request_from(first.tid());
      placement.request_from(second.tid());
    }
    EXPECT_EQ(processors_of(0), all_);
  }).join();
}

TEST_F(CallerPlacementTest, ACallerThatIsGoneOrUnknownChangesNothing) {
  std::thread([&] {
    CallerPlacement placement;
    uint32_t gone = 0;
    {
      const Caller caller(all_[0]);
      gone = caller.tid();
    }
    many(placement, gone);
    many(placement, 0);
    EXPECT_EQ(processors_of(0), all_);
  }).join();
}

}  // namespace
}  // namespace vremote::node
