// For tests: one message of every kind, and what the receiver sees of an encoded one.
#pragma once

#include <string>
#include <vector>

#include "coherence/messages.h"
#include "wire/frame.h"

namespace vremote::wire {

std::vector<coherence::ToHome> sample_to_home();
std::vector<coherence::ToAgent> sample_to_agent();

// `size` bytes that differ with `seed`.
Bytes pattern(size_t size, uint64_t seed);

// Every field of a message as text: two messages are equal when their texts are.
std::string describe(const coherence::ToHome& message);
std::string describe(const coherence::ToAgent& message);

struct Frame {
  Preamble preamble;
  std::vector<std::byte> header;
  Bytes bulk;
};
Frame as_received(const Encoded& encoded);

}  // namespace vremote::wire
