// Everything the fuzzer has found, and the seeds it began with, once more in every run of the
// suite.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "fuse/request.h"
#include "fuzz/targets.h"
#include "node/config/config.h"
#include "node/handover/handover.h"
#include "node/home/home_state.h"
#include "store/journal.h"
#include "wire/frame.h"

namespace vremote::fuzz {
namespace {

std::vector<std::vector<std::byte>> corpus(std::string_view target) {
  std::vector<std::vector<std::byte>> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(VREMOTE_CORPUS) + "/" +
                                                               std::string(target))) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    EXPECT_TRUE(file) << entry.path();
    const auto bytes = std::as_bytes(std::span(text));
    inputs.emplace_back(bytes.begin(), bytes.end());
  }
  return inputs;
}

TEST(CorpusTest, EveryInputKeepsThePromisesOfItsReader) {
  for (const Target& target : kTargets) {
    const auto inputs = corpus(target.name);
    EXPECT_GT(inputs.size(), 10u) << target.name;
    for (const auto& input : inputs) {
      target.run(input);
      // Its damaged relatives: cut short, and one byte different.
      for (size_t at = 0; at < input.size(); at += 1 + input.size() / 64) {
        target.run(std::span(input).first(at));
        auto changed = input;
        changed[at] ^= std::byte{0xff};
        target.run(changed);
      }
    }
  }
}

// A corpus that every reader refuses would prove little.
TEST(CorpusTest, TheCorpusHasValidInputOfEveryKind) {
  std::set<uint8_t> frame_types;
  for (const auto& input : corpus("frame"))
    if (input.size() >= wire::kPreambleSize)
      if (const auto preamble =
              wire::decode_preamble(std::span(input).first<wire::kPreambleSize>()))
        frame_types.insert(static_cast<uint8_t>(preamble->type));
  EXPECT_GE(frame_types.size(), 14u);

  std::set<size_t> bodies;
  for (const auto& input : corpus("request"))
    if (const auto decoded = fuse::decode(input)) bodies.insert(decoded->body.index());
  EXPECT_EQ(bodies.size(), std::variant_size_v<fuse::Body>);

  size_t valid = 0;
  for (const auto& input : corpus("config"))
    valid += node::parse_config({reinterpret_cast<const char*>(input.data()), input.size()}, "x")
                 .has_value();
  EXPECT_GE(valid, 3u);

  const auto text_of = [](std::span<const std::byte> input) {
    return std::string_view(reinterpret_cast<const char*>(input.data()), input.size());
  };
  size_t sessions = 0, identities = 0;
  for (const auto& input : corpus("sessions"))
    sessions += node::parse_sessions(text_of(input)).has_value();
  for (const auto& input : corpus("journal"))
    identities += store::read_journal(text_of(input), kJournalRoot).size();
  EXPECT_GE(sessions, 10u);
  EXPECT_GE(identities, 30u);
  size_t records = 0;
  for (const auto& input : corpus("handover")) records += node::decode_handover(input).has_value();
  EXPECT_GE(records, 10u);
}

}  // namespace
}  // namespace vremote::fuzz
