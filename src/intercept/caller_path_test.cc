#include "intercept/caller_path.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <map>
#include <set>

#include "intercept/caller.h"
#include "intercept/mount_open.h"

namespace vremote::intercept {
namespace {

// A made-up file system: links with their text, and all else that exists.
struct Disk {
  std::map<std::string, std::string> links;
  std::set<std::string> there;

  Result<std::optional<std::string>> operator()(const std::string& path) const {
    if (auto it = links.find(path); it != links.end()) return it->second;
    if (there.contains(path)) return std::nullopt;
    return fail(ENOENT);
  }
};

const Disk kDisk{
    {{"/home/me/data", "/srv/data"},
     {"/srv/data/up", ".."},
     {"/srv/data/rel", "sub/f"},
     {"/loop", "/loop"},
     {"/jail/abs", "/srv"},
     {"/dev/fd", "/proc/self/fd"},
     {"/proc/42/fd/3", "/jail/srv/open"}},
    {"/home", "/home/me", "/srv", "/srv/data", "/srv/data/sub", "/srv/data/sub/f", "/jail",
     "/jail/srv", "/jail/srv/open", "/dev", "/proc", "/proc/42", "/proc/42/fd"}};
const View kView{"", "/home/me", "", 42, 43};

std::string resolved(const View& view, const std::string& path, bool follow = true,
                     bool strict = false) {
  auto p = caller_path(view, path, follow, strict, kDisk);
  return p ? p->resolved : "error " + std::to_string(p.error().code);
}
std::string lexical(const View& view, const std::string& path) {
  return caller_path(view, path, true, false, kDisk)->lexical;
}

TEST(CallerPathTest, RelativePathsStartAtTheDirectory) {
  EXPECT_EQ(resolved(kView, "x"), "/home/me/x");
  EXPECT_EQ(resolved(kView, "./../me//x"), "/home/me/x");
  EXPECT_EQ(resolved(kView, "."), "/home/me");
  EXPECT_EQ(resolved(kView, "../../.."), "/");
}

TEST(CallerPathTest, LinksAreFollowedAsTheKernelWould) {
  EXPECT_EQ(resolved(kView, "data/rel"), "/srv/data/sub/f");
  EXPECT_EQ(resolved(kView, "data/up/data/x"), "/srv/data/x");
  EXPECT_EQ(resolved(kView, "data/.."), "/srv") << ".. of where the link leads";
  EXPECT_EQ(resolved(kView, "data/rel", false), "/srv/data/rel") << "O_NOFOLLOW";
  EXPECT_EQ(resolved(kView, "data", false), "/home/me/data");
  EXPECT_EQ(resolved(kView, "data/", false), "/srv/data") << "a final slash follows";
  EXPECT_EQ(resolved(kView, "/loop"), "error " + std::to_string(ELOOP));
}

TEST(CallerPathTest, WhatDoesNotExistHereIsTakenByItsWords) {
  EXPECT_EQ(resolved(kView, "/far/away/x"), "/far/away/x");
  EXPECT_EQ(resolved(kView, "/far/away/../x"), "/far/x");
  EXPECT_EQ(resolved(kView, "/srv/data/none/../x", true, true), "error " + std::to_string(ENOENT))
      << "strictly, as the kernel";
  EXPECT_EQ(resolved(kView, "/srv/data/none", true, true), "/srv/data/none") << "O_CREAT makes it";
}

TEST(CallerPathTest, LexicalWordsAreSoundUnlessTheyGoBack) {
  EXPECT_EQ(lexical(kView, "data/rel"), "/home/me/data/rel");
  EXPECT_EQ(lexical(kView, "../x"), "/home/x");
  EXPECT_EQ(lexical(kView, "data/../x"), "");
  EXPECT_EQ(lexical(kView, "/a/b"), "/a/b");
}

TEST(CallerPathTest, ARootDirectoryIsNeverLeft) {
  View jailed = kView;
  jailed.root = "/jail";
  jailed.start = "/jail/srv";
  EXPECT_EQ(resolved(jailed, "/srv/x"), "/jail/srv/x");
  EXPECT_EQ(resolved(jailed, "../../../etc"), "/jail/etc");
  EXPECT_EQ(resolved(jailed, "/abs/x"), "/jail/srv/x")
      << "an absolute link starts at the caller's root";
  EXPECT_EQ(resolved(jailed, "/../../x"), "/jail/x");
  EXPECT_EQ(lexical(jailed, "../../../etc"), "/jail/etc");
}

TEST(CallerPathTest, ProcSelfIsTheCallers) {
  EXPECT_EQ(resolved(kView, "/dev/fd/3"), "/jail/srv/open");
  EXPECT_EQ(resolved(kView, "/proc/thread-self/x"), "/proc/42/task/43/x");
}

TEST(CallerPathTest, BoundsAreThoseOfTheKernel) {
  EXPECT_EQ(resolved(kView, ""), "error " + std::to_string(ENOENT));
  EXPECT_EQ(resolved(kView, std::string(4096, 'x')), "error " + std::to_string(ENAMETOOLONG));
  std::string deep;
  for (int i = 0; i < 2000; ++i) deep += "/x";
  EXPECT_EQ(resolved(kView, deep), deep);
}

TEST(FollowInsideTest, LinksStayInsideTheExport) {
  std::map<std::string, std::string> links{{"in", "/srv/data/sub/f"},
                                           {"out", "/etc/passwd"},
                                           {"near", "/srv/data2/f"},
                                           {"up", "../x"},
                                           {"dir", "sub"},
                                           {"sub/back", "../f"},
                                           {"loop", "loop"}};
  auto read = [&](const std::string& p) {
    return links.contains(p) ? std::optional(links[p]) : std::nullopt;
  };
  auto follow = [&](const std::string& rest, bool last = true) {
    auto r = follow_inside(rest, "/srv/data", last, read);
    return r ? *r : "error " + std::to_string(r.error().code);
  };
  EXPECT_EQ(follow("in"), "sub/f");
  EXPECT_EQ(follow("in", false), "in");
  EXPECT_EQ(follow("dir/back"), "f");
  for (const char* leads_out : {"out", "near", "up", "dir/../../x"})
    EXPECT_EQ(follow(leads_out), "error " + std::to_string(ENXIO)) << leads_out;
  EXPECT_EQ(follow("loop"), "error " + std::to_string(ELOOP));
  EXPECT_EQ(follow_inside("in", "", true, read).error().code, ENXIO);
}

TEST(CallerStatusTest, ReadsWhatPermissionChecksLookAt) {
  auto c = parse_status(
      "Name:\tx\nUmask:\t0027\nTgid:\t7\nPid:\t9\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nFDSize:"
      "\t64\nGroups:\t10 20 \nCapEff:\t00000000000000ff\n");
  ASSERT_TRUE(c) << c.error().what;
  EXPECT_EQ(c->umask, 027u);
  EXPECT_EQ(c->view.process, 7);
  EXPECT_EQ(c->view.thread, 9);
  EXPECT_EQ(c->credentials, (Credentials{4, 8, {10, 20}, 0xff}));
  EXPECT_FALSE(parse_status("Name:\tx\nUid:\t1\t2\t3\n"));
  EXPECT_FALSE(parse_status(""));
}

TEST(CallerStatusTest, MemoryIsReadUpToTheStringsEndAndNoFurther) {
  EXPECT_EQ(read_string(::getpid(), reinterpret_cast<uint64_t>("hello")).value_or("?"), "hello");
  EXPECT_EQ(read_string(::getpid(), 1).error().code, EFAULT);
  std::string endless(10000, 'x');
  EXPECT_EQ(read_string(::getpid(), reinterpret_cast<uint64_t>(endless.data())).error().code,
            ENAMETOOLONG);
}

}  // namespace
}  // namespace vremote::intercept
