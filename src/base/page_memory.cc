#include "base/page_memory.h"

#include <sys/mman.h>

#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <mutex>
#include <new>
#include <vector>

#include "base/check.h"

namespace vremote {
namespace {

constexpr size_t kChunkSize = 2u << 20;  // a huge page of x86-64 and of arm64 with 4 KiB pages
constexpr size_t kPagesPerChunk = kChunkSize / kPageMemorySize;

std::byte* map_chunk() {
  // Twice as much has an aligned chunk in it.
  void* memory = ::mmap(nullptr, 2 * kChunkSize, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* first = static_cast<std::byte*>(memory);
  const size_t before = (kChunkSize - reinterpret_cast<uintptr_t>(first) % kChunkSize) % kChunkSize;
  if (before != 0) ::munmap(first, before);
  ::munmap(first + before + kChunkSize, kChunkSize - before);
  ::madvise(first + before, kChunkSize, MADV_HUGEPAGE);  // refused: small pages do as well
  return first + before;
}

class PageMemory {
 public:
  std::byte* take() {
    std::lock_guard lock(mutex_);
    if (roomy_.empty()) {
      std::byte* memory = map_chunk();
      Chunk& chunk = chunks_[memory];
      chunk.free.fill(~uint64_t{0});
      make_roomy(chunks_.find(memory));
    }
    const auto at = roomy_.back();
    auto& [memory, chunk] = *at;
    for (size_t word = 0; word < chunk.free.size(); ++word) {
      if (chunk.free[word] == 0) continue;
      const auto bit = static_cast<unsigned>(std::countr_zero(chunk.free[word]));
      chunk.free[word] &= chunk.free[word] - 1;
      if (++chunk.used == kPagesPerChunk) make_full(at);
      return memory + (word * 64 + bit) * kPageMemorySize;
    }
    VR_CHECK(false);
    return nullptr;
  }

  void give_back(std::byte* page) {
    std::lock_guard lock(mutex_);
    const auto at = std::prev(chunks_.upper_bound(page));
    auto& [memory, chunk] = *at;
    const size_t index = static_cast<size_t>(page - memory) / kPageMemorySize;
    chunk.free[index / 64] |= uint64_t{1} << index % 64;
    if (chunk.used == kPagesPerChunk) make_roomy(at);
    if (--chunk.used == 0 && roomy_.size() > 1) {
      make_full(at);
      ::munmap(memory, kChunkSize);
      chunks_.erase(at);
    }
  }

  size_t chunks() {
    std::lock_guard lock(mutex_);
    return chunks_.size();
  }

 private:
  struct Chunk {
    std::array<uint64_t, kPagesPerChunk / 64> free{};  // a bit per page
    size_t used = 0;
    size_t place = 0;  // in roomy_, unless full
  };
  using Chunks = std::map<std::byte*, Chunk>;

  void make_roomy(Chunks::iterator chunk) {
    chunk->second.place = roomy_.size();
    roomy_.push_back(chunk);
  }
  void make_full(Chunks::iterator chunk) {
    const size_t place = chunk->second.place;
    roomy_[place] = roomy_.back();
    roomy_[place]->second.place = place;
    roomy_.pop_back();
  }

  std::mutex mutex_;
  Chunks chunks_;
  std::vector<Chunks::iterator> roomy_;  // with a free page
};

// Never destroyed: pages may outlive every other static object.
PageMemory& pages() {
  static auto* const memory = std::make_unique<PageMemory>().release();
  return *memory;
}

}  // namespace

std::shared_ptr<std::byte[]> new_page_memory() {
  return {pages().take(), [](std::byte* page) { pages().give_back(page); }};
}

size_t page_memory_chunks() { return pages().chunks(); }

}  // namespace vremote
