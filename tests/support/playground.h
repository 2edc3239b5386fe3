// A cluster of real nodes with real mounts for one test program.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vremote::live {

// Why tests that mount cannot run here; empty when they can.
std::string why_no_mounts();
// What a program exits with that was skipped (ctest: SKIP_RETURN_CODE).
inline constexpr int kSkipped = 77;

struct PlaygroundOptions {
  std::string program;  // vremote
  unsigned nodes = 2;
  int seconds = 0;   // until everything is ended by force
  std::string base;  // the fresh directory is made in here; empty: $TMPDIR or /tmp
  bool keep = false;
};

class Playground {
 public:
  struct Node {
    std::string name, mount, export_dir, control, config, log;
  };

  // Starts it and waits until every node is ready. Call it before any thread is made.
  static Result<std::unique_ptr<Playground>> start(const PlaygroundOptions& options);
  ~Playground();
  Playground(const Playground&) = delete;
  Playground& operator=(const Playground&) = delete;

  const std::string& dir() const { return dir_; }
  const std::vector<Node>& nodes() const { return nodes_; }
  // The path of a file of the export of node `origin` as node `node` sees it.
  std::string path(size_t node, size_t origin, const std::string& name) const;
  // The same file in the origin's directory.
  std::string disk(size_t origin, const std::string& name) const;
  // The node's own account of itself (JSON).
  std::string status(size_t node) const;
  // Ends everything. Empty, or what was not as it should be.
  std::string stop();
  // Ends the connections at once: whoever hangs in a call gets an error.
  void abort();
  // To be called first in each forked child: otherwise the guard takes the child for the test.
  void in_child() {
    alive_.reset();
    child_ = true;
  }

 private:
  Playground() = default;
  std::string dir_;
  std::vector<Node> nodes_;
  Fd alive_;
  int guard_ = -1;
  bool child_ = false;
};

}  // namespace vremote::live
