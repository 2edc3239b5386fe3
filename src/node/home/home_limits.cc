#include "node/home/home_limits.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>

namespace vremote::node {

Machine this_machine() {
  const long pages = ::sysconf(_SC_PHYS_PAGES), size = ::sysconf(_SC_PAGESIZE);
  rlimit files{};
  const bool known = ::getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur != RLIM_INFINITY;
  return {.memory = pages > 0 && size > 0
                        ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(size)
                        : uint64_t{4} << 30,
          .descriptors = known ? files.rlim_cur : 1 << 20};
}

coherence::HomeLimits home_limits(const Machine& machine, uint64_t leases) {
  coherence::HomeLimits limits;
  limits.leases.in_all =
      leases != 0 ? leases : std::clamp<uint64_t>(machine.memory / (16 << 10), 64 << 10, 64 << 20);
  limits.leases.of_node = limits.leases.in_all / 2;
  limits.opens_in_all = std::clamp<uint64_t>(machine.descriptors / 4, 64, 1 << 20);
  limits.opens_of_node = limits.opens_in_all / 2;
  return limits;
}

size_t files_remembered(const Machine& machine) {
  return std::clamp<uint64_t>(machine.memory / (4 << 10), 256 << 10, 256 << 20);
}

}  // namespace vremote::node
