// For tests: a node without a daemon, that behaves as the environment says.
#pragma once

namespace vremote::node {
struct Config;
}

namespace vremote::cli {

// Serves its control socket until SIGTERM. VREMOTE_FAKE_<node> may ask for another behaviour:
//   die            ends with status 3 after a line on stderr
//   never_ready    says so in its status
//   disconnected   no peer is ever connected
//   bad_end        ends on SIGTERM with status 4
//   leave_mount    mounts a FUSE nobody answers, and ends on SIGTERM with it still there (killed in
//   the middle, so to say) stubborn       the same, and ignores SIGTERM
int run_fake_node(const node::Config& config);

}  // namespace vremote::cli
