#include "fuse/buffer.h"

#include <functional>
#include <mutex>
#include <new>
#include <vector>

#include "base/check.h"

namespace vremote::fuse {
namespace {

constexpr size_t kAlignment = 4096;
// The headers end where the first page does, so that a payload begins a page.
constexpr size_t kStart = kAlignment - kReceiveHeadroom;
constexpr size_t kBlockSize = kAlignment + kMaxTransfer;
static_assert(kStart % alignof(fuse_in_header) == 0 && kBlockSize - kStart == kReceiveBufferSize);

// Below a quarter of the block, sharing would hold more memory than copying costs.
constexpr size_t kShareMin = kMaxTransfer / 4;

struct AlignedDelete {
  void operator()(std::byte* block) const {
    ::operator delete[](block, std::align_val_t{kAlignment});
  }
};
using Block = std::unique_ptr<std::byte[], AlignedDelete>;

Block new_block() {
  return Block(static_cast<std::byte*>(::operator new[](kBlockSize, std::align_val_t{kAlignment})));
}

}  // namespace

struct ReceiveBuffer::Pool {
  explicit Pool(size_t idle_limit) : idle_max(idle_limit) { idle.reserve(idle_limit); }

  static std::shared_ptr<std::byte[]> take(const std::shared_ptr<Pool>& pool) {
    Block block;
    {
      const std::lock_guard lock(pool->mutex);
      if (!pool->idle.empty()) {
        block = std::move(pool->idle.back());
        pool->idle.pop_back();
      }
    }
    if (!block) block = new_block();
    // Weak: bytes that outlive the daemon's loops must not keep the idle blocks alive.
    const std::weak_ptr<Pool> home = pool;
    return {block.release(), [home](std::byte* used) {
              Block back(used);
              if (const auto owner = home.lock()) owner->put(std::move(back));
            }};
  }

  void put(Block block) {
    const std::lock_guard lock(mutex);
    if (idle.size() < idle_max) idle.push_back(std::move(block));  // reserved: does not allocate
  }

  const size_t idle_max;
  mutable std::mutex mutex;
  std::vector<Block> idle;
};

ReceiveBuffer::ReceiveBuffer(std::shared_ptr<Pool> pool)
    : pool_(std::move(pool)), memory_(Pool::take(pool_)) {}

std::span<std::byte> ReceiveBuffer::next() {
  if (lent_) {
    memory_.reset();  // first, so that a part already given back is what take() finds
    memory_ = Pool::take(pool_);
    lent_ = false;
  }
  return {memory_.get() + kStart, kReceiveBufferSize};
}

Bytes ReceiveBuffer::cut(std::span<const std::byte> part) {
  const std::byte* begin = memory_.get();
  const std::less_equal<const std::byte*> before;
  VR_CHECK(part.empty() ||
           (before(begin, part.data()) && before(part.data() + part.size(), begin + kBlockSize)));
  if (part.size() < kShareMin) return Bytes::copy_of(part);
  lent_ = true;
  return Bytes(memory_, part);
}

BufferPool::BufferPool(size_t idle_max) : pool_(std::make_shared<ReceiveBuffer::Pool>(idle_max)) {}

ReceiveBuffer BufferPool::take() { return ReceiveBuffer(pool_); }

size_t BufferPool::idle() const {
  const std::lock_guard lock(pool_->mutex);
  return pool_->idle.size();
}

}  // namespace vremote::fuse
