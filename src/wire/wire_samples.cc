#include "wire/wire_samples.h"

#include <sstream>

#include "base/check.h"
#include "base/prng.h"

namespace vremote::wire {

using namespace coherence;  // NOLINT: the messages, and nothing else, are meant

Bytes pattern(size_t size, uint64_t seed) {
  Prng random(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random.next());
  return Bytes::copy_of(bytes);
}

Frame as_received(const Encoded& encoded) {
  Frame frame;
  auto preamble = decode_preamble(
      std::span<const std::byte, kPreambleSize>(encoded.header.data(), kPreambleSize));
  VR_CHECK(preamble.has_value());
  frame.preamble = *preamble;
  frame.header.assign(encoded.header.begin() + kPreambleSize, encoded.header.end());
  VR_CHECK(frame.header.size() == frame.preamble.header_length);
  std::vector<std::byte> bulk;
  for (const Bytes& b : encoded.bulk) bulk.insert(bulk.end(), b.view().begin(), b.view().end());
  VR_CHECK(bulk.size() == frame.preamble.bulk_length && bulk.size() == encoded.bulk_size);
  frame.bulk = Bytes::copy_of(bulk);
  return frame;
}

namespace {

const FileId kFile{3, 0xfffffff1, 0xfedcba9876543210};
const FileId kDir{4, 5, 6};

Attributes attributes() {
  return {.inode = 1,
          .size = 2,
          .blocks = 3,
          .atime = {-4, 5},
          .mtime = {6, 999'999'999},
          .ctime = {8, 9},
          .mode = 10,
          .nlink = 11,
          .uid = 12,
          .gid = 13,
          .rdev = 14,
          .block_size = 15};
}
DirtyAttributes dirty() {
  return {.has_size = true, .has_mtime = true, .size = 77, .mtime = {78, 79}};
}

Trail trail(size_t waits) {
  Trail out{.searcher = ~uint64_t{0}, .search = 1, .since = 2, .budget = kTrailBudget, .waits = {}};
  for (size_t i = 0; i < waits; ++i)
    out.waits.push_back({.home = i, .node = static_cast<uint32_t>(i + 1), .call = ~i});
  return out;
}

std::vector<Operation> operations() {
  SetAttributesCall set;
  set.file = kFile;
  set.has_mode = set.has_gid = set.has_atime = set.mtime_now = set.clear_suid = true;
  set.mode = 0644;
  set.uid = 2;
  set.gid = 3;
  set.size = uint64_t{1} << 40;
  set.atime = {-1, 1};
  set.mtime = {2, 2};
  SetAttributesCall other;
  other.file = kFile;
  other.has_uid = other.has_size = other.has_mtime = other.atime_now = other.must_own = true;
  return {LookupCall{kDir, "name"},
          CreateCall{kDir, "\xff\xfe not UTF-8", 0100644, 7, true},
          SymlinkCall{kDir, "link", "../over/there"},
          LinkCall{kFile, kDir, "second"},
          RemoveCall{kDir, "gone", true},
          RenameCall{kDir, "from", kFile, "to", 2},
          set,
          other,
          ReadLinkCall{kFile},
          ReadDirectoryCall{kDir, ~uint64_t{0}, 65536, true},
          StatFsCall{kFile},
          SyncCall{kFile, true},
          GetXattrCall{kFile, "user.a/b"},
          ListXattrCall{kFile},
          SetXattrCall{kFile, "user.x", pattern(300, 5), 1},
          RemoveXattrCall{kFile, "user.y"},
          AllocateCall{kFile, 4096, 1 << 20, 3},
          SeekCall{kFile, ~uint64_t{0}, 4},
          LeaveCall{kFile},
          ReclaimCall{kFile, true, {}},
          ReclaimCall{kFile, false, {{3, 4}, {7, kPageEnd}}},
          CopyCall{kFile, FileId{0, 1, 99}, 5000, 1 << 30, 4097},
          LockCall{.file = kFile,
                   .action = LockAction::Wait,
                   .kind = LockKind::Flock,
                   .type = LockType::Write,
                   .owner = 5,
                   .start = 6,
                   .end = 7,
                   .pid = 8,
                   .waiting_call = 9,
                   .holds_elsewhere = true}};
}

// A visitor that prints every field; `<<` of nested values through field().
class Printer {
 public:
  template <typename... T>
  Printer& fields(const char* name, const T&... values) {
    out_ << name << '{';
    (field(values), ...);
    out_ << '}';
    return *this;
  }
  std::string text() const { return out_.str(); }

  void operator()(const LeaseRequest& m) {
    fields("LeaseRequest", m.file, m.request, int(m.resource), int(m.mode), m.range, m.want_data);
  }
  void operator()(const RecallAck& m) {
    fields("RecallAck", m.file, m.recall, m.given, m.seen, m.attributes, m.in_use, m.busy,
           m.watches);
  }
  void operator()(const Flush& m) {
    fields("Flush", m.file, m.flush, m.attributes, m.extents.size());
    for (const Extent& e : m.extents) fields("Extent", e.offset, e.bytes);
  }
  void operator()(const Fetch& m) { fields("Fetch", m.file, m.fetch, m.range); }
  void operator()(const Release& m) { fields("Release", m.file, m.seen, m.leases); }
  void operator()(const Announce& m) { fields("Announce", m.file, m.announcement, m.size); }
  void operator()(const SizeShown& m) { fields("SizeShown", m.file, m.show); }
  void operator()(const ShowSize& m) { fields("ShowSize", m.file, m.show, m.size); }
  void operator()(const FollowWait& m) {
    fields("FollowWait", m.file, m.call);
    trail(m.trail);
  }
  void operator()(const FollowOwner& m) {
    fields("FollowOwner", m.file, m.owner);
    trail(m.trail);
  }
  void trail(const Trail& t) {
    fields("Trail", t.searcher, t.search, t.since, t.budget, t.waits.size());
    for (const WaitName& w : t.waits) fields("Wait", w.home, w.node, w.call);
  }
  void operator()(const Announced& m) { fields("Announced", m.file, m.announcement, m.watched); }
  void operator()(const Call& m) {
    fields("Call", m.call, m.caller.uid, m.caller.gid, m.caller.groups.size());
    for (uint32_t g : m.caller.groups) field(g);
    field(m.heard_below);
    std::visit(*this, m.operation);
  }
  void operator()(const LookupCall& c) { fields("Lookup", c.dir, c.name); }
  void operator()(const CreateCall& c) {
    fields("Create", c.dir, c.name, c.mode, c.rdev, c.exclusive);
  }
  void operator()(const SymlinkCall& c) { fields("Symlink", c.dir, c.name, c.target); }
  void operator()(const LinkCall& c) { fields("Link", c.file, c.dir, c.name); }
  void operator()(const RemoveCall& c) { fields("Remove", c.dir, c.name, c.directory); }
  void operator()(const RenameCall& c) {
    fields("Rename", c.from_dir, c.from, c.to_dir, c.to, c.flags);
  }
  void operator()(const SetAttributesCall& c) {
    fields("SetAttributes", c.file, c.has_mode, c.has_uid, c.has_gid, c.has_size, c.has_atime,
           c.has_mtime, c.atime_now, c.mtime_now, c.clear_suid, c.mode, c.uid, c.gid, c.size,
           c.atime, c.mtime, c.must_own);
  }
  void operator()(const ReadLinkCall& c) { fields("ReadLink", c.file); }
  void operator()(const ReadDirectoryCall& c) {
    fields("ReadDirectory", c.dir, c.cookie, c.bytes_max, c.offer_attributes);
  }
  void operator()(const StatFsCall& c) { fields("StatFs", c.file); }
  void operator()(const SyncCall& c) { fields("Sync", c.file, c.data_only); }
  void operator()(const GetXattrCall& c) { fields("GetXattr", c.file, c.name); }
  void operator()(const ListXattrCall& c) { fields("ListXattr", c.file); }
  void operator()(const SetXattrCall& c) { fields("SetXattr", c.file, c.name, c.value, c.flags); }
  void operator()(const RemoveXattrCall& c) { fields("RemoveXattr", c.file, c.name); }
  void operator()(const AllocateCall& c) { fields("Allocate", c.file, c.offset, c.length, c.mode); }
  void operator()(const CopyCall& c) {
    fields("Copy", c.from, c.file, c.from_offset, c.offset, c.length);
  }
  void operator()(const SeekCall& c) { fields("Seek", c.file, c.offset, c.whence); }
  void operator()(const LeaveCall& c) { fields("Leave", c.file); }
  void operator()(const ReclaimCall& c) {
    fields("Reclaim", c.file, c.done);
    for (const PageRange& range : c.pages) field(range);
  }
  void operator()(const LockCall& c) {
    fields("Lock", c.file, int(c.action), int(c.kind), int(c.type), c.owner, c.start, c.end, c.pid,
           c.waiting_call, c.holds_elsewhere);
  }

  void operator()(const Grant& m) {
    fields("Grant", m.file, m.request, m.sequence, int(m.resource), int(m.mode), m.range, m.error,
           m.size_floor, m.attributes, m.attributes.has_btime, m.attributes.btime, m.has_xattrs,
           m.watched, m.unsynced, m.data_offset, m.data);
  }
  void operator()(const Recall& m) {
    fields("Recall", m.file, m.recall, int(m.resource), int(m.to), m.range);
  }
  void operator()(const FlushAck& m) { fields("FlushAck", m.file, m.flush, m.error, m.blocks); }
  void operator()(const FetchReply& m) {
    fields("FetchReply", m.file, m.fetch, m.error, m.data_offset, m.data);
  }
  void operator()(const Reply& m) {
    fields("Reply", m.call, m.error);
    std::visit(*this, m.outcome);
  }
  void operator()(const std::monostate&) { fields("nothing"); }
  void operator()(const Node& o) { fields("Node", o.file, o.attributes, o.size_before); }
  void operator()(const DirectoryPage& o) {
    fields("DirectoryPage", o.end, o.entries.size());
    for (const DirectoryEntry& e : o.entries) fields("Entry", e.name, e.cookie, e.file, e.type);
  }
  void operator()(const FileSystemStats& o) {
    fields("Stats", o.blocks, o.blocks_free, o.blocks_available, o.files, o.files_free,
           o.block_size, o.name_max, o.fragment_size);
  }
  void operator()(const Text& o) { fields("Text", o.bytes); }
  void operator()(const Offset& o) { fields("Offset", o.value); }
  void operator()(const LockState& o) {
    fields("LockState", o.free, int(o.type), o.start, o.end, o.pid);
  }

 private:
  template <typename T>
  void field(const T& value) {
    out_ << value << ' ';
  }
  void field(const FileId& id) { fields("", id.export_index, id.generation, id.inode); }
  void field(const PageRange& r) { fields("", r.first, r.end); }
  void field(const Timestamp& t) { fields("", t.seconds, t.nanoseconds); }
  void field(const DirtyAttributes& a) { fields("", a.has_size, a.has_mtime, a.size, a.mtime); }
  void field(const Attributes& a) {
    fields("", a.inode, a.size, a.blocks, a.atime, a.mtime, a.ctime, a.mode, a.nlink, a.uid, a.gid,
           a.rdev, a.block_size);
  }
  void field(const Bytes& b) {
    out_ << b.size() << ':' << std::string_view(reinterpret_cast<const char*>(b.data()), b.size())
         << ' ';
  }

  std::ostringstream out_;
};

template <typename Message>
std::string describe_any(const Message& message) {
  Printer printer;
  std::visit(printer, message);
  return printer.text();
}

}  // namespace

std::string describe(const ToHome& message) { return describe_any(message); }
std::string describe(const ToAgent& message) { return describe_any(message); }

std::vector<ToHome> sample_to_home() {
  std::vector<ToHome> all{LeaseRequest{.file = kFile,
                                       .request = 1,
                                       .resource = Resource::Data,
                                       .mode = LeaseMode::Exclusive,
                                       .range = PageRange::all(),
                                       .want_data = true},
                          LeaseRequest{.file = kFile,
                                       .request = 2,
                                       .resource = Resource::Attributes,
                                       .mode = LeaseMode::Update,
                                       .range = kUnit},
                          RecallAck{.file = kFile,
                                    .recall = 3,
                                    .given = {4, 9},
                                    .seen = 5,
                                    .attributes = dirty(),
                                    .in_use = true,
                                    .watches = true,
                                    .busy = true},
                          Flush{.file = kFile,
                                .flush = 6,
                                .extents = {{0, pattern(4096, 1)},
                                            {5000, pattern(1, 2)},
                                            {9000, {}},
                                            {9999, pattern(7, 3)}},
                                .attributes = dirty()},
                          Flush{.file = kFile, .flush = 7, .extents = {}, .attributes = {}},
                          Fetch{.file = kFile, .fetch = 8, .range = {7, 7}},
                          Release{.file = kFile, .seen = 9, .leases = false},
                          Announce{.file = kFile, .announcement = 10, .size = uint64_t{1} << 40},
                          SizeShown{.file = kFile, .show = 11},
                          FollowWait{.file = kFile, .call = 12, .trail = trail(0)},
                          FollowWait{.file = kFile, .call = 13, .trail = trail(kTrailMax)}};
  uint64_t id = 100;
  for (Operation& operation : operations()) {
    Caller caller{.uid = 1000, .gid = 100, .groups = {}};
    if (id % 2 == 0) caller.groups = {1, 2, ~uint32_t{0}};
    all.push_back(Call{.call = id,
                       .caller = caller,
                       .operation = std::move(operation),
                       .heard_below = id % 3 == 0 ? 0 : id - id % 3 + 1});
    ++id;
  }
  return all;
}

std::vector<ToAgent> sample_to_agent() {
  DirectoryPage page{.entries = {{.name = ".", .cookie = 1, .file = kDir, .type = 4},
                                 {.name = "..", .cookie = 2, .file = kDir, .type = 4},
                                 {.name = std::string(255, 'n'),
                                  .cookie = ~uint64_t{0},
                                  .file = kFile,
                                  .type = 8}},
                     .end = true};
  Attributes born = attributes();
  born.has_btime = true;
  born.btime = {80, 81};
  Grant refused;
  refused.file = kFile;
  refused.request = 4;
  refused.error = ESTALE;
  FileSystemStats stats{.blocks = 1,
                        .blocks_free = 2,
                        .blocks_available = 3,
                        .files = 4,
                        .files_free = 5,
                        .block_size = 6,
                        .name_max = 7,
                        .fragment_size = 8};
  return {Grant{.file = kFile,
                .request = 1,
                .sequence = 2,
                .resource = Resource::Data,
                .mode = LeaseMode::Shared,
                .range = {0, 3},
                .error = 0,
                .size_floor = 12288,
                .attributes = {},
                .data_offset = 4096,
                .data = pattern(8192, 9)},
          Grant{.file = kFile,
                .request = 0,
                .sequence = 3,
                .resource = Resource::Attributes,
                .mode = LeaseMode::Exclusive,
                .range = kUnit,
                .error = 0,
                .size_floor = 0,
                .attributes = born,
                .watched = true,
                .unsynced = true,
                .data_offset = 0,
                .data = {}},
          refused,
          Recall{.file = kFile,
                 .recall = 5,
                 .resource = Resource::Data,
                 .to = LeaseMode::Shared,
                 .range = {2, 8}},
          Recall{.file = kDir,
                 .recall = 6,
                 .resource = Resource::Entries,
                 .to = LeaseMode::None,
                 .range = kUnit},
          ShowSize{.file = kFile, .show = 7, .size = 8193},
          Announced{.file = kFile, .announcement = 8, .watched = true},
          FollowOwner{.file = kFile, .owner = ~uint64_t{0}, .trail = trail(2)},
          FlushAck{.file = kFile, .flush = 6, .error = ENOSPC, .blocks = 24},
          FetchReply{
              .file = kFile, .fetch = 7, .error = 0, .data_offset = 100, .data = pattern(100, 4)},
          FetchReply{.file = kFile, .fetch = 8, .error = EIO, .data_offset = 0, .data = {}},
          Reply{.call = 9, .error = ENOENT, .outcome = {}},
          Reply{.call = 10, .error = 0, .outcome = Node{kFile, attributes(), 4711}},
          Reply{.call = 11, .error = 0, .outcome = page},
          Reply{.call = 12, .error = 0, .outcome = DirectoryPage{}},
          Reply{.call = 13, .error = 0, .outcome = stats},
          Reply{.call = 14, .error = 0, .outcome = Text{pattern(1000, 6)}},
          Reply{.call = 15, .error = 0, .outcome = Text{}},
          Reply{.call = 16, .error = 0, .outcome = Offset{~uint64_t{0}}},
          Reply{.call = 17,
                .error = 0,
                .outcome = LockState{
                    .free = false, .type = LockType::Write, .start = 1, .end = 2, .pid = 3}}};
}

}  // namespace vremote::wire
