// Programs that use the mounts of a cluster while its daemons are replaced, each a process that
// goes round until it is told to stop, and ends with 0 only when it saw nothing but what it should.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "support/nodes.h"

namespace vremote::live {

class Work {
 public:
  Work();
  ~Work();  // stop()
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;

  // `round` runs again and again, with the number of rounds before; it returns what went wrong.
  using Round = std::function<std::string(uint64_t round)>;
  // `begin` makes the round, in the process.
  void add(const std::string& name, const std::function<Round()>& begin);
  // All have gone on by `rounds` since the last time; otherwise who has not.
  std::string who_stands_still(uint64_t rounds);
  // Ends all; what they have to say against it, a line each.
  std::string stop();
  uint64_t rounds(const std::string& name) const;

 private:
  struct Shared;  // in memory that all have
  struct Worker {
    std::string name;
    pid_t pid = -1;
    uint64_t seen = 0;
  };
  Shared* shared_;
  std::vector<Worker> workers_;
};

// ---- what they do; `path` as their node sees it ----

// Writes its part of a file again and again and reads it back; every few rounds to the disk.
Work::Round writes_and_reads(const std::string& path, unsigned part);
// Records of one process, numbered, behind those of all others.
Work::Round appends(const std::string& path, const std::string& who);
// What is wrong with a log that these have written so many records to.
std::string check_log(const std::string& log,
                      const std::vector<std::pair<std::string, uint64_t>>& written);
// Stores into its own page of a mapping, and looks at the others' pages, which only ever count up.
Work::Round stores(const std::string& path, unsigned part, unsigned parts);
// Counts in a file, under a lock that it waits for.
enum class LockBy { Posix, Ofd, Flock };
Work::Round counts_under_a_lock(const std::string& path, LockBy how);
// Lists a directory of `files` files, which nobody changes.
Work::Round lists(const std::string& path, unsigned files);
// A file without a name, and new files, directories and names, each made once.
Work::Round uses_a_nameless_file(const std::string& path);
Work::Round makes_and_removes(const std::string& directory, const std::string& who);

}  // namespace vremote::live
