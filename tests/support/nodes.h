// A cluster whose daemons a test stops, kills and starts one by one.
//
// The test itself is a child of a small guard, like that of a playground: when the test ends or its
// time is over, the guard ends the FUSE connections below the cluster's directory, then every
// process that came of the test, and nothing else.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

namespace vremote::live {

class Nodes {
 public:
  struct Node {
    std::string name, directory, mount, export_dir, state_dir, control, config, log;
    uint16_t port = 0;
    pid_t pid = -1;
  };

  // Where a node lives: its address, and the network namespace it enters (-1: ours).
  struct Place {
    std::string address = "127.0.0.1";
    int name_space = -1;
  };

  // Writes the configurations of `count` nodes below `dir`; starts none. `extra`: lines for each
  // before its tables. `places`: one for each node, or none.
  Nodes(const std::string& program, const std::string& dir, size_t count,
        const std::string& extra = {}, std::vector<Place> places = {});
  ~Nodes();  // kills what still runs
  Nodes(const Nodes&) = delete;
  Nodes& operator=(const Nodes&) = delete;

  Node& at(size_t i) { return nodes_.at(i); }
  // A file of the export of `origin`, seen through the mount of `node`.
  std::string path(size_t node, size_t origin, const std::string& name = {}) const;

  // `descriptors`: so many it may have; 0: as many as the test.
  void start(size_t i, size_t descriptors = 0);
  bool ready(size_t i) const;      // mounted, serving
  bool connected(size_t i) const;  // and to all peers
  void start_all();                // and waits until all are connected
  void signal(size_t i, int signal);
  // Waits for the end; the status of waitpid().
  int wait_for_end(size_t i);
  // The node's answer to a control request; empty: none.
  std::string ask(size_t i, const std::string& request) const;
  std::string log(size_t i) const;

 private:
  std::string program_;
  std::vector<Node> nodes_;
  std::vector<Place> places_;
};

// Until `done` says so, at most a minute: a loaded machine may be slow, the claim is that it comes.
bool eventually(const std::function<bool()>& done);

// Runs `body` below a guard with a fresh directory; its value, or 1 when the time was over.
int guarded(int seconds, const std::function<int(const std::string& dir)>& body);

}  // namespace vremote::live
