// Single layers under Google Benchmark: what a part of the hot path costs by itself. Times, not
// verdicts.
#include <benchmark/benchmark.h>

#include <cstring>
#include <vector>

#include "base/check.h"
#include "coherence/agent.h"
#include "fuse/protocol.h"
#include "fuse/request.h"
#include "wire/codec.h"

namespace vremote {
namespace {

using namespace coherence;

constexpr uint32_t kPage = 4096;
constexpr uint64_t kPages = 1024;
constexpr FileId kFile{0, 1, 42};

// An agent whose home grants everything at once and whose kernel caches nothing.
struct LoneAgent {
  AgentOptions options;
  Agent agent{options};
  AgentActions actions;
  Instant now{1};
  uint64_t grants = 0;
  uint64_t replies = 0;

  void settle() {
    while (!actions.empty()) {
      AgentActions taken;
      taken.swap(actions);
      for (AgentAction& action : taken) {
        if (auto* purge = std::get_if<StartPurge>(&action))
          agent.purge_returned(now, purge->purge, purge->file, actions);
        if (auto* send = std::get_if<SendToHome>(&action)) answer(send->message);
        replies += std::holds_alternative<ReplyWritten>(action) ||
                   std::holds_alternative<ReplyData>(action);
      }
    }
  }
  void answer(const ToHome& message) {
    const auto* request = std::get_if<LeaseRequest>(&message);
    if (request == nullptr) return;
    Grant grant;
    grant.file = kFile;
    grant.request = request->request;
    grant.sequence = ++grants;
    grant.resource = request->resource;
    grant.mode = LeaseMode::Exclusive;
    grant.range = request->resource == Resource::Data ? PageRange{0, kPageEnd} : kUnit;
    grant.attributes.size = kPages * kPage;
    agent.receive(now, std::move(grant), actions);
  }
};

void write_page(LoneAgent& lone, uint64_t page, const Bytes& bytes) {
  lone.agent.write(lone.now,
                   {.token = page * 2 + 1,
                    .file = kFile,
                    .offset = page % kPages * kPage,
                    .bytes = bytes,
                    .append = false,
                    .now_wall = {}},
                   lone.actions);
  lone.settle();
}

void AgentWriteUnderExclusive(benchmark::State& state) {
  LoneAgent lone;
  const std::vector<std::byte> page(kPage);
  uint64_t i = 0;
  for (; i < kPages; ++i) write_page(lone, i, Bytes::copy_of(page));
  for (auto _ : state) write_page(lone, ++i, Bytes::copy_of(page));
  VR_CHECK_MSG(lone.replies >= i, "a write was not answered");
}
BENCHMARK(AgentWriteUnderExclusive);

void DecodeWrite(benchmark::State& state) {
  fuse_in_header head{};
  fuse_write_in in{};
  head.len = sizeof head + sizeof in + kPage;
  head.opcode = FUSE_WRITE;
  head.unique = 2;
  head.nodeid = 2;
  in.size = kPage;
  std::vector<std::byte> bytes(head.len);
  std::memcpy(bytes.data(), &head, sizeof head);
  std::memcpy(bytes.data() + sizeof head, &in, sizeof in);
  for (auto _ : state) {
    auto request = fuse::decode(bytes);
    benchmark::DoNotOptimize(request);
  }
}
BENCHMARK(DecodeWrite);

void EncodeFetchReply(benchmark::State& state) {
  FetchReply reply{.file = kFile,
                   .fetch = 7,
                   .error = 0,
                   .data_offset = 0,
                   .data = Bytes::copy_of(std::vector<std::byte>(1 << 20))};
  const ToAgent message = reply;
  for (auto _ : state) {
    auto encoded = wire::encode(message);
    benchmark::DoNotOptimize(encoded);
  }
}
BENCHMARK(EncodeFetchReply);

}  // namespace
}  // namespace vremote
