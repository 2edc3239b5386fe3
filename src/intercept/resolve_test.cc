#include "intercept/resolve.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "intercept/namespace_json.h"

namespace vremote::intercept {
namespace {

using ::testing::HasSubstr;

Namespace names() {
  return {"/vremote",
          {{"data", "/srv/data", true},
           {"deep", "/srv/data/deep", true},
           {"logs", "/var/log/app", false},
           {"both", "/shared", true},
           {"theirs", "/shared", false}}};
}

std::string found(const Namespace& n, const std::string& path, bool origin) {
  auto target = resolve(n, path, origin);
  return target ? target->path(n)
                : "error " + std::to_string(target.error().code) + " " + target.error().what;
}
const std::string kNxio = "error " + std::to_string(ENXIO);
const std::string kInval = "error " + std::to_string(EINVAL);

TEST(ResolveTest, OriginPathsLieInALocalExport) {
  EXPECT_EQ(found(names(), "/srv/data/x/y", true), "/vremote/data/x/y");
  EXPECT_EQ(found(names(), "/srv/data", true), "/vremote/data");
  EXPECT_EQ(found(names(), "/srv/data/deep/x", true), "/vremote/deep/x")
      << "the longest export wins";
  EXPECT_EQ(found(names(), "/vremote/data/x", true), "/vremote/data/x");
}

TEST(ResolveTest, OtherNodesFilesHaveTheirOriginsPathOrThatUnderTheMount) {
  EXPECT_EQ(found(names(), "/var/log/app/x", false), "/vremote/logs/x");
  EXPECT_EQ(found(names(), "/vremote/logs/x", false), "/vremote/logs/x");
  EXPECT_EQ(found(names(), "/vremote/data/x", false), "/vremote/data/x");
  EXPECT_EQ(found(names(), "/vremote/not-yet/x", false), "/vremote/not-yet/x")
      << "the mount itself answers ENOENT";
  EXPECT_EQ(found(names(), "/vremote", false), "/vremote");
}

TEST(ResolveTest, PrefixesMatchByWholeComponents) {
  EXPECT_THAT(found(names(), "/srv/data2/x", true), HasSubstr(kNxio));
  EXPECT_THAT(found(names(), "/vremotely/x", false), HasSubstr(kNxio));
  EXPECT_THAT(found(names(), "/srv", true), HasSubstr(kNxio));
  EXPECT_EQ(found({"/v", {{"all", "/", false}}}, "/etc/x", false), "/v/all/etc/x");
}

TEST(ResolveTest, TheWrongSideIsRefusedWithItsMend) {
  EXPECT_THAT(found(names(), "/srv/data/x", false),
              AllOf(HasSubstr(kInval), HasSubstr("add O_ORIGIN"), HasSubstr("/vremote/data/x")));
  EXPECT_THAT(found(names(), "/var/log/app/x", true),
              AllOf(HasSubstr(kInval), HasSubstr("leave out O_ORIGIN")));
  EXPECT_THAT(found(names(), "/vremote/logs/x", true),
              AllOf(HasSubstr(kInval), HasSubstr("leave out O_ORIGIN")));
  EXPECT_THAT(found(names(), "/vremote/unknown/x", true), HasSubstr(kNxio));
}

TEST(ResolveTest, OfOnePathOnTwoNodesTheFlagSaysWhich) {
  EXPECT_EQ(found(names(), "/shared/x", true), "/vremote/both/x");
  EXPECT_EQ(found(names(), "/shared/x", false), "/vremote/theirs/x");
}

TEST(ResolveTest, AnAmbiguousPathIsRefusedNeverGuessed) {
  Namespace n{"/v", {{"a", "/srv", false}, {"b", "/srv", false}, {"b", "/srv", false}}};
  EXPECT_THAT(found(n, "/srv/x", false), AllOf(HasSubstr(kInval), HasSubstr("/v/a/x or /v/b/x")));
  n.exports.push_back({"c", "/srv/x", false});
  EXPECT_EQ(found(n, "/srv/x/y", false), "/v/c/y");
}

TEST(ResolveTest, NoMatchNamesWhatThereIs) {
  EXPECT_THAT(found(names(), "/etc/passwd", false),
              AllOf(HasSubstr(kNxio), HasSubstr("not inside any export"),
                    HasSubstr("logs = /var/log/app")));
  EXPECT_THAT(found({"/v", {}}, "/etc/passwd", true), HasSubstr("no node exports anything"));
}

TEST(ResolveTest, PlaygroundNodesOnOneMachine) {
  Namespace node1{"/d/node1/mnt",
                  {{"node1", "/d/node1/export", true}, {"node2", "/d/node2/export", false}}};
  Namespace node2{"/d/node2/mnt",
                  {{"node1", "/d/node1/export", false}, {"node2", "/d/node2/export", true}}};
  EXPECT_EQ(found(node1, "/d/node1/export/hello.txt", true), "/d/node1/mnt/node1/hello.txt");
  EXPECT_EQ(found(node2, "/d/node1/export/hello.txt", false), "/d/node2/mnt/node1/hello.txt");
}

TEST(ResolveTest, NormalisesLexically) {
  EXPECT_EQ(normalise("//a/./b//../c/"), "/a/c");
  EXPECT_EQ(normalise("/../.."), "/");
  EXPECT_EQ(normalise("/"), "/");
  EXPECT_EQ(normalise("/a..b/..."), "/a..b/...");
}

TEST(NamespaceJsonTest, ComesBackAsItWent) {
  Namespace n = names();
  auto back = namespace_from_json(to_json(n));
  ASSERT_TRUE(back) << back.error().what;
  EXPECT_EQ(*back, n);
  EXPECT_EQ(to_json(n).find('\n'), std::string::npos);
  EXPECT_TRUE(namespace_from_json(R"({"mount":"/v/","exports":[],"later":1})"));
}

TEST(NamespaceJsonTest, RefusesWhatIsNoNamespace) {
  const char* bad[] = {"",
                       "nonsense",
                       "[]",
                       "{}",
                       R"({"mount":"v","exports":[]})",
                       R"({"mount":"/v"})",
                       R"({"mount":"/v","exports":{}})",
                       R"({"mount":"/v","exports":[1]})",
                       R"({"mount":"/v","exports":[{"name":"a/b","path":"/x","local":true}]})",
                       R"({"mount":"/v","exports":[{"name":"..","path":"/x","local":true}]})",
                       R"({"mount":"/v","exports":[{"name":"a","path":"x","local":true}]})",
                       R"({"mount":"/v","exports":[{"name":"a","path":"/x","local":1}]})",
                       R"({"mount":"/v\u0000","exports":[]})",
                       R"({"mount":"/v","exports":[{"path":"/x","local":true}]})"};
  for (const char* text : bad) {
    auto n = namespace_from_json(text);
    ASSERT_FALSE(n) << text;
    EXPECT_EQ(n.error().code, EPROTO);
  }
  EXPECT_THAT(namespace_from_json(R"({"error":"not ready"})").error().what, HasSubstr("not ready"));
  EXPECT_FALSE(namespace_from_json(std::string(1 << 20, '[')));
}

}  // namespace
}  // namespace vremote::intercept
