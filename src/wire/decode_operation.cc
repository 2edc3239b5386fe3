#include "wire/operation_codec.h"
#include "wire/vector_alignment.h"

namespace vremote::wire {
namespace {

using namespace coherence;  // NOLINT: the calls, and nothing else, are meant

// The pointers marked (required) in the schema are never null here: the verifier has seen to it.

Result<std::string> name_from(const flatbuffers::String* name) {
  if (!valid_name(view_of(name))) return malformed("bad name");
  return name->str();
}
Result<std::string> xattr_from(const flatbuffers::String* name) {
  if (!valid_xattr_name(view_of(name))) return malformed("bad name of an extended attribute");
  return name->str();
}

Result<Operation> decode(const fb::LookupCall& c) {
  VR_TRY(name, name_from(c.name()));
  return LookupCall{from_fb(*c.dir()), std::move(name)};
}
Result<Operation> decode(const fb::CreateCall& c) {
  VR_TRY(name, name_from(c.name()));
  return CreateCall{from_fb(*c.dir()), std::move(name), c.mode(), c.rdev(), c.exclusive()};
}
Result<Operation> decode(const fb::SymlinkCall& c) {
  VR_TRY(name, name_from(c.name()));
  if (!valid_link_target(view_of(c.target()))) return malformed("bad link target");
  return SymlinkCall{from_fb(*c.dir()), std::move(name), c.target()->str()};
}
Result<Operation> decode(const fb::LinkCall& c) {
  VR_TRY(name, name_from(c.name()));
  return LinkCall{from_fb(*c.file()), from_fb(*c.dir()), std::move(name)};
}
Result<Operation> decode(const fb::RemoveCall& c) {
  VR_TRY(name, name_from(c.name()));
  return RemoveCall{from_fb(*c.dir()), std::move(name), c.directory()};
}
Result<Operation> decode(const fb::RenameCall& c) {
  VR_TRY(from, name_from(c.from()));
  VR_TRY(to, name_from(c.to()));
  return RenameCall{from_fb(*c.from_dir()), std::move(from), from_fb(*c.to_dir()), std::move(to),
                    c.flags()};
}
Result<Operation> decode(const fb::SetAttributesCall& c) {
  SetAttributesCall call;
  call.file = from_fb(*c.file());
  call.has_mode = c.has_mode();
  call.has_uid = c.has_uid();
  call.has_gid = c.has_gid();
  call.has_size = c.has_size();
  call.has_atime = c.has_atime();
  call.has_mtime = c.has_mtime();
  call.atime_now = c.atime_now();
  call.mtime_now = c.mtime_now();
  call.clear_suid = c.clear_suid();
  call.must_own = c.must_own();
  call.mode = c.mode();
  call.uid = c.uid();
  call.gid = c.gid();
  call.size = c.size();
  if (c.atime() != nullptr) call.atime = from_fb(*c.atime());
  if (c.mtime() != nullptr) call.mtime = from_fb(*c.mtime());
  if (call.size > kOffsetMax || !valid_time(call.atime) || !valid_time(call.mtime))
    return malformed("bad attributes");
  return call;
}
Result<Operation> decode(const fb::ReadLinkCall& c) { return ReadLinkCall{from_fb(*c.file())}; }
Result<Operation> decode(const fb::ReadDirectoryCall& c) {
  return ReadDirectoryCall{from_fb(*c.dir()), c.cookie(), c.bytes_max(), c.offer_attributes()};
}
Result<Operation> decode(const fb::StatFsCall& c) { return StatFsCall{from_fb(*c.file())}; }
Result<Operation> decode(const fb::SyncCall& c) {
  return SyncCall{from_fb(*c.file()), c.data_only()};
}
Result<Operation> decode(const fb::GetXattrCall& c) {
  VR_TRY(name, xattr_from(c.name()));
  return GetXattrCall{from_fb(*c.file()), std::move(name)};
}
Result<Operation> decode(const fb::ListXattrCall& c) { return ListXattrCall{from_fb(*c.file())}; }
Result<Operation> decode(const fb::SetXattrCall& c, const Bytes& bulk) {
  VR_TRY(name, xattr_from(c.name()));
  auto value = slice_of(bulk, c.value());
  if (!value || value->size() > kXattrMax) return malformed("bad value of an extended attribute");
  return SetXattrCall{from_fb(*c.file()), std::move(name), std::move(*value), c.flags()};
}
Result<Operation> decode(const fb::RemoveXattrCall& c) {
  VR_TRY(name, xattr_from(c.name()));
  return RemoveXattrCall{from_fb(*c.file()), std::move(name)};
}
Result<Operation> decode(const fb::AllocateCall& c) {
  if (!valid_bytes(c.offset(), c.length())) return malformed("bad range to allocate");
  return AllocateCall{from_fb(*c.file()), c.offset(), c.length(), c.mode()};
}
Result<Operation> decode(const fb::SeekCall& c) {
  return SeekCall{from_fb(*c.file()), c.offset(), c.whence()};
}
Result<Operation> decode(const fb::LeaveCall& c) { return LeaveCall{from_fb(*c.file())}; }
Result<Operation> decode(const fb::ReclaimCall& c) {
  ReclaimCall out{from_fb(*c.file()), c.done(), {}};
  if (!is_aligned(c.pages())) return malformed("bad pages to reclaim");
  if (c.pages() != nullptr)
    for (const fb::PageRange* range : *c.pages()) {
      if (out.pages.size() == kReclaimedRangesMax) return malformed("too many pages to reclaim");
      out.pages.push_back(from_fb(*range));
    }
  if (!valid(out)) return malformed("bad pages to reclaim");
  return out;
}
Result<Operation> decode(const fb::CopyCall& c) {
  CopyCall out{.from = from_fb(*c.from()),
               .file = from_fb(*c.file()),
               .from_offset = c.from_offset(),
               .offset = c.offset(),
               .length = c.length()};
  if (!valid(out)) return malformed("bad range to copy");
  return out;
}
Result<Operation> decode(const fb::LockCall& c) {
  LockCall out{.file = from_fb(*c.file()),
               .action = static_cast<LockAction>(c.action()),
               .kind = static_cast<LockKind>(c.kind()),
               .type = static_cast<LockType>(c.type()),
               .owner = c.owner(),
               .start = c.start(),
               .end = c.end(),
               .pid = c.pid(),
               .waiting_call = c.waiting_call(),
               .holds_elsewhere = c.holds_elsewhere()};
  if (!valid(out)) return malformed("bad lock");
  return out;
}

}  // namespace

Result<Operation> decode_operation(const fb::CallFrame& call, const Bytes& bulk) {
  switch (call.operation_type()) {
    case fb::Operation::LookupCall:
      return decode(*call.operation_as_LookupCall());
    case fb::Operation::CreateCall:
      return decode(*call.operation_as_CreateCall());
    case fb::Operation::SymlinkCall:
      return decode(*call.operation_as_SymlinkCall());
    case fb::Operation::LinkCall:
      return decode(*call.operation_as_LinkCall());
    case fb::Operation::RemoveCall:
      return decode(*call.operation_as_RemoveCall());
    case fb::Operation::RenameCall:
      return decode(*call.operation_as_RenameCall());
    case fb::Operation::SetAttributesCall:
      return decode(*call.operation_as_SetAttributesCall());
    case fb::Operation::ReadLinkCall:
      return decode(*call.operation_as_ReadLinkCall());
    case fb::Operation::ReadDirectoryCall:
      return decode(*call.operation_as_ReadDirectoryCall());
    case fb::Operation::StatFsCall:
      return decode(*call.operation_as_StatFsCall());
    case fb::Operation::SyncCall:
      return decode(*call.operation_as_SyncCall());
    case fb::Operation::GetXattrCall:
      return decode(*call.operation_as_GetXattrCall());
    case fb::Operation::ListXattrCall:
      return decode(*call.operation_as_ListXattrCall());
    case fb::Operation::SetXattrCall:
      return decode(*call.operation_as_SetXattrCall(), bulk);
    case fb::Operation::RemoveXattrCall:
      return decode(*call.operation_as_RemoveXattrCall());
    case fb::Operation::AllocateCall:
      return decode(*call.operation_as_AllocateCall());
    case fb::Operation::CopyCall:
      return decode(*call.operation_as_CopyCall());
    case fb::Operation::ReclaimCall:
      return decode(*call.operation_as_ReclaimCall());
    case fb::Operation::SeekCall:
      return decode(*call.operation_as_SeekCall());
    case fb::Operation::LeaveCall:
      return decode(*call.operation_as_LeaveCall());
    case fb::Operation::LockCall:
      return decode(*call.operation_as_LockCall());
    case fb::Operation::NONE:
      break;
  }
  // The verifier lets unknown members of a union pass, for the sake of newer senders; we speak one
  // version.
  return malformed("unknown operation");
}

}  // namespace vremote::wire
