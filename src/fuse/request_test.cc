#include "fuse/request.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/prng.h"
#include "fuse/protocol.h"

namespace vremote::fuse {
namespace {

using Wire = std::vector<std::byte>;

void append_bytes(Wire& wire, std::span<const std::byte> bytes) {
  // Not insert(): GCC 12 warns of an overflow in it that is not there.
  Wire longer(wire.size() + bytes.size());
  std::ranges::copy(bytes, std::ranges::copy(wire, longer.begin()).out);
  wire = std::move(longer);
}
void append(Wire& wire, const std::string& text) {  // with its NUL
  append_bytes(wire, std::as_bytes(std::span(text.c_str(), text.size() + 1)));
}
void append(Wire& wire, const Wire& bytes) { append_bytes(wire, bytes); }
template <typename T>
requires std::is_trivially_copyable_v<T>
void append(Wire& wire, const T& value) {
  append_bytes(wire, std::as_bytes(std::span<const T, 1>(&value, 1)));
}

void set_header(Wire& wire, const fuse_in_header& head) {
  std::memcpy(wire.data(), &head, sizeof(head));
}

// A request as the kernel writes it.
template <typename... Parts>
Wire request(uint32_t opcode, const Parts&... parts) {
  Wire wire(sizeof(fuse_in_header));
  (append(wire, parts), ...);
  fuse_in_header head{};
  head.len = static_cast<uint32_t>(wire.size());
  head.opcode = opcode;
  head.unique = 10;
  head.nodeid = 77;
  head.uid = 1000;
  head.gid = 1001;
  head.pid = 4711;
  set_header(wire, head);
  return wire;
}

// The decoded body of a request that must be well-formed and of that type. Views in it refer to
// `wire`.
template <typename T>
T body(const Wire& wire) {
  auto decoded = decode(wire);
  EXPECT_TRUE(decoded.has_value()) << decoded.error().what;
  if (!decoded || !std::holds_alternative<T>(decoded->body)) {
    ADD_FAILURE() << "another body";
    return {};
  }
  return std::get<T>(std::move(decoded->body));
}

bool malformed(const Wire& wire) {
  const auto decoded = decode(wire);
  return !decoded && decoded.error().code == EPROTO;
}

Wire some_bytes(size_t count) {
  Wire bytes(count);
  for (size_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>(i * 7);
  return bytes;
}

fuse_write_in write_in(uint64_t offset, uint32_t size, uint32_t write_flags) {
  fuse_write_in in{};
  in.fh = 5;
  in.offset = offset;
  in.size = size;
  in.write_flags = write_flags;
  in.lock_owner = 99;
  in.flags = O_WRONLY | O_APPEND;
  return in;
}

fuse_read_in read_in(uint64_t offset, uint32_t size, uint32_t read_flags) {
  fuse_read_in in{};
  in.fh = 5;
  in.offset = offset;
  in.size = size;
  in.read_flags = read_flags;
  in.lock_owner = 99;
  return in;
}

fuse_setattr_in full_setattr() {
  fuse_setattr_in in{};
  in.valid = FATTR_FH | FATTR_SIZE | FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_ATIME |
             FATTR_MTIME | FATTR_MTIME_NOW | FATTR_CTIME | FATTR_KILL_SUIDGID | FATTR_LOCKOWNER;
  in.fh = 3;
  in.size = 4096;
  in.lock_owner = 8;
  in.atime = static_cast<uint64_t>(-5);
  in.atimensec = 6;
  in.mtime = 7;
  in.ctime = 9;
  in.mode = 0640;
  in.uid = 11;
  in.gid = 12;
  return in;
}

// One well-formed request of each kind, the seeds of the mutation test.
std::vector<Wire> one_of_each() {
  const fuse_lk_in lock{.fh = 1,
                        .owner = 2,
                        .lk = {.start = 3, .end = 4, .type = 1, .pid = 5},
                        .lk_flags = 1,
                        .padding = 0};
  const fuse_init_in init{.major = 7,
                          .minor = 45,
                          .max_readahead = 131072,
                          .flags = FUSE_INIT_EXT,
                          .flags2 = 1,
                          .unused = {}};
  const fuse_copy_file_range_in copy{};
  return {
      request(FUSE_LOOKUP, std::string("name")),
      request(FUSE_FORGET, fuse_forget_in{.nlookup = 3}),
      request(FUSE_BATCH_FORGET, fuse_batch_forget_in{.count = 2, .dummy = 0},
              fuse_forget_one{.nodeid = 5, .nlookup = 1},
              fuse_forget_one{.nodeid = 6, .nlookup = 2}),
      request(FUSE_GETATTR, fuse_getattr_in{.getattr_flags = FUSE_GETATTR_FH, .dummy = 0, .fh = 4}),
      request(FUSE_SETATTR, full_setattr()),
      request(FUSE_READLINK),
      request(FUSE_SYMLINK, std::string("name"), std::string("../target")),
      request(FUSE_MKNOD, fuse_mknod_in{.mode = 0100644, .rdev = 0, .umask = 022, .padding = 0},
              std::string("name")),
      request(FUSE_MKDIR, fuse_mkdir_in{.mode = 0755, .umask = 022}, std::string("name")),
      request(FUSE_UNLINK, std::string("name")),
      request(FUSE_RMDIR, std::string("name")),
      request(FUSE_RENAME, fuse_rename_in{.newdir = 9}, std::string("old"), std::string("new")),
      request(FUSE_RENAME2, fuse_rename2_in{.newdir = 9, .flags = 1, .padding = 0},
              std::string("old"), std::string("new")),
      request(FUSE_LINK, fuse_link_in{.oldnodeid = 12}, std::string("name")),
      request(FUSE_STATFS),
      request(FUSE_ACCESS, fuse_access_in{.mask = 4, .padding = 0}),
      request(
          kOpStatx,
          StatxIn{.getattr_flags = 1, .reserved = 0, .fh = 2, .statx_flags = 3, .statx_mask = 4}),
      request(FUSE_OPEN, fuse_open_in{.flags = O_RDWR, .open_flags = 0}),
      request(FUSE_CREATE,
              fuse_create_in{.flags = O_RDWR, .mode = 0100600, .umask = 022, .open_flags = 0},
              std::string("name")),
      request(FUSE_TMPFILE,
              fuse_create_in{.flags = O_RDWR, .mode = 0100600, .umask = 022, .open_flags = 0},
              std::string("/")),
      request(FUSE_READ, read_in(4096, 65536, 0)),
      request(FUSE_WRITE, write_in(4096, 100, FUSE_WRITE_CACHE), some_bytes(100)),
      request(FUSE_FLUSH, fuse_flush_in{.fh = 1, .unused = 0, .padding = 0, .lock_owner = 3}),
      request(FUSE_RELEASE,
              fuse_release_in{.fh = 1, .flags = 2, .release_flags = 2, .lock_owner = 4}),
      request(FUSE_FSYNC, fuse_fsync_in{.fh = 1, .fsync_flags = 1, .padding = 0}),
      request(FUSE_FALLOCATE,
              fuse_fallocate_in{.fh = 1, .offset = 2, .length = 3, .mode = 4, .padding = 0}),
      request(FUSE_LSEEK, fuse_lseek_in{.fh = 1, .offset = 2, .whence = 3, .padding = 0}),
      request(FUSE_COPY_FILE_RANGE, copy),
      request(kOpCopyFileRange64, copy),
      request(FUSE_POLL, fuse_poll_in{.fh = 1, .kh = 2, .flags = 3, .events = 4}),
      request(FUSE_IOCTL,
              fuse_ioctl_in{.fh = 1, .flags = 2, .cmd = 3, .arg = 4, .in_size = 8, .out_size = 6},
              some_bytes(8)),
      request(FUSE_OPENDIR, fuse_open_in{.flags = O_DIRECTORY, .open_flags = 0}),
      request(FUSE_READDIR, read_in(3, 4096, 0)),
      request(FUSE_READDIRPLUS, read_in(3, 4096, 0)),
      request(FUSE_RELEASEDIR,
              fuse_release_in{.fh = 1, .flags = 2, .release_flags = 0, .lock_owner = 0}),
      request(FUSE_FSYNCDIR, fuse_fsync_in{.fh = 1, .fsync_flags = 0, .padding = 0}),
      request(FUSE_GETLK, lock),
      request(FUSE_SETLK, lock),
      request(FUSE_SETLKW, lock),
      request(FUSE_SETXATTR, uint32_t{3}, uint32_t{1}, std::string("user.a"), some_bytes(3)),
      request(FUSE_GETXATTR, fuse_getxattr_in{.size = 10, .padding = 0}, std::string("user.a")),
      request(FUSE_LISTXATTR, fuse_getxattr_in{.size = 10, .padding = 0}),
      request(FUSE_REMOVEXATTR, std::string("user.a")),
      request(FUSE_INIT, init),
      request(FUSE_DESTROY),
      request(FUSE_INTERRUPT, fuse_interrupt_in{.unique = 10})};
}

TEST(RequestTest, EveryOpcodeWeServeIsDecodedToItsOwnBody) {
  std::vector<bool> seen(std::variant_size_v<Body>);
  for (const Wire& wire : one_of_each()) {
    const auto decoded = decode(wire);
    ASSERT_TRUE(decoded.has_value()) << decoded.error().what;
    EXPECT_FALSE(std::holds_alternative<Unknown>(decoded->body)) << decoded->header.opcode;
    seen[decoded->body.index()] = true;
  }
  seen[Body(Unknown{}).index()] = true;
  EXPECT_EQ(std::count(seen.begin(), seen.end(), false), 0);
}

TEST(RequestTest, HeaderIsTakenAndTheResendBitParted) {
  Wire wire = request(FUSE_GETATTR, fuse_getattr_in{});
  auto decoded = decode(wire);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->header.unique, 10u);
  EXPECT_FALSE(decoded->header.resent);
  EXPECT_EQ(decoded->header.wire_unique(), 10u);
  EXPECT_EQ(decoded->header.node, 77u);
  EXPECT_EQ(decoded->header.uid, 1000u);
  EXPECT_EQ(decoded->header.gid, 1001u);
  EXPECT_EQ(decoded->header.pid, 4711u);

  fuse_in_header head;
  std::memcpy(&head, wire.data(), sizeof(head));
  head.unique |= kUniqueResend;
  set_header(wire, head);
  decoded = decode(wire);
  ASSERT_TRUE(decoded);
  EXPECT_EQ(decoded->header.unique, 10u);
  EXPECT_TRUE(decoded->header.resent);
  EXPECT_EQ(decoded->header.wire_unique(), 10u | kUniqueResend);
}

TEST(RequestTest, InterruptNamesTheRequestWithoutTheResendBit) {
  const Wire wire = request(FUSE_INTERRUPT, fuse_interrupt_in{.unique = 10 | kUniqueResend});
  EXPECT_EQ(body<Interrupt>(wire).unique, 10u);
}

TEST(RequestTest, ReadWithoutLockOwnerIsAFill) {
  const Wire fill = request(FUSE_READ, read_in(8192, 4096, 0));
  EXPECT_TRUE(body<Read>(fill).fill);
  EXPECT_EQ(body<Read>(fill).offset, 8192u);
  EXPECT_EQ(body<Read>(fill).size, 4096u);
  const Wire direct = request(FUSE_READ, read_in(8192, 4096, FUSE_READ_LOCKOWNER));
  EXPECT_FALSE(body<Read>(direct).fill);
  EXPECT_EQ(body<Read>(direct).lock_owner, 99u);
}

TEST(RequestTest, WriteKeepsItsPayloadInPlace) {
  const Wire data = some_bytes(5000);
  const Wire wire = request(
      FUSE_WRITE, write_in(123, 5000, FUSE_WRITE_LOCKOWNER | FUSE_WRITE_KILL_SUIDGID), data);
  const auto write = body<Write>(wire);
  EXPECT_EQ(write.offset, 123u);
  EXPECT_EQ(write.payload.data(), wire.data() + 80);
  EXPECT_TRUE(std::ranges::equal(write.payload, data));
  EXPECT_FALSE(write.write_back);
  EXPECT_TRUE(write.kill_suidgid);
  EXPECT_EQ(write.lock_owner, 99u);
  EXPECT_NE(write.flags & O_APPEND, 0u);

  const Wire cached = request(FUSE_WRITE, write_in(4096, 5000, FUSE_WRITE_CACHE), data);
  EXPECT_TRUE(body<Write>(cached).write_back);
  EXPECT_FALSE(body<Write>(cached).lock_owner.has_value());
}

TEST(RequestTest, WriteMustBringExactlyTheBytesItClaims) {
  EXPECT_TRUE(malformed(request(FUSE_WRITE, write_in(0, 101, 0), some_bytes(100))));
  EXPECT_TRUE(malformed(request(FUSE_WRITE, write_in(0, 99, 0), some_bytes(100))));
}

TEST(RequestTest, RangesBeyondOffTAreMalformed) {
  constexpr uint64_t kEnd = std::numeric_limits<int64_t>::max();
  EXPECT_FALSE(malformed(request(FUSE_WRITE, write_in(kEnd - 4, 4, 0), some_bytes(4))));
  EXPECT_TRUE(malformed(request(FUSE_WRITE, write_in(kEnd - 3, 4, 0), some_bytes(4))));
  EXPECT_TRUE(malformed(request(FUSE_READ, read_in(~uint64_t{0}, 1, 0))));
  EXPECT_TRUE(malformed(
      request(FUSE_FALLOCATE,
              fuse_fallocate_in{.fh = 0, .offset = kEnd, .length = 1, .mode = 0, .padding = 0})));
  fuse_setattr_in size{};
  size.valid = FATTR_SIZE;
  size.size = kEnd + 1;
  EXPECT_TRUE(malformed(request(FUSE_SETATTR, size)));
}

TEST(RequestTest, ReadBeyondTheLargestTransferIsMalformed) {
  EXPECT_FALSE(malformed(request(FUSE_READ, read_in(0, kMaxTransfer, 0))));
  EXPECT_TRUE(malformed(request(FUSE_READ, read_in(0, kMaxTransfer + 1, 0))));
  const Wire directory = request(FUSE_READDIR, read_in(0, kMaxTransfer * 2, 0));
  EXPECT_EQ(body<ReadDir>(directory).size, kMaxTransfer);
}

TEST(RequestTest, SetAttrHasOnlyWhatIsValid) {
  const Wire all = request(FUSE_SETATTR, full_setattr());
  const auto set = body<SetAttr>(all);
  EXPECT_EQ(set.fh, 3u);
  EXPECT_EQ(set.size, 4096u);
  EXPECT_EQ(set.mode, 0640u);
  EXPECT_EQ(set.uid, 11u);
  EXPECT_EQ(set.gid, 12u);
  EXPECT_EQ(set.lock_owner, 8u);
  EXPECT_EQ(set.atime, (Timestamp{-5, 6}));
  EXPECT_EQ(set.ctime, (Timestamp{9, 0}));
  EXPECT_FALSE(set.atime_now);
  EXPECT_TRUE(set.mtime_now);
  EXPECT_TRUE(set.kill_suidgid);

  fuse_setattr_in none = full_setattr();
  none.valid = 0;
  const Wire nothing = request(FUSE_SETATTR, none);
  const auto unset = body<SetAttr>(nothing);
  EXPECT_FALSE(unset.fh || unset.size || unset.mode || unset.uid || unset.gid || unset.atime ||
               unset.mtime || unset.ctime || unset.lock_owner || unset.mtime_now ||
               unset.kill_suidgid);
}

TEST(RequestTest, SetAttrNanosecondsAreChecked) {
  fuse_setattr_in in = full_setattr();
  in.mtimensec = 1'000'000'000;
  EXPECT_TRUE(malformed(request(FUSE_SETATTR, in)));
}

TEST(RequestTest, NamesNeedTheirNulAndMayNotBeEmptyOrHaveASlash) {
  Wire open_ended = request(FUSE_LOOKUP, std::string("name"));
  open_ended.back() = std::byte{'x'};
  EXPECT_TRUE(malformed(open_ended));
  EXPECT_TRUE(malformed(request(FUSE_LOOKUP, std::string())));
  EXPECT_TRUE(malformed(request(FUSE_UNLINK, std::string("a/b"))));
  EXPECT_TRUE(malformed(request(FUSE_RENAME, fuse_rename_in{.newdir = 9}, std::string("old"))));
  const std::string long_name(4000, 'n');
  const Wire too_long = request(FUSE_LOOKUP, long_name);
  EXPECT_EQ(body<Lookup>(too_long).name, long_name);
}

TEST(RequestTest, RenameAndSymlinkKeepTheirTwoNamesApart) {
  const Wire rename = request(FUSE_RENAME2, fuse_rename2_in{.newdir = 9, .flags = 2, .padding = 0},
                              std::string("old"), std::string("new"));
  EXPECT_EQ(body<Rename>(rename).name, "old");
  EXPECT_EQ(body<Rename>(rename).new_name, "new");
  EXPECT_EQ(body<Rename>(rename).new_directory, 9u);
  EXPECT_EQ(body<Rename>(rename).flags, 2u);
  const Wire link = request(FUSE_SYMLINK, std::string("name"), std::string("/a/b"));
  EXPECT_EQ(body<Symlink>(link).name, "name");
  EXPECT_EQ(body<Symlink>(link).target, "/a/b");
}

TEST(RequestTest, BatchForgetThatClaimsMoreThanItHasIsMalformed) {
  const fuse_forget_one one{.nodeid = 5, .nlookup = 2};
  const Wire good = request(FUSE_BATCH_FORGET, fuse_batch_forget_in{.count = 1, .dummy = 0}, one);
  const auto batch = body<BatchForget>(good);
  ASSERT_EQ(batch.forgets.size(), 1u);
  EXPECT_EQ(batch.forgets[0].node, 5u);
  EXPECT_EQ(batch.forgets[0].lookups, 2u);
  EXPECT_TRUE(
      malformed(request(FUSE_BATCH_FORGET, fuse_batch_forget_in{.count = ~0u, .dummy = 0}, one)));
}

TEST(RequestTest, SetXattrHasTheShortForm) {
  const Wire wire =
      request(FUSE_SETXATTR, uint32_t{3}, uint32_t{1}, std::string("user.a"), some_bytes(3));
  const auto set = body<SetXattr>(wire);
  EXPECT_EQ(set.name, "user.a");
  EXPECT_EQ(set.value.size(), 3u);
  EXPECT_EQ(set.flags, 1u);
  EXPECT_TRUE(malformed(
      request(FUSE_SETXATTR, uint32_t{4}, uint32_t{1}, std::string("user.a"), some_bytes(3))));
}

TEST(RequestTest, InitJoinsBothHalvesOfItsFlags) {
  const fuse_init_in in{.major = 7,
                        .minor = 45,
                        .max_readahead = 131072,
                        .flags = FUSE_INIT_EXT,
                        .flags2 = 0x10,
                        .unused = {}};
  const Wire with = request(FUSE_INIT, in);
  EXPECT_EQ(body<Init>(with).flags, FUSE_INIT_EXT | kInitDirectIoAllowMmap);
  const Wire old = request(FUSE_INIT, uint32_t{7}, uint32_t{31}, uint32_t{131072}, uint32_t{1});
  EXPECT_EQ(body<Init>(old).flags, 1u);
}

TEST(RequestTest, ExtensionsAtTheEndAreSteppedOver) {
  Wire wire = request(FUSE_LOOKUP, std::string("name"), some_bytes(16));
  fuse_in_header head;
  std::memcpy(&head, wire.data(), sizeof(head));
  head.total_extlen = 2;
  set_header(wire, head);
  EXPECT_EQ(body<Lookup>(wire).name, "name");
  head.total_extlen = 4;
  set_header(wire, head);
  EXPECT_TRUE(malformed(wire));
}

TEST(RequestTest, UnknownOpcodesAreNotErrors) {
  EXPECT_EQ(body<Unknown>(request(FUSE_SYNCFS, fuse_syncfs_in{})).opcode, uint32_t{FUSE_SYNCFS});
  EXPECT_EQ(body<Unknown>(request(9999)).opcode, 9999u);
}

TEST(RequestTest, OnlyForgetsAndInterruptsWantNoReply) {
  EXPECT_FALSE(wants_reply(FUSE_FORGET));
  EXPECT_FALSE(wants_reply(FUSE_BATCH_FORGET));
  EXPECT_FALSE(wants_reply(FUSE_INTERRUPT));
  EXPECT_TRUE(wants_reply(FUSE_RELEASE));
  EXPECT_TRUE(wants_reply(FUSE_DESTROY));
}

TEST(RequestTest, EveryTruncationIsMalformedOrStillWhole) {
  for (const Wire& whole : one_of_each()) {
    for (size_t length = 0; length < whole.size(); ++length) {
      // The exact size, on the heap: a sanitizer sees each byte read beyond it.
      const auto cut = std::make_unique<std::byte[]>(length);
      std::memcpy(cut.get(), whole.data(), length);
      EXPECT_FALSE(decode({cut.get(), length}).has_value());  // the header's length disagrees
      if (length < sizeof(fuse_in_header)) continue;
      const auto claimed = static_cast<uint32_t>(length);
      std::memcpy(cut.get(), &claimed, sizeof(claimed));
      const auto decoded = decode({cut.get(), length});
      EXPECT_TRUE(decoded || decoded.error().code == EPROTO);
    }
  }
}

// True when the view is empty or lies inside the buffer.
bool inside(std::span<const std::byte> view, const std::byte* buffer, size_t size) {
  return view.empty() || (view.data() >= buffer && view.data() + view.size() <= buffer + size);
}
bool inside(std::string_view view, const std::byte* buffer, size_t size) {
  return inside(std::as_bytes(std::span(view)), buffer, size);
}

TEST(RequestTest, RandomMutationsAreDecodedOrRefused) {
  const std::vector<Wire> seeds = one_of_each();
  Prng random(20240611);
  size_t decoded_count = 0;
  size_t refused_count = 0;
  for (int round = 0; round < 100'000; ++round) {
    Wire wire = seeds[random.below(seeds.size())];
    for (uint64_t changes = random.between(1, 4); changes > 0; --changes) {
      switch (random.below(4)) {
        case 0:
          wire[random.below(wire.size())] = static_cast<std::byte>(random.next());
          break;
        case 1:
          wire.resize(random.between(1, wire.size() + 16));
          break;
        case 2:
          wire[random.below(wire.size())] ^= static_cast<std::byte>(1u << random.below(8));
          break;
        default:
          std::ranges::fill(std::span(wire).subspan(random.below(wire.size())),
                            static_cast<std::byte>(random.next()));
      }
    }
    if (wire.size() >= 4 && random.chance(80)) {  // most get past the first check
      const auto length = static_cast<uint32_t>(wire.size());
      std::memcpy(wire.data(), &length, sizeof(length));
    }
    const auto exact = std::make_unique<std::byte[]>(wire.size());
    std::memcpy(exact.get(), wire.data(), wire.size());
    const auto decoded = decode({exact.get(), wire.size()});
    if (!decoded) {
      ASSERT_EQ(decoded.error().code, EPROTO);
      ++refused_count;
      continue;
    }
    ++decoded_count;
    if (const auto* write = std::get_if<Write>(&decoded->body)) {
      ASSERT_TRUE(inside(write->payload, exact.get(), wire.size()));
    } else if (const auto* lookup = std::get_if<Lookup>(&decoded->body)) {
      ASSERT_TRUE(inside(lookup->name, exact.get(), wire.size()) && !lookup->name.empty());
    } else if (const auto* set = std::get_if<SetXattr>(&decoded->body)) {
      ASSERT_TRUE(inside(set->value, exact.get(), wire.size()) &&
                  inside(set->name, exact.get(), wire.size()));
    }
  }
  // Both sides of the decoder were reached, or the mutations are worth nothing.
  EXPECT_GT(decoded_count, 1000u);
  EXPECT_GT(refused_count, 1000u);
}

}  // namespace
}  // namespace vremote::fuse
