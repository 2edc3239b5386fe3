// A playground of two nodes, started and ended by the benchmark.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace vremote::bench {

class Cluster {
 public:
  // Starts `program` playground in `directory` and waits until it is ready.
  Cluster(const std::string& program, const std::string& directory, bool tls);
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  // The export of node 1, as node 1 (the origin) or 2 (far) shows it.
  std::string shared(int node) const {
    return directory_ + "/node" + std::to_string(node) + "/mnt/node1";
  }
  // The exported directory itself.
  std::string origin() const { return directory_ + "/node1/export"; }

  // A counter of the node, as `vremote status --json` names it. The counters of messages are summed
  // over the peers.
  uint64_t counter(int node, const std::string& name) const;
  // Waits until nothing that was written is still on its way to the origin.
  void settle() const;

 private:
  std::string status(int node) const;
  std::string directory_;
  pid_t playground_ = -1;
};

}  // namespace vremote::bench
