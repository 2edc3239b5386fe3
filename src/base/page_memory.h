// Memory for single pages of file data.
#pragma once

#include <cstddef>
#include <memory>

namespace vremote {

inline constexpr size_t kPageMemorySize = 4096;

// kPageMemorySize bytes, aligned to as many, their content unspecified. They come out of chunks
// that the kernel may back with one huge page each: pages that are written at random places cost no
// search of page tables then, which doubles the price of a copy into them on a virtual machine.
// A chunk of which nothing is in use any more goes back to the kernel, but for one. Throws
// std::bad_alloc. Any thread may call it and drop the last reference.
std::shared_ptr<std::byte[]> new_page_memory();

// How many chunks there are; for tests and status.
size_t page_memory_chunks();

}  // namespace vremote
