#include "node/caller_placement.h"

#include <fcntl.h>
#include <unistd.h>

#include <charconv>
#include <cstring>
#include <string>
#include <string_view>

namespace vremote::node {

namespace {

// So many requests in a row make a lone caller. A look at every so many costs some 4 us; a wrong
// processor costs ten times that per request.
constexpr uint32_t kLookEvery = 64;
// Fields of /proc/PID/stat after the name: "processor" is the 39th, state the third (proc(5)).
constexpr int kProcessorAfterName = 39 - 2;

}  // namespace

CallerPlacement::CallerPlacement() {
  CPU_ZERO(&allowed_);
  usable_ = ::sched_getaffinity(0, sizeof allowed_, &allowed_) == 0 && CPU_COUNT(&allowed_) > 1;
}

void CallerPlacement::request_from(uint32_t tid) {
  if (tid != tid_) {
    tid_ = tid;
    in_a_row_ = 0;
    stat_.reset();
    unbind();
    return;
  }
  if (!usable_ || tid == 0 || ++in_a_row_ % kLookEvery != 0) return;
  const int processor = processor_of(tid);
  if (processor != bound_to_) bind_to(processor);
}

int CallerPlacement::processor_of(uint32_t tid) {
  if (!stat_.valid()) {
    const std::string path = "/proc/" + std::to_string(tid) + "/stat";
    stat_ = Fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!stat_.valid()) return -1;
  }
  char text[1024];
  const ssize_t length = ::pread(stat_.get(), text, sizeof text, 0);
  if (length <= 0) return -1;
  std::string_view rest(text, static_cast<size_t>(length));
  rest.remove_prefix(std::min(rest.size(), rest.rfind(')') + 1));
  for (int field = 0; field < kProcessorAfterName; ++field) {
    const size_t space = rest.find(' ');
    if (space == rest.npos) return -1;
    rest.remove_prefix(space + 1);
  }
  int processor = -1;
  std::from_chars(rest.data(), rest.data() + rest.size(), processor);
  return processor;
}

void CallerPlacement::bind_to(int processor) {
  if (processor < 0 || processor >= CPU_SETSIZE || !CPU_ISSET(processor, &allowed_)) {
    unbind();
    return;
  }
  cpu_set_t there;
  CPU_ZERO(&there);
  CPU_SET(processor, &there);
  if (::sched_setaffinity(0, sizeof there, &there) == 0) bound_to_ = processor;
}

void CallerPlacement::unbind() {
  if (bound_to_ < 0) return;
  ::sched_setaffinity(0, sizeof allowed_, &allowed_);
  bound_to_ = -1;
}

}  // namespace vremote::node
