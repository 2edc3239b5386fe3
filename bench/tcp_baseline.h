// What TCP on this machine can do at best: a process at the other end of a loopback connection.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "base/fd.h"

namespace vremote::bench {

class TcpPeer {
 public:
  TcpPeer();
  ~TcpPeer();
  TcpPeer(const TcpPeer&) = delete;
  TcpPeer& operator=(const TcpPeer&) = delete;

  // The peer reads the file and sends it; received here, it is written to a fresh file in memory.
  // Returns the bytes.
  uint64_t copy_into_page_cache(const std::string& path);
  // A page there and a page back.
  void round_trip();

 private:
  Fd connection_;
  pid_t process_ = -1;
};

}  // namespace vremote::bench
