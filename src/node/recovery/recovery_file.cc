#include "node/recovery/recovery_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace vremote::node {
namespace {

constexpr std::string_view kMagicBefore = "VRRECOV1";
constexpr std::string_view kMagic = "VRRECOV2";
constexpr size_t kHeaderMax = 16 << 10;
constexpr size_t kTextMax = 4096;
constexpr size_t kRecordHead = 4 + 4 + 8 + 4;
enum RecordType : uint32_t { kData = 1, kAttributes = 2, kTotals = 3 };
constexpr size_t kTotalsSize = kRecordHead + 3 * 8;

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

Status write_all(const Fd& fd, uint64_t at, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(n < 0 ? errno : EIO, std::strerror(n < 0 ? errno : EIO));
    bytes = bytes.subspan(static_cast<size_t>(n));
    at += static_cast<uint64_t>(n);
  }
  return {};
}

// False at the end of the file.
Result<bool> read_exactly(const Fd& fd, uint64_t at, std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t n = ::pread(fd.get(), into.data(), into.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno, std::strerror(errno));
    if (n == 0) return false;
    into = into.subspan(static_cast<size_t>(n));
    at += static_cast<uint64_t>(n);
  }
  return true;
}

Result<uint64_t> write_record(const Fd& fd, uint64_t at, RecordType type, uint64_t offset,
                              std::span<const std::byte> payload) {
  Writer head;
  head.number(static_cast<uint32_t>(type));
  head.number(static_cast<uint32_t>(payload.size()));
  head.number(offset);
  head.number(crc(payload, crc(head.bytes())));
  // One write each: whoever dies between them leaves a record that is seen to be cut short.
  VR_TRY_VOID(write_all(fd, at, head.bytes()));
  VR_TRY_VOID(write_all(fd, at + kRecordHead, payload));
  return at + kRecordHead + payload.size();
}

// What the file had when it was last added to.
struct Totals {
  uint64_t length = 0;  // of the file
  RecoverySummary::Kept kept;
};

Writer totals_payload(const Totals& totals) {
  Writer payload;
  payload.number(totals.length);
  payload.number(totals.kept.pieces);
  payload.number(totals.kept.bytes);
  return payload;
}

Status write_totals(const Fd& fd, uint64_t at, const Totals& totals) {
  VR_TRY(end, write_record(fd, at, kTotals, 0, totals_payload(totals).bytes()));
  (void)end;
  return {};
}

Result<std::optional<Totals>> read_totals(const Fd& fd, uint64_t at) {
  std::array<std::byte, kTotalsSize> bytes;
  VR_TRY(whole, read_exactly(fd, at, bytes));
  if (!whole) return std::nullopt;
  Reader reader(bytes);
  const auto type = reader.number<uint32_t>();
  const auto size = reader.number<uint32_t>();
  (void)reader.number<uint64_t>();
  const auto sum = reader.number<uint32_t>();
  const std::span<const std::byte> all(bytes);
  if (type != kTotals || size != kTotalsSize - kRecordHead ||
      crc(all.subspan(kRecordHead), crc(all.first(kRecordHead - 4))) != sum)
    return std::nullopt;
  Totals totals;
  totals.length = reader.number<uint64_t>();
  totals.kept.pieces = reader.number<uint64_t>();
  totals.kept.bytes = reader.number<uint64_t>();
  return totals;
}

void cut(const Fd& fd, uint64_t length) {
  (void)!::ftruncate(fd.get(), static_cast<off_t>(length));
}

// What precedes the records: the magic, and length and check of the header.
struct Start {
  bool before = false;  // of the version before
  uint32_t length = 0, sum = 0;
  static constexpr uint64_t kSize = kMagic.size() + 8;
  uint64_t records() const { return kSize + length; }
};

Result<Start> read_start(const Fd& fd) {
  std::array<std::byte, Start::kSize> bytes;
  VR_TRY(whole, read_exactly(fd, 0, bytes));
  Start start;
  start.before = std::memcmp(bytes.data(), kMagicBefore.data(), kMagicBefore.size()) == 0;
  if (!whole || (!start.before && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0))
    return fail(EINVAL, "not a recovery file of this version");
  Reader reader{std::span(bytes).subspan(kMagic.size())};
  start.length = reader.number<uint32_t>();
  start.sum = reader.number<uint32_t>();
  if (start.length > kHeaderMax) return fail(EINVAL, "its header is damaged");
  return start;
}

struct TotalsPlace {
  uint64_t at = 0;
  Totals totals;
};
Result<TotalsPlace> find_totals(const Fd& fd) {
  VR_TRY(start, read_start(fd));
  VR_TRY(known, read_totals(fd, start.records()));
  if (!known) return fail(EIO, "its totals cannot be read");
  return TotalsPlace{start.records(), *known};
}

Timestamp read_time(Reader& reader) {
  Timestamp time;
  time.seconds = reader.number<int64_t>();
  time.nanoseconds = reader.number<uint32_t>();
  return time;
}

void write_time(Writer& writer, Timestamp time) {
  writer.number(time.seconds);
  writer.number(time.nanoseconds);
}

bool read_attributes(std::span<const std::byte> payload, coherence::DirtyAttributes& into) {
  Reader r(payload);
  const bool has_size = r.number<uint8_t>() != 0, has_mtime = r.number<uint8_t>() != 0;
  const auto size = r.number<uint64_t>();
  const Timestamp mtime = read_time(r);
  if (!r.good() || size > uint64_t{INT64_MAX} || mtime.nanoseconds >= 1'000'000'000) return false;
  if (has_size) {
    into.has_size = true;
    into.size = std::max(into.size, size);
  }
  if (has_mtime) {
    into.has_mtime = true;
    into.mtime = std::max(into.mtime, mtime);
  }
  return true;
}

}  // namespace

std::string name_of(const RecoveryHeader& header) {
  if (!header.path.empty()) return header.path;
  return fmt::format("inode {} of export {} of {}", header.file.inode,
                     header.export_name.empty() ? fmt::format("number {}", header.file.export_index)
                                                : header.export_name,
                     header.home);
}

Result<Fd> begin_recovery_file(const std::string& path, const RecoveryHeader& header) {
  Writer body;
  body.number(header.saved_at);
  body.number(header.file.export_index);
  body.number(header.file.generation);
  body.number(header.file.inode);
  body.number(header.shown_inode);
  body.text(header.home);
  body.text(header.path);
  write_time(body, header.written);
  body.text(header.export_name);
  Writer all;
  all.raw(std::as_bytes(std::span(kMagic)));
  all.number(static_cast<uint32_t>(body.bytes().size()));
  all.number(crc(body.bytes()));
  all.raw(body.bytes());
  // Not O_APPEND: the totals are written over.
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return fail(errno, path + ": " + std::strerror(errno));
  const uint64_t records = all.bytes().size();
  Status begun = write_all(fd, 0, all.bytes());
  if (begun) begun = write_totals(fd, records, {.length = records + kTotalsSize, .kept = {}});
  if (begun) return fd;
  // Nothing is in it.
  (void)::unlink(path.c_str());
  return fail(begun.error().code, path + ": " + begun.error().what);
}

uint64_t bytes_of(const std::vector<coherence::Extent>& extents) {
  uint64_t bytes = 0;
  for (const coherence::Extent& extent : extents) bytes += extent.bytes.size();
  return bytes;
}

Appended append_recovery(const Fd& fd, const std::vector<coherence::Extent>& extents,
                         const coherence::DirtyAttributes& attributes) {
  Appended out;
  auto place = find_totals(fd);
  if (!place) {
    out.status = std::unexpected(place.error());
    out.lost = bytes_of(extents);
    out.told = false;
    return out;
  }
  Totals& totals = place->totals;
  const auto add = [&](RecordType type, uint64_t offset, std::span<const std::byte> payload) {
    if (!out.status) return;  // and of what follows nobody knows where it would begin
    const auto end = write_record(fd, totals.length, type, offset, payload);
    if (end) {
      totals.length = *end;
    } else {
      out.status = std::unexpected(end.error());
    }
  };
  for (const coherence::Extent& extent : extents)
    for (uint64_t at = 0; at < extent.bytes.size(); at += kRecoveryPieceMax) {
      const uint64_t n = std::min<uint64_t>(kRecoveryPieceMax, extent.bytes.size() - at);
      add(kData, extent.offset + at, extent.bytes.view().subspan(at, n));
      (out.status ? out.kept : out.lost) += n;
      ++totals.kept.pieces;
      totals.kept.bytes += n;
    }
  if (attributes.has_size || attributes.has_mtime) {
    Writer payload;
    payload.number(static_cast<uint8_t>(attributes.has_size));
    payload.number(static_cast<uint8_t>(attributes.has_mtime));
    payload.number(attributes.size);
    write_time(payload, attributes.mtime);
    const bool fitted = out.status.has_value();
    add(kAttributes, 0, payload.bytes());
    if (fitted && !out.status) ++totals.kept.pieces;  // so that something is seen to lack
  }
  if (!out.status) cut(fd, totals.length);  // of the piece that did not fit nothing stays
  if (const Status told = write_totals(fd, place->at, totals); !told) {
    // What it does not count the next addition writes over.
    out.lost += std::exchange(out.kept, 0);
    out.told = false;
    if (out.status) out.status = told;
    cut(fd, totals.length + 1);  // longer than it says: damaged, too
  }
  return out;
}

bool takes_more(const Fd& fd) { return find_totals(fd).has_value(); }

void note_lost(const Fd& fd, uint64_t bytes) {
  auto place = find_totals(fd);
  if (!place) return;
  ++place->totals.kept.pieces;
  place->totals.kept.bytes += bytes;
  if (!write_totals(fd, place->at, place->totals)) cut(fd, place->totals.length + 1);
}

Result<Fd> open_recovery_file(const std::string& path) {
  // Without O_NONBLOCK a FIFO would be waited for.
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY));
  struct stat st {};
  if (fd.valid() && ::fstat(fd.get(), &st) == 0 && S_ISREG(st.st_mode)) return fd;
  const int error = errno;
  // A link is ELOOP then, a socket ENXIO.
  if (fd.valid() || error == ELOOP || error == ENXIO)
    return fail(EINVAL, path + ": not a regular file, so no recovery file");
  return fail(error, path + ": " + std::strerror(error));
}

Result<RecoveryHeader> read_recovery(const Fd& fd,
                                     const std::function<Status(const RecoveryPiece&)>& piece,
                                     RecoverySummary& summary) {
  summary = {};
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return fail(errno, "fstat");
  if (!S_ISREG(st.st_mode)) return fail(EINVAL, "not a regular file");
  VR_TRY(start, read_start(fd));
  std::vector<std::byte> body(start.length);
  VR_TRY(has_body, read_exactly(fd, Start::kSize, body));
  if (!has_body || crc(body) != start.sum) return fail(EINVAL, "its header is damaged");
  Reader reader(body);
  RecoveryHeader header;
  header.saved_at = reader.number<uint64_t>();
  header.file.export_index = reader.number<uint32_t>();
  header.file.generation = reader.number<uint32_t>();
  header.file.inode = reader.number<uint64_t>();
  header.shown_inode = reader.number<uint64_t>();
  header.home = reader.text();
  header.path = reader.text();
  if (!start.before) {
    header.written = read_time(reader);
    header.export_name = reader.text();
  }
  if (!reader.good() || header.written.nanoseconds >= 1'000'000'000)
    return fail(EINVAL, "its header is damaged");

  const auto size_of_file = static_cast<uint64_t>(st.st_size);
  uint64_t at = start.records();
  if (!start.before) {
    VR_TRY(totals, read_totals(fd, at));
    if (totals) summary.kept = totals->kept;
    summary.damaged = !totals || totals->length != size_of_file;
    at += kTotalsSize;
  }
  std::vector<std::byte> payload;
  while (at < size_of_file) {  // it may have grown since
    std::array<std::byte, kRecordHead> head;
    VR_TRY(more, read_exactly(fd, at, head));
    Reader record(head);
    const auto type = record.number<uint32_t>();
    const auto size = record.number<uint32_t>();
    const auto offset = record.number<uint64_t>();
    const auto record_sum = record.number<uint32_t>();
    bool good = more && size <= kRecoveryPieceMax && offset <= uint64_t{INT64_MAX} - size;
    if (good) {
      payload.resize(size);
      VR_TRY(complete, read_exactly(fd, at + head.size(), payload));
      good = complete;
    }
    // A disk that lost what was written last, or somebody, made the file longer by zeroes: they are
    // records of nothing, perhaps without end.
    good = good && std::ranges::any_of(head, [](std::byte byte) { return byte != std::byte{}; });
    if (!good) {
      summary.damaged = true;
      break;
    }
    at += head.size() + size;
    // If it is not its length that is wrong, what follows is whole.
    const bool whole = crc(payload, crc(std::span(head).first(kRecordHead - 4))) == record_sum;
    if (whole && type == kData) {
      ++summary.pieces;
      summary.bytes += size;
      summary.end = std::max(summary.end, offset + size);
      if (piece) VR_TRY_VOID(piece({offset, payload}));
    } else if (!whole || (type == kAttributes && !read_attributes(payload, summary.attributes))) {
      summary.damaged = true;
    }
  }
  if (summary.kept && *summary.kept != RecoverySummary::Kept{summary.pieces, summary.bytes})
    summary.damaged = true;
  return header;
}

}  // namespace vremote::node
