#include "node/guardian/guardian_process.h"

#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <fstream>
#include <sstream>

#include "node/base/signals.h"

namespace vremote::node {
namespace {

void drop_privileges() {
  __user_cap_header_struct header{};
  header.version = _LINUX_CAPABILITY_VERSION_3;
  std::array<__user_cap_data_struct, 2> data{};
  if (::syscall(SYS_capget, &header, data.data()) != 0) return;
  const uint32_t keep = 1u << CAP_SYS_ADMIN;
  data[0].permitted &= keep;
  data[0].effective &= keep;
  data[0].inheritable = 0;
  data[1] = {};
  (void)::syscall(SYS_capset, &header, data.data());
}

void be_the_last_to_be_killed() { std::ofstream("/proc/self/oom_score_adj") << "-1000"; }

void may_keep_many_files() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

void be_modest_and_last() {
  drop_privileges();
  be_the_last_to_be_killed();
  may_keep_many_files();
}

bool is_a_corpse(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/status", pid));
  std::ostringstream text;
  text << file.rdbuf();
  return !file || is_a_corpse(text.view());
}

bool is_a_corpse(std::string_view status) {
  const auto says = [&](std::string_view line) {
    return status.find(line) != std::string_view::npos;
  };
  // What ends a process comes to each of its threads as SIGKILL, but for one that dumps its memory.
  return says("\nState:\tZ") || says("\nState:\tX") || says("\nCoreDumping:\t1") ||
         is_killed(status);
}

}  // namespace vremote::node
