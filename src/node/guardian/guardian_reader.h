// Reads the kernel's requests in a daemon's place, on a thread of its own (rules G1 and G2 of
// guardian.h).
#pragma once

#include <atomic>
#include <optional>
#include <thread>

#include "base/fd.h"
#include "fuse/buffer.h"
#include "fuse/channel.h"
#include "node/guardian/guardian_held.h"

namespace vremote::node {

class GuardianReader {
 public:
  // `held` is the reader's alone while it runs.
  GuardianReader(const fuse::Channel& channel, GuardianHeld& held)
      : channel_(channel), held_(held) {}

  // Unless it runs. `give_back`: as GuardianHeld::take().
  void start(bool give_back);
  // To be called every now and then: a thread that was refused may be had by now.
  void help();
  void stop();
  // All that waited when it was started is read.
  bool all_read() const { return all_read_; }
  // The connection has ended.
  bool gone() const { return gone_; }

 private:
  void read(bool give_back);

  const fuse::Channel& channel_;
  GuardianHeld& held_;
  fuse::BufferPool buffers_{1};
  std::thread thread_;
  std::optional<bool> refused_;  // wants to be started so
  Fd stop_;
  std::atomic<bool> running_{false}, all_read_{false}, gone_{false};
};

}  // namespace vremote::node
