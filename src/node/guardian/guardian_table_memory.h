// How a guardian's table lies in memory: for the files of GuardianTable alone.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "node/guardian/guardian_table.h"

namespace vremote::node {

struct GuardianTable::Memory {
  static constexpr size_t kHomeNameMax = 64, kExportNameMax = 256;
  struct HomeSlot {
    std::array<char, kHomeNameMax> name;
    std::atomic<int64_t> until_ns;
  };
  struct InodeSlot {
    std::atomic<uint64_t> node;  // 0: free
    std::atomic<uint64_t> lookups;
    FileId file;
    uint32_t home;
    std::atomic<uint32_t> opens, reading, mapping;
    std::atomic<uint32_t> owes;
  };
  struct ExportSlot {
    std::atomic<uint32_t> used;
    uint32_t home;
    FileId root;
    uint32_t read_only;
    std::array<char, kExportNameMax> name;
  };
  struct Agreed {
    std::atomic<uint32_t> there;
    uint32_t minor, max_pages, max_write, max_read_ahead, flags;
  };
  struct FillSlot {
    std::atomic<uint64_t> unique;  // 0: free
    uint64_t node, offset, length;
  };
  struct TruncationSlot {
    std::atomic<uint64_t> unique;  // 0: free; with kTaken: the guardian answers it
  };
  struct PurgeSlot {
    std::atomic<uint64_t> node;  // 0: free
    uint64_t offset, length;
  };
  std::atomic<int64_t> alive_ns;
  std::atomic<uint32_t> charge;
  std::atomic<uint32_t> homes;
  std::atomic<uint32_t> inodes_used;  // slots from here on were never used
  std::atomic<uint32_t> without_slot;
  std::atomic<uint64_t> layout;
  std::atomic<uint64_t> identity;
  std::atomic<uint32_t> generation;
  std::atomic<uint32_t> early_deaths;
  std::atomic<uint32_t> exports_without_slot;
  Agreed agreed;
  GuardianLocks::Memory locks;
  std::array<ExportSlot, kExportsMax> shown;
  std::array<HomeSlot, kHomesMax> home;
  std::array<FillSlot, kFillsMax> fill;
  std::array<TruncationSlot, kTruncationsMax> truncation;
  std::atomic<uint32_t> next_purge;
  std::array<PurgeSlot, kPurgesMax> purge;
  std::array<InodeSlot, kInodesMax> inode;
};

}  // namespace vremote::node
