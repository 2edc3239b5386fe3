// Immutable page bytes, shared without copies between the dirty store, messages and replies.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>

#include "base/check.h"

namespace vremote {

// A view of bytes that keeps its memory alive. Copying it copies no data. Thread rule: the bytes
// never change while more than one Bytes refers to them.
class Bytes {
 public:
  Bytes() = default;
  Bytes(std::shared_ptr<const std::byte[]> owner, std::span<const std::byte> view)
      : owner_(std::move(owner)), view_(view) {}

  static Bytes copy_of(std::span<const std::byte> source) {
    auto memory = std::make_shared_for_overwrite<std::byte[]>(source.size());
    if (!source.empty()) std::memcpy(memory.get(), source.data(), source.size());
    std::span<const std::byte> view(memory.get(), source.size());
    return Bytes(std::move(memory), view);
  }

  std::span<const std::byte> view() const { return view_; }
  const std::byte* data() const { return view_.data(); }
  size_t size() const { return view_.size(); }
  bool empty() const { return view_.empty(); }

  // The part [offset, offset + length); it must lie inside.
  Bytes part(size_t offset, size_t length) const {
    VR_CHECK(offset <= view_.size() && length <= view_.size() - offset);
    return Bytes(owner_, view_.subspan(offset, length));
  }

  // True when `next` continues this view in the same memory; joined() is then the view of both.
  bool joins(const Bytes& next) const {
    return owner_ == next.owner_ && view_.data() + view_.size() == next.view_.data();
  }
  Bytes joined(const Bytes& next) const {
    return Bytes(owner_,
                 std::span<const std::byte>(view_.data(), view_.size() + next.view_.size()));
  }
  // True when no other Bytes refers to the memory, so that its owner may change it.
  bool unshared() const {
    if (owner_.use_count() != 1) return false;
    std::atomic_thread_fence(
        std::memory_order_acquire);  // whoever dropped the last other reference is done reading
    return true;
  }

 private:
  std::shared_ptr<const std::byte[]> owner_;
  std::span<const std::byte> view_;
};

}  // namespace vremote
