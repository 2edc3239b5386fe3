// Messages between the three processes of run(): small datagrams, some with a descriptor.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "base/fd.h"
#include "base/result.h"

namespace vremote::intercept {

struct LinkMessage {
  enum class Kind : uint32_t {
    Listener,   // CMD -> supervisor, with the seccomp listener; value: 0 or kNoWaitKillable
    Started,    // supervisor -> run(), with CMD's pidfd; value: its pid
    Failed,     // the set-up failed; value: errno, text: the sentence
    Stopped,    // CMD was stopped; value: the signal
    Ended,      // CMD ended and left children behind; value: its wait status
    EndedLast,  // CMD ended as the last of its tree: the supervisor ends too
  };
  static constexpr int32_t kNoWaitKillable = 1;

  Kind kind = Kind::Failed;
  int32_t value = 0;
  std::string text;  // cut at 256 bytes
  Fd fd;
};

// Two connected ends, close-on-exec.
Result<std::pair<Fd, Fd>> make_link();
Status send_message(const Fd& link, const LinkMessage& message);
// EPIPE when the other end is gone. Blocks.
Result<LinkMessage> receive_message(const Fd& link);

}  // namespace vremote::intercept
