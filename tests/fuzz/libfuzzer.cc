// One target for libFuzzer; VREMOTE_FUZZ_TARGET says which.
#include <cstdint>

#include "fuzz/targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  vremote::fuzz::VREMOTE_FUZZ_TARGET(std::as_bytes(std::span(data, size)));
  return 0;
}
