// Appends, names, the lock made of a name, and truncations.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "live/worker.h"

namespace vremote::live {

namespace {

constexpr uint32_t kRecordMax = 9000;           // crosses pages; far below what one WRITE carries
constexpr uint64_t kAppendBytesMax = 96 << 20;  // of the whole run
constexpr uint64_t kEpochNs = 1'000'000'000;

uint64_t body_word(uint32_t process, uint32_t number, size_t at) {
  return (uint64_t{process} << 40 ^ uint64_t{number} << 8 ^ at) * 0x9E3779B97F4A7C15u;
}

}  // namespace

void make_record(std::span<std::byte> out, uint32_t process, uint32_t number) {
  const RecordHead head{
      .length = static_cast<uint32_t>(out.size()), .process = process, .number = number};
  std::memcpy(out.data(), &head, sizeof head);
  for (size_t at = sizeof head; at < out.size(); at += 8) {
    const uint64_t word = body_word(process, number, at);
    std::memcpy(out.data() + at, &word, 8);
  }
}

uint32_t sound_record(std::span<const std::byte> bytes) {
  RecordHead head;
  if (bytes.size() < sizeof head) return 0;
  std::memcpy(&head, bytes.data(), sizeof head);
  if (head.magic != kRecordMagic || head.length > bytes.size() || head.length < sizeof head ||
      head.length % 8 != 0)
    return 0;
  for (size_t at = sizeof head; at < head.length; at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, 8);
    if (word != body_word(head.process, head.number, at)) return 0;
  }
  return head.length;
}

void Worker::append() {
  if (shared_.appends_begun > kAppendBytesMax) return;
  const uint32_t length = static_cast<uint32_t>(random_.between(2, kRecordMax / 8) * 8);
  const uint32_t number = static_cast<uint32_t>(append_records_++);
  make_record({buffer_, length}, process_, number);
  shared_.appends_begun += length;
  Interval when;
  const ssize_t done =
      timed("append", when, [&] { return ::write(append_writer_.get(), buffer_, length); });
  if (done != static_cast<ssize_t>(length)) return failed("append", kAppendFile, done, length);
  shared_.appends_done += length;
  Op op{.begin = when.first,
        .end = when.second,
        .file = kAppendFile,
        .kind = OpKind::Append,
        .how = How::Append};
  op.values[0] = length;
  op.values[1] = number;
  note(op);
}

void Worker::read_appends() {
  // What had returned before the call is in the size; nothing that had not begun after it is.
  const uint64_t least = shared_.appends_done;
  struct stat st {};
  Interval when;
  const int done = timed("stat", when, [&] { return ::fstat(append_reader_.get(), &st); });
  const uint64_t most = shared_.appends_begun;
  if (done != 0) return failed("stat", kAppendFile, done, 0);
  const uint64_t size = static_cast<uint64_t>(st.st_size);
  if (size < least || size > most) {
    shared_.fail(
        fmt::format("appends: process {} (node {}) saw a size of {}; {} bytes had been appended "
                    "before, {} begun until after",
                    process_, process_ % settings_.nodes + 1, size, least, most));
    return;
  }
  // A reader goes on where it was, now and then from the beginning.
  if (random_.below(50) == 0) append_parsed_ = 0;
  for (int rounds = 0; append_parsed_ < size && rounds < 4; ++rounds) {
    const size_t want = std::min<uint64_t>(kBufferSize, size - append_parsed_);
    const ssize_t got = timed("read appends", when, [&] {
      return ::pread(append_reader_.get(), buffer_, want, static_cast<off_t>(append_parsed_));
    });
    if (got >= 0 && got < static_cast<ssize_t>(want)) {
      // The kernel stopped at an older end of the file than it has just told: see Shared::old_ends.
      ++shared_.old_ends;
      return;
    }
    if (got != static_cast<ssize_t>(want))
      return failed("read", kAppendFile, got, static_cast<int64_t>(want));
    size_t at = 0;
    while (at < want) {
      const uint32_t length = sound_record({buffer_ + at, want - at});
      if (length == 0) {
        if (want == kBufferSize && want - at < kRecordMax + 8) break;  // goes on beyond the buffer
        RecordHead head;
        std::memcpy(&head, buffer_ + at, std::min(sizeof head, want - at));
        shared_.fail(fmt::format(
            "appends: process {} (node {}) read no sound record at {} of {} bytes: magic {:#x} "
            "length {} process {} number {}; read of {} bytes at {} in [{}, {}]",
            process_, process_ % settings_.nodes + 1, append_parsed_ + at, size, head.magic,
            head.length, head.process, head.number, want, append_parsed_, when.first, when.second));
        return;
      }
      at += length;
    }
    append_parsed_ += at;
  }
}

// A name is a register too: symbolic links with a number as their target are moved over it.
void Worker::rename_over() {
  const uint64_t value = stamp(process_, ++writes_, kNameFile, 0, 0);
  const std::string own = path(fmt::format("own-{}", process_));
  Interval when;
  if (timed("symlink", when,
            [&] { return ::symlink(fmt::format("{}", value).c_str(), own.c_str()); }) != 0)
    return failed("symlink", kNameFile, -1, 0);
  if (timed("rename", when, [&] { return ::rename(own.c_str(), path(kSharedName).c_str()); }) != 0)
    return failed("rename", kNameFile, -1, 0);
  Op op{.begin = when.first,
        .end = when.second,
        .file = kNameFile,
        .kind = OpKind::NameWrite,
        .how = How::RenameOver,
        .cells = 1};
  op.values[0] = value;
  note(op);
  struct stat st {};
  if (timed("lstat", when, [&] { return ::lstat(own.c_str(), &st); }) == 0 || errno != ENOENT)
    shared_.fail(fmt::format("names: process {} (node {}) still sees {} after moving it away",
                             process_, process_ % settings_.nodes + 1, own));
}

void Worker::read_name() {
  std::array<char, 64> target{};
  Interval when;
  const ssize_t got = timed("readlink", when, [&] {
    return ::readlink(path(kSharedName).c_str(), target.data(), target.size() - 1);
  });
  // It is always there: rename replaces it in one step. Between finding the link and reading it, it
  // may be gone all the same.
  if (got < 0 && (errno == ENOENT || errno == ESTALE)) return;
  if (got <= 0) return failed("readlink", kNameFile, got, 1);
  Op op{.begin = when.first,
        .end = when.second,
        .file = kNameFile,
        .kind = OpKind::NameRead,
        .how = How::ReadLink,
        .cells = 1};
  op.values[0] = std::strtoull(target.data(), nullptr, 10);
  note(op);
}

// open(O_CREAT|O_EXCL) as a lock between machines: never two at once.
void Worker::take_lock() {
  const std::string name = path("lock");
  Interval when;
  Fd fd(timed("open O_EXCL", when,
              [&] { return ::open(name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644); }));
  if (!fd.valid()) {
    if (errno != EEXIST) failed("open O_EXCL", kNameFile, -1, 0);
    return;
  }
  const int before = shared_.lock_owner.exchange(static_cast<int>(process_));
  if (before != -1) {
    shared_.fail(
        fmt::format("names: processes {} and {} both made {} with O_EXCL", before, process_, name));
    return;
  }
  ++shared_.locks_taken;
  fd.reset();
  shared_.lock_owner = -1;
  if (timed("unlink", when, [&] { return ::unlink(name.c_str()); }) != 0)
    failed("unlink", kNameFile, -1, 0);
}

// A file that is new each second, made shorter and longer while others read and write it. Zeroes
// are not unique, so these histories go to the simulator's checker, which takes some hundred
// operations each.
void Worker::truncated_file() {
  const unsigned epoch = static_cast<unsigned>((now_ns() - started_) / kEpochNs);
  if (epoch != epoch_) {
    const std::string name = path(fmt::format("truncated-{}", epoch));
    truncated_writer_ = Fd(
        ::open(name.c_str(), (random_.chance(50) ? O_WRONLY : O_RDWR) | O_CREAT | O_CLOEXEC, 0644));
    truncated_reader_ = Fd(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
    if (!truncated_writer_.valid() || !truncated_reader_.valid())
      return failed("open", kTruncated + epoch, -1, 0);
    epoch_ = epoch;
    epoch_ops_ = 0;
  }
  if (epoch_ops_ >= kTruncatedOps) return;
  ++epoch_ops_;
  const uint16_t file = static_cast<uint16_t>(kTruncated + epoch);
  constexpr uint64_t kCell = kSimCells[0].length, kPerPage = kSimCells.size(),
                     kAll = kTruncatedPages * kPerPage;
  Interval when;
  const uint64_t dice = random_.below(100);
  if (dice < 12) {
    const uint64_t size = random_.below(kAll + 1) * kCell;
    const int done = timed("ftruncate", when, [&] {
      return ::ftruncate(truncated_writer_.get(), static_cast<off_t>(size));
    });
    if (done != 0) return failed("ftruncate", file, done, 0);
    Op op{.begin = when.first,
          .end = when.second,
          .file = file,
          .kind = OpKind::Truncate,
          .how = How::Truncation};
    op.values[0] = size;
    note(op);
    return;
  }
  if (dice < 22) {
    struct stat st {};
    if (timed("stat", when, [&] { return ::fstat(truncated_reader_.get(), &st); }) != 0)
      return failed("stat", file, -1, 0);
    Op op{.begin = when.first,
          .end = when.second,
          .file = file,
          .kind = OpKind::Size,
          .how = How::Stat};
    op.values[0] = static_cast<uint64_t>(st.st_size);
    note(op);
    return;
  }
  const uint64_t first = random_.below(kAll),
                 count = random_.between(1, std::min<uint64_t>(6, kAll - first));
  const bool write = dice < 50;
  const uint64_t number = write ? ++writes_ : 0;
  if (write) {
    for (uint64_t i = 0; i < count; ++i)
      fill({buffer_ + i * kCell, kCell},
           stamp(process_, number, file, (first + i) / kPerPage, (first + i) % kPerPage));
  }
  const ssize_t length = static_cast<ssize_t>(count * kCell);
  const off_t offset = static_cast<off_t>(first * kCell);
  const ssize_t done = write ? timed("write", when,
                                     [&] {
                                       return ::pwrite(truncated_writer_.get(), buffer_,
                                                       static_cast<size_t>(length), offset);
                                     })
                             : timed("cached read", when, [&] {
                                 return ::pread(truncated_reader_.get(), buffer_,
                                                static_cast<size_t>(length), offset);
                               });
  if (done < 0 || (write && done != length) || done % static_cast<ssize_t>(kCell) != 0)
    return failed(write ? "write" : "read", file, done, length);
  // Writes are one operation per page, reads one per cell: a local file system too clears a page
  // while another reads it.
  Op op;
  for (uint64_t i = 0; i < static_cast<uint64_t>(done) / kCell; ++i) {
    const uint64_t page = (first + i) / kPerPage;
    const unsigned c = static_cast<unsigned>((first + i) % kPerPage);
    if (op.cells != 0 && (!write || page != op.page)) {
      note(op);
      op.cells = 0;
    }
    if (op.cells == 0) {
      op = {.begin = when.first,
            .end = when.second,
            .page = static_cast<uint32_t>(page),
            .file = file,
            .kind = write ? OpKind::Write : OpKind::Read,
            .how = write ? How::PartialWrite : How::CachedRead};
    }
    const auto value = value_of({buffer_ + i * kCell, kCell});
    if (!value) continue;
    op.cells |= static_cast<uint8_t>(1u << c);
    op.values[c] = *value;
  }
  if (op.cells != 0) note(op);
  // Where a read stopped says nothing (Shared::old_ends), nor do zeroes at its end: for a moment
  // after another node's truncation the kernel can show zeroes instead of the end of the file (rule
  // K16 again).
  uint64_t sure = static_cast<uint64_t>(done) / kCell;
  while (!write && sure > 0 && value_of({buffer_ + (sure - 1) * kCell, kCell}) == 0) --sure;
  if (sure == 0) return;
  Op size{.begin = when.first,
          .end = when.second,
          .file = file,
          .kind = write ? OpKind::Grow : OpKind::ReadTo,
          .how = write ? How::PartialWrite : How::CachedRead};
  size.values[0] = static_cast<uint64_t>(offset) + sure * kCell;
  note(size);
}

}  // namespace vremote::live
