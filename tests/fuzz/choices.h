// An input as a sequence of choices: for targets that play events. Behind its end all are 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

namespace vremote::fuzz {

class Choices {
 public:
  explicit Choices(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool more() const { return !bytes_.empty(); }
  uint8_t byte() {
    if (bytes_.empty()) return 0;
    const auto value = static_cast<uint8_t>(bytes_.front());
    bytes_ = bytes_.subspan(1);
    return value;
  }
  bool coin() { return (byte() & 1) != 0; }
  // 0 to `most`, which is at most 255.
  uint8_t upto(uint8_t most) { return static_cast<uint8_t>(byte() % (most + 1)); }
  uint64_t number() {
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return value;
  }
  template <typename T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[byte() % values.size()];
  }
  // Of a vector that is not empty.
  template <typename T>
  const T& one_of(const std::vector<T>& values) {
    return values[byte() % values.size()];
  }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace vremote::fuzz
