// Numbers that nobody can guess.
#pragma once

#include <sys/random.h>

#include <cstdint>

namespace vremote {

inline uint64_t random_number() {
  uint64_t value = 0;
  // A signal may come before the kernel has any (getrandom(2)).
  while (::getrandom(&value, sizeof value, 0) != sizeof value) {
  }
  return value;
}

}  // namespace vremote
