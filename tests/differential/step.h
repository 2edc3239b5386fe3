// One call of a program, to be made on two sides: on a node's mount, and in a directory of the
// origin's own file system. What it returns is told as text, the same for both when all is well.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/prng.h"

namespace vremote::differential {

inline constexpr size_t kSlots = 6;  // descriptors that a program holds

struct Side {
  std::string root;
  std::array<int, kSlots>* slots = nullptr;
  std::vector<std::string> roots;  // of all nodes, or the one

  std::string at(const std::string& name) const { return name.empty() ? name : root + "/" + name; }
  int fd(size_t slot) const { return (*slots)[slot]; }
  // The same, after a look at it: by a descriptor some calls are judged by the owner, and the size,
  // that the kernel saw last (promise.md, Limits).
  int seen_fd(size_t slot) const;
  // The path in the mount by which the descriptor was opened: to the kernel, each is a file system.
  std::string beside(size_t slot, const std::string& name) const;
};

struct Step {
  std::string text;  // for the report
  std::function<std::string(const Side&)> run;
  // The descriptor that it makes or ends belongs to the node that makes the call.
  std::vector<std::string> names;  // looked at on every node afterwards
};

// "ok 5", or the name of the errno.
std::string outcome(int64_t result);
std::string quoted(const std::string& bytes);

// What a program draws its calls from.
class Draw {
 public:
  explicit Draw(uint64_t seed) : random_(seed) {}
  Prng& random() { return random_; }
  bool chance(uint32_t percent) { return random_.chance(percent); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return *(values.begin() + static_cast<ptrdiff_t>(random_.below(values.size())));
  }
  size_t slot() { return random_.below(kSlots); }
  std::string name();  // of a file that may be there, of any kind, in a directory that may be there
  std::string odd_name();  // mostly the same
  uint64_t size();         // of a file, or an offset in it
  int64_t odd_size();
  std::string bytes();
  uint32_t mode();

 private:
  Prng random_;
};

Step draw_name_step(Draw& draw);
Step draw_data_step(Draw& draw);
Step draw_attribute_step(Draw& draw);
Step draw_other_step(Draw& draw);

}  // namespace vremote::differential
