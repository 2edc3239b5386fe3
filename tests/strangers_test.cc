// A peer that has a key and no manners: what it says goes through the real wire to a real daemon,
// and past every rule that an honest agent would have kept itself.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>

#include "faults_support.h"
#include "net/net_world.h"
#include "node/privileges.h"
#include "store/handle.h"

namespace vremote::live {
namespace {

using namespace coherence;  // NOLINT: the messages
using testing::ElementsAre;
using testing::HasSubstr;

// Speaks to the daemon as the node `name`, in what words it likes.
class Peer {
 public:
  Peer(const Nodes::Node& home, const net::ClusterKey& key, const std::string& name) {
    EXPECT_TRUE(loop_.start());
    auto tls = net::Tls::make(key, name);
    EXPECT_TRUE(tls);
    net::AgentSessionOptions options;
    options.address = "127.0.0.1:" + std::to_string(home.port);
    options.cluster = "faults";
    options.node_name = name;
    options.home_name = home.name;
    options.incarnation = 77;
    options.lanes = 1;
    options.tls = *tls;
    net::AgentSession::Callbacks callbacks;
    callbacks.on_message = [this](uint32_t, ToAgent&& message) {
      // So much manners that its own calls get on.
      if (auto* grant = std::get_if<Grant>(&message)) seen_[grant->file] = grant->sequence;
      if (auto* recall = std::get_if<Recall>(&message)) {
        send(RecallAck{.file = recall->file,
                       .recall = recall->recall,
                       .given = recall->range,
                       .seen = seen_[recall->file]});
        return;
      }
      journal_.note([&] {
        if (auto* reply = std::get_if<Reply>(&message))
          replies_[reply->call] = std::move(*reply);
        else if (auto* grant = std::get_if<Grant>(&message); grant && grant->request != 0)
          grants_[grant->request] = std::move(*grant);
        else if (auto* ack = std::get_if<FlushAck>(&message))
          errors_[ack->flush] = ack->error;
        else if (auto* fetched = std::get_if<FetchReply>(&message))
          fetches_[fetched->fetch] = std::move(*fetched);
      });
    };
    callbacks.on_connected = [this](const net::HomeInfo& info) {
      journal_.note([&] { info_ = info; });
    };
    callbacks.on_disconnected = [this](const Error& e) { journal_.note([&] { lost_ = e.what; }); };
    callbacks.on_reset = [this](const std::string&) { journal_.note([&] { ++resets_; }); };
    session_ = std::make_unique<net::AgentSession>(std::vector{&loop_}, options, callbacks);
    EXPECT_TRUE(session_->start());
  }
  ~Peer() { session_->stop(); }

  bool connected() {
    return journal_.until([&] { return info_.has_value(); });
  }
  std::vector<std::string> exports() {
    std::vector<std::string> names;
    for (const auto& e : info_->exports) names.push_back(e.name);
    return names;
  }
  FileId root(const std::string& name) {
    for (const auto& e : info_->exports)
      if (e.name == name) return e.root;
    ADD_FAILURE() << "not told of " << name;
    return {};
  }

  Reply call(Operation operation, Caller caller = {}) {
    const uint64_t id = ++last_;
    send(Call{.call = id, .caller = std::move(caller), .operation = std::move(operation)});
    EXPECT_TRUE(journal_.until([&] { return replies_.contains(id); }));
    return replies_[id];
  }
  int error(Operation operation, Caller caller = {}) {
    return call(std::move(operation), std::move(caller)).error;
  }
  FileId made(Operation operation, Caller caller = {}) {
    Reply reply = call(std::move(operation), std::move(caller));
    EXPECT_EQ(reply.error, 0);
    auto* node = std::get_if<Node>(&reply.outcome);
    return node ? node->file : FileId{};
  }
  // For what is not answered soon.
  uint64_t ask(Operation operation) {
    const uint64_t id = ++last_;
    send(Call{.call = id, .caller = {}, .operation = std::move(operation)});
    return id;
  }
  bool is_answered(uint64_t id) {
    return journal_.look([&] { return replies_.contains(id); });
  }
  int answer(uint64_t id) {
    EXPECT_TRUE(journal_.until([&] { return replies_.contains(id); }));
    return journal_.look([&] { return replies_[id].error; });
  }
  bool may_reclaim() {
    return journal_.look([&] { return info_ && info_->may_reclaim; });
  }
  Grant lease(FileId file, LeaseMode mode, Resource resource = Resource::Data) {
    const uint64_t id = ++last_;
    send(LeaseRequest{.file = file,
                      .request = id,
                      .resource = resource,
                      .mode = mode,
                      .range = resource == Resource::Data ? PageRange{0, 4} : kUnit,
                      .want_data = resource == Resource::Data});
    EXPECT_TRUE(journal_.until([&] { return grants_.contains(id); }));
    return grants_[id];
  }
  FetchReply fetch(FileId file) {
    const uint64_t id = ++last_;
    send(Fetch{.file = file, .fetch = id, .range = {0, 4}});
    EXPECT_TRUE(journal_.until([&] { return fetches_.contains(id); }));
    return fetches_[id];
  }
  int flush(FileId file, const std::string& text) {
    const uint64_t id = ++last_;
    Flush flush{.file = file, .flush = id, .extents = {}, .attributes = {}};
    flush.extents.push_back({0, Bytes::copy_of(std::as_bytes(std::span(text)))});
    send(std::move(flush));
    EXPECT_TRUE(journal_.until([&] { return errors_.contains(id); }));
    return errors_[id];
  }
  bool sends(Operation operation) {
    return session_->send(0, Call{.call = ++last_, .operation = std::move(operation)}).has_value();
  }
  void send(ToHome message) { EXPECT_TRUE(session_->send(0, message)); }
  bool thrown_out() {
    return journal_.until([&] { return resets_ > 0; });
  }
  std::string why_not() {
    (void)journal_.until([&] { return !lost_.empty(); });
    return lost_;
  }

 private:
  net::EventLoop loop_{"peer"};
  net::Journal journal_;
  std::map<uint64_t, Reply> replies_;
  std::map<uint64_t, Grant> grants_;
  std::map<uint64_t, int> errors_;
  std::map<uint64_t, FetchReply> fetches_;
  std::optional<net::HomeInfo> info_;
  std::map<FileId, uint64_t> seen_;  // the loop's
  std::string lost_;
  int resets_ = 0;
  uint64_t last_ = 0;
  std::unique_ptr<net::AgentSession> session_;
};

// The FileId that this file would have in export `index`: what a peer that knows the disk could
// guess.
FileId id_of(const std::string& path, uint32_t index) {
  struct stat st {};
  EXPECT_EQ(::lstat(path.c_str(), &st), 0) << path;
  auto handle = store::handle_of(AT_FDCWD, path.c_str());
  EXPECT_TRUE(handle) << path;
  return {.export_index = index,
          .generation = handle ? store::generation_of(handle->handle) : 0,
          .inode = st.st_ino};
}
std::string text_of(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

constexpr const char* kSecret = "not for other nodes";

// Exports of the one daemon: 0 "guarded" (nobody may read), 1 "shown" (nobody may write), 2
// "squashed", 3 "zfixed" (read only), 4 "node1" (all may do all).
class StrangersTest : public FaultsTest {
 protected:
  void SetUp() override {
    const std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    top_ = base + "/" + name;
    ::mkdir(top_.c_str(), 0755);
    std::string extra = first_lines();
    for (const auto& [e, rule] :
         std::map<std::string, std::string>{{"guarded", "read = []"},
                                            {"shown", "write = []"},
                                            {"squashed", "root_squash = true"},
                                            {"zfixed", "read_only = true"}}) {
      ::mkdir((top_ + "/" + e).c_str(), 0755);
      EXPECT_EQ(put(top_ + "/" + e + "/old", kSecret), 0);
      extra +=
          "[[export]]\nname = \"" + e + "\"\npath = \"" + top_ + "/" + e + "\"\n" + rule + "\n";
    }
    EXPECT_EQ(put(top_ + "/outside", kSecret), 0);
    nodes(1, extra).start_all();
    key_.emplace(net::read_key_file(top_ + "/cluster.key")->newest());
  }
  void TearDown() override {
    // Whatever was said: the daemon lives, and what it must keep is as it was.
    EXPECT_TRUE(nodes().ready(0));
    EXPECT_EQ(read_all(top_ + "/outside"), kSecret);
    EXPECT_EQ(read_all(top_ + "/guarded/old"), kSecret);
    EXPECT_EQ(read_all(top_ + "/shown/old"), kSecret);
  }
  virtual std::string first_lines() const { return {}; }
  std::string top_;
  std::optional<net::ClusterKey> key_;
};

constexpr PageRange kFirstPages{0, 4};
LockCall lock_of(FileId file, LockAction action, uint64_t start = 0, uint64_t end = INT64_MAX) {
  return {.file = file,
          .action = action,
          .kind = LockKind::Range,
          .type = LockType::Write,
          .owner = 1,
          .start = start,
          .end = end};
}

// The daemon was killed and started again, and waits for those who had a session.
class StrangersInAGraceTest : public StrangersTest {
 protected:
  // The first of them has a file, and a lock on it.
  void begin_grace(const std::vector<std::string>& members) {
    {
      Peer first(nodes().at(0), *key_, members[0]);
      ASSERT_TRUE(first.connected());
      root_ = first.root("node1");
      file_ = first.made(CreateCall{.dir = root_, .name = "f", .mode = S_IFREG | 0644});
      EXPECT_EQ(first.lease(file_, LeaseMode::Exclusive).error, 0);
      EXPECT_EQ(first.error(lock_of(file_, LockAction::Try)), 0);
      for (size_t i = 1; i < members.size(); ++i)
        ASSERT_TRUE(Peer(nodes().at(0), *key_, members[i]).connected());
    }
    nodes().signal(0, SIGKILL);
    nodes().wait_for_end(0);
    nodes().start(0);
    ASSERT_TRUE(eventually([&] { return nodes().ready(0); })) << nodes().log(0);
  }
  // Longer than any of this takes: that the time is over is not what ends it.
  std::string first_lines() const override {
    return "[lease]\nterm_ms = 2000\ngrace_ms = 240000\n";
  }
  // In a grace nothing else is answered.
  static ReclaimCall claim_of(FileId file) { return {.file = file, .pages = {kFirstPages}}; }
  ReclaimCall all_is_back() const { return {.file = root_, .done = true}; }
  FileId root_, file_;
};

TEST_F(StrangersTest, AFileThatWasNeverGivenOutIsStaleWhateverIsAsked) {
  Peer peer(nodes().at(0), *key_, "evil");
  ASSERT_TRUE(peer.connected());
  for (uint32_t index : {1u, 2u, 3u, 4u}) {
    for (const std::string& path :
         {top_ + "/outside", top_ + "/guarded/old", std::string("/etc/passwd")}) {
      const FileId file = id_of(path, index);
      EXPECT_NE(peer.lease(file, LeaseMode::Shared).error, 0) << path;
      EXPECT_EQ(text_of(peer.lease(file, LeaseMode::Shared).data), "") << path;
      EXPECT_EQ(text_of(peer.fetch(file).data), "") << path;
      EXPECT_NE(peer.flush(file, "overwritten"), 0) << path;
      for (const Operation& operation : std::vector<Operation>{
               GetXattrCall{file, "user.a"}, ListXattrCall{file},
               SetAttributesCall{.file = file, .has_mode = true, .mode = 0777}, ReadLinkCall{file},
               StatFsCall{file}, LinkCall{file, peer.root("node1"), "mine"}}) {
        const int error = peer.error(operation);
        EXPECT_TRUE(error == ESTALE || error == EROFS || error == EXDEV) << path << " " << error;
      }
    }
    const FileId above = id_of(top_, index);
    EXPECT_NE(peer.error(LookupCall{above, "outside"}), 0);
    EXPECT_NE(peer.error(ReadDirectoryCall{.dir = above}), 0);
    EXPECT_NE(peer.error(CreateCall{.dir = above, .name = "new", .mode = S_IFREG | 0600}), 0);
    EXPECT_FALSE(exists(top_ + "/new"));
  }
}

TEST_F(StrangersTest, LinksLeadNowhere) {
  Peer peer(nodes().at(0), *key_, "evil");
  ASSERT_TRUE(peer.connected());
  const FileId root = peer.root("node1");
  for (const std::string& target : {top_, std::string("/"), std::string("/proc/self/root"),
                                    std::string("/proc/self/fd/3"), std::string("..")}) {
    const FileId link = peer.made(SymlinkCall{root, "way", target});
    EXPECT_EQ(peer.error(LookupCall{link, "outside"}), ENOTDIR);
    EXPECT_EQ(peer.error(ReadDirectoryCall{.dir = link}), ENOTDIR);
    EXPECT_EQ(peer.error(CreateCall{.dir = link, .name = "new", .mode = S_IFREG | 0600}), ENOTDIR);
    EXPECT_EQ(peer.error(RemoveCall{.dir = link, .name = "outside"}), ENOTDIR);
    EXPECT_EQ(peer.error(RemoveCall{.dir = root, .name = "way"}), 0);
  }
  // Links that lie there already, and a second name for one.
  ASSERT_EQ(::symlink((top_ + "/outside").c_str(), (nodes().at(0).export_dir + "/out").c_str()), 0);
  const FileId out = peer.made(LookupCall{root, "out"});
  EXPECT_THAT(text_of(peer.fetch(out).data), testing::Not(HasSubstr(kSecret)));
  EXPECT_NE(peer.flush(out, "overwritten"), 0);
  EXPECT_NE(peer.error(SetAttributesCall{.file = out, .has_size = true}), 0);
  EXPECT_EQ(peer.error(LinkCall{out, root, "again"}), 0);
  struct stat st {};
  ASSERT_EQ(::lstat((nodes().at(0).export_dir + "/again").c_str(), &st), 0);
  EXPECT_TRUE(S_ISLNK(st.st_mode)) << "the link itself, not what it names";
}

TEST_F(StrangersTest, NamesThatAreNoNamesAreNotEvenSent) {
  Peer peer(nodes().at(0), *key_, "evil");
  ASSERT_TRUE(peer.connected());
  // Our own encoder refuses what the decoder does (wire/codec_test.cc), and the store once more
  // (store/names_test.cc).
  for (const std::string& name :
       {std::string(".."), std::string("."), std::string(), std::string("a/b"),
        std::string("/etc/passwd"), std::string("a\0b", 3)}) {
    EXPECT_FALSE(peer.sends(LookupCall{peer.root("node1"), name})) << name;
    EXPECT_FALSE(peer.sends(RemoveCall{.dir = peer.root("node1"), .name = name})) << name;
    EXPECT_FALSE(peer.sends(RenameCall{peer.root("node1"), "x", peer.root("node1"), name, 0}))
        << name;
  }
}

TEST_F(StrangersTest, WhoMayNotReadIsNotToldAndGetsNothing) {
  Peer peer(nodes().at(0), *key_, "evil");
  ASSERT_TRUE(peer.connected());
  EXPECT_THAT(peer.exports(), ElementsAre("shown", "squashed", "zfixed", "node1"));
  const FileId root = id_of(top_ + "/guarded", 0), file = id_of(top_ + "/guarded/old", 0);
  EXPECT_EQ(peer.error(LookupCall{root, "old"}), EACCES);
  EXPECT_EQ(peer.error(ReadDirectoryCall{.dir = root}), EACCES);
  EXPECT_EQ(peer.lease(file, LeaseMode::Shared).error, EACCES);
  EXPECT_EQ(peer.fetch(file).error, EACCES);
  EXPECT_EQ(peer.flush(file, "overwritten"), EACCES);
  // Nor by way of another.
  EXPECT_EQ(peer.error(RenameCall{root, "old", peer.root("node1"), "mine", 0}), EXDEV);
  EXPECT_EQ(peer.error(RenameCall{peer.root("node1"), "x", root, "old", 0}), EXDEV);
  EXPECT_EQ(peer.error(LinkCall{file, peer.root("node1"), "mine"}), EXDEV);
}

TEST_F(StrangersTest, WhoMayOnlyReadChangesNothing) {
  Peer peer(nodes().at(0), *key_, "evil");
  ASSERT_TRUE(peer.connected());
  const FileId root = peer.root("shown");
  const FileId file = peer.made(LookupCall{root, "old"});
  const Grant shared = peer.lease(file, LeaseMode::Shared);
  EXPECT_EQ(shared.error, 0);
  EXPECT_EQ(text_of(shared.data), kSecret);
  EXPECT_EQ(peer.lease(file, LeaseMode::Exclusive).error, EROFS);
  EXPECT_EQ(peer.flush(file, "overwritten"), EROFS);
  EXPECT_EQ(peer.error(SetAttributesCall{.file = file, .has_size = true}), EROFS);
  EXPECT_EQ(peer.error(CreateCall{.dir = root, .name = "new", .mode = S_IFREG | 0600}), EROFS);
  EXPECT_EQ(peer.error(RemoveCall{.dir = root, .name = "old"}), EROFS);
  EXPECT_EQ(peer.error(RenameCall{root, "old", root, "new", 0}), EROFS);
}

TEST_F(StrangersTest, RootOfAnotherNodeIsNobodyWhereItIsSquashed) {
  Peer peer(nodes().at(0), *key_, "evil");
  ASSERT_TRUE(peer.connected());
  const FileId root = peer.root("squashed");
  const std::string dir = top_ + "/squashed";
  for (const Caller& caller : {Caller{}, Caller{.uid = 1000, .gid = 0, .groups = {0}}}) {
    const FileId file = peer.made(LookupCall{root, "old"}, caller);
    EXPECT_EQ(peer.error(CreateCall{.dir = root, .name = "new", .mode = S_IFREG | 0600}, caller),
              EACCES);
    EXPECT_EQ(peer.error(RemoveCall{.dir = root, .name = "old"}, caller), EACCES);
    EXPECT_EQ(peer.error(RenameCall{root, "old", root, "new", 0}, caller), EACCES);
    EXPECT_EQ(peer.error(SetAttributesCall{.file = file, .has_mode = true, .mode = 04777}, caller),
              EPERM);
    EXPECT_EQ(peer.error(SetAttributesCall{.file = file, .has_uid = true, .uid = 1000}, caller),
              EPERM);
    EXPECT_EQ(
        peer.error(
            SetXattrCall{.file = file, .name = "security.capability", .value = Bytes::copy_of({})},
            caller),
        EPERM);
    EXPECT_EQ(
        peer.error(SetXattrCall{.file = file, .name = "trusted.x", .value = Bytes::copy_of({})},
                   caller),
        EPERM);
  }
  ASSERT_EQ(::chmod(dir.c_str(), 0777), 0);
  const FileId made = peer.made(CreateCall{.dir = root, .name = "new", .mode = S_IFREG | 0644});
  struct stat st {};
  ASSERT_EQ(::stat((dir + "/new").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 65534u);
  EXPECT_EQ(st.st_gid, 65534u);
  EXPECT_EQ(peer.error(SetAttributesCall{.file = made, .has_mode = true, .mode = 0600}), 0);
  EXPECT_EQ(peer.error(SetAttributesCall{.file = made, .has_uid = true, .uid = 0}), EPERM);
  EXPECT_EQ(peer.error(CreateCall{.dir = root,
                                  .name = "device",
                                  .mode = S_IFBLK | 0666,
                                  .rdev = static_cast<uint32_t>(makedev(8, 0))}),
            EPERM);
  // A directory that only root may look into.
  ::mkdir((dir + "/closed").c_str(), 0700);
  EXPECT_EQ(put(dir + "/closed/f", kSecret), 0);
  const FileId closed = peer.made(LookupCall{root, "closed"});
  EXPECT_EQ(peer.error(LookupCall{closed, "f"}), EACCES);
  EXPECT_EQ(peer.error(ReadDirectoryCall{.dir = closed}), EACCES);
  // The node's own root is root.
  EXPECT_EQ(put(nodes().at(0).mount + "/squashed/by_root", "x"), 0);
}

TEST_F(StrangersTest, AnExportThatThereIsNotEndsTheSession) {
  Peer peer(nodes().at(0), *key_, "evil");
  ASSERT_TRUE(peer.connected());
  FileId nowhere = peer.root("node1");
  nowhere.export_index = 77;
  EXPECT_EQ(peer.error(RenameCall{peer.root("node1"), "a", nowhere, "b", 0}), EXDEV);
  EXPECT_EQ(peer.error(CopyCall{.from = nowhere, .file = peer.root("node1"), .length = 1}), EXDEV);
  peer.send(Fetch{.file = nowhere, .fetch = 1000, .range = {0, 1}});
  EXPECT_TRUE(peer.thrown_out());
}

// R5, R6: pages and locks are claimed by those who had a session, before anybody was served.
TEST_F(StrangersInAGraceTest, WhoHadNoSessionClaimsNothing) {
  ASSERT_NO_FATAL_FAILURE(begin_grace({"member"}));
  Peer evil(nodes().at(0), *key_, "evil");
  ASSERT_TRUE(evil.connected());
  EXPECT_FALSE(evil.may_reclaim());
  const uint64_t waits = evil.ask(LookupCall{root_, "f"});
  EXPECT_EQ(evil.error(claim_of(file_)), ESTALE);
  EXPECT_EQ(evil.error(lock_of(file_, LockAction::Reclaim)), EAGAIN);
  // Nor does its word end what others are waited for.
  EXPECT_EQ(evil.error(all_is_back()), 0);
  Peer member(nodes().at(0), *key_, "member");
  ASSERT_TRUE(member.connected());
  ASSERT_TRUE(member.may_reclaim());
  EXPECT_EQ(member.error(claim_of(root_)), ESTALE) << "a directory has no pages";
  EXPECT_EQ(member.error(claim_of(file_)), 0);
  EXPECT_EQ(member.error(lock_of(file_, LockAction::Reclaim)), 0);
  EXPECT_FALSE(evil.is_answered(waits));
  EXPECT_EQ(member.error(all_is_back()), 0);
  EXPECT_EQ(evil.answer(waits), 0);
  // It is over for everybody.
  for (Peer* peer : {&evil, &member}) {
    EXPECT_EQ(peer->error(claim_of(file_)), ESTALE);
    EXPECT_EQ(peer->error(lock_of(file_, LockAction::Reclaim)), EAGAIN);
  }
  EXPECT_EQ(evil.error(lock_of(file_, LockAction::Try)), EAGAIN) << "it is the member's";
  EXPECT_EQ(evil.lease(file_, LeaseMode::Exclusive).error, 0) << "the member gives it back";
}

// A member may claim what it had, and a home believes it: but nothing twice.
TEST_F(StrangersInAGraceTest, WhatOneHasClaimedNobodyElseClaims) {
  ASSERT_NO_FATAL_FAILURE(begin_grace({"member", "liar"}));
  Peer member(nodes().at(0), *key_, "member"), liar(nodes().at(0), *key_, "liar");
  ASSERT_TRUE(member.connected() && liar.connected());
  ASSERT_TRUE(member.may_reclaim() && liar.may_reclaim());
  EXPECT_EQ(member.error(claim_of(file_)), 0);
  EXPECT_EQ(member.error(lock_of(file_, LockAction::Reclaim)), 0);
  EXPECT_EQ(liar.error(claim_of(file_)), EBUSY);
  EXPECT_EQ(liar.error(ReclaimCall{.file = file_, .pages = {{2, 3}, {100, 200}}}), EBUSY);
  EXPECT_EQ(liar.error(lock_of(file_, LockAction::Reclaim, 5, 5)), EAGAIN);
  EXPECT_EQ(member.error(claim_of(file_)), 0) << "its own, once more";
  EXPECT_EQ(member.error(all_is_back()), 0);
  EXPECT_EQ(liar.error(all_is_back()), 0);
  EXPECT_EQ(liar.error(LookupCall{root_, "f"}), 0);
}

// What one node has waiting is bounded, in bytes and in pieces; what others have is kept.
TEST_F(StrangersInAGraceTest, WhoAsksForTooMuchMeanwhileIsPutOut) {
  ASSERT_NO_FATAL_FAILURE(begin_grace({"member"}));
  Peer patient(nodes().at(0), *key_, "patient");
  ASSERT_TRUE(patient.connected());
  const uint64_t waits = patient.ask(LookupCall{root_, "f"});
  Peer loud(nodes().at(0), *key_, "loud"), greedy(nodes().at(0), *key_, "greedy");
  ASSERT_TRUE(loud.connected() && greedy.connected());
  const Bytes value = Bytes::copy_of(std::vector<std::byte>(kXattrMax));
  constexpr size_t kTooManyBytes = (size_t{128} << 20) / kXattrMax + 8, kTooMany = 2 * 65536 + 8;
  for (size_t i = 0; i < kTooManyBytes; ++i)
    ASSERT_TRUE(loud.sends(SetXattrCall{.file = file_, .name = "user.x", .value = value}));
  for (size_t i = 0; i < kTooMany; ++i)
    ASSERT_TRUE(greedy.sends(lock_of(file_, LockAction::Wait, i, i)));
  EXPECT_TRUE(loud.thrown_out()) << nodes().log(0);
  EXPECT_TRUE(greedy.thrown_out()) << nodes().log(0);
  EXPECT_FALSE(patient.is_answered(waits));
  Peer member(nodes().at(0), *key_, "member");
  ASSERT_TRUE(member.connected());
  EXPECT_EQ(member.error(all_is_back()), 0);
  EXPECT_EQ(patient.answer(waits), 0);
  EXPECT_EQ(::getxattr((nodes().at(0).mount + "/node1/f").c_str(), "user.x", nullptr, 0), -1)
      << "nothing of it was done";
}

// Also in a grace nobody gets more locks than a home keeps of one node.
TEST_F(StrangersInAGraceTest, LocksAreClaimedAsFarAsTheyWouldBeGiven) {
  ASSERT_NO_FATAL_FAILURE(begin_grace({"member"}));
  Peer member(nodes().at(0), *key_, "member");
  ASSERT_TRUE(member.connected());
  constexpr uint64_t kLocksMax = 262144, kOfAFile = 256;
  FileId file = file_;
  for (uint64_t i = 0; i < kLocksMax / kOfAFile; ++i, ++file.inode)
    for (uint64_t k = 0; k < kOfAFile; ++k)  // apart: each is a range of its own
      ASSERT_TRUE(member.sends(lock_of(file, LockAction::Reclaim, 2 * k, 2 * k)));
  EXPECT_EQ(member.error(lock_of(file, LockAction::Reclaim)), ENOLCK);
  EXPECT_EQ(member.error(lock_of(file, LockAction::Reclaim)), ENOLCK) << "and the session goes on";
  EXPECT_EQ(member.error(all_is_back()), 0);
  EXPECT_EQ(member.error(lock_of(file, LockAction::Try)), ENOLCK);
}

TEST_F(StrangersTest, AGuestIsItselfAndNobodyElse) {
  const net::ClusterKey guest = key_->for_guest("laptop");
  Peer itself(nodes().at(0), guest, "laptop");
  EXPECT_TRUE(itself.connected());
  Peer another(nodes().at(0), guest, "node2");
  EXPECT_THAT(another.why_not(), HasSubstr("does not take our key"));
  Peer stranger(nodes().at(0), *net::ClusterKey::generate("faults"), "node2");
  EXPECT_THAT(stranger.why_not(), HasSubstr("does not take our key"));
}

// `read_only` is also for the node itself, the lists are for others.
TEST_F(StrangersTest, AReadOnlyExportIsSoOnItsOriginToo) {
  const std::string mount = nodes().at(0).mount;
  EXPECT_EQ(put(mount + "/shown/by_itself", "x"), 0);
  EXPECT_EQ(read_all(mount + "/zfixed/old"), kSecret);
  EXPECT_EQ(put(mount + "/zfixed/old", "overwritten"), EROFS);
  EXPECT_EQ(put(mount + "/zfixed/new", "x"), EROFS);
  const auto error = [](int result) { return result == 0 ? 0 : errno; };
  EXPECT_EQ(error(::unlink((mount + "/zfixed/old").c_str())), EROFS);
  EXPECT_EQ(error(::truncate((mount + "/zfixed/old").c_str(), 0)), EROFS);
  EXPECT_EQ(error(::chmod((mount + "/zfixed/old").c_str(), 0600)), EROFS);
  EXPECT_EQ(error(::mkdir((mount + "/zfixed/dir").c_str(), 0700)), EROFS);
  EXPECT_EQ(read_all(top_ + "/zfixed/old"), kSecret);
}

TEST_F(StrangersTest, TheDaemonKeepsOnlyTheRightsItNeeds) {
  uint64_t allowed = 0;
  for (const auto& kept : node::kept_capabilities()) allowed |= uint64_t{1} << kept.number;
  std::ifstream file("/proc/" + std::to_string(nodes().at(0).pid) + "/status");
  int seen = 0;
  for (std::string line; std::getline(file, line);) {
    const std::string value = line.substr(std::min(line.size(), line.find('\t') + 1));
    if (line.starts_with("CapEff:") || line.starts_with("CapPrm:") || line.starts_with("CapBnd:")) {
      EXPECT_EQ(std::stoull(value, nullptr, 16) & ~allowed, 0u) << line;
      ++seen;
    }
    if (line.starts_with("CapInh:") || line.starts_with("CapAmb:")) {
      EXPECT_EQ(std::stoull(value, nullptr, 16), 0u) << line;
      ++seen;
    }
    if (line.starts_with("NoNewPrivs:")) {
      EXPECT_EQ(value, "1");
      ++seen;
    }
  }
  EXPECT_EQ(seen, 6);
}

}  // namespace
}  // namespace vremote::live
