// What a daemon and its guardian say to each other over their link (guardian.h). Each reads the
// other as a stranger: the other may have died, or be about to, in the middle of anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"

namespace vremote::node {

// The daemon's, one letter each.
enum class GuardianWord : char {
  Arm = 'A',       // then what send_arms() sends
  TakeBack = 'B',  // answered with all requests it holds, by send_held(), and an empty one
  Keep = 'K',      // a file of an export that has lost its name; see tell_of_file()
  LetGo = 'L',     // it is not open any more
  Quit = 'Q',      // a clean end
};
bool say(int link, GuardianWord word);
// Keep, with a descriptor, or LetGo. Never blocks: false when the guardian does not listen.
bool tell_of_file(int link, GuardianWord word, FileId file, int descriptor);
// What a daemon says; nothing when it is gone.
struct Heard {
  GuardianWord word = GuardianWord::Quit;
  Fd descriptor;  // not valid: there was none, or no room for it
};
std::optional<Heard> hear(int link);
// Behind Keep or LetGo.
std::optional<FileId> receive_file(int link);

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
  Here = 'M',    // then send_arms() with the table behind the channels, send_unseen(), send_files()
};

// The files that a guardian keeps, for the next daemon.
inline constexpr uint32_t kKeptFilesMax = 1u << 14;
struct KeptNameless {
  FileId file;
  Fd descriptor;
};
bool send_files(int link, std::span<const std::pair<FileId, int>> files);
bool receive_files(int link, std::vector<KeptNameless>& files);

// The requests that no dead daemon can have seen.
inline constexpr uint32_t kUnseenMax = 1u << 20;
bool send_unseen(int link, std::span<const uint64_t> requests);
bool receive_unseen(int link, std::vector<uint64_t>& requests);

// One request that was held; empty: there are no more.
bool send_held(int link, std::span<const std::byte> request);
// False when the guardian is gone or says something else; otherwise `request` is what it sent.
bool receive_held(int link, std::vector<std::byte>& request);

}  // namespace vremote::node
