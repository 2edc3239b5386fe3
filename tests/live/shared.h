// What the hammering processes and their parent share: settings, the log of each process, the first
// failure.
//
// It lies in one shared anonymous mapping made before the processes, so nothing is lost when one of
// them is killed. CLOCK_MONOTONIC is one clock for all processes of the machine, whichever node's
// mount they use.
#pragma once

#include <sys/mman.h>
#include <time.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "live/layout.h"

namespace vremote::live {

inline constexpr unsigned kProcessesMax = 64;
inline constexpr uint32_t kLogMax =
    600'000;  // operations of one process; it stops when its log is full

struct Settings {
  unsigned nodes = 2;
  unsigned processes_per_node = 2;
  unsigned files = 4;  // with registers
  unsigned pages = 8;  // of each
  unsigned seconds = 20;
  uint64_t seed = 1;
  bool mmap = false;
  bool names = false;
  bool truncate = false;
  bool appends = true;
  bool busy_cpu = false;
};

enum class OpKind : uint8_t {
  Read,
  Write,     // of cells of a page
  Truncate,  // values[0]: the new size
  Size,      // values[0]: as fstat told
  ReadTo,    // values[0]: a read got bytes up to there
  Grow,      // values[0]: the size a write made at least
  Append,    // values[0]: length of the record, values[1]: its number
  NameWrite,
  NameRead,  // values[0]: what the name stands for
};

enum class How : uint8_t {
  CachedRead,
  ReopenedRead,
  DirectRead,
  ODirectRead,
  MappedLoad,
  PageWrite,
  PartialWrite,
  MappedStore,
  Truncation,
  Stat,
  Append,
  RenameOver,
  ReadLink,
  Splice
};
constexpr std::array<const char*, 14> kHowNames{
    "cached read", "reopened read", "direct read",  "O_DIRECT read", "mapped load",
    "page write",  "partial write", "mapped store", "truncation",    "stat",
    "append",      "rename over",   "readlink",     "sendfile"};

struct Op {
  uint64_t begin = 0, end = 0;
  uint64_t last_begin = 0, last_end = 0;  // of the last of several equal reads
  std::array<uint64_t, kCellsMax> values{};
  uint32_t page = 0;
  uint16_t file = 0;
  OpKind kind = OpKind::Read;
  How how = How::CachedRead;
  uint8_t cells = 0;
  uint8_t process = 0;
};

struct alignas(64) ProcessLog {
  std::atomic<uint32_t> count{0};
  std::atomic<uint64_t> calls{0};        // also those that were merged
  std::atomic<uint64_t> doing_since{0};  // ns; 0: nothing
  std::atomic<const char*> doing{""};
  std::atomic<bool> done{false};
  std::atomic<uint64_t> appended_bytes{0};
  int pid = 0;
  std::array<Op, kLogMax> ops;
};

struct Shared {
  Settings settings;
  std::atomic<bool> go{false}, stop{false};
  std::atomic<bool> failed{false};
  std::array<char, 4096> failure{};
  std::atomic<uint64_t> appends_begun{0}, appends_done{0};  // bytes
  // Cached reads that ended before a size seen earlier. A known limit of the kernel (rule K16 in
  // docs/kernel_cache.md): it throws away the answer to the GETATTR of a read at the end of the
  // file when a purge of that file began meanwhile. Counted, not forgiven silently.
  std::atomic<uint64_t> old_ends{0};
  std::atomic<int> lock_owner{-1};
  std::atomic<uint64_t> locks_taken{0};
  std::array<ProcessLog, kProcessesMax> logs;

  // The first one counts.
  void fail(std::string_view what) {
    if (!failed.exchange(true)) {
      const size_t length = std::min(what.size(), failure.size() - 1);
      std::memcpy(failure.data(), what.data(), length);
      failure[length] = 0;
    }
    stop = true;
  }
};

// One for all processes forked afterwards; lives as long as the process. Sparse: only what is
// written takes memory. Null: there is none.
inline Shared* map_shared() {
  void* memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* shared = static_cast<Shared*>(memory);  // its first state is all zero, but for:
  shared->settings = {};
  shared->lock_owner = -1;
  return shared;
}

inline uint64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(t.tv_nsec);
}

// Register files first, then the one of appends; truncated files (a new one each epoch) from
// kTruncated on.
inline constexpr uint16_t kAppendFile = 200;
inline constexpr uint16_t kNameFile = 201;
inline constexpr uint16_t kTruncated = 1000;
inline constexpr uint64_t kTruncatedPages = 8;
inline constexpr unsigned kTruncatedOps = 150;  // of one process on one such file

inline Layout layout_of(const Settings& settings, unsigned file) {
  if (file >= kTruncated) return Layout::Sim;
  if (settings.mmap && file % 2 == 1) return Layout::Words;
  constexpr std::array<Layout, 3> kTurns{Layout::Pages, Layout::Odd, Layout::Words};
  return kTurns[(settings.mmap ? file / 2 : file) % 3];
}
// Mapped shared and writable, and so open O_RDWR all the time. The others are mostly open O_RDONLY
// and O_WRONLY: nodes can share their pages.
inline bool is_mapped(const Settings& settings, unsigned file) {
  return settings.mmap && file < kTruncated && file % 2 == 1;
}

}  // namespace vremote::live
