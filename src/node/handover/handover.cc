#include "node/handover/handover.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>

#include "handover_generated.h"
#include "node/base/handle.h"
#include "wire/codec.h"
#include "wire/vector_alignment.h"

namespace vremote::node {

using namespace coherence;

namespace {

constexpr size_t kBytesMax = size_t{1} << 30;
constexpr size_t kEntriesMax = size_t{8} << 20;  // inodes and files
constexpr size_t kFramesBytesMax = size_t{512} << 20;
constexpr size_t kDescriptorsMax = 1 << 20;
constexpr size_t kNamesMax = 4096;  // bytes of one
constexpr size_t kHomesMax = 4096;
constexpr int kErrnoMax = 4095;  // the kernel's MAX_ERRNO

using Builder = flatbuffers::FlatBufferBuilder;

// ---- writing ----

class Writer {
 public:
  Result<std::vector<std::byte>> write(const Handover& h);

 private:
  template <typename T>
  using Offset = flatbuffers::Offset<T>;

  static fb::File file(FileId id) { return {id.inode, id.export_index, id.generation}; }
  Offset<fb::Frame> frame(const wire::Encoded& encoded, uint64_t request);
  Offset<fb::Frame> frame(const Result<wire::Encoded>& encoded, uint64_t request);
  Offset<fb::KeptFile> kept_file(const KeptFile& f);
  Offset<fb::Session> session(const net::KeptSession& s);
  Offset<fb::Home> home(const Handover::Home& h);
  Offset<fb::Mount> mount(const KeptMount& m);

  Builder builder_;
  size_t frame_bytes_ = 0;
  Status status_;
};

flatbuffers::Offset<fb::Frame> Writer::frame(const wire::Encoded& encoded, uint64_t request) {
  frame_bytes_ += encoded.size();
  if (frame_bytes_ > kFramesBytesMax) {
    status_ = fail(E2BIG, "more messages wait for other nodes than can be handed over");
    return fb::CreateFrame(builder_, builder_.CreateVector<uint8_t>({}), 0);
  }
  std::vector<uint8_t> bytes;
  bytes.reserve(encoded.size());
  const auto add = [&](const std::byte* data, size_t size) {
    const auto* first = reinterpret_cast<const uint8_t*>(data);
    bytes.insert(bytes.end(), first, first + size);
  };
  add(encoded.header.data(), encoded.header.size());
  for (const Bytes& piece : encoded.bulk) add(piece.data(), piece.size());
  return fb::CreateFrame(builder_, builder_.CreateVector(bytes), request);
}

flatbuffers::Offset<fb::Frame> Writer::frame(const Result<wire::Encoded>& encoded,
                                             uint64_t request) {
  if (encoded) return frame(*encoded, request);
  status_ = std::unexpected(encoded.error());
  return frame(wire::Encoded{}, request);
}

flatbuffers::Offset<fb::KeptFile> Writer::kept_file(const KeptFile& f) {
  std::vector<fb::Recall> recalls;
  for (const Recall& r : f.recalls)
    recalls.emplace_back(r.recall, r.range.first, r.range.end, static_cast<uint8_t>(r.resource),
                         static_cast<uint8_t>(r.to));
  std::vector<fb::Show> shows;
  for (const ShowSize& s : f.shows) shows.emplace_back(s.show, s.size);
  const auto recall_offset = recalls.empty() ? 0 : builder_.CreateVectorOfStructs(recalls);
  const auto show_offset = shows.empty() ? 0 : builder_.CreateVectorOfStructs(shows);
  const FileErrors::Kept& e = f.errors;
  const auto heard_offset = e.heard.empty() ? 0 : builder_.CreateVector(e.heard);
  const fb::File id = file(f.file);
  fb::Access access;
  if (f.told_access) access = {f.told_access->mode, f.told_access->uid, f.told_access->gid};
  return fb::CreateKeptFile(builder_, &id, f.opens, f.reading_opens, f.mapping_opens, f.seen,
                            f.told_in_use, f.known_to_kernel, f.untold_time, e.error,
                            f.kernel_size_most, f.told_access ? &access : nullptr, recall_offset,
                            show_offset, f.unsynced, f.unsynced_since, e.at,
                            e.told_before.has_value(), e.told_before.value_or(0), heard_offset);
}

flatbuffers::Offset<fb::Session> Writer::session(const net::KeptSession& s) {
  std::vector<Offset<fb::Lane>> lanes;
  for (const net::KeptSession::Lane& lane : s.lanes) {
    std::vector<Offset<fb::Frame>> queue;
    for (const wire::Encoded& message : lane.queue) queue.push_back(frame(message, 0));
    lanes.push_back(
        fb::CreateLane(builder_, lane.received, lane.first, builder_.CreateVector(queue)));
  }
  return fb::CreateSession(builder_, s.epoch, s.welcomed, s.incarnation, s.session,
                           builder_.CreateVector(lanes));
}

flatbuffers::Offset<fb::Home> Writer::home(const Handover::Home& h) {
  std::vector<Offset<fb::KeptFile>> files;
  for (const KeptFile& f : h.kept.files) files.push_back(kept_file(f));
  std::vector<Offset<fb::Frame>> locks, calls;
  for (const LockCall& lock : h.kept.locks)
    locks.push_back(frame(wire::encode(ToHome(Call{.operation = lock})), 0));
  for (const KeptHome::Call& call : h.kept.calls)
    calls.push_back(frame(wire::encode(ToHome(call.call)), call.request));
  std::vector<fb::Sync> syncs;
  for (const KeptHome::Sync& s : h.kept.syncs) syncs.emplace_back(s.request, s.asked, s.begun);
  const auto sync_offset = syncs.empty() ? 0 : builder_.CreateVectorOfStructs(syncs);
  const auto exports =
      frame(wire::encode(wire::Welcome{.node_name = h.name, .exports = h.exports}), 0);
  const auto session_offset = h.session ? session(*h.session) : Offset<fb::Session>(0);
  return fb::CreateHome(builder_, builder_.CreateString(h.name), builder_.CreateVector(files),
                        h.kept.next_id, h.kept.next_call, builder_.CreateVector(locks),
                        builder_.CreateVector(calls), session_offset, exports,
                        h.bond.home_incarnation, h.bond.was_broken, h.bond.bringing_back,
                        h.bond.disk_life, sync_offset, h.kept.next_sync);
}

flatbuffers::Offset<fb::Mount> Writer::mount(const KeptMount& m) {
  std::vector<fb::Locked> locked;
  std::vector<uint64_t> locked_on;
  for (const KeptMount::Locked& l : m.locked) {
    locked.emplace_back(l.handle, l.owner, static_cast<uint8_t>(l.kind));
    locked_on.push_back(l.node);
  }
  std::vector<fb::Lost> lost;
  for (const KeptMount::Lost& l : m.lost)
    lost.emplace_back(l.handle, l.node, l.owner, static_cast<uint8_t>(l.kind));
  const std::vector<int32_t> channels(m.channels.begin(), m.channels.end());
  const fuse::Capabilities& c = m.capabilities;
  return fb::CreateMount(
      builder_, m.connection, c.minor, c.max_pages, c.max_write, c.max_read_ahead,
      c.direct_io_allow_mmap, c.resend, c.expire_only, c.inc_epoch, c.handle_killpriv_v2,
      c.abort_error, builder_.CreateVector(channels), m.guardians_channel, m.next_handle,
      m.next_directory, builder_.CreateVectorOfStructs(locked),
      builder_.CreateVector(m.locked_nodes), builder_.CreateVector(m.directories), m.generation,
      builder_.CreateVectorOfStructs(lost), builder_.CreateVector(locked_on));
}

Result<std::vector<std::byte>> Writer::write(const Handover& h) {
  size_t entries = h.inodes.size();
  for (const Handover::Home& one : h.homes) entries += one.kept.files.size();
  if (entries > kEntriesMax) return fail(E2BIG, "more files than can be handed over");
  std::vector<Offset<fb::Home>> homes;
  for (const Handover::Home& one : h.homes) homes.push_back(home(one));
  if (!status_) return std::unexpected(status_.error());
  std::vector<fb::Inode> inodes;
  inodes.reserve(h.inodes.size());
  for (const Handover::Inode& i : h.inodes)
    inodes.emplace_back(file(i.file), i.node, i.lookups, i.home);
  std::vector<fb::Held> held;
  for (const Handover::Held& f : h.held) held.emplace_back(file(f.file), f.descriptor, f.pinned);
  const auto mount_offset = mount(h.mount);
  const auto guardian = h.guardian ? fb::CreateGuardian(builder_, h.guardian->link,
                                                        h.guardian->table, h.guardian->pid)
                                   : Offset<fb::Guardian>(0);
  const auto inodes_offset = builder_.CreateVectorOfStructs(inodes);
  const auto homes_offset = builder_.CreateVector(homes);
  const auto held_offset = builder_.CreateVectorOfStructs(held);
  const auto node = builder_.CreateString(h.node), cluster = builder_.CreateString(h.cluster),
             path = builder_.CreateString(h.mount_path);
  builder_.Finish(fb::CreateHandover(builder_, kHandoverVersion, node, cluster, path, h.incarnation,
                                     h.upgrades, h.began_ns, mount_offset, h.next_node,
                                     inodes_offset, homes_offset, guardian, held_offset));
  const auto* first = reinterpret_cast<const std::byte*>(builder_.GetBufferPointer());
  return std::vector<std::byte>(first, first + builder_.GetSize());
}

// ---- reading ----

std::unexpected<Error> malformed(const char* what) {
  return fail(EPROTO, fmt::format("what the daemon before has left is damaged: {}", what));
}

FileId id_of(const fb::File& f) {
  return {.export_index = f.export_index(), .generation = f.generation(), .inode = f.inode()};
}

// A vector that is missing is empty.
template <typename Vector, typename Function>
Status each(const Vector* vector, Function function) {
  if (vector == nullptr) return {};
  if (!wire::is_aligned(vector)) return malformed("a list");
  for (const auto* element : *vector) VR_TRY_VOID(function(element));
  return {};
}

struct Framed {
  wire::Preamble preamble;
  std::span<const std::byte> header;
  Bytes bulk;
};
Result<Framed> framed(const fb::Frame& frame) {
  const auto bytes = std::as_bytes(std::span(frame.bytes()->data(), frame.bytes()->size()));
  if (bytes.size() < wire::kPreambleSize) return malformed("a message is too short");
  VR_TRY(preamble, wire::decode_preamble(bytes.first<wire::kPreambleSize>()));
  if (bytes.size() != wire::kPreambleSize + size_t{preamble.header_length} + preamble.bulk_length)
    return malformed("a message has another length than it says");
  return Framed{preamble, bytes.subspan(wire::kPreambleSize, preamble.header_length),
                Bytes::copy_of(bytes.last(preamble.bulk_length))};
}

Result<Call> call_of(const fb::Frame& frame) {
  VR_TRY(parts, framed(frame));
  VR_TRY(message, wire::decode_to_home(parts.preamble.type, parts.header, parts.bulk));
  auto* call = std::get_if<Call>(&message);
  if (call == nullptr) return malformed("a message is no call");
  return std::move(*call);
}

Result<wire::Encoded> encoded_of(const fb::Frame& frame) {
  VR_TRY(parts, framed(frame));
  // It was checked before it was queued; checked again, nothing else is sent than what is known.
  VR_TRY(message, wire::decode_to_home(parts.preamble.type, parts.header, parts.bulk));
  return wire::encode(message);
}

Result<KeptFile> file_of(const fb::KeptFile& f) {
  KeptFile out{
      .file = id_of(*f.file()),
      .opens = f.opens(),
      .reading_opens = f.reading_opens(),
      .mapping_opens = f.mapping_opens(),
      .seen = f.seen(),
      .told_in_use = f.told_in_use(),
      .known_to_kernel = f.known_to_kernel(),
      .untold_time = f.untold_time(),
      .errors = {.error = f.write_error(), .at = f.error_at(), .told_before = {}, .heard = {}},
      .unsynced = f.unsynced(),
      .unsynced_since = f.unsynced_since(),
      .kernel_size_most = f.kernel_size_most(),
      .told_access = {},
      .recalls = {},
      .shows = {}};
  if (out.mapping_opens > out.reading_opens || out.reading_opens > out.opens)
    return malformed("handles of a file");
  if (out.errors.error < 0 || out.errors.error > kErrnoMax) return malformed("an error");
  if (f.error_told()) out.errors.told_before = f.error_told_before();
  if (f.error_heard() != nullptr)
    out.errors.heard.assign(f.error_heard()->begin(), f.error_heard()->end());
  if (const fb::Access* a = f.told_access())
    out.told_access = Access{a->mode(), a->uid(), a->gid()};
  VR_TRY_VOID(each(f.recalls(), [&](const fb::Recall* r) -> Status {
    if (r->first() >= r->end() || r->end() > kPageEnd ||
        r->resource() > static_cast<uint8_t>(Resource::Data) ||
        r->to() > static_cast<uint8_t>(LeaseMode::Shared) || r->recall() == 0)
      return malformed("a recall");
    out.recalls.push_back({out.file,
                           r->recall(),
                           static_cast<Resource>(r->resource()),
                           static_cast<LeaseMode>(r->to()),
                           {r->first(), r->end()}});
    return {};
  }));
  VR_TRY_VOID(each(f.shows(), [&](const fb::Show* s) -> Status {
    out.shows.push_back({out.file, s->show(), s->size()});
    return {};
  }));
  return out;
}

Result<net::KeptSession> session_of(const fb::Session& s) {
  net::KeptSession out{.epoch = s.epoch(),
                       .welcomed = s.welcomed(),
                       .incarnation = s.incarnation(),
                       .session = s.session(),
                       .lanes = {}};
  VR_TRY_VOID(each(s.lanes(), [&](const fb::Lane* lane) -> Status {
    net::KeptSession::Lane& to = out.lanes.emplace_back();
    to.received = lane->received();
    to.first = lane->first();
    if (to.first == 0 || to.first > wire::kSequenceMax || to.received > wire::kSequenceMax)
      return malformed("numbers of messages");
    if (lane->queue() != nullptr && lane->queue()->size() > wire::kSequenceMax - to.first)
      return malformed("numbers of messages");
    return each(lane->queue(), [&](const fb::Frame* frame) -> Status {
      VR_TRY(message, encoded_of(*frame));
      to.queue.push_back(std::move(message));
      return {};
    });
  }));
  if (out.lanes.empty() || out.lanes.size() > wire::kLanesMax) return malformed("lanes");
  return out;
}

Result<Handover::Home> home_of(const fb::Home& h) {
  Handover::Home out;
  out.name = h.name()->str();
  if (out.name.empty() || out.name.size() > kNamesMax) return malformed("a name");
  out.kept.next_id = h.next_id();
  out.kept.next_call = h.next_call();
  out.bond = {h.incarnation(), h.was_broken(), h.bringing_back(), h.disk_life()};
  VR_TRY_VOID(each(h.files(), [&](const fb::KeptFile* f) -> Status {
    VR_TRY(kept, file_of(*f));
    out.kept.files.push_back(std::move(kept));
    return {};
  }));
  VR_TRY_VOID(each(h.locks(), [&](const fb::Frame* frame) -> Status {
    VR_TRY(call, call_of(*frame));
    const auto* lock = std::get_if<LockCall>(&call.operation);
    if (lock == nullptr) return malformed("a lock");
    out.kept.locks.push_back(*lock);
    return {};
  }));
  VR_TRY_VOID(each(h.calls(), [&](const fb::Frame* frame) -> Status {
    VR_TRY(call, call_of(*frame));
    out.kept.calls.push_back({std::move(call), frame->request()});
    return {};
  }));
  out.kept.next_sync = h.next_sync();
  for (const KeptFile& file : out.kept.files)
    if (file.errors.at > out.kept.next_sync || file.unsynced_since > out.kept.next_sync)
      return malformed("a loss");
  VR_TRY_VOID(each(h.syncs(), [&](const fb::Sync* s) -> Status {
    // Numbers that are still to come would have every loss told, or none.
    if (s->asked() >= out.kept.next_sync ||
        (s->begun() >= out.kept.next_sync && s->begun() != UINT64_MAX))
      return malformed("an fsync");
    out.kept.syncs.push_back({s->request(), s->asked(), s->begun()});
    return {};
  }));
  if (h.session() != nullptr) {
    VR_TRY(session, session_of(*h.session()));
    out.session = std::move(session);
  }
  if (h.exports() == nullptr) return malformed("a home without exports");
  VR_TRY(parts, framed(*h.exports()));
  VR_TRY(welcome, wire::decode_welcome(parts.header));
  if (welcome.node_name != out.name) return malformed("the exports of another home");
  out.exports = std::move(welcome.exports);
  return out;
}

Result<KeptMount> mount_of(const fb::Mount& m) {
  KeptMount out{.connection = m.connection(),
                .capabilities = {.minor = m.minor(),
                                 .max_pages = m.max_pages(),
                                 .max_write = m.max_write(),
                                 .max_read_ahead = m.max_read_ahead(),
                                 .direct_io_allow_mmap = m.direct_io_allow_mmap(),
                                 .resend = m.resend(),
                                 .expire_only = m.expire_only(),
                                 .inc_epoch = m.inc_epoch(),
                                 .handle_killpriv_v2 = m.handle_killpriv_v2(),
                                 .abort_error = m.abort_error()},
                .channels = {},
                .guardians_channel = m.guardians_channel(),
                .next_handle = m.next_handle(),
                .next_directory = m.next_directory(),
                .generation = m.generation(),
                .locked = {},
                .locked_nodes = {},
                .directories = {},
                .lost = {}};
  if (out.generation >= kGenerationsMax) return malformed("a generation");
  for (int32_t fd : *m.channels()) out.channels.push_back(fd);
  if (out.channels.empty() || out.channels.size() > 1024) return malformed("channels");
  VR_TRY_VOID(each(m.locked(), [&](const fb::Locked* l) -> Status {
    if (l->kind() > static_cast<uint8_t>(LockKind::Flock)) return malformed("a kind of lock");
    out.locked.push_back(
        {.handle = l->handle(), .kind = static_cast<LockKind>(l->kind()), .owner = l->owner()});
    return {};
  }));
  if (!wire::is_aligned(m.locked_on())) return malformed("a list");
  if (m.locked_on() != nullptr && m.locked_on()->size() == out.locked.size())
    for (size_t i = 0; i < out.locked.size(); ++i)
      out.locked[i].node = m.locked_on()->Get(static_cast<uint32_t>(i));
  VR_TRY_VOID(each(m.lost(), [&](const fb::Lost* l) -> Status {
    if (l->kind() > static_cast<uint8_t>(LockKind::Flock)) return malformed("a kind of lock");
    out.lost.push_back({l->handle(), l->node(), static_cast<LockKind>(l->kind()), l->owner()});
    return {};
  }));
  if (!wire::is_aligned(m.locked_nodes()) || !wire::is_aligned(m.directories()))
    return malformed("a list");
  if (m.locked_nodes() != nullptr)
    out.locked_nodes.assign(m.locked_nodes()->begin(), m.locked_nodes()->end());
  if (m.directories() != nullptr)
    out.directories.assign(m.directories()->begin(), m.directories()->end());
  return out;
}

Status check_descriptors(const Handover& h) {
  std::vector<int> all = h.descriptors();
  if (all.size() > kDescriptorsMax) return malformed("too many descriptors");
  std::set<int> seen;
  for (int fd : all)
    if (fd <= STDERR_FILENO || !seen.insert(fd).second) return malformed("a descriptor");
  return {};
}

}  // namespace

std::vector<int> Handover::descriptors() const {
  std::vector<int> all = mount.channels;
  if (mount.guardians_channel >= 0) all.push_back(mount.guardians_channel);
  if (guardian) all.insert(all.end(), {guardian->link, guardian->table});
  for (const Held& f : held) all.push_back(f.descriptor);
  return all;
}

Result<std::vector<std::byte>> encode(const Handover& handover) { return Writer().write(handover); }

Result<Handover> decode_handover(std::span<const std::byte> bytes) {
  if (bytes.size() > kBytesMax) return malformed("too long");
  std::vector<uint64_t> aligned((bytes.size() + 7) / 8);
  if (!bytes.empty()) std::memcpy(aligned.data(), bytes.data(), bytes.size());
  const auto* data = reinterpret_cast<const uint8_t*>(aligned.data());
  flatbuffers::Verifier verifier(data, bytes.size(), 8, kBytesMax / 16);
  if (bytes.size() < 8 || !verifier.VerifyBuffer<fb::Handover>(nullptr))
    return malformed("not a record");
  const fb::Handover& h = *flatbuffers::GetRoot<fb::Handover>(data);
  if (h.version() != kHandoverVersion)
    return fail(EPROTONOSUPPORT,
                fmt::format("the daemon before has left a record of version {}, this one reads {}",
                            h.version(), kHandoverVersion));
  Handover out;
  out.node = h.node()->str();
  out.cluster = h.cluster()->str();
  out.mount_path = h.mount_path()->str();
  if (out.node.size() > kNamesMax || out.cluster.size() > kNamesMax ||
      out.mount_path.size() > kNamesMax)
    return malformed("a name");
  out.incarnation = h.incarnation();
  out.upgrades = h.upgrades();
  out.began_ns = h.began_ns();
  out.next_node = h.next_node();
  VR_TRY(mount, mount_of(*h.mount()));
  out.mount = std::move(mount);
  if (h.homes() != nullptr && h.homes()->size() > kHomesMax) return malformed("too many homes");
  VR_TRY_VOID(each(h.homes(), [&](const fb::Home* one) -> Status {
    VR_TRY(home, home_of(*one));
    out.homes.push_back(std::move(home));
    return {};
  }));
  if (h.inodes() != nullptr && h.inodes()->size() > kEntriesMax) return malformed("inodes");
  VR_TRY_VOID(each(h.inodes(), [&](const fb::Inode* i) -> Status {
    if (i->home() >= out.homes.size()) return malformed("an inode of no home");
    out.inodes.push_back({i->node(), i->lookups(), i->home(), id_of(i->file())});
    return {};
  }));
  if (h.guardian() != nullptr)
    out.guardian = Handover::Guardian{h.guardian()->link(), h.guardian()->table_descriptor(),
                                      h.guardian()->pid()};
  VR_TRY_VOID(each(h.held(), [&](const fb::Held* f) -> Status {
    out.held.push_back({id_of(f->file()), f->descriptor(), f->pinned()});
    return {};
  }));
  VR_TRY_VOID(check_descriptors(out));
  return out;
}

Result<Fd> write_handover(std::span<const std::byte> bytes) {
  Fd fd(::memfd_create("vremote-handover", 0));  // stays open over exec(2)
  if (!fd.valid()) return fail(errno, fmt::format("memfd: {}", std::strerror(errno)));
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(errno, fmt::format("memfd: {}", std::strerror(errno)));
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return fd;
}

Result<Handover> read_handover(const Fd& memory) {
  struct stat st {};
  if (::fstat(memory.get(), &st) != 0 || st.st_size < 0)
    return fail(EBADF, "there is nothing of a daemon before");
  const auto size = static_cast<size_t>(st.st_size);
  if (size == 0 || size > kBytesMax) return malformed("its length");
  void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, memory.get(), 0);
  if (mapped == MAP_FAILED) return fail(errno, "what the daemon before has left cannot be read");
  auto handover = decode_handover({static_cast<const std::byte*>(mapped), size});
  ::munmap(mapped, size);
  return handover;
}

}  // namespace vremote::node
