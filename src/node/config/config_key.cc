// The key a node's configuration names.
#include <fmt/format.h>

#include <cerrno>

#include "node/config/config.h"

namespace vremote::node {

Result<net::KeyRing> load_key(const Config& config) {
  auto bad = [&](int code, const std::string& why) {
    return fail(code, fmt::format("{}: key 'cluster.key': {}", config.file, why));
  };
  auto keys = net::read_key_file(config.cluster_key);
  if (!keys && keys.error().code == ENOENT)
    return bad(ENOENT,
               fmt::format("{}; type 'vremote cluster init --config {}' on the cluster's first "
                           "node, 'vremote cluster join --config {}' on the others, or write tls = "
                           "\"off\" below [cluster] to go without any protection",
                           keys.error().what, config.file, config.file));
  if (!keys) return bad(keys.error().code, keys.error().what);
  const net::ClusterKey& key = keys->newest();
  if (key.cluster() != config.cluster)
    return bad(EINVAL,
               fmt::format("{} is of cluster '{}' and this node of '{}'; correct 'cluster.name' or "
                           "join the right cluster",
                           config.cluster_key, key.cluster(), config.cluster));
  if (key.is_guest() && key.guest() != config.node)
    return bad(EINVAL, fmt::format("{} is the key of the guest '{}' and this node is '{}'; correct "
                                   "'node' or ask for a key of its own",
                                   config.cluster_key, key.guest(), config.node));
  return keys;
}

}  // namespace vremote::node
