// Two ways of doing one thing, timed in turns.
//
// On a machine that others use too, an absolute time says little. So each of our operations has a
// baseline: the same work without us. A round times both, one right after the other, and who begins
// alternates, so that both see the same machine; what counts is the median of the rounds' ratios.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vremote::bench {

struct Comparison {
  std::string group;  // a letter and a title
  std::string name;
  std::string baseline_name;
  enum class Ratio : uint8_t {
    Time,   // ours / baseline, small is good
    Speed,  // baseline / ours, large is good
  } ratio = Ratio::Time;
  std::optional<double> target;   // the worst ratio that is good enough; none: only told
  std::function<void()> prepare;  // before each round of ours, not timed
  std::function<double()> ours;   // seconds for one operation
  std::function<double()> baseline;
};

struct Outcome {
  double ours = 0, baseline = 0;  // medians, seconds for one operation
  double ratio = 0;               // median of the rounds' ratios
  double low = 0, high = 0;       // their quartiles
  bool judged = false, good = true;
};

Outcome measure(const Comparison& comparison, int rounds);

// One table of all of them.
std::string print(const std::vector<Comparison>& comparisons, const std::vector<Outcome>& outcomes,
                  bool markdown);

// Seconds per call of `operation(i)`, over `count` calls.
template <typename Operation>
double seconds_per_call(int count, Operation operation);

double now_seconds();
// Processor time of the calling thread.
double thread_seconds();

// Ends the program with a sentence and errno: a benchmark that cannot do its work measures nothing.
[[noreturn]] void give_up(std::string_view what);
inline void must(bool good, std::string_view what) {
  if (!good) give_up(what);
}

template <typename Operation>
double seconds_per_call(int count, Operation operation) {
  const double start = now_seconds();
  for (int i = 0; i < count; ++i) operation(i);
  return (now_seconds() - start) / count;
}

}  // namespace vremote::bench
