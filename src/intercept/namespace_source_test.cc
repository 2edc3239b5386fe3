#include "intercept/namespace_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/fd.h"

namespace vremote::intercept {
namespace {

using ::testing::HasSubstr;

class NamespaceSourceTest : public ::testing::Test {
 protected:
  NamespaceSourceTest() {
    char name[] = "/tmp/vremote-source-XXXXXX";
    directory_ = ::mkdtemp(name);
  }
  ~NamespaceSourceTest() override {
    std::filesystem::remove_all(directory_);
    ::unsetenv("VREMOTE_CONTROL");
    ::unsetenv("VREMOTE_CONFIG");
  }
  std::string file(const std::string& name, const std::string& text) {
    std::ofstream(directory_ + "/" + name) << text;
    return directory_ + "/" + name;
  }
  // A node that answers one request with `reply`, piece by piece.
  std::thread node(const std::string& path, std::vector<std::string> reply, std::string* request) {
    Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path.c_str());
    EXPECT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener.get(), 1), 0);
    return std::thread([listener = std::move(listener), reply = std::move(reply), request] {
      Fd client(::accept(listener.get(), nullptr, nullptr));
      char c;
      while (::read(client.get(), &c, 1) == 1 && c != '\n') *request += c;
      for (const std::string& piece : reply)
        EXPECT_EQ(::write(client.get(), piece.data(), piece.size()), ssize_t(piece.size()));
    });
  }
  std::string directory_;
};

TEST_F(NamespaceSourceTest, AsksTheNodeOneLineAndReadsOne) {
  std::string path = directory_ + "/s", request;
  auto thread = node(
      path, {R"({"mount":"/v","exp)", R"(orts":[{"name":"a","path":"/x","local":true}]})", "\n"},
      &request);
  auto names = fetch_namespace(path);
  thread.join();
  ASSERT_TRUE(names) << names.error().what;
  EXPECT_EQ(*names, (Namespace{"/v", {{"a", "/x", true}}}));
  EXPECT_EQ(request, R"({"request":"namespace"})");
}

TEST_F(NamespaceSourceTest, AnAbsentOrMuteNodeIsEnxioWithItsMend) {
  auto absent = fetch_namespace(directory_ + "/none");
  ASSERT_FALSE(absent);
  EXPECT_EQ(absent.error().code, ENXIO);
  EXPECT_THAT(absent.error().what, HasSubstr("no node answers"));
  EXPECT_EQ(fetch_namespace(std::string(200, 'x')).error().code, ENXIO);

  std::string path = directory_ + "/s", request;
  auto thread = node(path, {}, &request);
  auto mute = fetch_namespace(path);
  thread.join();
  ASSERT_FALSE(mute);
  EXPECT_EQ(mute.error().code, ENXIO);
}

TEST_F(NamespaceSourceTest, TheSocketIsFoundThroughTheConfiguration) {
  EXPECT_EQ(control_socket_of_config(file("a", "node='x'\nstate_dir='/s'\n")).value(),
            "/s/control.sock");
  EXPECT_EQ(
      control_socket_of_config(file("b", "state_dir='/s'\n[control]\nsocket='/c/d'\n")).value(),
      "/c/d");
  EXPECT_EQ(control_socket_of_config(file("c", "")).value(), "/run/vremote/control.sock");
  EXPECT_EQ(control_socket_of_config(file("d", "state_dir='state'")).value(),
            directory_ + "/state/control.sock");
  EXPECT_THAT(control_socket_of_config(file("e", "a = = 1\n")).error().what, HasSubstr("/e:1: "));
  EXPECT_FALSE(control_socket_of_config(directory_ + "/none"));
}

TEST_F(NamespaceSourceTest, TheEnvironmentDecides) {
  EXPECT_EQ(find_control_socket().value(), "/run/vremote/control.sock");
  ::setenv("VREMOTE_CONFIG", file("a", "state_dir='/s'").c_str(), 1);
  EXPECT_EQ(find_control_socket().value(), "/s/control.sock");
  ::setenv("VREMOTE_CONTROL", "/c", 1);
  EXPECT_EQ(find_control_socket().value(), "/c");
}

}  // namespace
}  // namespace vremote::intercept
