// vremote_bench: a playground against baselines of the same run (docs/benchmarks.md).
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "bench/benchmarks.h"

namespace {

using namespace vremote::bench;

struct Options {
  std::string vremote;
  std::string groups = "abcd";
  int rounds = 15;
  bool tls = false;
  bool markdown = false;
  bool strict = false;
};

class Scratch {
 public:
  Scratch() {
    path_ = (std::filesystem::temp_directory_path() / "vremote-bench-XXXXXX").string();
    must(::mkdtemp(path_.data()) != nullptr, path_);
    must(::chmod(path_.c_str(), 0755) == 0, path_);
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

int run(const Options& options) {
  const Scratch scratch;
  const std::string local = scratch.path() + "/local";
  must(::mkdir(local.c_str(), 0755) == 0, local);
  NullFuse null_fuse(scratch.path());
  TcpPeer tcp;
  Cluster cluster(options.vremote, scratch.path(), options.tls);
  const Setup setup{cluster, null_fuse, tcp, local};

  std::vector<Comparison> comparisons;
  auto add = [&](char group, std::vector<Comparison> (*make)(const Setup&)) {
    if (options.groups.find(group) == std::string::npos) return;
    for (Comparison& c : make(setup)) comparisons.push_back(std::move(c));
  };
  add('a', warm_reads);
  add('b', exclusive_writes);
  add('c', cold_reads);
  add('d', names);
  add('d', turns);

  std::vector<Outcome> outcomes;
  bool good = true;
  for (const Comparison& c : comparisons) {
    fmt::print(stderr, "measuring {}: {}\n", c.group.substr(0, 1), c.name);
    outcomes.push_back(measure(c, options.rounds));
    good = good && outcomes.back().good;
  }
  fmt::print("{}", print(comparisons, outcomes, options.markdown));
  std::fflush(stdout);
  return good || !options.strict ? 0 : 3;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  CLI::App app(
      "Times a playground of two nodes against baselines of the same run, in turns; prints one "
      "table");
  app.add_option("--vremote", options.vremote, "The vremote program")
      ->required()
      ->check(CLI::ExistingFile);
  app.add_option("--rounds", options.rounds, "Rounds of each comparison; medians count")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--groups", options.groups, "Which groups to run, of abcd")->capture_default_str();
  app.add_flag("--tls", options.tls,
               "TLS between the nodes, as it is by default elsewhere; the baselines go without");
  app.add_flag("--markdown", options.markdown, "Print the table for a document");
  app.add_flag("--strict", options.strict, "Exit status 3 when a target is missed");
  CLI11_PARSE(app, argc, argv);
  return run(options);
}
