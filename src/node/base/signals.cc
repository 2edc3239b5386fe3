#include "node/base/signals.h"

#include <linux/capability.h>
#include <signal.h>

#include <charconv>
#include <fstream>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>

namespace vremote::node {
namespace {

constexpr uint64_t mask_of(std::initializer_list<int> signals) {
  uint64_t mask = 0;
  for (int signal : signals) mask |= uint64_t{1} << (signal - 1);
  return mask;
}

// By default these end nobody. (Stopped processes stop when the operation is done.)
constexpr uint64_t kHarmless =
    mask_of({SIGCHLD, SIGCONT, SIGURG, SIGWINCH, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU});

uint64_t field(std::string_view status, std::string_view name) {
  const size_t at = status.find(name);
  if (at == std::string_view::npos) return 0;
  const char* first = status.data() + at + name.size();
  const char* const last = status.data() + status.size();
  while (first != last && (*first == '\t' || *first == ' ')) ++first;
  uint64_t value = 0;
  std::from_chars(first, last, value, 16);
  return value;
}

uint64_t pending_of(std::string_view status) {
  return field(status, "\nSigPnd:") | field(status, "\nShdPnd:");
}

// Nothing: it is gone, or of a foreign pid namespace.
std::optional<std::string> proc_text(uint32_t tid, const char* name) {
  if (tid == 0) return std::nullopt;
  std::ifstream file("/proc/" + std::to_string(tid) + "/" + name);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return std::nullopt;
  return std::move(text).str();
}

std::optional<std::string> status_of(uint32_t tid) { return proc_text(tid, "status"); }

}  // namespace

bool is_killed(std::string_view status) { return (pending_of(status) & mask_of({SIGKILL})) != 0; }

bool has_fatal_signal(std::string_view status) {
  // The kernel turns most fatal signals into SIGKILL for each thread; not those that dump core.
  const uint64_t pending = pending_of(status);
  if ((pending & mask_of({SIGKILL})) != 0) return true;
  const uint64_t spared =
      field(status, "\nSigBlk:") | field(status, "\nSigIgn:") | field(status, "\nSigCgt:");
  return (pending & ~spared & ~kHarmless) != 0;
}

bool is_being_killed(uint32_t tid) {
  const auto status = status_of(tid);
  return !status || has_fatal_signal(*status);
}

bool may_act_as_owner(std::string_view status, OwnersWork work) {
  const uint64_t has = field(status, "\nCapEff:");
  const uint64_t needs = (work.changes_owner ? uint64_t{1} << CAP_CHOWN : 0) |
                         (work.changes_other ? uint64_t{1} << CAP_FOWNER : 0);
  return (has & needs) == needs;
}

bool may_act_as_owner(uint32_t tid, OwnersWork work) {
  // In a user namespace of their own everybody has every capability, over nothing of ours.
  const auto ids = proc_text(tid, "uid_map");
  if (!ids || ids != proc_text(static_cast<uint32_t>(::getpid()), "uid_map")) return false;
  const auto status = status_of(tid);
  return status && may_act_as_owner(*status, work);
}

}  // namespace vremote::node
