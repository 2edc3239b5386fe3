#include "live/stuck.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace vremote::live {
namespace {

std::string content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

std::string where_it_hangs(int pid) {
  std::string text;
  std::error_code error;
  for (const auto& task :
       std::filesystem::directory_iterator(fmt::format("/proc/{}/task", pid), error)) {
    const std::string dir = task.path();
    std::string state;
    std::ifstream status(dir + "/status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("Name:") || line.starts_with("State:")) state += line + " ";
    text += fmt::format("{}: {}\n  syscall {}{}", dir, state, content(dir + "/syscall"),
                        content(dir + "/stack"));
  }
  return text;
}

}  // namespace vremote::live
