// vremote-broken: the program `vremote` with deliberate mistakes in it, so that the live checker
// can show that it notices them. Built with the tests, never installed.
//
// VREMOTE_BREAK=NAME,... names them (coherence/mistakes.h); all nodes of a playground inherit it.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "cli/commands.h"
#include "coherence/mistakes.h"
#include "node/daemon.h"

namespace {

using vremote::coherence::Mistake;
using vremote::coherence::Mistakes;

bool add(std::string_view name, Mistakes& to) {
  for (unsigned i = 0; i < static_cast<unsigned>(Mistake::kCount); ++i) {
    if (vremote::coherence::name_of(static_cast<Mistake>(i)) != name) continue;
    to.add(static_cast<Mistake>(i));
    return true;
  }
  return false;
}

std::optional<Mistakes> wanted() {
  const char* text = std::getenv("VREMOTE_BREAK");
  std::string_view names = text == nullptr ? "" : text;
  if (names.empty()) {
    fmt::print(stderr, "vremote-broken: VREMOTE_BREAK is not set: name the mistake to make\n");
    return {};
  }
  Mistakes mistakes;
  while (!names.empty()) {
    const std::string_view name = names.substr(0, names.find(','));
    if (!add(name, mistakes)) {
      fmt::print(stderr,
                 "vremote-broken: VREMOTE_BREAK: no mistake is called '{}'; `vremote-sim --help` "
                 "lists them\n",
                 name);
      return {};
    }
    names.remove_prefix(std::min(names.size(), name.size() + 1));
  }
  return mistakes;
}

}  // namespace

int main(int argc, char** argv) {
  const auto mistakes = wanted();
  if (!mistakes) return vremote::cli::kExitUsage;
  const vremote::cli::Runners runners{
      .run_node = [&mistakes](const vremote::node::Config& config, int handover) {
        return vremote::node::run_node(config, *mistakes, handover);
      }};
  return vremote::cli::run_cli(argc, argv, runners);
}
