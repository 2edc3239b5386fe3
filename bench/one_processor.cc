#include "bench/one_processor.h"

#include <unistd.h>

#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

namespace vremote::bench {
namespace {

namespace fs = std::filesystem;

std::vector<pid_t> numbers_in(const fs::path& directory) {
  std::vector<pid_t> out;
  std::error_code ended;
  for (fs::directory_iterator it(directory, ended), end; !ended && it != end; it.increment(ended)) {
    const std::string name = it->path().filename();
    pid_t number = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), number).ptr ==
        name.data() + name.size())
      out.push_back(number);
  }
  return out;
}

pid_t parent_of(pid_t process) {
  std::ifstream status("/proc/" + std::to_string(process) + "/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("PPid:")) return std::atoi(line.c_str() + 5);
  return 0;
}

// This process and all that descend from it.
std::vector<pid_t> family() {
  std::map<pid_t, pid_t> parents;
  for (pid_t process : numbers_in("/proc")) parents[process] = parent_of(process);
  std::vector<pid_t> out;
  for (const auto& [process, parent] : parents) {
    pid_t at = process;
    while (at > 1 && at != ::getpid()) at = parents.contains(at) ? parents[at] : 0;
    if (at == ::getpid()) out.push_back(process);
  }
  return out;
}

}  // namespace

OneProcessor::OneProcessor() {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(::sched_getcpu(), &one);
  for (pid_t process : family()) {
    for (pid_t thread : numbers_in("/proc/" + std::to_string(process) + "/task")) {
      cpu_set_t set;
      if (::sched_getaffinity(thread, sizeof set, &set) != 0) continue;
      before_.emplace_back(thread, set);
      ::sched_setaffinity(thread, sizeof one, &one);
    }
  }
}

OneProcessor::~OneProcessor() {
  for (const auto& [thread, set] : before_) ::sched_setaffinity(thread, sizeof set, &set);
}

}  // namespace vremote::bench
