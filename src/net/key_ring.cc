#include "net/key_ring.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"

namespace vremote::net {

Result<KeyRing> KeyRing::parse(std::string_view text) {
  std::vector<ClusterKey> keys;
  while (true) {
    const size_t begin = text.find_first_not_of(" \t\r\n");
    if (begin == std::string_view::npos && !keys.empty()) break;
    // An empty text is an error of its first line.
    text.remove_prefix(std::min(begin, text.size()));
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(line.size());
    VR_TRY(key, ClusterKey::parse(line));
    if (keys.size() == kKeysMax)
      return fail(EINVAL, fmt::format("holds more than {} keys; copy what 'vremote cluster invite' "
                                      "prints, and nothing else",
                                      kKeysMax));
    if (!keys.empty() &&
        (key.cluster() != keys.front().cluster() || key.guest() != keys.front().guest()))
      return fail(EINVAL,
                  "holds keys of different clusters or nodes; copy what 'vremote cluster "
                  "invite' prints on one node");
    if (std::ranges::find(keys, key) == keys.end()) keys.push_back(std::move(key));
  }
  return KeyRing(std::move(keys));
}

std::string KeyRing::text() const {
  std::string out;
  for (const ClusterKey& key : keys_) out += key.line();
  return out;
}

bool KeyRing::has(const ClusterKey& key) const {
  return std::ranges::find(keys_, key) != keys_.end();
}
bool KeyRing::shares_a_key_with(const KeyRing& other) const {
  return std::ranges::any_of(keys_, [&](const ClusterKey& key) { return other.has(key); });
}

Result<KeyRing> KeyRing::renewed() const {
  VR_CHECK(!newest().is_guest());
  if (keys_.size() == kKeysMax)
    return fail(EEXIST, "the key is being changed already: 'vremote cluster retire' ends that");
  VR_TRY(key, ClusterKey::generate(newest().cluster()));
  return KeyRing(std::vector<ClusterKey>{std::move(key), newest()});
}

KeyRing KeyRing::for_guest(const std::string& node) const {
  std::vector<ClusterKey> keys;
  for (const ClusterKey& key : keys_) keys.push_back(key.for_guest(node));
  return KeyRing(std::move(keys));
}

std::optional<KeyRing::Known> KeyRing::recognize(std::string_view identity,
                                                 std::string_view own_name) const {
  for (const ClusterKey& key : keys_)
    if (auto known = key.recognize(identity, own_name)) return Known{std::move(*known), &key};
  return std::nullopt;
}

}  // namespace vremote::net
