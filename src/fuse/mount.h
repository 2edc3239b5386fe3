// The mount: /dev/fuse opened and attached to a directory, and what can be done to it from outside.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "fuse/channel.h"
#include "fuse/mountinfo.h"
#include "fuse/protocol.h"

namespace vremote::fuse {

inline constexpr const char* kMountType = "fuse.vremote";

struct MountOptions {
  std::string name = "vremote";     // the source column of mount(8)
  bool allow_other = true;          // every user, not only the mounting one
  bool default_permissions = true;  // the kernel checks mode bits, from the attributes we give it
  // Bytes of one READ; the readahead window must stay within it (K6).
  uint32_t max_read = kMaxTransfer;
  bool read_only = false;
  bool allow_suid = false;     // honour set-user-ID bits and capabilities of the origin's files
  bool allow_devices = false;  // honour device nodes of the origin
};

enum class UnmountHow : uint8_t {
  Clean,  // gone
  Lazy,   // still in use: gone from the tree, ends with its last user
};

// Unmounts in its destructor when nobody did before; it aborts the connection first, since nobody
// may be reading /dev/fuse by then.
class Mount {
 public:
  // Mounts on `path`, an empty directory. A dead mount of ours that was left there is detached
  // first; anything else mounted there is left alone and refused. The errors say how to mend it.
  // The kernel's INIT request then waits in the channel; until it is answered, nothing in this
  // process may touch the mount, stat(2) included (K17).
  static Result<Mount> mount(const std::string& path, const MountOptions& options);

  // One that this very process has mounted, before it became another program; `connection` is its
  // connection_id(). Its channels are the caller's.
  static Result<Mount> take_over(const std::string& path, uint32_t connection);

  Mount(Mount&& other) noexcept;
  Mount& operator=(Mount&& other) noexcept;
  ~Mount();

  // The descriptor of the mount, once; further ones by Channel::clone(). When the last is closed
  // the connection is aborted.
  Channel take_channel();

  const std::string& path() const { return path_; }  // absolute, without symbolic links
  // The connection's name below /sys/fs/fuse/connections: the minor number of the mount's device.
  // Never stats the mount.
  uint32_t connection_id() const { return connection_; }

  // Unmounts, lazily if it is in use. Dirty pages are written back meanwhile, so /dev/fuse must
  // still be served (by other threads). Once unmounted, by whom ever, further calls do nothing.
  Result<UnmountHow> unmount();

  // Ends every request with an error, and the connection for good; the path answers ENOTCONN until
  // unmounted. Does not need the daemon to answer anything. Where fusectl cannot be had, by a
  // forced unmount: receive() then says ENODEV. The kernel knows the connection by a number that it
  // gives to another mount as soon as this one is gone: then nothing is done. `channel`, one of
  // this connection, tells that, also of a mount in use that unmount() has detached; without one,
  // and once the channel was taken, only what is in the tree is ended.
  Status abort(const Channel* channel = nullptr) const;

  // The last resort of who ends: where it cannot be seen what is mounted at path() (no descriptor
  // is left for that), takes it away all the same.
  void detach_unseen();

  // The readahead window in KiB. The reply to INIT may lower it again, so set it after that. At
  // most max_pages * 4 (K6).
  Status set_read_ahead(uint32_t kib) const;
  Result<uint32_t> read_ahead() const;

  // fs.fuse.max_pages_limit (Linux 6.13; 256 before): the most pages one request can have, for
  // InitOptions.
  static uint32_t kernel_max_pages();

 private:
  Mount(std::string path, uint32_t connection, std::optional<Channel> channel);
  void end();
  bool is_ours(const MountEntry& entry) const;
  bool is_among(const std::vector<MountEntry>& entries) const;

  std::string path_;
  uint32_t connection_ = 0;
  std::optional<Channel> channel_;
  bool mounted_ = false;
};

}  // namespace vremote::fuse
