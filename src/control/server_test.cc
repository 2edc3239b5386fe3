#include "control/server.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/fd.h"
#include "control/client.h"
#include "control/socket_path.h"

namespace vremote::control {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class ControlTest : public ::testing::Test {
 protected:
  ControlTest() {
    char path[] = "/tmp/vremote-control-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    root_ = path;
    socket_ = root_ / "state/control.sock";
  }
  ~ControlTest() override { fs::remove_all(root_); }

  std::unique_ptr<ControlServer> start(ControlServer::Handler handler) {
    auto server = ControlServer::start(socket_, std::move(handler));
    EXPECT_TRUE(server) << server.error().what;
    return server ? std::move(*server) : nullptr;
  }
  Fd connect() {
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    auto address = socket_address(socket_);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&*address), sizeof *address), 0);
    return fd;
  }
  // Everything until the server closes.
  static std::string read_all(const Fd& fd) {
    std::string text;
    char piece[4096];
    for (ssize_t n; (n = ::read(fd.get(), piece, sizeof piece)) > 0;)
      text.append(piece, static_cast<size_t>(n));
    return text;
  }

  fs::path root_;
  std::string socket_;
};

std::string echo(const std::string& request) { return R"({"echo":)" + request + "}"; }

TEST_F(ControlTest, OneLineThereOneLineBack) {
  auto server = start(echo);
  auto reply = control_request(socket_, R"({"request":"ping"})");
  ASSERT_TRUE(reply) << reply.error().what;
  EXPECT_EQ(*reply, R"({"echo":{"request":"ping"}})");
  auto query = control_query(socket_, "status");
  ASSERT_TRUE(query) << query.error().what;
  EXPECT_EQ(*query, R"({"echo":{"request":"status"}})");
}

TEST_F(ControlTest, SocketAndItsDirectoryArePrivate) {
  const mode_t old = ::umask(0);
  auto server = start(echo);
  ::umask(old);
  struct stat info {};
  ASSERT_EQ(::stat(socket_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  ASSERT_EQ(::stat((root_ / "state").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0700u);
}

// What a user without rights gets for `request`.
std::string as_nobody(const std::string& socket, const std::string& request) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(1);
    auto reply = control_request(socket, request);
    const std::string text = reply ? *reply : "error " + std::to_string(reply.error().code);
    ::_exit(::write(ends[1], text.data(), text.size()) < 0 ? 1 : 0);
  }
  ::close(ends[1]);
  Fd from(ends[0]);
  std::string text(4096, '\0');
  const ssize_t n = ::read(from.get(), text.data(), text.size());
  text.resize(n < 0 ? 0 : static_cast<size_t>(n));
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  return text;
}

TEST_F(ControlTest, OtherUsersMayAskWhatIsOpenToThemAndNothingElse) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  fs::permissions(root_, fs::perms(0755));
  auto server = ControlServer::start(socket_, echo, {.mode = 0666, .open_requests = {"status"}});
  ASSERT_TRUE(server);
  EXPECT_EQ(as_nobody(socket_, R"({"request":"status"})"), R"({"echo":{"request":"status"}})");
  EXPECT_THAT(as_nobody(socket_, R"({"request":"stop"})"), HasSubstr("only root"));
  EXPECT_THAT(*control_request(socket_, R"({"request":"stop"})"), HasSubstr("echo"));
  server->reset();
  auto closed = ControlServer::start(socket_, echo, {.mode = 0600, .open_requests = {"status"}});
  ASSERT_TRUE(closed);
  EXPECT_EQ(as_nobody(socket_, R"({"request":"status"})"), "error " + std::to_string(EACCES));
}

TEST_F(ControlTest, AGroupMayBeGivenTheSocket) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to give files away";
  auto server = ControlServer::start(socket_, echo, {.mode = 0660, .group = 12345});
  ASSERT_TRUE(server);
  struct stat info {};
  ASSERT_EQ(::stat(socket_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0660u);
  EXPECT_EQ(info.st_gid, 12345u);
  ASSERT_EQ(::stat((root_ / "state").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0711u);
}

TEST_F(ControlTest, OtherUsersCannotTakeAllThePlaces) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  fs::permissions(root_, fs::perms(0755));
  auto server = ControlServer::start(socket_, echo, {.mode = 0666, .open_requests = {"status"}});
  ASSERT_TRUE(server);
  int ready[2], done[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(done), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(done[1]);
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(1);
    std::vector<Fd> held;
    for (size_t i = 0; i < kClientsMax; ++i) held.push_back(connect());  // and say nothing
    char byte = 1;
    if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
    (void)!::read(done[0], &byte, 1);  // until the test ends
    ::_exit(0);
  }
  ::close(done[0]);
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_TRUE(control_request(socket_, "{}", std::chrono::milliseconds(kClientTimeoutMs / 2)));
  ::close(done[1]);
  ::waitpid(child, nullptr, 0);
  for (int fd : ready) ::close(fd);
}

TEST_F(ControlTest, SecondNodeIsRefusedAndTheFirstStaysReachable) {
  auto first = start(echo);
  auto second = ControlServer::start(socket_, echo);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, EADDRINUSE);
  EXPECT_THAT(second.error().what, HasSubstr("another node runs with this state_dir"));
  EXPECT_TRUE(control_request(socket_, "{}"));
}

TEST_F(ControlTest, SocketOfADeadProcessIsReplaced) {
  const pid_t child = ::fork();
  if (child == 0) {
    auto server = ControlServer::start(socket_, echo);
    ::_exit(server ? 0 : 1);  // without destructors, as a killed node
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  ASSERT_TRUE(fs::exists(socket_));
  auto dead = control_request(socket_, "{}");
  ASSERT_FALSE(dead);
  EXPECT_EQ(dead.error().code, ECONNREFUSED);
  auto server = start(echo);
  EXPECT_TRUE(control_request(socket_, "{}"));
}

TEST_F(ControlTest, OtherFileInItsPlaceIsLeftAlone) {
  fs::create_directories(root_ / "state");
  std::ofstream(socket_) << "precious";
  auto server = ControlServer::start(socket_, echo);
  ASSERT_FALSE(server);
  EXPECT_THAT(server.error().what, HasSubstr("something else is there"));
  EXPECT_EQ(fs::file_size(socket_), 8u);
}

TEST_F(ControlTest, StopRemovesTheSocketAndAllowsANewStart) {
  start(echo).reset();
  EXPECT_FALSE(fs::exists(socket_));
  auto gone = control_request(socket_, "{}");
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, ENOENT);
  EXPECT_THAT(gone.error().what, HasSubstr("no node answers"));
  auto server = start(echo);
  EXPECT_TRUE(control_request(socket_, "{}"));
}

TEST_F(ControlTest, LongRequestIsRefused) {
  std::atomic<int> calls = 0;
  auto server = start([&](const std::string&) {
    ++calls;
    return std::string("{}");
  });
  const std::string line(kRequestMax - 1, 'x');
  EXPECT_TRUE(control_request(socket_, line));
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(control_request(socket_, line + "x"));  // by the client itself
  Fd raw = connect();
  const std::string endless(kRequestMax, 'x');
  ASSERT_EQ(::send(raw.get(), endless.data(), endless.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(endless.size()));
  EXPECT_THAT(read_all(raw), HasSubstr("longer than 64 KiB"));
  EXPECT_EQ(calls, 1);
}

TEST_F(ControlTest, RequestInPiecesAndHangUpsAreHandled) {
  auto server = start(echo);
  connect().reset();
  Fd raw = connect();
  ASSERT_EQ(::send(raw.get(), "{\"a\"", 4, MSG_NOSIGNAL), 4);
  EXPECT_TRUE(control_request(socket_, "{}"));  // another is served meanwhile
  ASSERT_EQ(::send(raw.get(), ":1}\nrest", 8, MSG_NOSIGNAL), 8);
  EXPECT_EQ(read_all(raw), "{\"echo\":{\"a\":1}}\n");
}

TEST_F(ControlTest, ReplyIsAlwaysOneLineAlsoALargeOne) {
  auto server = start([](const std::string&) { return "a\nb" + std::string(4 << 20, 'x'); });
  auto reply = control_request(socket_, "{}");
  ASSERT_TRUE(reply) << reply.error().what;
  EXPECT_EQ(reply->size(), 3u + (4 << 20));
  EXPECT_EQ(reply->substr(0, 3), "a b");
}

TEST_F(ControlTest, MoreClientsThanAllowedWaitForTheirTurn) {
  auto server = start(echo);
  std::vector<Fd> idle;
  for (size_t i = 0; i < kClientsMax; ++i) idle.push_back(connect());
  std::atomic<bool> answered = false;
  std::thread late([&] { answered = control_request(socket_, "{}").has_value(); });
  idle.pop_back();  // makes room
  late.join();
  EXPECT_TRUE(answered);
}

TEST_F(ControlTest, IdleClientIsClosedInTheEnd) {
  auto server = start(echo);
  Fd idle = connect();
  EXPECT_EQ(read_all(idle), "");  // returns at the server's time limit
}

TEST_F(ControlTest, ClientGivesUpOnASilentNode) {
  fs::create_directories(root_ / "state");
  Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  auto address = socket_address(socket_);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&*address), sizeof *address), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  auto reply = control_request(socket_, "{}", std::chrono::milliseconds(50));
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, ETIMEDOUT);
}

TEST_F(ControlTest, ErrorReplyBecomesAnError) {
  auto server = start([](const std::string& request) {
    auto name = request_name(request);
    return error_reply(name ? "unknown request '" + *name + "'" : name.error().what);
  });
  auto reply = control_query(socket_, "dance");
  ASSERT_FALSE(reply);
  EXPECT_EQ(reply.error().code, EREMOTEIO);
  EXPECT_EQ(reply.error().what, "unknown request 'dance'");
}

TEST(RequestNameTest, OnlyObjectsWithAStringAreRequests) {
  EXPECT_EQ(*request_name(R"({"request":"status","more":1})"), "status");
  for (const char* text : {"", "{", "[]", "1", "{}", R"({"request":1})", R"("request")"})
    EXPECT_FALSE(request_name(text)) << text;
}

TEST(SocketAddressTest, LongPathIsRefused) {
  EXPECT_TRUE(socket_address(std::string(kSocketPathMax, 'x')));
  EXPECT_FALSE(socket_address(std::string(kSocketPathMax + 1, 'x')));
  EXPECT_FALSE(socket_address(""));
}

}  // namespace
}  // namespace vremote::control
