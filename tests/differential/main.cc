// vremote-differential: a random sequence of calls, made on the mounts of several nodes in turn and
// in a directory of the origin's own file system. Every call must return the same on both, and the
// trees look the same after it from every node.
//
//   vremote-differential --seed $RANDOM --steps 100000
//
// Exit statuses: 0 all was the same, 1 something went wrong, 3 a difference.
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <deque>
#include <sstream>

#include "differential/view.h"
#include "support/files.h"
#include "support/playground.h"

namespace vremote::differential {
namespace {

constexpr int kDifferent = 3;
constexpr uint64_t kLookAtAll = 40;  // steps between two looks at everything
constexpr size_t kToldSteps = 30;

struct Settings {
  uint64_t seed = 1, steps = 3000;
  unsigned nodes = 2;
  int seconds = 170;
  bool trace = false;
  std::string program = VREMOTE_PROGRAM;
};

// Who makes a call: root, or one of two others, who have a group in common.
void become(unsigned who) {
  static const gid_t groups[] = {2000};
  if (who == 0) return;
  const uid_t id = 1000 + who;
  if (::setgroups(1, groups) != 0 || ::setegid(id) != 0 || ::seteuid(id) != 0) ::_exit(1);
}

void become_root_again() {
  if (::seteuid(0) != 0 || ::setegid(0) != 0 || ::setgroups(0, nullptr) != 0) ::_exit(1);
}

std::string as(unsigned who, mode_t mask, const Step& step, const Side& side) {
  const mode_t before = ::umask(mask);
  become(who);
  std::string result = step.run(side);
  become_root_again();
  ::umask(before);
  return result;
}

class Comparison {
 public:
  Comparison(const Settings& settings, const live::Playground& playground)
      : settings_(settings), draw_(settings.seed) {
    ours_.fill(-1);
    theirs_.fill(-1);
    for (size_t n = 0; n < settings.nodes; ++n)
      mounts_.push_back({playground.path(n, 0, "tree"), &ours_, {}});
    for (Side& side : mounts_)
      for (const Side& other : mounts_) side.roots.push_back(other.root);
    // Beside the export, in the same file system.
    local_ = {playground.dir() + "/tree", &theirs_, {playground.dir() + "/tree"}};
  }

  bool run() {
    ::umask(0);
    if (::mkdir(mounts_.back().root.c_str(), 0777) != 0 || ::mkdir(local_.root.c_str(), 0777) != 0)
      return tell("cannot begin", "", "");
    for (uint64_t number = 1; number <= settings_.steps; ++number)
      if (!step(number)) return false;
    fmt::print("{} calls on {} nodes, seed {}: as on the local file system\n", settings_.steps,
               settings_.nodes, settings_.seed);
    return true;
  }

 private:
  bool step(uint64_t number) {
    const uint64_t kind = draw_.random().below(11);
    const Step step = kind < 3    ? draw_name_step(draw_)
                      : kind < 8  ? draw_data_step(draw_)
                      : kind < 10 ? draw_attribute_step(draw_)
                                  : draw_other_step(draw_);
    const auto node = static_cast<size_t>(draw_.random().below(mounts_.size()));
    const unsigned who = draw_.chance(25) ? static_cast<unsigned>(draw_.random().between(1, 2)) : 0;
    const mode_t mask = draw_.chance(80) ? 022 : draw_.one_of<mode_t>({0, 077, 0777});
    last_.push_back(fmt::format("{}: node {} user {} umask {:03o}: {}", number, node + 1, who, mask,
                                step.text));
    if (last_.size() > kToldSteps) last_.pop_front();
    if (settings_.trace) fmt::print("{}\n", last_.back());
    const std::string ours = as(who, mask, step, mounts_[node]);
    const std::string theirs = as(who, mask, step, local_);
    last_.back() += " -> " + theirs;
    if (ours != theirs) return tell("the call returns", ours, theirs);
    for (const std::string& name : step.names) {
      const std::string here = view_of_name(local_, name);
      for (size_t n = 0; n < mounts_.size(); ++n)
        if (const std::string there = view_of_name(mounts_[n], name); there != here)
          return tell(fmt::format("'{}' is on node {}", name, n + 1), there, here);
    }
    if (number % kLookAtAll == 0 || number == settings_.steps) {
      const std::string here = view_of_all(local_);
      for (size_t n = 0; n < mounts_.size(); ++n)
        if (const std::string there = view_of_all(mounts_[n]); there != here)
          return tell_lines(fmt::format("on node {}", n + 1), there, here);
    }
    return true;
  }

  bool tell(const std::string& what, const std::string& ours, const std::string& theirs) {
    for (const std::string& line : last_) fmt::print(stderr, "{}\n", line);
    fmt::print(stderr, "seed {}: {}\n  mount {}\n  local {}\n", settings_.seed, what, ours, theirs);
    return false;
  }
  bool tell_lines(const std::string& where, const std::string& ours, const std::string& theirs) {
    std::istringstream a(ours), b(theirs);
    std::string left, right;
    for (;;) {
      const bool more_a = static_cast<bool>(std::getline(a, left));
      const bool more_b = static_cast<bool>(std::getline(b, right));
      if (!more_a) left.clear();
      if (!more_b) right.clear();
      if (left != right || (!more_a && !more_b)) return tell(where, left, right);
    }
  }

  Settings settings_;
  Draw draw_;
  std::vector<Side> mounts_;
  Side local_;
  std::array<int, kSlots> ours_{}, theirs_{};
  std::deque<std::string> last_;
};

std::string last_lines(const std::string& text) {
  constexpr size_t kMost = 600;
  return text.size() <= kMost ? text : text.substr(text.size() - kMost);
}

int run(const Settings& settings) {
  if (const std::string why = live::why_no_mounts(); !why.empty()) {
    fmt::print(stderr, "SKIPPED: {}\n", why);
    return live::kSkipped;
  }
  auto playground = live::Playground::start({.program = settings.program,
                                             .nodes = settings.nodes,
                                             .seconds = settings.seconds,
                                             .base = {},
                                             .keep = false});
  if (!playground) {
    fmt::print(stderr, "{}\n", playground.error().what);
    return 1;
  }
  ::chmod((*playground)->dir().c_str(), 0755);
  const bool same = Comparison(settings, **playground).run();
  if (!same)
    for (const live::Playground::Node& node : (*playground)->nodes())
      fmt::print(stderr, "{}: {}\n", node.name, last_lines(live::read_all(node.log)));
  const std::string ended = (*playground)->stop();
  if (!ended.empty()) fmt::print(stderr, "{}\n", ended);
  return !same ? kDifferent : ended.empty() ? 0 : 1;
}

}  // namespace
}  // namespace vremote::differential

int main(int argc, char** argv) {
  vremote::differential::Settings settings;
  CLI::App app{
      "Makes the same random calls on the mounts of several nodes and on a local directory, and "
      "compares what they return."};
  app.add_option("--seed", settings.seed, "The calls that are made; the same seed, the same calls");
  app.add_option("--steps", settings.steps, "How many")->check(CLI::Range(1, 100'000'000));
  app.add_option("--nodes", settings.nodes, "Nodes")->check(CLI::Range(1, 5));
  app.add_option("--seconds", settings.seconds, "After so long all is ended by force");
  app.add_flag("--trace", settings.trace, "Tell each call before it is made");
  app.add_option("--vremote", settings.program, "The program under test");
  CLI11_PARSE(app, argc, argv);
  return vremote::differential::run(settings);
}
