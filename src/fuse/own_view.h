// The kernel's idea of a file on our own mount, looked at from outside like any program.
//
// The one exception to "the daemon never uses its own mount" (K17): nothing but a stat can make the
// kernel take in a smaller size of a file, or tell which size it has. No path is walked below the
// mount's root: the inode is opened by its handle, without a request to us, and O_PATH.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "base/attributes.h"
#include "base/fd.h"
#include "base/result.h"

namespace vremote::fuse {

// Helper threads only: opening sends OPENDIR for the mount's root to this daemon.
class OwnView {
 public:
  // `connection`: Mount::connection_id(); something else that is mounted there is left alone.
  OwnView(std::string path, uint32_t connection);

  // Whether this process may open by handle at all (CAP_DAC_READ_SEARCH).
  static bool possible();

  // ESTALE: the kernel does not know the node.
  Result<Fd> open(uint64_t node, uint32_t generation = 0) const;
  // The size, mode and owner the kernel has for the file, without asking us. Never blocks.
  struct Seen {
    uint64_t size = 0;
    Access access;
  };
  static Result<Seen> look(const Fd& file);
  // Makes the kernel ask for the file's attributes. BLOCKS on each page with an unanswered fill
  // that a smaller size cuts.
  void ask(const Fd& file);
  // Returns when the inode's lock has been free. BLOCKS on what a writer or a truncation waits for.
  static void pass_lock(const Fd& file);

  // Whether a request of this thread comes from ask().
  bool asks(uint32_t thread) const;
  // The extended attribute that pass_lock() tries to set: to be refused at once.
  static constexpr const char* kLockName = "trusted.vremote.lock";

 private:
  const std::string path_;
  const uint32_t connection_;
  mutable std::mutex mutex_;
  std::atomic<size_t> count_{0};
  std::set<uint32_t> asking_;  // threads
};

}  // namespace vremote::fuse
