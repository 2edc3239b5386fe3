#include "net/address.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <future>

namespace vremote::net {
namespace {

HostPort parsed(std::string_view text) {
  auto result = parse_address(text);
  EXPECT_TRUE(result) << text;
  return result.value_or(HostPort{});
}

TEST(AddressTest, EveryWayToWriteAnAddressIsUnderstood) {
  EXPECT_EQ(parsed("node1:99"), (HostPort{"node1", 99}));
  EXPECT_EQ(parsed("node1"), (HostPort{"node1", kDefaultPort}));
  EXPECT_EQ(parsed("10.0.0.1:1"), (HostPort{"10.0.0.1", 1}));
  EXPECT_EQ(parsed("[::1]:2"), (HostPort{"::1", 2}));
  EXPECT_EQ(parsed("[fe80::1%eth0]"), (HostPort{"fe80::1%eth0", kDefaultPort}));
  EXPECT_EQ(parsed("2001:db8::5"), (HostPort{"2001:db8::5", kDefaultPort}));
  EXPECT_EQ(parsed(":0"), (HostPort{"", 0}));
}

TEST(AddressTest, NonsenseIsRefusedWithASentence) {
  for (const char* text :
       {"", "a:", "a:x", "a:65536", "a:-1", "a:1 ", "[::1", "[::1]2", "[]:1", "a b:1", "a\n:1"}) {
    auto result = parse_address(text);
    ASSERT_FALSE(result) << text;
    EXPECT_EQ(result.error().code, EINVAL);
    EXPECT_FALSE(result.error().what.empty());
  }
}

TEST(AddressTest, NumbersAreResolvedWithoutAskingAnybody) {
  auto v4 = resolve({"127.0.0.1", 7}, false, false);
  ASSERT_TRUE(v4);
  EXPECT_EQ(v4->at(0).text(), "127.0.0.1:7");
  auto v6 = resolve({"::1", 7}, false, false);
  ASSERT_TRUE(v6);
  EXPECT_EQ(v6->at(0).text(), "[::1]:7");
  auto name = resolve({"localhost", 7}, false, false);
  ASSERT_FALSE(name);
  EXPECT_EQ(name.error().code, EAGAIN);
}

TEST(AddressTest, NamesAreResolvedOnTheSideAndAnsweredOnTheLoop) {
  EventLoop loop("test");
  ASSERT_TRUE(loop.start());
  Resolver resolver;
  std::promise<std::string> answer;
  resolver.resolve({"localhost", 7}, loop, [&](Result<std::vector<SocketAddress>> found) {
    EXPECT_TRUE(loop.on_loop_thread());
    answer.set_value(found ? found->at(0).text() : found.error().what);
  });
  auto future = answer.get_future();
  ASSERT_EQ(future.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  auto text = future.get();
  EXPECT_TRUE(text == "127.0.0.1:7" || text == "[::1]:7") << text;
}

TEST(AddressTest, AnAddressInUseIsNamedInTheError) {
  auto address = resolve({"127.0.0.1", 0}, false, true);
  ASSERT_TRUE(address);
  auto first = listen_on(address->at(0));
  ASSERT_TRUE(first);
  auto taken = local_address(first->get());
  ASSERT_TRUE(taken);
  auto second = listen_on(*taken);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, EADDRINUSE);
  EXPECT_NE(second.error().what.find(taken->text()), std::string::npos);
}

TEST(AddressTest, ALinkIsTriedOftenEnoughToBeFoundBetweenTwoCuts) {
  const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_TRUE(fd.valid());
  constexpr int kRtoMaxMs = 44;  // include/uapi/linux/tcp.h
  int ms = 0;
  socklen_t size = sizeof ms;
  if (::getsockopt(fd.get(), IPPROTO_TCP, kRtoMaxMs, &ms, &size) != 0)
    GTEST_SKIP() << "needs Linux 6.15";
  EXPECT_GT(ms, 1000);
  tune(fd.get());
  ASSERT_EQ(::getsockopt(fd.get(), IPPROTO_TCP, kRtoMaxMs, &ms, &size), 0);
  EXPECT_EQ(ms, 1000);
}

}  // namespace
}  // namespace vremote::net
