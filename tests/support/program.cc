#include "support/program.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>

#include "base/check.h"
#include "base/fd.h"

namespace vremote::live {

Ended run_program(const std::string& path, std::vector<std::string> arguments,
                  const std::string& input) {
  int to[2], from[2];
  VR_CHECK(::pipe2(to, O_CLOEXEC) == 0 && ::pipe2(from, O_CLOEXEC) == 0);
  Fd its_input(to[0]), input_end(to[1]), output_end(from[0]), its_output(from[1]);
  VR_CHECK(::write(input_end.get(), input.data(), input.size()) ==
           static_cast<ssize_t>(input.size()));
  input_end.reset();
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(its_input.get(), STDIN_FILENO);
    ::dup2(its_output.get(), STDOUT_FILENO);
    ::dup2(its_output.get(), STDERR_FILENO);
    std::vector<char*> argv;
    for (std::string& a : arguments) argv.push_back(a.data());
    argv.push_back(nullptr);
    ::execv(path.c_str(), argv.data());
    ::_exit(127);
  }
  its_output.reset();
  Ended ended;
  char piece[512];
  for (ssize_t n = 0; (n = ::read(output_end.get(), piece, sizeof piece)) > 0;)
    ended.text.append(piece, static_cast<size_t>(n));
  int status = 0;
  ::waitpid(pid, &status, 0);
  ended.status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return ended;
}

}  // namespace vremote::live
