// What is fuzzed: every reader of bytes that others write.
//
// A target takes any bytes. It may refuse them; what it takes for good must keep the promises of
// its header. A broken promise is a VR_CHECK, a memory error is the sanitizers' to see.
//
// Each target has a corpus, tests/fuzz/corpus/NAME: seeds, and what the fuzzer has found since.
// libFuzzer runs a target without end (scripts/fuzz); corpus_test runs every file of the corpus
// once, in the ordinary suite.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string_view>

#include "base/ids.h"

namespace vremote::fuzz {

// A frame as on a connection: preamble, header, bulk. Lengths that say more than there is are cut.
void frame(std::span<const std::byte> bytes);
// A request as the kernel writes it to /dev/fuse.
void request(std::span<const std::byte> bytes);
// The text of a node.toml.
void config(std::span<const std::byte> bytes);
// Files in the state directory: what was written back and could not be delivered, the identities
// that an export has given out, who had a session, which calls were carried out. Checks that a
// fuzzer does not guess are also tried set right.
void recovery(std::span<const std::byte> bytes);
void journal(std::span<const std::byte> bytes);
void sessions(std::span<const std::byte> bytes);
void calls(std::span<const std::byte> bytes);
// A cluster's or guest's key as a line, and the identity that a connection shows.
void key(std::span<const std::byte> bytes);
// A guardian and its daemon: their link, their table, requests that are held and given back.
void words(std::span<const std::byte> bytes);
void table(std::span<const std::byte> bytes);
void held(std::span<const std::byte> bytes);
// What a daemon leaves to the next one of its node.
void handover(std::span<const std::byte> bytes);
// Messages of hostile peers in any order, among events of an honest kernel and honest peers;
// choices.h.
void agent(std::span<const std::byte> bytes);
void home(std::span<const std::byte> bytes);

inline constexpr FileId kJournalRoot{.export_index = 0, .generation = 1, .inode = 2};
inline constexpr size_t kTablePatch = 12;

struct Target {
  std::string_view name;
  void (*run)(std::span<const std::byte> bytes);
};
inline constexpr Target kTargets[] = {
    {"frame", frame},     {"request", request},   {"config", config}, {"recovery", recovery},
    {"journal", journal}, {"sessions", sessions}, {"calls", calls},   {"key", key},
    {"words", words},     {"table", table},       {"held", held},     {"handover", handover},
    {"agent", agent},     {"home", home}};

// Memory of exactly this size, so that AddressSanitizer sees one byte too far.
class Exact {
 public:
  explicit Exact(std::span<const std::byte> bytes)
      : memory_(std::make_unique_for_overwrite<std::byte[]>(bytes.size())), size_(bytes.size()) {
    for (size_t i = 0; i < size_; ++i) memory_[i] = bytes[i];
  }
  std::span<const std::byte> view() const { return {memory_.get(), size_}; }

 private:
  std::unique_ptr<std::byte[]> memory_;
  size_t size_;
};

}  // namespace vremote::fuzz
