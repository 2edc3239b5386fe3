// Changes that other processes make to exported files without asking us, as fanotify tells them.
//
// The whole file system of an export is watched: one mark covers trees of any depth, and what is
// made in them later, at the price of events about files that are nobody's business (read_events()
// leaves them; the handle is not known to any store). Our own changes come too and are known by the
// process id: all threads of this process share it.
//
// Events are merged by the kernel while they wait to be read, so reading in bursts is cheaper than
// reading each at once. When more wait than the kernel keeps, it drops some and says so (`lost`).
//
// Not seen, because the kernel does not tell: stores through a mapping of the file, and changes
// that another machine makes when the exported directory is itself on a network or cluster file
// system.
//
// Tried before: inotify. It wants a watch per directory, set up before anything happens in it, does
// not tell who did it, and names files by paths.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "coherence/operation_needs.h"

namespace vremote::store {

class Store;

struct OutsideEvents {
  struct Event {
    std::string handle;  // as Store::find() takes it
    coherence::OutsideChange change;
  };
  std::vector<Event> events;
  bool lost = false;  // some are missing: everything may have changed
};

// Adds what a buffer read from fanotify tells of processes other than `self`. What does not make
// sense is taken as lost.
void read_events(std::span<const std::byte> buffer, pid_t self, OutsideEvents& out);

class OutsideWatch {
 public:
  // EPERM without CAP_SYS_ADMIN, ENOSYS on a kernel without fanotify; `what` says what that means.
  static Result<OutsideWatch> open();

  // The store's file system, from now on. The error says why it cannot be: no handles, or a file
  // system that has no identity to tell (some overlays).
  Status watch(const Store& store);

  // Readable when there are events.
  int descriptor() const { return fd_.get(); }
  // What waits now, but no more than a few thousand events. False when nothing did.
  bool read(OutsideEvents& out);

 private:
  explicit OutsideWatch(Fd fd) : fd_(std::move(fd)), buffer_(kBuffer) {}
  static constexpr size_t kBuffer = 64 << 10;

  Fd fd_;
  std::vector<std::byte> buffer_;
};

}  // namespace vremote::store
