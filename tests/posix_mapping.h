// A mapping of which loads and stores may raise SIGBUS.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdint>

#include "base/fd.h"

namespace vremote::live {

inline constexpr int kBoth = PROT_READ | PROT_WRITE;

class Mapping {
 public:
  Mapping(const Fd& fd, size_t size, int protection, off_t offset = 0, int flags = MAP_SHARED)
      : size_(size) {
    void* at = ::mmap(nullptr, size, protection, flags, fd.get(), offset);
    at_ = at == MAP_FAILED ? nullptr : static_cast<char*>(at);
  }
  ~Mapping() {
    if (at_ != nullptr) ::munmap(at_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  bool valid() const { return at_ != nullptr; }
  char* at() const { return at_; }
  std::atomic_ref<uint64_t> word(size_t index) const {
    return std::atomic_ref<uint64_t>(reinterpret_cast<uint64_t*>(at_)[index]);
  }

  // The byte, or -1 for SIGBUS.
  int load(size_t offset) const {
    return guarded([&] { return static_cast<unsigned char>(load_of(at_ + offset)); });
  }
  int store(size_t offset, char byte) const {
    return guarded([&] { return *static_cast<volatile char*>(at_ + offset) = byte, 0; });
  }

 private:
  static char load_of(const volatile char* at) { return *at; }
  template <class Body>
  static int guarded(Body&& body) {
    struct sigaction action {
    }, before{};
    action.sa_handler = [](int) { ::siglongjmp(back_, 1); };
    ::sigaction(SIGBUS, &action, &before);
    int result = -1;
    if (::sigsetjmp(back_, 1) == 0) result = body();
    ::sigaction(SIGBUS, &before, nullptr);
    return result;
  }

  static inline sigjmp_buf back_;
  char* at_ = nullptr;
  size_t size_;
};

}  // namespace vremote::live
