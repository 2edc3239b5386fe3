#include "wire/codec.h"
#include "wire/operation_codec.h"

namespace vremote::wire {
namespace {

using namespace coherence;  // NOLINT: the messages, and nothing else, are meant
using flatbuffers::FlatBufferBuilder;

std::unexpected<Error> impossible(const char* what) { return fail(EINVAL, what); }

// One overload per message; each leaves a finished root table in `b`.
class Encoder {
 public:
  Result<Encoded> operator()(const LeaseRequest& m) {
    if (!valid(m.resource) || !valid(m.mode) || !valid_range(m.resource, m.range))
      return impossible("bad lease request");
    auto file = to_fb(m.file);
    auto range = to_fb(m.range);
    return done(FrameType::LeaseRequest,
                fb::CreateLeaseRequest(b, &file, m.request, static_cast<uint8_t>(m.resource),
                                       static_cast<uint8_t>(m.mode), &range, m.want_data));
  }
  Result<Encoded> operator()(const RecallAck& m) {
    if (!valid_range(m.given) || !valid(m.attributes)) return impossible("bad recall ack");
    auto file = to_fb(m.file);
    auto given = to_fb(m.given);
    auto attributes = to_fb(m.attributes);
    return done(FrameType::RecallAck,
                fb::CreateRecallAck(b, &file, m.recall, &given, m.seen, &attributes, m.in_use,
                                    m.busy, m.watches));
  }
  Result<Encoded> operator()(const Flush& m) {
    if (!valid(m.attributes)) return impossible("bad attributes in a flush");
    std::vector<fb::Extent> extents;
    extents.reserve(m.extents.size());
    for (const Extent& e : m.extents) {
      if (!valid_bytes(e.offset, e.bytes.size())) return impossible("bad extent in a flush");
      fb::Slice slice = bulk.add(e.bytes);
      extents.emplace_back(e.offset, slice.offset(), slice.length());
    }
    auto file = to_fb(m.file);
    auto attributes = to_fb(m.attributes);
    auto list = b.CreateVectorOfStructs(extents);
    return done(FrameType::Flush, fb::CreateFlush(b, &file, m.flush, list, &attributes));
  }
  Result<Encoded> operator()(const Fetch& m) {
    if (!valid_range(m.range)) return impossible("bad fetch");
    auto file = to_fb(m.file);
    auto range = to_fb(m.range);
    return done(FrameType::Fetch, fb::CreateFetch(b, &file, m.fetch, &range));
  }
  Result<Encoded> operator()(const Release& m) {
    auto file = to_fb(m.file);
    return done(FrameType::Release, fb::CreateRelease(b, &file, m.seen, m.leases));
  }
  Result<Encoded> operator()(const Announce& m) {
    if (m.size > kOffsetMax) return impossible("bad announcement");
    auto file = to_fb(m.file);
    return done(FrameType::Announce, fb::CreateAnnounce(b, &file, m.announcement, m.size));
  }
  Result<Encoded> operator()(const SizeShown& m) {
    auto file = to_fb(m.file);
    return done(FrameType::SizeShown, fb::CreateSizeShown(b, &file, m.show));
  }
  Result<Encoded> operator()(const FollowWait& m) {
    VR_TRY(trail, trail_of(m.trail));
    auto file = to_fb(m.file);
    return done(FrameType::FollowWait, fb::CreateFollowWait(b, &file, m.call, trail));
  }
  Result<Encoded> operator()(const Call& m) {
    if (m.caller.groups.size() > kGroupsMax) return fail(EMSGSIZE, "too many groups");
    if (m.heard_below > m.call) return impossible("a call that is not made again");
    VR_TRY(operation, encode_operation(m.operation, b, bulk));
    flatbuffers::Offset<flatbuffers::Vector<uint32_t>> groups;
    if (!m.caller.groups.empty()) groups = b.CreateVector(m.caller.groups);
    return done(FrameType::Call,
                fb::CreateCallFrame(b, m.call, m.caller.uid, m.caller.gid, groups, operation.type,
                                    operation.table, m.heard_below));
  }

  Result<Encoded> operator()(const Grant& m) {
    if (!valid(m)) return impossible("bad grant");
    auto file = to_fb(m.file);
    auto range = to_fb(m.range);
    auto attributes = to_fb(m.attributes);
    auto btime = to_fb(m.attributes.btime);
    auto data = bulk.add(m.data);
    return done(FrameType::Grant,
                fb::CreateGrant(b, &file, m.request, m.sequence, static_cast<uint8_t>(m.resource),
                                static_cast<uint8_t>(m.mode), &range, m.error, m.size_floor,
                                // 120 bytes that most data grants do not need
                                m.attributes == Attributes{} ? nullptr : &attributes, m.data_offset,
                                &data, m.has_xattrs, m.watched,
                                m.attributes.has_btime ? &btime : nullptr, m.unsynced));
  }
  Result<Encoded> operator()(const Recall& m) {
    if (!valid(m)) return impossible("bad recall");
    auto file = to_fb(m.file);
    auto range = to_fb(m.range);
    return done(FrameType::Recall,
                fb::CreateRecall(b, &file, m.recall, static_cast<uint8_t>(m.resource),
                                 static_cast<uint8_t>(m.to), &range));
  }
  Result<Encoded> operator()(const ShowSize& m) {
    if (m.size > kOffsetMax) return impossible("bad size to be shown");
    auto file = to_fb(m.file);
    return done(FrameType::ShowSize, fb::CreateShowSize(b, &file, m.show, m.size));
  }
  Result<Encoded> operator()(const Announced& m) {
    auto file = to_fb(m.file);
    return done(FrameType::Announced, fb::CreateAnnounced(b, &file, m.announcement, m.watched));
  }
  Result<Encoded> operator()(const FollowOwner& m) {
    VR_TRY(trail, trail_of(m.trail));
    auto file = to_fb(m.file);
    return done(FrameType::FollowOwner, fb::CreateFollowOwner(b, &file, m.owner, trail));
  }
  Result<Encoded> operator()(const FlushAck& m) {
    if (!valid_errno(m.error)) return impossible("bad flush ack");
    auto file = to_fb(m.file);
    return done(FrameType::FlushAck, fb::CreateFlushAck(b, &file, m.flush, m.error, m.blocks));
  }
  Result<Encoded> operator()(const FetchReply& m) {
    if (!valid_errno(m.error) || !valid_bytes(m.data_offset, m.data.size()))
      return impossible("bad fetch reply");
    auto file = to_fb(m.file);
    auto data = bulk.add(m.data);
    return done(FrameType::FetchReply,
                fb::CreateFetchReply(b, &file, m.fetch, m.error, m.data_offset, &data));
  }
  Result<Encoded> operator()(const Reply& m) {
    if (!valid_errno(m.error)) return impossible("bad reply");
    VR_TRY(outcome, std::visit([this](const auto& o) { return outcome_of(o); }, m.outcome));
    return done(FrameType::Reply, fb::CreateReply(b, m.call, m.error, outcome.type, outcome.table));
  }

 private:
  Result<flatbuffers::Offset<fb::Trail>> trail_of(const Trail& t) {
    if (!valid(t)) return impossible("bad trail");
    std::vector<fb::WaitName> waits;
    waits.reserve(t.waits.size());
    for (const WaitName& w : t.waits) waits.emplace_back(w.home, w.call, w.node);
    auto list = b.CreateVectorOfStructs(waits);
    return fb::CreateTrail(b, t.searcher, t.search, t.since, t.budget, list);
  }
  struct EncodedOutcome {
    fb::Outcome type = fb::Outcome::NONE;
    flatbuffers::Offset<void> table;
  };
  Result<EncodedOutcome> outcome_of(const std::monostate&) { return EncodedOutcome{}; }
  Result<EncodedOutcome> outcome_of(const Node& o) {
    if (!valid(o.attributes) || o.size_before > kOffsetMax)
      return impossible("bad attributes in a reply");
    auto file = to_fb(o.file);
    auto attributes = to_fb(o.attributes);
    return EncodedOutcome{fb::Outcome::Node,
                          fb::CreateNode(b, &file, &attributes, o.size_before).Union()};
  }
  Result<EncodedOutcome> outcome_of(const DirectoryPage& o) {
    std::vector<flatbuffers::Offset<fb::DirectoryEntry>> entries;
    entries.reserve(o.entries.size());
    for (const DirectoryEntry& e : o.entries) {
      if (!valid_entry_name(e.name)) return impossible("bad name in a directory page");
      // Bounds the work before the size is known: the frame would be refused anyway.
      if (b.GetSize() > kHeaderMax) return fail(EMSGSIZE, "directory page too long");
      auto name = b.CreateString(e.name);
      auto file = to_fb(e.file);
      entries.push_back(fb::CreateDirectoryEntry(b, name, e.cookie, &file, e.type));
    }
    auto list = b.CreateVector(entries);
    return EncodedOutcome{fb::Outcome::DirectoryPage,
                          fb::CreateDirectoryPage(b, list, o.end).Union()};
  }
  Result<EncodedOutcome> outcome_of(const FileSystemStats& o) {
    return EncodedOutcome{
        fb::Outcome::FileSystemStats,
        fb::CreateFileSystemStats(b, o.blocks, o.blocks_free, o.blocks_available, o.files,
                                  o.files_free, o.block_size, o.name_max, o.fragment_size)
            .Union()};
  }
  Result<EncodedOutcome> outcome_of(const Text& o) {
    auto slice = bulk.add(o.bytes);
    return EncodedOutcome{fb::Outcome::Text, fb::CreateText(b, &slice).Union()};
  }
  Result<EncodedOutcome> outcome_of(const Offset& o) {
    return EncodedOutcome{fb::Outcome::Offset, fb::CreateOffset(b, o.value).Union()};
  }
  Result<EncodedOutcome> outcome_of(const LockState& o) {
    return EncodedOutcome{
        fb::Outcome::LockState,
        fb::CreateLockState(b, o.free, static_cast<uint8_t>(o.type), o.start, o.end, o.pid)
            .Union()};
  }

  template <typename Table>
  Result<Encoded> done(FrameType type, flatbuffers::Offset<Table> root) {
    b.Finish(root);
    return finish(type, b, bulk);
  }

  FlatBufferBuilder b{512};
  BulkWriter bulk;
};

}  // namespace

Result<Encoded> encode(const ToHome& message) { return std::visit(Encoder(), message); }
Result<Encoded> encode(const ToAgent& message) { return std::visit(Encoder(), message); }

}  // namespace vremote::wire
