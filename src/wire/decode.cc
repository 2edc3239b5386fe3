#include "wire/codec.h"
#include "wire/operation_codec.h"
#include "wire/vector_alignment.h"

namespace vremote::wire {
namespace {

using namespace coherence;  // NOLINT: the messages, and nothing else, are meant

// The pointers marked (required) in the schema are never null here: the verifier has seen to it.

Result<LeaseRequest> decode(const fb::LeaseRequest& m) {
  LeaseRequest out{.file = from_fb(*m.file()),
                   .request = m.request(),
                   .resource = Resource{m.resource()},
                   .mode = LeaseMode{m.mode()},
                   .range = from_fb(*m.range()),
                   .want_data = m.want_data()};
  if (!valid(out.resource) || !valid(out.mode) || !valid_range(out.resource, out.range))
    return malformed("bad lease request");
  return out;
}

Result<RecallAck> decode(const fb::RecallAck& m) {
  RecallAck out{
      .file = from_fb(*m.file()),
      .recall = m.recall(),
      .given = from_fb(*m.given()),
      .seen = m.seen(),
      .attributes = m.attributes() == nullptr ? DirtyAttributes{} : from_fb(*m.attributes()),
      .in_use = m.in_use(),
      .watches = m.watches(),
      .busy = m.busy()};
  if (!valid_range(out.given) || !valid(out.attributes)) return malformed("bad recall ack");
  return out;
}

Result<Flush> decode(const fb::Flush& m, const Bytes& bulk) {
  Flush out;
  out.file = from_fb(*m.file());
  out.flush = m.flush();
  if (m.attributes() != nullptr) out.attributes = from_fb(*m.attributes());
  if (!valid(out.attributes)) return malformed("bad attributes in a flush");
  if (!is_aligned(m.extents())) return malformed("bad extents in a flush");
  if (m.extents() != nullptr) {
    out.extents.reserve(
        m.extents()->size());  // bounded by the header, which holds 16 bytes for each
    for (const fb::Extent* e : *m.extents()) {
      auto bytes = slice_of(bulk, e->offset(), e->length());
      if (!bytes || !valid_bytes(e->file_offset(), bytes->size()))
        return malformed("bad extent in a flush");
      out.extents.push_back({.offset = e->file_offset(), .bytes = std::move(*bytes)});
    }
  }
  return out;
}

Result<Fetch> decode(const fb::Fetch& m) {
  Fetch out{.file = from_fb(*m.file()), .fetch = m.fetch(), .range = from_fb(*m.range())};
  if (!valid_range(out.range)) return malformed("bad fetch");
  return out;
}

Result<Release> decode(const fb::Release& m) {
  return Release{.file = from_fb(*m.file()), .seen = m.seen(), .leases = m.leases()};
}

Result<Announce> decode(const fb::Announce& m) {
  if (m.size() > kOffsetMax) return malformed("bad announcement");
  return Announce{.file = from_fb(*m.file()), .announcement = m.announcement(), .size = m.size()};
}

Result<SizeShown> decode(const fb::SizeShown& m) {
  return SizeShown{.file = from_fb(*m.file()), .show = m.show()};
}

Result<Trail> decode(const fb::Trail& t) {
  Trail out{.searcher = t.searcher(),
            .search = t.search(),
            .since = t.since(),
            .budget = t.budget(),
            .waits = {}};
  if (!is_aligned(t.waits())) return malformed("bad trail");
  if (t.waits() != nullptr) {
    if (t.waits()->size() > kTrailMax) return malformed("trail too long");
    for (const fb::WaitName* w : *t.waits())
      out.waits.push_back({.home = w->home(), .node = w->node(), .call = w->call()});
  }
  if (!valid(out)) return malformed("bad trail");
  return out;
}

Result<FollowWait> decode(const fb::FollowWait& m) {
  VR_TRY(trail, decode(*m.trail()));
  return FollowWait{.file = from_fb(*m.file()), .call = m.call(), .trail = std::move(trail)};
}

Result<FollowOwner> decode(const fb::FollowOwner& m) {
  VR_TRY(trail, decode(*m.trail()));
  return FollowOwner{.file = from_fb(*m.file()), .owner = m.owner(), .trail = std::move(trail)};
}

Result<Call> decode(const fb::CallFrame& m, const Bytes& bulk) {
  Call out;
  out.call = m.call();
  out.heard_below = m.heard_below();
  if (out.heard_below > out.call) return malformed("a call that is not made again");
  out.caller.uid = m.uid();
  out.caller.gid = m.gid();
  if (m.groups() != nullptr) {
    if (m.groups()->size() > kGroupsMax) return malformed("too many groups");
    out.caller.groups.assign(m.groups()->begin(), m.groups()->end());
  }
  VR_TRY(operation, decode_operation(m, bulk));
  out.operation = std::move(operation);
  return out;
}

Result<Grant> decode(const fb::Grant& m, const Bytes& bulk) {
  auto data = slice_of(bulk, m.data());
  if (!data) return malformed("data of a grant outside the bulk");
  Grant out{.file = from_fb(*m.file()),
            .request = m.request(),
            .sequence = m.sequence(),
            .resource = Resource{m.resource()},
            .mode = LeaseMode{m.mode()},
            .range = from_fb(*m.range()),
            .error = m.error(),
            .size_floor = m.size_floor(),
            .attributes = m.attributes() == nullptr ? Attributes{} : from_fb(*m.attributes()),
            .has_xattrs = m.has_xattrs(),
            .watched = m.watched(),
            .unsynced = m.unsynced(),
            .data_offset = m.data_offset(),
            .data = std::move(*data)};
  if (m.btime() != nullptr) {
    out.attributes.has_btime = true;
    out.attributes.btime = from_fb(*m.btime());
  }
  if (!valid(out)) return malformed("bad grant");
  return out;
}

Result<Recall> decode(const fb::Recall& m) {
  Recall out{.file = from_fb(*m.file()),
             .recall = m.recall(),
             .resource = Resource{m.resource()},
             .to = LeaseMode{m.to()},
             .range = from_fb(*m.range())};
  if (!valid(out)) return malformed("bad recall");
  return out;
}

Result<ShowSize> decode(const fb::ShowSize& m) {
  if (m.size() > kOffsetMax) return malformed("bad size to be shown");
  return ShowSize{.file = from_fb(*m.file()), .show = m.show(), .size = m.size()};
}

Result<Announced> decode(const fb::Announced& m) {
  return Announced{
      .file = from_fb(*m.file()), .announcement = m.announcement(), .watched = m.watched()};
}

Result<FlushAck> decode(const fb::FlushAck& m) {
  if (!valid_errno(m.error())) return malformed("bad flush ack");
  return FlushAck{
      .file = from_fb(*m.file()), .flush = m.flush(), .error = m.error(), .blocks = m.blocks()};
}

Result<FetchReply> decode(const fb::FetchReply& m, const Bytes& bulk) {
  auto data = slice_of(bulk, m.data());
  if (!data || !valid_errno(m.error()) || !valid_bytes(m.data_offset(), data->size()))
    return malformed("bad fetch reply");
  return FetchReply{.file = from_fb(*m.file()),
                    .fetch = m.fetch(),
                    .error = m.error(),
                    .data_offset = m.data_offset(),
                    .data = std::move(*data)};
}

Result<DirectoryPage> decode(const fb::DirectoryPage& m) {
  DirectoryPage out;
  out.end = m.end();
  if (m.entries() == nullptr) return out;
  out.entries.reserve(m.entries()->size());  // bounded by the header, which holds 4 bytes for each
  for (const fb::DirectoryEntry* e : *m.entries()) {
    if (!valid_entry_name(view_of(e->name()))) return malformed("bad name in a directory page");
    out.entries.push_back({.name = e->name()->str(),
                           .cookie = e->cookie(),
                           .file = from_fb(*e->file()),
                           .type = e->type()});
  }
  return out;
}

Result<Outcome> decode_outcome(const fb::Reply& m, const Bytes& bulk) {
  switch (m.outcome_type()) {
    case fb::Outcome::NONE:
      return std::monostate{};
    // A union member may be missing although its type is given.
    case fb::Outcome::Node: {
      const fb::Node* o = m.outcome_as_Node();
      if (o == nullptr) break;
      Node node{.file = from_fb(*o->file()),
                .attributes = from_fb(*o->attributes()),
                .size_before = o->size_before()};
      if (!valid(node.attributes) || node.size_before > kOffsetMax)
        return malformed("bad attributes in a reply");
      return node;
    }
    case fb::Outcome::DirectoryPage: {
      const fb::DirectoryPage* o = m.outcome_as_DirectoryPage();
      if (o == nullptr) break;
      VR_TRY(page, decode(*o));
      return std::move(page);
    }
    case fb::Outcome::FileSystemStats: {
      const fb::FileSystemStats* o = m.outcome_as_FileSystemStats();
      if (o == nullptr) break;
      return FileSystemStats{.blocks = o->blocks(),
                             .blocks_free = o->blocks_free(),
                             .blocks_available = o->blocks_available(),
                             .files = o->files(),
                             .files_free = o->files_free(),
                             .block_size = o->block_size(),
                             .name_max = o->name_max(),
                             .fragment_size = o->fragment_size()};
    }
    case fb::Outcome::Text: {
      const fb::Text* o = m.outcome_as_Text();
      if (o == nullptr) break;
      auto bytes = slice_of(bulk, o->bytes());
      if (!bytes) return malformed("text of a reply outside the bulk");
      return Text{std::move(*bytes)};
    }
    case fb::Outcome::Offset: {
      const fb::Offset* o = m.outcome_as_Offset();
      if (o == nullptr) break;
      return Offset{o->value()};
    }
    case fb::Outcome::LockState: {
      const fb::LockState* o = m.outcome_as_LockState();
      if (o == nullptr) break;
      LockState out{.free = o->free(),
                    .type = static_cast<LockType>(o->type()),
                    .start = o->start(),
                    .end = o->end(),
                    .pid = o->pid()};
      if (out.type > LockType::Unlock || out.start > out.end || out.end > kOffsetMax)
        return malformed("bad lock in a reply");
      return out;
    }
  }
  return malformed("unknown outcome");
}

Result<Reply> decode(const fb::Reply& m, const Bytes& bulk) {
  if (!valid_errno(m.error())) return malformed("bad reply");
  VR_TRY(outcome, decode_outcome(m, bulk));
  return Reply{.call = m.call(), .error = m.error(), .outcome = std::move(outcome)};
}

// Verifies the root and decodes it; Out is the variant that the message becomes.
template <typename Out, typename Table, typename... Bulk>
Result<Out> decode_as(std::span<const std::byte> header, const Bulk&... bulk) {
  Root<Table> root(header);
  if (!root) return malformed("malformed header");
  VR_TRY(message, decode(*root, bulk...));
  return Out(std::move(message));
}

}  // namespace

Result<ToHome> decode_to_home(FrameType type, std::span<const std::byte> header,
                              const Bytes& bulk) {
  if (bulk.size() > kBulkMax) return malformed("bulk too long");
  switch (type) {
    case FrameType::LeaseRequest:
      return decode_as<ToHome, fb::LeaseRequest>(header);
    case FrameType::RecallAck:
      return decode_as<ToHome, fb::RecallAck>(header);
    case FrameType::Flush:
      return decode_as<ToHome, fb::Flush>(header, bulk);
    case FrameType::Fetch:
      return decode_as<ToHome, fb::Fetch>(header);
    case FrameType::Release:
      return decode_as<ToHome, fb::Release>(header);
    case FrameType::Call:
      return decode_as<ToHome, fb::CallFrame>(header, bulk);
    case FrameType::Announce:
      return decode_as<ToHome, fb::Announce>(header);
    case FrameType::SizeShown:
      return decode_as<ToHome, fb::SizeShown>(header);
    case FrameType::FollowWait:
      return decode_as<ToHome, fb::FollowWait>(header);
    default:
      return malformed("not a message to a home");  // every other type, known or not
  }
}

Result<ToAgent> decode_to_agent(FrameType type, std::span<const std::byte> header,
                                const Bytes& bulk) {
  if (bulk.size() > kBulkMax) return malformed("bulk too long");
  switch (type) {
    case FrameType::Grant:
      return decode_as<ToAgent, fb::Grant>(header, bulk);
    case FrameType::Recall:
      return decode_as<ToAgent, fb::Recall>(header);
    case FrameType::FlushAck:
      return decode_as<ToAgent, fb::FlushAck>(header);
    case FrameType::FetchReply:
      return decode_as<ToAgent, fb::FetchReply>(header, bulk);
    case FrameType::Reply:
      return decode_as<ToAgent, fb::Reply>(header, bulk);
    case FrameType::ShowSize:
      return decode_as<ToAgent, fb::ShowSize>(header);
    case FrameType::Announced:
      return decode_as<ToAgent, fb::Announced>(header);
    case FrameType::FollowOwner:
      return decode_as<ToAgent, fb::FollowOwner>(header);
    default:
      return malformed("not a message to an agent");  // every other type, known or not
  }
}

}  // namespace vremote::wire
