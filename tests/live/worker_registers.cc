// The files whose cells are registers: reads, writes and mappings of all kinds.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "live/worker.h"

namespace vremote::live {

void Worker::saw(unsigned f, How how, Interval when, uint64_t first_page,
                 std::span<const std::byte> bytes) {
  const std::span<const Cell> cells = cells_of(layout_of(settings_, f));
  for (uint64_t p = 0; p * kPageSize < bytes.size(); ++p) {
    Op op{.begin = when.first,
          .end = when.second,
          .page = static_cast<uint32_t>(first_page + p),
          .file = static_cast<uint16_t>(f),
          .kind = OpKind::Read,
          .how = how};
    for (unsigned c = 0; c < cells.size(); ++c) {
      const std::span<const std::byte> cell =
          bytes.subspan(p * kPageSize + cells[c].offset, cells[c].length);
      const auto value = value_of(cell);
      if (!value) {
        uint64_t first = 0, last = 0;
        std::memcpy(&first, cell.data(), 8);
        std::memcpy(&last, cell.data() + (cell.size() - 8) / 8 * 8, 8);
        shared_.fail(
            fmt::format("torn: process {} (node {}), {} of file {} page {} cell {} at [{}, {}]: "
                        "begins with write {} of process {}, ends with write {} of process {}",
                        process_, process_ % settings_.nodes + 1,
                        kHowNames[static_cast<size_t>(how)], f, op.page, c, when.first, when.second,
                        stamp_write(first), static_cast<int>(stamp_process(first)),
                        stamp_write(last), static_cast<int>(stamp_process(last))));
        return;
      }
      if (!stamp_fits(*value, f, op.page, c)) {
        shared_.fail(
            fmt::format("misplaced: process {} (node {}), {} of file {} page {} cell {} saw {:#x}",
                        process_, process_ % settings_.nodes + 1,
                        kHowNames[static_cast<size_t>(how)], f, op.page, c, *value));
        return;
      }
      op.cells |= static_cast<uint8_t>(1u << c);
      op.values[c] = *value;
    }
    note_read(op);
  }
}

void Worker::read_at(unsigned f, How how, int fd, uint64_t first_page, uint64_t pages) {
  const size_t size = pages * kPageSize;
  Interval when;
  const ssize_t got = timed(kHowNames[static_cast<size_t>(how)], when, [&] {
    return ::pread(fd, buffer_, size, static_cast<off_t>(first_page * kPageSize));
  });
  if (got != static_cast<ssize_t>(size)) {
    failed(kHowNames[static_cast<size_t>(how)], f, got, static_cast<int64_t>(size));
    return;
  }
  saw(f, how, when, first_page, {buffer_, size});
}

void Worker::cached_read(unsigned f) {
  const uint64_t page = random_page();
  read_at(f, How::CachedRead, files_[f].cached.get(), page,
          random_.between(1, std::min<uint64_t>(3, settings_.pages - page)));
  if (random_.below(16) == 0) {
    struct stat st {};
    const off_t size = static_cast<off_t>(settings_.pages * kPageSize);
    const bool resized = settings_.truncate && is_mapped(settings_, f);
    if (::fstat(files_[f].cached.get(), &st) != 0 || st.st_size < size ||
        (st.st_size > size && !resized))
      failed("stat", f, st.st_size, static_cast<int64_t>(settings_.pages * kPageSize));
  }
}

void Worker::reopened_read(unsigned f) {
  Interval when;
  Fd fd(timed("open", when,
              [&] { return ::open(path(register_file(f)).c_str(), O_RDONLY | O_CLOEXEC); }));
  if (!fd.valid()) return failed("open", f, -1, 0);
  const uint64_t page = random_page();
  read_at(f, How::ReopenedRead, fd.get(), page,
          random_.between(1, std::min<uint64_t>(3, settings_.pages - page)));
  timed("close", when, [&] {
    fd.reset();
    return 0;
  });
}

void Worker::o_direct_read(unsigned f) {
  const uint64_t page = random_page();
  read_at(f, How::ODirectRead, files_[f].o_direct.get(), page,
          random_.between(1, std::min<uint64_t>(3, settings_.pages - page)));
}

// Open O_RDWR for a moment: from here on the node's kernel could map and dirty pages (K2).
void Worker::read_write_handle(unsigned f) {
  Interval when;
  Fd fd(timed("open", when,
              [&] { return ::open(path(register_file(f)).c_str(), O_RDWR | O_CLOEXEC); }));
  if (!fd.valid()) return failed("open", f, -1, 0);
  read_at(f, How::DirectRead, fd.get(), random_page(), 1);
  write_cells(f, fd.get());
  read_at(f, How::DirectRead, fd.get(), random_page(), 1);
  timed("close", when, [&] {
    fd.reset();
    return 0;
  });
}

// sendfile fills the page cache also from a direct handle.
void Worker::spliced_read(unsigned f) {
  Interval when;
  Fd fd(timed("open", when, [&] {
    return ::open(path(register_file(f)).c_str(),
                  (random_.chance(50) ? O_RDWR : O_RDONLY) | O_CLOEXEC);
  }));
  if (!fd.valid()) return failed("open", f, -1, 0);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return;
  Fd out(ends[0]), in(ends[1]);
  const uint64_t page = random_page();
  off_t offset = static_cast<off_t>(page * kPageSize);
  // The pipe holds the cached pages themselves: what counts is when they are read from it.
  const ssize_t got = timed("sendfile", when, [&]() -> ssize_t {
    const ssize_t sent = ::sendfile(in.get(), fd.get(), &offset, kPageSize);
    return sent <= 0 ? sent : ::read(out.get(), buffer_, static_cast<size_t>(sent));
  });
  if (got != static_cast<ssize_t>(kPageSize)) return failed("sendfile", f, got, kPageSize);
  // A page purged while in the pipe keeps its bytes, and one written by a mapping meanwhile may be
  // torn between cells: not a copy of one moment, but each cell is within the call.
  saw(f, How::Splice, when, page, {buffer_, kPageSize});
  timed("close", when, [&] {
    fd.reset();
    return 0;
  });
}

void Worker::write_cells(unsigned f, int fd) {
  const Layout layout = layout_of(settings_, f);
  const std::span<const Cell> cells = cells_of(layout);
  const uint64_t write = ++writes_;
  // Whole pages; of cells a run that may cross a page border, of words one.
  uint64_t page = random_page();
  unsigned first = 0;
  uint64_t count = 1;
  if (layout == Layout::Pages) {
    count =
        random_.chance(70) ? 1 : random_.between(1, std::min<uint64_t>(4, settings_.pages - page));
  } else {
    first = static_cast<unsigned>(random_.below(cells.size()));
    if (layout == Layout::Odd)
      count = random_.between(
          1, std::min<uint64_t>(6, (settings_.pages - page) * cells.size() - first));
  }
  const uint64_t offset = page * kPageSize + cells[first].offset;
  uint64_t end = offset;
  std::vector<Op> ops;
  for (uint64_t i = first; i < first + count; ++i) {
    const uint64_t p = page + i / cells.size();
    const unsigned c = static_cast<unsigned>(i % cells.size());
    if (ops.empty() || ops.back().page != p) {
      ops.push_back({.page = static_cast<uint32_t>(p),
                     .file = static_cast<uint16_t>(f),
                     .kind = OpKind::Write,
                     .how = layout == Layout::Pages ? How::PageWrite : How::PartialWrite});
    }
    ops.back().cells |= static_cast<uint8_t>(1u << c);
    ops.back().values[c] = stamp(process_, write, f, p, c);
    const uint64_t at = p * kPageSize + cells[c].offset - offset;
    fill({buffer_ + at, cells[c].length}, ops.back().values[c]);
    end = offset + at + cells[c].length;
  }
  Interval when;
  const ssize_t done = timed("write", when, [&] {
    return ::pwrite(fd, buffer_, end - offset, static_cast<off_t>(offset));
  });
  for (Op& op : ops) {
    op.begin = when.first;
    op.end = done == static_cast<ssize_t>(end - offset) ? when.second : UINT64_MAX;
    note(op);
  }
  if (done != static_cast<ssize_t>(end - offset))
    failed("write", f, done, static_cast<int64_t>(end - offset));
}

void Worker::mapped_load(unsigned f) {
  const uint64_t page = random_page();
  const unsigned c = static_cast<unsigned>(random_.below(kWordCells.size()));
  auto* word = reinterpret_cast<uint64_t*>(files_[f].map + page * kPageSize + kWordCells[c].offset);
  Interval when;
  const uint64_t value = timed("mapped load", when, [&] { return std::atomic_ref(*word).load(); });
  if (!stamp_fits(value, f, page, c)) {
    shared_.fail(
        fmt::format("misplaced: process {}, mapped load of file {} page {} cell {} saw {:#x}",
                    process_, f, page, c, value));
    return;
  }
  Op op{.begin = when.first,
        .end = when.second,
        .page = static_cast<uint32_t>(page),
        .file = static_cast<uint16_t>(f),
        .kind = OpKind::Read,
        .how = How::MappedLoad,
        .cells = static_cast<uint8_t>(1u << c)};
  op.values[c] = value;
  note_read(op);
}

void Worker::mapped_store(unsigned f) {
  const uint64_t page = random_page();
  const unsigned c = static_cast<unsigned>(random_.below(kWordCells.size()));
  const uint64_t value = stamp(process_, ++writes_, f, page, c);
  auto* word = reinterpret_cast<uint64_t*>(files_[f].map + page * kPageSize + kWordCells[c].offset);
  Interval when;
  timed("mapped store", when, [&] {
    std::atomic_ref(*word).store(value);
    return 0;
  });
  Op op{.begin = when.first,
        .end = when.second,
        .page = static_cast<uint32_t>(page),
        .file = static_cast<uint16_t>(f),
        .kind = OpKind::Write,
        .how = How::MappedStore,
        .cells = static_cast<uint8_t>(1u << c)};
  op.values[c] = value;
  note(op);
}

// Behind the pages in use: the kernel holds the write-backs of the dirty pages before them back
// meanwhile (K8).
void Worker::truncate_mapped(unsigned f) {
  Interval when;
  const uint64_t size =
      (settings_.pages + random_.below(settings_.pages)) * kPageSize + random_.below(kPageSize);
  const int done = timed("ftruncate of a mapped file", when, [&] {
    return ::ftruncate(files_[f].writer.get(), static_cast<off_t>(size));
  });
  // Two truncations of pages that are dirty on both nodes cannot both come first: one may be
  // interrupted.
  if (done != 0 && errno != EINTR) failed("ftruncate", f, done, 0);
}

void Worker::drop_or_advise(unsigned f) {
  const File& file = files_[f];
  const off_t size = static_cast<off_t>(settings_.pages * kPageSize);
  Interval when;
  switch (random_.below(file.map != nullptr ? 6 : 4)) {
    case 0:
      timed("fadvise DONTNEED", when,
            [&] { return ::posix_fadvise(file.cached.get(), 0, size, POSIX_FADV_DONTNEED); });
      break;
    case 1:
      timed("fadvise WILLNEED", when,
            [&] { return ::posix_fadvise(file.writer.get(), 0, size, POSIX_FADV_WILLNEED); });
      break;
    case 2:
      timed("readahead", when,
            [&] { return ::readahead(file.cached.get(), 0, static_cast<size_t>(size)); });
      break;
    case 3: {
      const int done = timed("fsync", when, [&] { return ::fsync(file.writer.get()); });
      if (done != 0) failed("fsync", f, done, 0);
      break;
    }
    case 4: {
      const int done = timed("msync", when,
                             [&] { return ::msync(file.map, static_cast<size_t>(size), MS_SYNC); });
      if (done != 0) failed("msync", f, done, 0);
      break;
    }
    default: {
      // A new mapping of the same handle: the kernel purges the whole file for it.
      std::byte*& map = files_[f].map;
      void* fresh = timed("mmap", when, [&] {
        ::munmap(map, static_cast<size_t>(size));
        return ::mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED,
                      file.writer.get(), 0);
      });
      map = fresh == MAP_FAILED ? nullptr : static_cast<std::byte*>(fresh);
      if (map == nullptr) failed("mmap", f, -1, 0);
      break;
    }
  }
}

}  // namespace vremote::live
