#include "wire/codec.h"

#include <gtest/gtest.h>

#include "wire/wire_samples.h"

namespace vremote::wire {
namespace {

using namespace coherence;

TEST(CodecTest, EveryMessageToAHomeComesBackAsItWas) {
  auto samples = sample_to_home();
  ASSERT_GE(samples.size(), 5 + std::variant_size_v<Operation>);
  for (const ToHome& m : samples) {
    auto encoded = encode(m);
    ASSERT_TRUE(encoded) << encoded.error().what;
    Frame frame = as_received(*encoded);
    auto back = decode_to_home(frame.preamble.type, frame.header, frame.bulk);
    ASSERT_TRUE(back) << to_string(frame.preamble.type) << ": " << back.error().what;
    EXPECT_EQ(describe(*back), describe(m));
  }
}

TEST(CodecTest, EveryMessageToAnAgentComesBackAsItWas) {
  auto samples = sample_to_agent();
  ASSERT_GE(samples.size(), 4 + std::variant_size_v<Outcome>);
  for (const ToAgent& m : samples) {
    auto encoded = encode(m);
    ASSERT_TRUE(encoded) << encoded.error().what;
    Frame frame = as_received(*encoded);
    auto back = decode_to_agent(frame.preamble.type, frame.header, frame.bulk);
    ASSERT_TRUE(back) << to_string(frame.preamble.type) << ": " << back.error().what;
    EXPECT_EQ(describe(*back), describe(m));
  }
}

TEST(CodecTest, PageDataIsNeitherCopiedWhenEncodedNorWhenDecoded) {
  Bytes page = pattern(4096, 7);
  Flush flush{
      .file = {0, 1, 2}, .flush = 3, .extents = {{.offset = 0, .bytes = page}}, .attributes = {}};
  auto encoded = encode(ToHome(flush));
  ASSERT_TRUE(encoded);
  ASSERT_EQ(encoded->bulk.size(), 1u);
  EXPECT_EQ(encoded->bulk[0].data(), page.data());
  EXPECT_LT(encoded->header.size(), 256u);

  Frame frame = as_received(*encoded);
  auto back = decode_to_home(FrameType::Flush, frame.header, frame.bulk);
  ASSERT_TRUE(back);
  EXPECT_EQ(std::get<Flush>(*back).extents[0].bytes.data(), frame.bulk.data());
}

TEST(CodecTest, AHeaderMayLieAtAnyAddress) {
  auto encoded = encode(sample_to_home().front());
  ASSERT_TRUE(encoded);
  for (size_t shift = 0; shift < 8; ++shift) {
    std::vector<std::byte> moved(shift);
    moved.insert(moved.end(), encoded->header.begin() + kPreambleSize, encoded->header.end());
    EXPECT_TRUE(decode_to_home(encoded->type, std::span(moved).subspan(shift), {})) << shift;
  }
}

template <typename M>
int send_error(M message) {
  auto encoded = encode(ToHome(std::move(message)));
  return encoded ? 0 : encoded.error().code;
}
Call call_of(Operation operation) {
  return {.call = 1, .caller = {}, .operation = std::move(operation)};
}

TEST(CodecTest, TheSenderRefusesWhatTheReceiverWouldRefuse) {
  Call passed_by = call_of(RemoveCall{{}, "x", false});
  passed_by.heard_below = 1;
  EXPECT_EQ(send_error(passed_by), 0);
  passed_by.heard_below = 2;
  EXPECT_EQ(send_error(passed_by), EINVAL);
  EXPECT_EQ(send_error(call_of(LookupCall{{}, std::string(kNameMax, 'x')})), 0);
  EXPECT_EQ(send_error(call_of(LookupCall{{}, std::string(kNameMax + 1, 'x')})), EMSGSIZE);
  EXPECT_EQ(send_error(call_of(LookupCall{{}, ""})), EINVAL);
  EXPECT_EQ(send_error(call_of(LookupCall{{}, ".."})), EINVAL);
  EXPECT_EQ(send_error(call_of(LookupCall{{}, "a/b"})), EINVAL);
  EXPECT_EQ(send_error(call_of(LookupCall{{}, std::string("a\0b", 3)})), EINVAL);
  EXPECT_EQ(send_error(call_of(SymlinkCall{{}, "x", std::string(kLinkMax + 1, 'y')})), EMSGSIZE);
  EXPECT_EQ(send_error(call_of(SetXattrCall{{}, "user.x", pattern(kXattrMax, 1), 0})), 0);
  EXPECT_EQ(send_error(call_of(SetXattrCall{{}, "user.x", pattern(kXattrMax + 1, 1), 0})),
            EMSGSIZE);
  EXPECT_EQ(send_error(call_of(AllocateCall{{}, uint64_t{1} << 63, 1, 0})), EINVAL);
  Call crowd = call_of(StatFsCall{});
  crowd.caller.groups.resize(kGroupsMax);
  EXPECT_EQ(send_error(crowd), 0);
  crowd.caller.groups.resize(kGroupsMax + 1);
  EXPECT_EQ(send_error(crowd), EMSGSIZE);
  EXPECT_EQ(send_error(Fetch{.file = {}, .fetch = 1, .range = {0, kPageEnd}}), 0);
  EXPECT_EQ(send_error(Fetch{.file = {}, .fetch = 1, .range = {0, kPageEnd + 1}}), EINVAL);
  EXPECT_EQ(send_error(Fetch{.file = {}, .fetch = 1, .range = {5, 4}}), EINVAL);
  EXPECT_EQ(send_error(LeaseRequest{.file = {},
                                    .resource = Resource::Attributes,
                                    .mode = LeaseMode::Update,
                                    .range = {0, 2}}),
            EINVAL);
  EXPECT_EQ(send_error(LeaseRequest{.file = {}, .mode = LeaseMode{4}, .range = {0, 2}}), EINVAL);
  Recall recall{.file = {}, .recall = 1, .to = LeaseMode::Shared, .range = {0, 2}};
  EXPECT_TRUE(encode(ToAgent(recall)));
  recall.to = LeaseMode::Exclusive;
  EXPECT_FALSE(encode(ToAgent(recall)));
  recall.to = LeaseMode::None;
  recall.recall = 0;
  EXPECT_FALSE(encode(ToAgent(recall)));
  Grant grant{.file = {}, .sequence = 1, .mode = LeaseMode::Shared, .range = {0, 2}};
  EXPECT_TRUE(encode(ToAgent(grant)));
  grant.mode = LeaseMode::None;
  EXPECT_FALSE(encode(ToAgent(grant)));
  grant.error = EROFS;
  EXPECT_TRUE(encode(ToAgent(grant)));
  Flush big{.file = {}, .flush = 1, .extents = {{0, pattern(kBulkMax, 1)}}, .attributes = {}};
  EXPECT_EQ(send_error(big), 0);
  big.extents.push_back({kBulkMax, pattern(1, 1)});
  EXPECT_EQ(send_error(big), EMSGSIZE);
  DirectoryPage page;
  page.entries.resize(10000, {.name = std::string(200, 'n'), .cookie = 1, .file = {}, .type = 0});
  auto encoded = encode(ToAgent(Reply{.call = 1, .error = 0, .outcome = page}));
  ASSERT_FALSE(encoded);
  EXPECT_EQ(encoded.error().code, EMSGSIZE);
}

TEST(CodecTest, DataOutsideTheBulkIsRefused) {
  auto encoded = encode(ToHome(Flush{.file = {},
                                     .flush = 1,
                                     .extents = {{0, pattern(100, 1)}, {4096, pattern(50, 2)}},
                                     .attributes = {}}));
  ASSERT_TRUE(encoded);
  Frame frame = as_received(*encoded);
  EXPECT_TRUE(decode_to_home(FrameType::Flush, frame.header, frame.bulk));
  EXPECT_FALSE(decode_to_home(FrameType::Flush, frame.header, frame.bulk.part(0, 149)));
  EXPECT_FALSE(decode_to_home(FrameType::Flush, frame.header, {}));
}

TEST(CodecTest, AMessageIsOnlyTakenInItsOwnDirectionAndAsItsOwnType) {
  for (const ToHome& m : sample_to_home()) {
    auto encoded = encode(m);
    ASSERT_TRUE(encoded);
    Frame frame = as_received(*encoded);
    EXPECT_FALSE(decode_to_agent(frame.preamble.type, frame.header, frame.bulk));
  }
  EXPECT_FALSE(decode_to_home(FrameType::Hello, {}, {}));
  EXPECT_FALSE(decode_to_home(FrameType::Grant, {}, {}));
}

TEST(FrameTest, PreamblesAreLittleEndianAndComeBack) {
  Preamble p{.header_length = 0x10203,
             .bulk_length = 0x40506,
             .type = FrameType::Flush,
             .sequence = 0x0708090a0b0c};
  std::array<std::byte, kPreambleSize> bytes;
  encode_preamble(p, bytes);
  EXPECT_EQ(bytes[0], std::byte{3});
  EXPECT_EQ(bytes[4], std::byte{6});
  EXPECT_EQ(bytes[8], std::byte{18});
  EXPECT_EQ(bytes[10], std::byte{0x0c});
  EXPECT_EQ(bytes[15], std::byte{0x07});
  auto back = decode_preamble(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(*back, p);
}

TEST(FrameTest, PreamblesBeyondTheBoundsAreRefused) {
  auto error = [](uint32_t header, uint32_t bulk, uint8_t type, uint8_t flags) {
    std::array<std::byte, kPreambleSize> bytes;
    encode_preamble({.header_length = header, .bulk_length = bulk, .type = FrameType{type}}, bytes);
    bytes[9] = std::byte{flags};
    return !decode_preamble(bytes);
  };
  EXPECT_FALSE(error(kHeaderMax, kBulkMax, 18, 0));
  EXPECT_TRUE(error(kHeaderMax + 1, 0, 18, 0));
  EXPECT_TRUE(error(8, kBulkMax + 1, 18, 0));
  EXPECT_TRUE(error(8, 0, 18, 1));
  EXPECT_TRUE(error(0, 0, 18, 0));
  EXPECT_TRUE(error(8, 1, 19, 0)) << "a fetch carries no bulk";
  EXPECT_TRUE(error(8, 0, 4, 0)) << "an ack has no header";
  for (int type = 0; type < 256; ++type) {
    auto t = static_cast<uint8_t>(type);
    bool known = std::string_view(to_string(FrameType{t})) != "unknown";
    bool bare = t >= 4 && t <= 6;
    EXPECT_EQ(error(bare ? 0 : 8, 0, t, 0), !known) << type;
  }
}

}  // namespace
}  // namespace vremote::wire
