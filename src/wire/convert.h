// Between the schema's structs and our values. Internal to this folder: the only place, with the
// codec, that sees FlatBuffers.
#pragma once

#include <optional>
#include <string_view>

#include "wire/bounds.h"
#include "wire/frame.h"
#include "wire_generated.h"

namespace vremote::wire {

inline fb::FileId to_fb(const FileId& id) { return {id.inode, id.export_index, id.generation}; }
inline fb::PageRange to_fb(const PageRange& r) { return {r.first, r.end}; }
inline fb::Timestamp to_fb(const Timestamp& t) { return {t.seconds, t.nanoseconds}; }
inline fb::DirtyAttributes to_fb(const coherence::DirtyAttributes& a) {
  return {a.size, to_fb(a.mtime), a.has_size, a.has_mtime};
}
inline fb::Attributes to_fb(const Attributes& a) {
  return {a.inode, a.size,  a.blocks, to_fb(a.atime), to_fb(a.mtime), to_fb(a.ctime),
          a.mode,  a.nlink, a.uid,    a.gid,          a.rdev,         a.block_size};
}

inline FileId from_fb(const fb::FileId& id) {
  return {.export_index = id.export_index(), .generation = id.generation(), .inode = id.inode()};
}
inline PageRange from_fb(const fb::PageRange& r) { return {r.first(), r.end()}; }
inline Timestamp from_fb(const fb::Timestamp& t) { return {t.seconds(), t.nanoseconds()}; }
inline coherence::DirtyAttributes from_fb(const fb::DirtyAttributes& a) {
  return {.has_size = a.has_size(),
          .has_mtime = a.has_mtime(),
          .size = a.size(),
          .mtime = from_fb(a.mtime())};
}
inline Attributes from_fb(const fb::Attributes& a) {
  return {.inode = a.inode(),
          .size = a.size(),
          .blocks = a.blocks(),
          .atime = from_fb(a.atime()),
          .mtime = from_fb(a.mtime()),
          .ctime = from_fb(a.ctime()),
          .mode = a.mode(),
          .nlink = a.nlink(),
          .uid = a.uid(),
          .gid = a.gid(),
          .rdev = a.rdev(),
          .block_size = a.block_size()};
}
inline std::string_view view_of(const flatbuffers::String* s) { return {s->data(), s->size()}; }

// Collects the page data of one message while its header is built.
class BulkWriter {
 public:
  fb::Slice add(const Bytes& bytes) {
    fb::Slice slice(static_cast<uint32_t>(size_), static_cast<uint32_t>(bytes.size()));
    size_ += bytes.size();
    if (!bytes.empty()) pieces_.push_back(bytes);
    return slice;
  }
  // Offsets are exact up to 4 GiB; finish() refuses long before.
  size_t size() const { return size_; }
  std::vector<Bytes> take() { return std::move(pieces_); }

 private:
  std::vector<Bytes> pieces_;
  size_t size_ = 0;
};

// The bytes of a slice, if they lie in the bulk. A missing slice is empty.
inline std::optional<Bytes> slice_of(const Bytes& bulk, uint64_t offset, uint64_t length) {
  if (length == 0) return Bytes();
  if (offset > bulk.size() || length > bulk.size() - offset) return std::nullopt;
  return bulk.part(offset, length);
}
inline std::optional<Bytes> slice_of(const Bytes& bulk, const fb::Slice* slice) {
  if (slice == nullptr) return Bytes();
  return slice_of(bulk, slice->offset(), slice->length());
}

// The finished frame: preamble, FlatBuffer, bulk. EMSGSIZE beyond the limits.
inline Result<Encoded> finish(FrameType type, flatbuffers::FlatBufferBuilder& builder,
                              BulkWriter& bulk) {
  if (builder.GetSize() > kHeaderMax) return fail(EMSGSIZE, "message header too long");
  if (bulk.size() > kBulkMax) return fail(EMSGSIZE, "message carries too much data");
  Encoded encoded;
  encoded.type = type;
  encoded.bulk_size = bulk.size();
  encoded.bulk = bulk.take();
  encoded.header.resize(kPreambleSize + builder.GetSize());
  encode_preamble({.header_length = static_cast<uint32_t>(builder.GetSize()),
                   .bulk_length = static_cast<uint32_t>(encoded.bulk_size),
                   .type = type},
                  std::span<std::byte, kPreambleSize>(encoded.header.data(), kPreambleSize));
  std::memcpy(encoded.header.data() + kPreambleSize, builder.GetBufferPointer(), builder.GetSize());
  return encoded;
}

// A verified root table, read from memory that need not be aligned (a receive buffer): it is copied
// once when it is not.
template <typename Table>
class Root {
 public:
  explicit Root(std::span<const std::byte> header) {
    if (header.empty() || header.size() > kHeaderMax) return;
    if (reinterpret_cast<uintptr_t>(header.data()) % alignof(uint64_t) != 0) {
      aligned_.resize((header.size() + 7) / 8);
      std::memcpy(aligned_.data(), header.data(), header.size());
      header = std::span(reinterpret_cast<const std::byte*>(aligned_.data()), header.size());
    }
    // Our deepest nesting is 4; the table limit must allow a full directory page.
    flatbuffers::Verifier verifier(reinterpret_cast<const uint8_t*>(header.data()), header.size(),
                                   8, kHeaderMax / 16);
    if (!verifier.VerifyBuffer<Table>(nullptr)) return;
    table_ = flatbuffers::GetRoot<Table>(header.data());
  }
  explicit operator bool() const { return table_ != nullptr; }
  const Table* operator->() const { return table_; }
  const Table& operator*() const { return *table_; }

 private:
  std::vector<uint64_t> aligned_;
  const Table* table_ = nullptr;
};

inline std::unexpected<Error> malformed(const char* what) { return fail(EPROTO, what); }

}  // namespace vremote::wire
