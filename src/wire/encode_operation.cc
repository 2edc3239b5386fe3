#include "wire/operation_codec.h"

namespace vremote::wire {
namespace {

using namespace coherence;  // NOLINT: the calls, and nothing else, are meant

class OperationEncoder {
 public:
  OperationEncoder(flatbuffers::FlatBufferBuilder& builder, BulkWriter& bulk)
      : b_(builder), bulk_(bulk) {}

  Result<EncodedOperation> operator()(const LookupCall& c) {
    VR_TRY(name, name_of(c.name));
    auto dir = to_fb(c.dir);
    return done(fb::Operation::LookupCall, fb::CreateLookupCall(b_, &dir, name));
  }
  Result<EncodedOperation> operator()(const CreateCall& c) {
    VR_TRY(name, name_of(c.name));
    auto dir = to_fb(c.dir);
    return done(fb::Operation::CreateCall,
                fb::CreateCreateCall(b_, &dir, name, c.mode, c.rdev, c.exclusive));
  }
  Result<EncodedOperation> operator()(const SymlinkCall& c) {
    VR_TRY(name, name_of(c.name));
    if (!valid_link_target(c.target)) return refuse(c.target.size(), kLinkMax, "bad link target");
    auto target = b_.CreateString(c.target);
    auto dir = to_fb(c.dir);
    return done(fb::Operation::SymlinkCall, fb::CreateSymlinkCall(b_, &dir, name, target));
  }
  Result<EncodedOperation> operator()(const LinkCall& c) {
    VR_TRY(name, name_of(c.name));
    auto file = to_fb(c.file);
    auto dir = to_fb(c.dir);
    return done(fb::Operation::LinkCall, fb::CreateLinkCall(b_, &file, &dir, name));
  }
  Result<EncodedOperation> operator()(const RemoveCall& c) {
    VR_TRY(name, name_of(c.name));
    auto dir = to_fb(c.dir);
    return done(fb::Operation::RemoveCall, fb::CreateRemoveCall(b_, &dir, name, c.directory));
  }
  Result<EncodedOperation> operator()(const RenameCall& c) {
    VR_TRY(from, name_of(c.from));
    VR_TRY(to, name_of(c.to));
    auto from_dir = to_fb(c.from_dir);
    auto to_dir = to_fb(c.to_dir);
    return done(fb::Operation::RenameCall,
                fb::CreateRenameCall(b_, &from_dir, from, &to_dir, to, c.flags));
  }
  Result<EncodedOperation> operator()(const SetAttributesCall& c) {
    if (c.size > kOffsetMax || !valid_time(c.atime) || !valid_time(c.mtime))
      return fail(EINVAL, "bad attributes");
    auto file = to_fb(c.file);
    auto atime = to_fb(c.atime);
    auto mtime = to_fb(c.mtime);
    return done(fb::Operation::SetAttributesCall,
                fb::CreateSetAttributesCall(b_, &file, c.has_mode, c.has_uid, c.has_gid, c.has_size,
                                            c.has_atime, c.has_mtime, c.atime_now, c.mtime_now,
                                            c.clear_suid, c.mode, c.uid, c.gid, c.size, &atime,
                                            &mtime, c.must_own));
  }
  Result<EncodedOperation> operator()(const ReadLinkCall& c) {
    auto file = to_fb(c.file);
    return done(fb::Operation::ReadLinkCall, fb::CreateReadLinkCall(b_, &file));
  }
  Result<EncodedOperation> operator()(const ReadDirectoryCall& c) {
    auto dir = to_fb(c.dir);
    return done(fb::Operation::ReadDirectoryCall,
                fb::CreateReadDirectoryCall(b_, &dir, c.cookie, c.bytes_max, c.offer_attributes));
  }
  Result<EncodedOperation> operator()(const StatFsCall& c) {
    auto file = to_fb(c.file);
    return done(fb::Operation::StatFsCall, fb::CreateStatFsCall(b_, &file));
  }
  Result<EncodedOperation> operator()(const SyncCall& c) {
    auto file = to_fb(c.file);
    return done(fb::Operation::SyncCall, fb::CreateSyncCall(b_, &file, c.data_only));
  }
  Result<EncodedOperation> operator()(const GetXattrCall& c) {
    VR_TRY(name, xattr_of(c.name));
    auto file = to_fb(c.file);
    return done(fb::Operation::GetXattrCall, fb::CreateGetXattrCall(b_, &file, name));
  }
  Result<EncodedOperation> operator()(const ListXattrCall& c) {
    auto file = to_fb(c.file);
    return done(fb::Operation::ListXattrCall, fb::CreateListXattrCall(b_, &file));
  }
  Result<EncodedOperation> operator()(const SetXattrCall& c) {
    VR_TRY(name, xattr_of(c.name));
    if (c.value.size() > kXattrMax) return fail(EMSGSIZE, "extended attribute too long");
    auto value = bulk_.add(c.value);
    auto file = to_fb(c.file);
    return done(fb::Operation::SetXattrCall,
                fb::CreateSetXattrCall(b_, &file, name, &value, c.flags));
  }
  Result<EncodedOperation> operator()(const RemoveXattrCall& c) {
    VR_TRY(name, xattr_of(c.name));
    auto file = to_fb(c.file);
    return done(fb::Operation::RemoveXattrCall, fb::CreateRemoveXattrCall(b_, &file, name));
  }
  Result<EncodedOperation> operator()(const AllocateCall& c) {
    if (!valid_bytes(c.offset, c.length)) return fail(EINVAL, "bad range to allocate");
    auto file = to_fb(c.file);
    return done(fb::Operation::AllocateCall,
                fb::CreateAllocateCall(b_, &file, c.offset, c.length, c.mode));
  }
  Result<EncodedOperation> operator()(const SeekCall& c) {
    auto file = to_fb(c.file);
    return done(fb::Operation::SeekCall, fb::CreateSeekCall(b_, &file, c.offset, c.whence));
  }
  Result<EncodedOperation> operator()(const LeaveCall& c) {
    auto file = to_fb(c.file);
    return done(fb::Operation::LeaveCall, fb::CreateLeaveCall(b_, &file));
  }
  Result<EncodedOperation> operator()(const ReclaimCall& c) {
    if (!valid(c)) return fail(EINVAL, "bad pages to reclaim");
    auto file = to_fb(c.file);
    std::vector<fb::PageRange> pages;
    pages.reserve(c.pages.size());
    for (const PageRange& range : c.pages) pages.push_back(to_fb(range));
    const auto named = pages.empty() ? 0 : b_.CreateVectorOfStructs(pages);
    return done(fb::Operation::ReclaimCall, fb::CreateReclaimCall(b_, &file, c.done, named));
  }
  Result<EncodedOperation> operator()(const CopyCall& c) {
    if (!valid(c)) return fail(EINVAL, "bad range to copy");
    auto from = to_fb(c.from);
    auto file = to_fb(c.file);
    return done(fb::Operation::CopyCall,
                fb::CreateCopyCall(b_, &from, &file, c.from_offset, c.offset, c.length));
  }
  Result<EncodedOperation> operator()(const LockCall& c) {
    if (!valid(c)) return fail(EINVAL, "bad lock");
    auto file = to_fb(c.file);
    return done(
        fb::Operation::LockCall,
        fb::CreateLockCall(b_, &file, static_cast<uint8_t>(c.action), static_cast<uint8_t>(c.kind),
                           static_cast<uint8_t>(c.type), c.owner, c.start, c.end, c.pid,
                           c.waiting_call, c.holds_elsewhere));
  }

 private:
  using String = flatbuffers::Offset<flatbuffers::String>;

  static std::unexpected<Error> refuse(size_t size, size_t max, const char* what) {
    return fail(size > max ? EMSGSIZE : EINVAL, what);
  }
  Result<String> name_of(const std::string& name) {
    if (!valid_name(name)) return refuse(name.size(), kNameMax, "bad name");
    return b_.CreateString(name);
  }
  Result<String> xattr_of(const std::string& name) {
    if (!valid_xattr_name(name))
      return refuse(name.size(), kNameMax, "bad name of an extended attribute");
    return b_.CreateString(name);
  }
  template <typename Table>
  static EncodedOperation done(fb::Operation type, flatbuffers::Offset<Table> table) {
    return {type, table.Union()};
  }

  flatbuffers::FlatBufferBuilder& b_;
  BulkWriter& bulk_;
};

}  // namespace

Result<EncodedOperation> encode_operation(const Operation& operation,
                                          flatbuffers::FlatBufferBuilder& builder,
                                          BulkWriter& bulk) {
  return std::visit(OperationEncoder(builder, bulk), operation);
}

}  // namespace vremote::wire
