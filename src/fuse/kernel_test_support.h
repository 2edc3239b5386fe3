// For tests on the real kernel: a directory of their own, a watchdog, and a file system of one
// file.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "fuse/buffer.h"
#include "fuse/channel.h"
#include "fuse/init.h"
#include "fuse/request.h"

namespace vremote::fuse::testing {

// Why tests that mount cannot run here; empty when they can.
std::string why_no_mounts();

// A fresh directory with an empty `point` below it to mount on. Its end removes both, lazily
// unmounting what is left.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const std::string& path() const { return path_; }
  const std::string& point() const { return point_; }

 private:
  std::string path_;
  std::string point_;
};

// A process that ends the FUSE connection mounted at `point`, and only that, when this test lives
// too long or dies: a caller whose request is never answered would otherwise stay in D state for
// good. To be made before the mount, so that it holds no /dev/fuse.
class Watchdog {
 public:
  Watchdog(std::string point, int seconds);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  Fd alive_;  // closed: this test is over
  int process_ = -1;
};

inline constexpr uint64_t kFileNode = 2;
inline constexpr uint64_t kFileInode = 4242;
inline constexpr const char* kFileName = "file";

// Serves a root with one file from one thread. O_RDONLY handles are cached, others direct, as rule
// K1 has it.
class OneFile {
 public:
  struct Event {
    std::string what;  // lookup, getattr, read, write, init, other
    bool fill = false;
    bool write_back = false;
    bool resent = false;
    uint64_t offset = 0;
    uint64_t size = 0;
  };

  explicit OneFile(std::string content) : content_(std::move(content)) {}
  ~OneFile() { stop(); }

  void serve(Channel channel);    // from a thread of its own until stop() or the connection's end
  std::optional<Channel> stop();  // the channel, as it was
  void hold_reads(
      bool hold);  // leaves reads unanswered; those held stay so until resent or aborted

  const Channel& channel() const { return *channel_; }
  size_t count(const std::string& what) const;
  std::vector<Event> events(const std::string& what) const;
  // Waits until `done(events)`; false after some seconds.
  bool wait_for(const std::function<bool(const std::vector<Event>&)>& done) const;
  Negotiation negotiation() const;
  std::string content() const;
  void append(const std::string& text);  // as another node would
  void cut(size_t size);                 // the same
  int wait_for_end() const;  // what receive() ended with; 0 when it goes on for some seconds

 private:
  void run();
  void handle(const Request& request);
  void note(Event event);

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::vector<Event> events_;
  std::string content_;
  Negotiation negotiation_;
  bool hold_reads_ = false;
  int end_error_ = 0;

  std::optional<Channel> channel_;
  BufferPool pool_{2};
  Fd wake_;
  std::thread thread_;
};

}  // namespace vremote::fuse::testing
