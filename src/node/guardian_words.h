// What a daemon and its guardian say to each other over their link (guardian.h). Each reads the
// other as a stranger: the other may have died, or be about to, in the middle of anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vremote::node {

// The daemon's, one letter each.
enum class GuardianWord : char {
  Arm = 'A',       // then what send_arms() sends
  TakeBack = 'B',  // answered with all requests it holds, by send_held(), and an empty one
  Quit = 'Q',      // a clean end
};
bool say(int link, GuardianWord word);

// What a guardian works with.
struct GuardianArms {
  uint32_t connection = 0;
  std::string mount;
  std::vector<Fd> descriptors;  // at least two; the first is the guardian's own channel
};
inline constexpr size_t kGuardianDescriptorsMax = 67;
inline constexpr size_t kGuardianMountMax = 4096;

Status send_arms(int link, uint32_t connection, const std::string& mount,
                 std::span<const int> descriptors);
// Nothing when the daemon is gone or says something else. Blocks, as all that receives here.
std::optional<GuardianArms> receive_arms(int link);

// What a visitor at the guardian's socket says, one letter each, and what it hears.
enum class VisitorWord : char {
  Retire = 'R',  // end the connection and the mount
  Take = 'T',    // give me the mount; then Has, or Retire, or it goes away and all is as before
  Has = 'H',     // it is mine, and another guardian watches
};
enum class VisitorAnswer : char {
  Retired = 'D',
  Lives = 'L',   // its daemon does
  Cannot = 'N',  // be given away
  Here = 'M',    // then send_arms() with the table behind the channels, then send_unseen()
};

// The requests that no dead daemon can have seen.
inline constexpr uint32_t kUnseenMax = 1u << 20;
bool send_unseen(int link, std::span<const uint64_t> requests);
bool receive_unseen(int link, std::vector<uint64_t>& requests);

// One request that was held; empty: there are no more.
bool send_held(int link, std::span<const std::byte> request);
// False when the guardian is gone or says something else; otherwise `request` is what it sent.
bool receive_held(int link, std::vector<std::byte>& request);

}  // namespace vremote::node
