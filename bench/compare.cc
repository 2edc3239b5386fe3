#include "bench/compare.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "control/table.h"

namespace vremote::bench {
namespace {

double quantile(std::vector<double> values, double q) {
  std::ranges::sort(values);
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

double ratio_of(Comparison::Ratio kind, double ours, double baseline) {
  return kind == Comparison::Ratio::Time ? ours / baseline : baseline / ours;
}

std::string target_text(const Comparison& c) {
  if (!c.target) return "";
  return fmt::format("{} {:.2f}", c.ratio == Comparison::Ratio::Time ? "<=" : ">=", *c.target);
}

std::string verdict(const Outcome& o) {
  if (!o.judged) return "";
  return o.good ? "met" : "MISSED";
}

}  // namespace

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double thread_seconds() {
  timespec t{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

void give_up(std::string_view what) {
  fmt::print(stderr, "vremote_bench: {}: {}\n", what, std::strerror(errno));
  std::exit(1);
}

Outcome measure(const Comparison& c, int rounds) {
  std::vector<double> ours, baseline, ratios;
  auto one = [&] {
    if (c.prepare) c.prepare();
    return c.ours();
  };
  one();  // warm up: leases, caches, connections
  c.baseline();
  for (int i = 0; i < rounds; ++i) {
    double mine = 0, other = 0;
    if (i % 2 == 0) {
      mine = one();
      other = c.baseline();
    } else {
      other = c.baseline();
      mine = one();
    }
    ours.push_back(mine);
    baseline.push_back(other);
    ratios.push_back(ratio_of(c.ratio, mine, other));
  }
  Outcome o;
  o.ours = quantile(ours, 0.5);
  o.baseline = quantile(baseline, 0.5);
  o.ratio = quantile(ratios, 0.5);
  o.low = quantile(ratios, 0.25);
  o.high = quantile(ratios, 0.75);
  o.judged = c.target.has_value();
  if (o.judged)
    o.good = c.ratio == Comparison::Ratio::Time ? o.ratio <= *c.target : o.ratio >= *c.target;
  return o;
}

std::string print(const std::vector<Comparison>& comparisons, const std::vector<Outcome>& outcomes,
                  bool markdown) {
  std::string text;
  control::TextTable table(
      {"", "OURS", "BASELINE", "RATIO", "QUARTILES", "TARGET", "", "COMPARED WITH"},
      {1, 2, 3, 4, 5});
  if (markdown)
    text =
        "| operation | compared with | ours | baseline | ratio | quartiles | target | "
        "|\n|---|---|---|---|---|---|---|---|\n";
  std::string group;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const Comparison& c = comparisons[i];
    const Outcome& o = outcomes[i];
    const std::string ours = control::human_microseconds(o.ours * 1e6),
                      baseline = control::human_microseconds(o.baseline * 1e6);
    const std::string ratio = fmt::format("{:.2f}", o.ratio),
                      quartiles = fmt::format("{:.2f}-{:.2f}", o.low, o.high);
    if (markdown) {
      text += fmt::format("| {}: {} | {} | {} | {} | {} | {} | {} | {} |\n", c.group.substr(0, 1),
                          c.name, c.baseline_name, ours, baseline, ratio, quartiles, target_text(c),
                          verdict(o));
      continue;
    }
    if (c.group != group) table.add({group = c.group});
    table.add({"  " + c.name, ours, baseline, ratio, quartiles, target_text(c), verdict(o),
               c.baseline_name});
  }
  return markdown ? text : table.print();
}

}  // namespace vremote::bench
