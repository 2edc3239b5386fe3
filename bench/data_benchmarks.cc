// Reads from the cache, writes under an Exclusive lease, and reads of what only the other node has.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <optional>

#include "bench/benchmarks.h"
#include "bench/file_access.h"
#include "bench/one_processor.h"

namespace vremote::bench {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kWarmBytes = 64 * kMiB;
constexpr uint64_t kWriteBytes = 4 * kMiB;  // few enough to stay dirty without being throttled
constexpr uint64_t kColdBytes = 256 * kMiB;
constexpr int kReads = 50'000;
constexpr int kWrites = 3'000;
constexpr size_t kBlock = kMiB;
constexpr int kTriesMax = 10;

constexpr double kWarmReadTarget = 1.15;
constexpr double kWriteTarget = 1.3;
constexpr double kColdReadTarget = 0.6;

struct Target {
  Fd fd;
  std::array<std::byte, kPage> page{};
};

// Processor time of this thread: a cached read waits for nobody, and what other processes take is
// not its cost.
double time_reads(Target& target, const Offsets& offsets) {
  const double start = thread_seconds();
  for (int i = 0; i < kReads; ++i)
    must(::pread(target.fd.get(), target.page.data(), kPage, offsets[i]) == kPage, "pread");
  return (thread_seconds() - start) / kReads;
}

// Before each round: the kernel may have reclaimed pages meanwhile.
void warm(Target& target) {
  static std::vector<std::byte> block(kBlock);
  read_whole(target.fd.get(), block);
}

double time_writes(Target& target, const Offsets& offsets, bool one_processor) {
  std::optional<OneProcessor> bound;
  if (one_processor) bound.emplace();
  return seconds_per_call(kWrites, [&](int i) {
    must(::pwrite(target.fd.get(), target.page.data(), kPage, offsets[i]) == kPage, "pwrite");
  });
}

}  // namespace

std::vector<Comparison> warm_reads(const Setup& setup) {
  make_file(setup.cluster.shared(1) + "/warm", kWarmBytes, kBlock);
  setup.cluster.settle();
  auto offsets = std::make_shared<Offsets>(kWarmBytes);
  std::vector<Comparison> all;
  // A local file written in large blocks lies in large folios, which FUSE has none of; one grown
  // page by page in small ones, as ours.
  for (const size_t block : {kBlock, kPage}) {
    const std::string name = setup.local + "/warm" + std::to_string(block);
    make_file(name, kWarmBytes, block);
    auto local = std::make_shared<Target>(open_file(name, O_RDONLY));
    for (int node : {1, 2}) {
      auto shared =
          std::make_shared<Target>(open_file(setup.cluster.shared(node) + "/warm", O_RDONLY));
      all.push_back({.group = "a) 4 KiB random reads of a cached file (processor time)",
                     .name = node == 1 ? "on the origin" : "on the other node",
                     .baseline_name = block == kPage ? "the local file system, small folios"
                                                     : "the local file system, large folios",
                     .target = kWarmReadTarget,
                     .prepare = {},
                     .ours =
                         [=, &cluster = setup.cluster] {
                           for (int tries = 0;; ++tries) {
                             warm(*shared);
                             const uint64_t before = cluster.counter(node, "fills");
                             const double seconds = time_reads(*shared, *offsets);
                             if (cluster.counter(node, "fills") == before) return seconds;
                             must(tries < kTriesMax, "a cached read was not cached");
                           }
                         },
                     .baseline =
                         [=] {
                           warm(*local);
                           return time_reads(*local, *offsets);
                         }});
    }
  }
  return all;
}

std::vector<Comparison> exclusive_writes(const Setup& setup) {
  auto offsets = std::make_shared<Offsets>(kWriteBytes);
  std::vector<Comparison> all;
  const auto add = [&](int node, int access, bool one_processor) {
    const std::string file = "/write" + std::to_string(node) + (access == O_RDWR ? "rw" : "w");
    make_file(setup.cluster.shared(node) + file, kWriteBytes, kBlock);
    auto shared = std::make_shared<Target>(open_file(setup.cluster.shared(node) + file, access));
    auto null = std::make_shared<Target>(open_file(setup.null_fuse.file(), access));
    for (uint64_t at = 0; at < kWriteBytes; at += kPage)
      must(::pwrite(shared->fd.get(), shared->page.data(), kPage, static_cast<off_t>(at)) == kPage,
           "pwrite");
    all.push_back(
        {.group = one_processor
                      ? "b) 4 KiB random writes under an Exclusive lease, on one processor"
                      : "d) the same where the scheduler puts them, wake-ups included",
         .name = std::string(access == O_RDWR ? "O_RDWR" : "O_WRONLY") +
                 (node == 1 ? ", on the origin" : ", on the other node"),
         .baseline_name = "a FUSE file system that drops them",
         .target = one_processor ? std::optional(kWriteTarget) : std::nullopt,
         .prepare = {},
         .ours =
             [=, &cluster = setup.cluster] {
               const uint64_t before = cluster.counter(node, "lease_requests");
               const double seconds = time_writes(*shared, *offsets, one_processor);
               must(cluster.counter(node, "lease_requests") == before,
                    "a write had to ask for its lease");
               return seconds;
             },
         .baseline =
             [=, &cluster = setup.cluster] {
               (void)cluster.counter(node, "lease_requests");  // as above: it wakes processors up
               return time_writes(*null, *offsets, one_processor);
             }});
  };
  for (int node : {1, 2})
    for (int access : {O_WRONLY, O_RDWR}) add(node, access, true);
  add(2, O_WRONLY, false);
  return all;
}

std::vector<Comparison> cold_reads(const Setup& setup) {
  make_file(setup.cluster.shared(1) + "/cold", kColdBytes, kBlock);
  setup.cluster.settle();
  const std::string origin = setup.cluster.origin() + "/cold";
  auto block = std::make_shared<std::vector<std::byte>>(kBlock);
  read_whole(open_file(origin, O_RDONLY).get(), *block);  // into the origin's page cache
  auto far = std::make_shared<Fd>(open_file(setup.cluster.shared(2) + "/cold", O_RDONLY));
  return {
      {.group = "c) a whole file of 256 MiB, cached only by its origin",
       .name = "read(2) of 1 MiB on the other node",
       .baseline_name = "TCP into a file in memory (speed)",
       .ratio = Comparison::Ratio::Speed,
       .target = kColdReadTarget,
       .prepare =
           [=] { must(::posix_fadvise(far->get(), 0, 0, POSIX_FADV_DONTNEED) == 0, "fadvise"); },
       .ours =
           [=, &cluster = setup.cluster] {
             const uint64_t before = cluster.counter(2, "fill_bytes");
             const double seconds =
                 seconds_per_call(1, [&](int) { read_whole(far->get(), *block); });
             must(cluster.counter(2, "fill_bytes") - before >= kColdBytes,
                  "a cold read was not cold");
             return seconds;
           },
       .baseline =
           [=, &tcp = setup.tcp] {
             return seconds_per_call(1, [&](int) {
               must(tcp.copy_into_page_cache(origin) == kColdBytes, "the whole file");
             });
           }}};
}

}  // namespace vremote::bench
