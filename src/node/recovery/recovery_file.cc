#include "node/recovery/recovery_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace vremote::node {
namespace {

constexpr std::string_view kMagic = "VRRECOV1";
constexpr size_t kHeaderMax = 16 << 10;
constexpr size_t kTextMax = 4096;
constexpr size_t kRecordHead = 4 + 4 + 8 + 4;
enum RecordType : uint32_t { kData = 1, kAttributes = 2 };

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
    table[i] = value;
  }
  return table;
}
constexpr auto kCrcTable = crc_table();

uint32_t crc(std::span<const std::byte> bytes, uint32_t before = 0) {
  uint32_t value = ~before;
  for (std::byte b : bytes)
    value = kCrcTable[(value ^ static_cast<uint8_t>(b)) & 0xFF] ^ value >> 8;
  return ~value;
}

class Writer {
 public:
  template <typename T>
  void number(T value) {
    for (size_t i = 0; i < sizeof(T); ++i)
      bytes_.push_back(static_cast<std::byte>(static_cast<uint64_t>(value) >> 8 * i & 0xFF));
  }
  void text(std::string_view text) {
    text = text.substr(0, kTextMax);
    number(static_cast<uint16_t>(text.size()));
    raw(std::as_bytes(std::span(text)));
  }
  void raw(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

// Reading past the end gives zeroes and is remembered.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T number() {
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) value |= uint64_t{take()} << 8 * i;
    return static_cast<T>(value);
  }
  std::string text() {
    const auto length = number<uint16_t>();
    if (length > kTextMax || length > bytes_.size()) good_ = false;
    std::string out;
    for (size_t i = 0; good_ && i < length; ++i) out += static_cast<char>(take());
    return out;
  }
  bool good() const { return good_; }

 private:
  uint8_t take() {
    if (bytes_.empty()) {
      good_ = false;
      return 0;
    }
    const auto value = static_cast<uint8_t>(bytes_.front());
    bytes_ = bytes_.subspan(1);
    return value;
  }
  std::span<const std::byte> bytes_;
  bool good_ = true;
};

Status write_all(const Fd& fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno, "write");
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return {};
}

// False at the end of the file.
Result<bool> read_exactly(const Fd& fd, uint64_t at, std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t n = ::pread(fd.get(), into.data(), into.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno, "read");
    if (n == 0) return false;
    into = into.subspan(static_cast<size_t>(n));
    at += static_cast<uint64_t>(n);
  }
  return true;
}

Status append_record(const Fd& fd, RecordType type, uint64_t offset,
                     std::span<const std::byte> payload) {
  Writer head;
  head.number(static_cast<uint32_t>(type));
  head.number(static_cast<uint32_t>(payload.size()));
  head.number(offset);
  head.number(crc(payload, crc(head.bytes())));
  // One write each: whoever dies between them leaves a record that is seen to be cut short.
  VR_TRY_VOID(write_all(fd, head.bytes()));
  return write_all(fd, payload);
}

}  // namespace

Result<Fd> begin_recovery_file(const std::string& path, const RecoveryHeader& header) {
  Writer body;
  body.number(header.saved_at);
  body.number(header.file.export_index);
  body.number(header.file.generation);
  body.number(header.file.inode);
  body.number(header.shown_inode);
  body.text(header.home);
  body.text(header.path);
  Writer all;
  all.raw(std::as_bytes(std::span(kMagic)));
  all.number(static_cast<uint32_t>(body.bytes().size()));
  all.number(crc(body.bytes()));
  all.raw(body.bytes());
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return fail(errno, path + ": " + std::strerror(errno));
  VR_TRY_VOID(write_all(fd, all.bytes()));
  return fd;
}

Status append_recovery(const Fd& fd, const std::vector<coherence::Extent>& extents,
                       const coherence::DirtyAttributes& attributes) {
  for (const coherence::Extent& extent : extents)
    for (uint64_t at = 0; at < extent.bytes.size(); at += kRecoveryPieceMax) {
      const uint64_t n = std::min<uint64_t>(kRecoveryPieceMax, extent.bytes.size() - at);
      VR_TRY_VOID(append_record(fd, kData, extent.offset + at, extent.bytes.view().subspan(at, n)));
    }
  if (!attributes.has_size && !attributes.has_mtime) return {};
  Writer payload;
  payload.number(static_cast<uint8_t>(attributes.has_size));
  payload.number(static_cast<uint8_t>(attributes.has_mtime));
  payload.number(attributes.size);
  payload.number(attributes.mtime.seconds);
  payload.number(attributes.mtime.nanoseconds);
  return append_record(fd, kAttributes, 0, payload.bytes());
}

Result<RecoveryHeader> read_recovery(const Fd& fd,
                                     const std::function<Status(const RecoveryPiece&)>& piece,
                                     RecoverySummary& summary) {
  summary = {};
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return fail(errno, "fstat");
  if (!S_ISREG(st.st_mode)) return fail(EINVAL, "not a regular file");
  std::array<std::byte, kMagic.size() + 8> start;
  VR_TRY(whole, read_exactly(fd, 0, start));
  if (!whole || std::memcmp(start.data(), kMagic.data(), kMagic.size()) != 0)
    return fail(EINVAL, "not a recovery file of this version");
  Reader lengths{std::span(start).subspan(kMagic.size())};
  const auto length = lengths.number<uint32_t>();
  const auto sum = lengths.number<uint32_t>();
  if (length > kHeaderMax) return fail(EINVAL, "its header is damaged");
  std::vector<std::byte> body(length);
  VR_TRY(has_body, read_exactly(fd, start.size(), body));
  if (!has_body || crc(body) != sum) return fail(EINVAL, "its header is damaged");
  Reader reader(body);
  RecoveryHeader header;
  header.saved_at = reader.number<uint64_t>();
  header.file.export_index = reader.number<uint32_t>();
  header.file.generation = reader.number<uint32_t>();
  header.file.inode = reader.number<uint64_t>();
  header.shown_inode = reader.number<uint64_t>();
  header.home = reader.text();
  header.path = reader.text();
  if (!reader.good()) return fail(EINVAL, "its header is damaged");

  std::vector<std::byte> payload;
  for (uint64_t at = start.size() + length;;) {
    std::array<std::byte, kRecordHead> head;
    if (at >= static_cast<uint64_t>(st.st_size)) break;  // it may have grown since
    summary.damaged = true;                              // unless this record turns out to be whole
    VR_TRY(more, read_exactly(fd, at, head));
    if (!more) break;
    Reader record(head);
    const auto type = record.number<uint32_t>();
    const auto size = record.number<uint32_t>();
    const auto offset = record.number<uint64_t>();
    const auto record_sum = record.number<uint32_t>();
    if (size > kRecoveryPieceMax || offset > uint64_t{INT64_MAX} - size) break;
    payload.resize(size);
    VR_TRY(complete, read_exactly(fd, at + head.size(), payload));
    if (!complete || crc(payload, crc(std::span(head).first(kRecordHead - 4))) != record_sum) break;
    at += head.size() + size;
    summary.damaged = false;
    if (type == kData) {
      ++summary.pieces;
      summary.bytes += size;
      summary.end = std::max(summary.end, offset + size);
      if (piece) VR_TRY_VOID(piece({offset, payload}));
    } else if (type == kAttributes) {
      Reader r(payload);
      const bool has_size = r.number<uint8_t>() != 0, has_mtime = r.number<uint8_t>() != 0;
      const auto new_size = r.number<uint64_t>();
      Timestamp mtime;
      mtime.seconds = r.number<int64_t>();
      mtime.nanoseconds = r.number<uint32_t>();
      if (!r.good() || new_size > uint64_t{INT64_MAX} || mtime.nanoseconds >= 1'000'000'000) {
        summary.damaged = true;
        break;
      }
      if (has_size) {
        summary.attributes.has_size = true;
        summary.attributes.size = std::max(summary.attributes.size, new_size);
      }
      if (has_mtime) {
        summary.attributes.has_mtime = true;
        summary.attributes.mtime = std::max(summary.attributes.mtime, mtime);
      }
    }
  }
  return header;
}

}  // namespace vremote::node
