#include "node/config/config.h"

#include "base/check.h"
#include "fuzz/targets.h"

namespace vremote::fuzz {
namespace {

bool one_line(std::string_view text) {
  return !text.empty() && text.find('\n') == std::string_view::npos;
}

void check_endpoint(const node::Endpoint& endpoint) {
  const auto again = node::parse_endpoint(node::to_string(endpoint));
  VR_CHECK(again && *again == endpoint);
}

}  // namespace

void config(std::span<const std::byte> bytes) {
  const Exact exact(bytes);
  const std::string_view text(reinterpret_cast<const char*>(exact.view().data()), bytes.size());
  const auto config = node::parse_config(text, "/etc/node.toml");
  if (!config) {
    VR_CHECK(config.error().code > 0 && one_line(config.error().what));
    return;
  }
  VR_CHECK(!config->node.empty() && config->loops > 0);
  VR_CHECK(config->mount.starts_with('/') && config->state_dir.starts_with('/'));
  check_endpoint(config->listen);
  for (const auto& peer : config->peers) check_endpoint(peer.address);
  for (const auto& shared : config->exports) VR_CHECK(shared.path.starts_with('/'));
  for (const auto& warning : config->warnings) VR_CHECK(one_line(warning));
}

}  // namespace vremote::fuzz
