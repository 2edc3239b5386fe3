// Every rule of node.toml, and the line its breach gives.
#include "node/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace vremote::node {
namespace {

using ::testing::HasSubstr;

Config parsed(const std::string& text) {
  auto config = parse_config(text, "/etc/node.toml");
  EXPECT_TRUE(config) << config.error().what;
  return config.value_or(Config{});
}

// The error line of a text that must be refused.
std::string refusal(const std::string& text) {
  auto config = parse_config(text, "/etc/node.toml");
  if (config) return "(accepted)";
  EXPECT_EQ(config.error().what.find('\n'), std::string::npos) << "more than one line";
  return config.error().what;
}

TEST(ConfigTest, NameAloneGivesTheDefaults) {
  const Config config = parsed("node = 'n1'");
  EXPECT_EQ(config.file, "/etc/node.toml");
  EXPECT_EQ(config.node, "n1");
  EXPECT_EQ(config.cluster, "vremote");
  EXPECT_TRUE(config.tls);
  EXPECT_EQ(config.cluster_key, "/etc/cluster.key");
  EXPECT_EQ(config.mount, "/vremote");
  EXPECT_EQ(config.state_dir, "/run/vremote");
  EXPECT_EQ(config.control_socket, "/run/vremote/control.sock");
  EXPECT_EQ(config.listen, (Endpoint{"0.0.0.0", 1104}));
  EXPECT_GE(config.loops, 1u);
  EXPECT_LE(config.loops, 4u);
  EXPECT_EQ(config.log_file, "");
  EXPECT_EQ(config.log_level, LogLevel::Info);
  EXPECT_EQ(config.dirty_max_bytes, 256u << 20);
  EXPECT_EQ(config.flush_after_ms, 1000);
  EXPECT_EQ(config.readahead_kib, 1024u);
  EXPECT_TRUE(config.exports.empty());
  EXPECT_TRUE(config.peers.empty());
}

TEST(ConfigTest, EveryKeyIsRead) {
  const Config config = parsed(R"(
node = "a-1.B_2"
mount = "/mnt//v/"
mount_suid = true
state_dir = "/var/lib/vremote/."
listen = "[::]:2000"
loops = 3
[cluster]
name = "lab"
key = "/etc/keys/../lab.key"
tls = "off"
[control]
socket = "/tmp/c.sock"
[log]
file = "/var/log/v.log"
level = "debug"
[cache]
dirty_max_mib = 16
flush_after_ms = 20
readahead_kib = 128
[[export]]
name = "data"
path = "/srv/x/../data/"
[[export]]
name = "more"
path = "/srv/more"
read = ["n2", "n3"]
write = ["n3"]
root_squash = true
anonymous_uid = 500
anonymous_gid = 600
[[peer]]
name = "n2"
address = "10.0.0.2:1105"
[[peer]]
name = "n3"
address = "n3.example"
)");
  EXPECT_EQ(config.node, "a-1.B_2");
  EXPECT_EQ(config.cluster, "lab");
  EXPECT_EQ(config.cluster_key, "/etc/lab.key");
  EXPECT_FALSE(config.tls);
  EXPECT_EQ(config.mount, "/mnt/v");
  EXPECT_TRUE(config.mount_suid);
  EXPECT_EQ(config.state_dir, "/var/lib/vremote");
  EXPECT_EQ(config.control_socket, "/tmp/c.sock");
  EXPECT_EQ(config.listen, (Endpoint{"::", 2000}));
  EXPECT_EQ(config.loops, 3u);
  EXPECT_EQ(config.log_file, "/var/log/v.log");
  EXPECT_EQ(config.log_level, LogLevel::Debug);
  EXPECT_EQ(config.dirty_max_bytes, 16u << 20);
  EXPECT_EQ(config.flush_after_ms, 20);
  EXPECT_EQ(config.readahead_kib, 128u);
  ASSERT_EQ(config.exports.size(), 2u);
  EXPECT_EQ(config.exports[0].name, "data");
  EXPECT_EQ(config.exports[0].path, "/srv/data");
  EXPECT_EQ(config.exports[1].path, "/srv/more");
  EXPECT_TRUE(config.exports[0].access.may_write("anybody"));
  EXPECT_FALSE(config.exports[0].access.root_squash);
  const ExportAccess& more = config.exports[1].access;
  EXPECT_TRUE(more.may_read("n2") && more.may_write("n3"));
  EXPECT_FALSE(more.may_write("n2") || more.may_read("n4"));
  EXPECT_TRUE(more.root_squash);
  EXPECT_EQ(more.anonymous_uid, 500u);
  EXPECT_EQ(more.anonymous_gid, 600u);
  ASSERT_EQ(config.peers.size(), 2u);
  EXPECT_EQ(config.peers[0].address, (Endpoint{"10.0.0.2", 1105}));
  EXPECT_EQ(config.peers[1].address, (Endpoint{"n3.example", 1104}));
}

TEST(ConfigTest, TheExampleIsAcceptedAlsoWithItsCommentedKeys) {
  EXPECT_TRUE(parse_config(config_example(), "example"));
  std::string all{config_example()};
  for (const char* key : {"#loops", "#key", "#tls", "#[control]", "#socket", "#file", "#[[export]]",
                          "#name", "#path", "#read", "#root_squash", "#[[peer]]", "#address"}) {
    size_t at = all.find(std::string("\n") + key);
    ASSERT_NE(at, std::string::npos) << key;
    for (; at != std::string::npos; at = all.find(std::string("\n") + key, at))
      all.erase(at + 1, 1);
  }
  auto config = parse_config(all, "example");
  ASSERT_TRUE(config) << config.error().what;
  EXPECT_EQ(config->exports.size(), 1u);
  EXPECT_EQ(config->peers.size(), 1u);
}

TEST(ConfigTest, SyntaxErrorsTellThePlace) {
  EXPECT_THAT(refusal("node = 'n1'\nmount = \n"), HasSubstr("/etc/node.toml:2:"));
  EXPECT_THAT(refusal("node = 'n1'\nnode = 'n2'\n"), HasSubstr("/etc/node.toml:2:"));
  // What the library itself does not expect (base/toml.h).
  EXPECT_THAT(refusal("[,log]\n"), HasSubstr("/etc/node.toml:1:"));
  EXPECT_THAT(refusal("[[[export]]]\n"), HasSubstr("/etc/node.toml:1:"));
  EXPECT_THAT(refusal("nodeλ = 'n1'\n"), HasSubstr("/etc/node.toml:1:"));
  EXPECT_THAT(refusal("node = 'n1'\nx = f\n"), HasSubstr("/etc/node.toml:2:"));  // one line
}

TEST(ConfigTest, UnknownKeysAreRefusedWithPlaceAndMend) {
  EXPECT_EQ(refusal("node = 'n1'\nmuont = '/x'\n"),
            "/etc/node.toml:2:9: key 'muont': unknown key; did you mean 'mount'?");
  EXPECT_THAT(refusal("node='n'\n[log]\ncolour = 'red'"),
              HasSubstr("key 'log.colour': unknown key; known here: file, level"));
  EXPECT_THAT(refusal("node='n'\n[cache]\nx = 1"), HasSubstr("key 'cache.x'"));
  EXPECT_THAT(refusal("node='n'\n[control]\nsoket = '/x'"),
              HasSubstr("key 'control.soket': unknown key; did you mean 'socket'?"));
  EXPECT_THAT(refusal("node='n'\n[lg]\nlevel='info'"), HasSubstr("did you mean 'log'?"));
  EXPECT_THAT(refusal("node='n'\n[foo]\nx=1"), HasSubstr("key 'foo': unknown key; known here: "));
  EXPECT_THAT(refusal("node='n'\n[[export]]\nname='a'\npath='/a'\nro=true"),
              HasSubstr("key 'export[0].ro'"));
  EXPECT_THAT(refusal("node='n'\n[[peer]]\nname='a'\naddress='b'\n[[peer]]\nport=1"),
              HasSubstr("key 'peer[1].port'"));
}

TEST(ConfigTest, ErrorIsOneLineWhateverTheFileHolds) {
  EXPECT_THAT(refusal("node='n'\n\"a\\nb\" = 1"), HasSubstr("key 'a?b': unknown key"));
  EXPECT_THAT(refusal("node=\"a\\nb\""), HasSubstr("'a?b' is no valid name"));
}

TEST(ConfigTest, WrongTypesAreRefused) {
  EXPECT_THAT(refusal("node = 1"),
              HasSubstr("key 'node': is a whole number; it must be a string in quotes"));
  EXPECT_THAT(refusal("node='n'\nloops = '2'"),
              HasSubstr("key 'loops': is a string; it must be a whole number"));
  EXPECT_THAT(refusal("node='n'\nloops = 2.5"), HasSubstr("a number with a fraction"));
  EXPECT_THAT(refusal("node='n'\nlog = 'x'"),
              HasSubstr("key 'log': is a string; it must be a table: [log]"));
  EXPECT_THAT(refusal("node='n'\nmount = true"), HasSubstr("is a boolean"));
  EXPECT_THAT(refusal("node='n'\nmount = 2020-01-01"), HasSubstr("is a date or time"));
  EXPECT_THAT(refusal("node='n'\n[export]\nname='a'"), HasSubstr("write [[export]] above each"));
  EXPECT_THAT(refusal("node='n'\nexport = ['/srv']"), HasSubstr("write [[export]] above each"));
  EXPECT_THAT(refusal("node='n'\npeer = 'x'"), HasSubstr("write [[peer]] above each"));
}

TEST(ConfigTest, NamesAreShortAndPlain) {
  EXPECT_THAT(refusal("mount = '/v'"), HasSubstr("key 'node': is missing"));
  for (const char* name : {"", "a/b", "..", ".", ".x", "a b", "ä", "a\\n"})
    EXPECT_THAT(refusal(std::string("node = '") + name + "'"), HasSubstr("key 'node'")) << name;
  EXPECT_THAT(refusal("node = '" + std::string(64, 'x') + "'"), HasSubstr("is no valid name"));
  EXPECT_EQ(parsed("node = '" + std::string(63, 'x') + "'").node.size(), 63u);
  EXPECT_THAT(refusal("node='n'\ncluster.name=''"), HasSubstr("key 'cluster.name'"));
  EXPECT_THAT(refusal("node='n'\n[[export]]\nname='a/b'\npath='/a'"),
              HasSubstr("key 'export[0].name'"));
  EXPECT_THAT(refusal("node='n'\n[[peer]]\nname='a/b'\naddress='h'"),
              HasSubstr("key 'peer[0].name'"));
}

TEST(ConfigTest, PathsAreAbsolute) {
  EXPECT_THAT(refusal("node='n'\nmount='v'"), HasSubstr("key 'mount': 'v' is a relative path"));
  EXPECT_THAT(refusal("node='n'\nmount=''"), HasSubstr("key 'mount': is empty"));
  EXPECT_THAT(refusal("node='n'\nmount='/..'"), HasSubstr("cannot be /"));
  EXPECT_THAT(refusal("node='n'\nstate_dir='run'"), HasSubstr("key 'state_dir'"));
  EXPECT_THAT(refusal("node='n'\nstate_dir='/'"), HasSubstr("key 'state_dir': cannot be /"));
  EXPECT_THAT(refusal("node='n'\n[log]\nfile='x'"), HasSubstr("key 'log.file'"));
  EXPECT_THAT(refusal("node='n'\n[control]\nsocket='x'"), HasSubstr("key 'control.socket'"));
  EXPECT_THAT(refusal("node='n'\n[[export]]\nname='a'\npath='srv'"),
              HasSubstr("key 'export[0].path': 'srv' is a relative path"));
  EXPECT_THAT(refusal("node='n'\nmount=\"/a\\u0000b\""), HasSubstr("zero byte"));
}

TEST(ConfigTest, SocketPathFitsItsAddress) {
  const std::string fits = "/" + std::string(106, 's');
  EXPECT_EQ(parsed("node='n'\n[control]\nsocket='" + fits + "'").control_socket, fits);
  EXPECT_THAT(refusal("node='n'\n[control]\nsocket='" + fits + "s'"),
              HasSubstr("key 'control.socket': the socket's path"));
  EXPECT_THAT(refusal("node='n'\nstate_dir='/" + std::string(100, 's') + "'"),
              HasSubstr("key 'state_dir': the socket's path"));
}

TEST(ConfigTest, EntriesNeedBothKeys) {
  EXPECT_THAT(refusal("node='n'\n[[export]]\nname='a'"),
              HasSubstr("key 'export[0].path': is missing"));
  EXPECT_THAT(refusal("node='n'\n[[export]]\npath='/a'"),
              HasSubstr("key 'export[0].name': is missing"));
  EXPECT_THAT(refusal("node='n'\n[[peer]]\nname='a'"),
              HasSubstr("key 'peer[0].address': is missing"));
  EXPECT_THAT(refusal("node='n'\n[[peer]]\naddress='a'"),
              HasSubstr("key 'peer[0].name': is missing"));
}

TEST(ConfigTest, DuplicatesAreRefused) {
  EXPECT_THAT(refusal("node='n'\n[[export]]\nname='a'\npath='/a'\n[[export]]\nname='a'\npath='/b'"),
              HasSubstr("key 'export[1].name': 'a' names an earlier export"));
  EXPECT_THAT(
      refusal("node='n'\n[[peer]]\nname='a'\naddress='h1'\n[[peer]]\nname='a'\naddress='h2'"),
      HasSubstr("key 'peer[1].name': 'a' names an earlier peer"));
  EXPECT_THAT(
      refusal("node='n'\n[[peer]]\nname='a'\naddress='h'\n[[peer]]\nname='b'\naddress='h:1104'"),
      HasSubstr("key 'peer[1].address': h:1104 is an earlier peer's"));
  EXPECT_THAT(refusal("node='n'\n[[peer]]\nname='n'\naddress='h'"),
              HasSubstr("'n' is this node itself"));
}

TEST(ConfigTest, NumbersHaveBounds) {
  for (const char* line :
       {"loops = 0", "loops = 65", "loops = -1", "cache.dirty_max_mib = 0",
        "cache.dirty_max_mib = 1048577", "cache.flush_after_ms = 0",
        "cache.flush_after_ms = 3600001", "cache.readahead_kib = 0", "cache.readahead_kib = 2048"})
    EXPECT_THAT(refusal(std::string("node='n'\n") + line), HasSubstr("is out of range; use "))
        << line;
  EXPECT_THAT(refusal("node='n'\ncache.readahead_kib = 130"), HasSubstr("use a multiple of 4"));
  EXPECT_EQ(parsed("node='n'\nloops = 64").loops, 64u);
}

TEST(ConfigTest, TlsIsOnUnlessSaidAndPlainIsSaidAloud) {
  EXPECT_TRUE(parsed("node='n'").warnings.empty());
  EXPECT_TRUE(parsed("node='n'\ncluster.tls='on'").tls);
  const Config plain = parsed("node='n'\ncluster.tls='off'");
  EXPECT_FALSE(plain.tls);
  ASSERT_EQ(plain.warnings.size(), 1u);
  EXPECT_THAT(plain.warnings[0], HasSubstr("neither encrypted nor authenticated"));
  EXPECT_THAT(refusal("node='n'\ncluster.tls='maybe'"),
              HasSubstr("key 'cluster.tls': 'maybe' is neither"));
  // Where an older configuration has it.
  EXPECT_THAT(refusal("node='n'\ntls='off'"), HasSubstr("key 'tls': belongs below [cluster]"));
  EXPECT_THAT(refusal("node='n'\ncluster='lab'"),
              HasSubstr("key 'cluster': is a string; it must be a table: [cluster]"));
}

TEST(ConfigTest, RulesOfExportsFitTogether) {
  auto with = [](const std::string& rules) {
    return "node='n'\n[[export]]\nname='x'\npath='/x'\n" + rules;
  };
  EXPECT_THAT(refusal(with("read='n2'")), HasSubstr("key 'export[0].read': is a string"));
  EXPECT_THAT(refusal(with("read=['../x']")), HasSubstr("no valid name"));
  EXPECT_THAT(refusal(with("read_only='yes'")), HasSubstr("it must be true or false"));
  EXPECT_THAT(refusal(with("read=['n2']\nwrite=['n3']")), HasSubstr("'n3' may write and not read"));
  EXPECT_THAT(refusal(with("read_only=true\nwrite=['n3']")), HasSubstr("'read_only' is set"));
  EXPECT_THAT(refusal(with("anonymous_uid=0")), HasSubstr("out of range"));
  for (const char* key : {"anonymous_uid", "anonymous_gid"})
    EXPECT_THAT(refusal(with(std::string(key) + "=5")),
                HasSubstr(std::string("key 'export[0].") + key + "': says whom root"));
  EXPECT_FALSE(parsed(with("read=[]")).exports[0].access.may_read("n2"));
  // A name is worth nothing without TLS.
  EXPECT_THAT(parsed("node='n'\ncluster.tls='off'\n[[export]]\nname='x'\npath='/x'\nread=['n2']")
                  .warnings.back(),
              HasSubstr("without TLS any node may say any name"));
}

TEST(ConfigTest, LevelsAreKnown) {
  EXPECT_THAT(refusal("node='n'\nlog.level='loud'"),
              HasSubstr("key 'log.level': 'loud' is no level"));
  for (const char* level : {"trace", "debug", "info", "warn", "error"})
    EXPECT_EQ(to_string(parsed(std::string("node='n'\nlog.level='") + level + "'").log_level),
              level);
}

TEST(EndpointTest, RoundTripsEveryForm) {
  EXPECT_EQ(to_string(*parse_endpoint("h")), "h:1104");
  EXPECT_EQ(to_string(*parse_endpoint("h:1")), "h:1");
  EXPECT_EQ(to_string(*parse_endpoint("[::1]")), "[::1]:1104");
  EXPECT_EQ(to_string(*parse_endpoint("[fe80::1%eth0]:65535")), "[fe80::1%eth0]:65535");
  EXPECT_EQ(parse_endpoint("[::1]:7")->host, "::1");
}

TEST(EndpointTest, RefusesWhatIsNoEndpoint) {
  for (const char* text :
       {"", ":1", "h:", "h:0", "h:65536", "h:x", "h:1x", "::1", "[::1", "[::1]7", "[::1]:", "[]:1",
        "[h]:1", "a b:1", "h/x:1", "h:+1", "h:99999999999999999999", "21119", "21119:1"}) {
    auto endpoint = parse_endpoint(text);
    EXPECT_FALSE(endpoint) << text;
    if (!endpoint) {
      EXPECT_THAT(endpoint.error().what, HasSubstr("write \"host:port\"")) << text;
    }
  }
  EXPECT_THAT(refusal("node='n'\nlisten='::1'"),
              HasSubstr("key 'listen': '::1' is an IPv6 address without [ ]"));
  EXPECT_THAT(refusal("node='n'\nlisten='21119'"),
              HasSubstr("key 'listen': '21119' is a number without an address"));
}

TEST(ConfigTest, WhoMayAskTheNodeIsAModeOrAGroup) {
  auto mode = [](const std::string& control) {
    auto config = parse_config("node='n'\n[control]\n" + control, "/etc/node.toml");
    return config ? config->control_mode : 0u;
  };
  EXPECT_EQ(mode(""), 0666u);
  EXPECT_EQ(mode("mode='0600'"), 0600u);
  EXPECT_EQ(mode("group='staff'"), 0660u);
  EXPECT_EQ(mode("group='staff'\nmode='0666'"), 0666u);
  for (const char* bad : {"", "660x", "0777", "0066", "01666", "8", "-1"})
    EXPECT_THAT(refusal(std::string("node='n'\n[control]\nmode='") + bad + "'"),
                HasSubstr("key 'control.mode': '" + std::string(bad) + "' is no mode"));
}

TEST(ReadConfigTest, SaysWhyAFileCannotBeRead) {
  char directory[] = "/tmp/vremote-config-XXXXXX";
  ASSERT_NE(::mkdtemp(directory), nullptr);
  const std::string path = std::string(directory) + "/node.toml";

  auto missing = read_config(path);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ENOENT);
  EXPECT_THAT(missing.error().what, HasSubstr(path + ": No such file or directory"));

  auto is_directory = read_config(directory);
  ASSERT_FALSE(is_directory);
  EXPECT_THAT(is_directory.error().what, HasSubstr("not a regular file"));

  std::ofstream(path) << "";
  auto empty = read_config(path);
  ASSERT_FALSE(empty);
  EXPECT_THAT(empty.error().what, HasSubstr("key 'node': is missing"));

  std::ofstream(path) << "node = 'n1'\n";
  auto good = read_config(path);
  ASSERT_TRUE(good) << good.error().what;
  EXPECT_EQ(good->file, path);

  std::ofstream(path) << std::string(1024 * 1024 + 1, '#');
  auto large = read_config(path);
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, EFBIG);
  std::filesystem::remove_all(directory);
}

TEST(ConfigTest, TheGuardiansPatienceIsReadAndBounded) {
  EXPECT_EQ(60'000, parsed("node = 'a'").restart_wait_ms);
  EXPECT_EQ(0, parsed("node = 'a'\n[guardian]\nrestart_wait_s = 0").restart_wait_ms);
  EXPECT_THAT(refusal("node = 'a'\n[guardian]\nrestart_wait_s = 86401"),
              HasSubstr("guardian.restart_wait_s"));
  EXPECT_THAT(refusal("node = 'a'\n[guardian]\nwait = 1"), HasSubstr("guardian.wait"));
}

TEST(ConfigTest, LeaseTimesAreReadAndBounded) {
  const std::string start = "node = \"a\"\n[lease]\n";
  auto config = parse_config(start + "term_ms = 2000\nsoft_timeout_ms = 500\n", "f");
  ASSERT_TRUE(config) << config.error().what;
  EXPECT_EQ(config->lease_term_ms, 2000);
  EXPECT_EQ(config->soft_timeout_ms, 500);
  EXPECT_FALSE(parse_config(start + "term_ms = 999\n", "f"));
  EXPECT_FALSE(parse_config(start + "term_ms = 60000\nrecall_deadline_ms = 59999\n", "f"));
  EXPECT_FALSE(parse_config(start + "grace_ms = 9999\n", "f"));
  EXPECT_FALSE(parse_config(start + "no_such = 1\n", "f"));
}

TEST(ConfigTest, LeasesAreAsManyAsSuitTheMachineUnlessSaid) {
  EXPECT_EQ(parsed("node = 'a'").leases_max, 0);
  EXPECT_EQ(parsed("node = 'a'\n[lease]\nmax = 100000").leases_max, 100000);
  EXPECT_THAT(refusal("node = 'a'\n[lease]\nmax = 10"), HasSubstr("make it at least 1000"));
  EXPECT_THAT(refusal("node = 'a'\n[lease]\nmax = -1"), HasSubstr("lease.max"));
}

TEST(ConfigTest, WhatCouldNotBeFlushedIsKeptWhereARebootLeavesIt) {
  EXPECT_EQ(parse_config("node = \"a\"\n", "f")->recovery_dir, "/var/lib/vremote/recovery");
  EXPECT_EQ(parse_config("node = \"a\"\nstate_dir = \"/x\"\n", "f")->recovery_dir, "/x/recovery");
  EXPECT_EQ(parse_config("node = \"a\"\nrecovery_dir = \"/y\"\n", "f")->recovery_dir, "/y");
}

}  // namespace
}  // namespace vremote::node
