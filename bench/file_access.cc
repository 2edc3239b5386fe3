#include "bench/file_access.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/prng.h"
#include "bench/compare.h"

namespace vremote::bench {
namespace {
constexpr size_t kOffsets = 1 << 14;
}  // namespace

Fd open_file(const std::string& path, int flags) {
  Fd fd(::open(path.c_str(), flags | O_CLOEXEC, 0644));
  must(fd.valid(), path);
  return fd;
}

void make_file(const std::string& path, uint64_t bytes, size_t block_size) {
  const Fd fd = open_file(path, O_WRONLY | O_CREAT | O_TRUNC);
  std::vector<uint64_t> block(block_size / sizeof(uint64_t));
  Prng random(1);
  for (uint64_t done = 0; done < bytes; done += block_size) {
    for (uint64_t& word : block) word = random.next();
    must(::write(fd.get(), block.data(), block_size) == static_cast<ssize_t>(block_size), path);
  }
}

void read_whole(int fd, std::vector<std::byte>& block) {
  ::lseek(fd, 0, SEEK_SET);
  for (;;) {
    const ssize_t n = ::read(fd, block.data(), block.size());
    must(n >= 0, "read");
    if (n == 0) return;
  }
}

Offsets::Offsets(uint64_t bytes) {
  Prng random(2);
  for (size_t i = 0; i < kOffsets; ++i)
    offsets_.push_back(static_cast<int64_t>(random.next() % (bytes / kPage) * kPage));
}

}  // namespace vremote::bench
