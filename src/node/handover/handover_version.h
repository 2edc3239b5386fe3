// What the programs of two daemons say to each other before one becomes the other (handover.h).
#pragma once

#include <cstdint>

namespace vremote::node {

// Changes when an older daemon's record cannot be read any more, and also with the layout of
// GuardianTable and the words of guardian_words.h: the guardian stays, and goes on as it was built.
inline constexpr uint32_t kHandoverVersion = 3;
// What `vremote node --handover-check` prints, before the number.
inline constexpr const char* kHandoverWord = "vremote-handover";

}  // namespace vremote::node
