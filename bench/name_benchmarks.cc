// Names and attributes, and two nodes taking turns: told, not judged.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>

#include "bench/benchmarks.h"
#include "bench/file_access.h"

namespace vremote::bench {
namespace {

constexpr size_t kMiB = 1 << 20;
constexpr int kCalls = 2'000;
constexpr int kCreates = 200;
constexpr int kTurns = 300;

double time_stats(const std::string& path) {
  struct stat st;
  return seconds_per_call(kCalls, [&](int) { must(::stat(path.c_str(), &st) == 0, path); });
}

double time_opens(const std::string& path) {
  return seconds_per_call(kCalls, [&](int) { open_file(path, O_RDONLY); });
}

double time_creates(const std::string& directory) {
  const std::string path = directory + "/made";
  return seconds_per_call(kCreates, [&](int) {
    open_file(path, O_WRONLY | O_CREAT | O_EXCL);
    must(::unlink(path.c_str()) == 0, path);
  });
}

}  // namespace

std::vector<Comparison> names(const Setup& setup) {
  make_file(setup.cluster.shared(1) + "/named", kMiB, kMiB);
  make_file(setup.local + "/named", kMiB, kMiB);
  setup.cluster.settle();
  std::vector<Comparison> all;
  for (int node : {1, 2}) {
    const std::string directory = setup.cluster.shared(node),
                      where = node == 1 ? ", on the origin" : ", on the other node";
    auto add = [&](const std::string& name, double (*time)(const std::string&),
                   const std::string& file) {
      all.push_back({.group = "d) names and turns (no target)",
                     .name = name + where,
                     .baseline_name = "the same on the local file system",
                     .target = {},
                     .prepare = {},
                     .ours = [=] { return time(directory + file); },
                     .baseline = [=, local = setup.local] { return time(local + file); }});
    };
    add("stat", time_stats, "/named");
    add("open and close", time_opens, "/named");
    add("create and unlink", time_creates, "");
  }
  return all;
}

std::vector<Comparison> turns(const Setup& setup) {
  const std::string file = "/turns";
  make_file(setup.cluster.shared(1) + file, kMiB, kMiB);
  auto writer = std::make_shared<Fd>(open_file(setup.cluster.shared(1) + file, O_WRONLY));
  auto reader = std::make_shared<Fd>(open_file(setup.cluster.shared(2) + file, O_RDONLY));
  auto page = std::make_shared<std::array<std::byte, kPage>>();
  return {{.group = "d) names and turns (no target)",
           .name = "a page written here, read there",
           .baseline_name = "a page there and back by TCP",
           .target = {},
           .prepare = {},
           .ours =
               [=] {
                 return seconds_per_call(kTurns, [&](int i) {
                   int seen = 0;
                   std::memcpy(page->data(), &i, sizeof i);
                   must(::pwrite(writer->get(), page->data(), kPage, 0) == kPage, "pwrite");
                   must(::pread(reader->get(), page->data(), kPage, 0) == kPage, "pread");
                   std::memcpy(&seen, page->data(), sizeof seen);
                   must(seen == i, "a stale page");
                 });
               },
           .baseline =
               [=, &tcp = setup.tcp] {
                 return seconds_per_call(kTurns, [&](int) { tcp.round_trip(); });
               }}};
}

}  // namespace vremote::bench
