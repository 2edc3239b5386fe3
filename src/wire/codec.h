// Bytes for coherence/messages.h.
//
// Decoders trust nothing: the FlatBuffer is verified, every enum, range, length and name is
// checked, and every piece of page data must lie inside the bulk. A decoded message shares the
// bulk's memory. Errors are EPROTO: the peer broke the rules.
#pragma once

#include <span>

#include "base/bytes.h"
#include "base/result.h"
#include "coherence/messages.h"
#include "wire/frame.h"

namespace vremote::wire {

// EMSGSIZE or EINVAL when the message is one that the other side would refuse (over 4 MiB of page
// data, a name over kNameMax, …): nothing of it may be sent.
Result<Encoded> encode(const coherence::ToHome& message);
Result<Encoded> encode(const coherence::ToAgent& message);

// `header` is the FlatBuffer alone, without the preamble.
Result<coherence::ToHome> decode_to_home(FrameType type, std::span<const std::byte> header,
                                         const Bytes& bulk);
Result<coherence::ToAgent> decode_to_agent(FrameType type, std::span<const std::byte> header,
                                           const Bytes& bulk);

}  // namespace vremote::wire
