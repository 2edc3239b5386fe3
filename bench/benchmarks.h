// The comparisons, by group. Each function prepares its files and returns what is to be timed.
#pragma once

#include <string>
#include <vector>

#include "bench/cluster.h"
#include "bench/compare.h"
#include "bench/null_fuse.h"
#include "bench/tcp_baseline.h"

namespace vremote::bench {

struct Setup {
  Cluster& cluster;
  NullFuse& null_fuse;
  TcpPeer& tcp;
  std::string local;  // a directory of the local file system, the one the export is on
};

std::vector<Comparison> warm_reads(const Setup& setup);
std::vector<Comparison> exclusive_writes(const Setup& setup);
std::vector<Comparison> cold_reads(const Setup& setup);
std::vector<Comparison> names(const Setup& setup);
std::vector<Comparison> turns(const Setup& setup);

}  // namespace vremote::bench
