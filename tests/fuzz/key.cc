#include <openssl/evp.h>

#include <sstream>
#include <string>
#include <vector>

#include "base/check.h"
#include "fuzz/targets.h"
#include "net/key_ring.h"

namespace vremote::fuzz {
namespace {

using net::ClusterKey;

constexpr const char* kDigits = "0123456789abcdef";

// The check of all words but the last, in its place: a fuzzer does not guess it.
std::string with_check(std::string_view line) {
  std::istringstream in{std::string(line)};
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  if (words.empty()) return {};
  words.pop_back();
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  VR_CHECK(EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr) == 1);
  text += ' ';
  for (int i = 0; i < 8; ++i)
    text.append(1, kDigits[digest[i] >> 4]).append(1, kDigits[digest[i] & 15]);
  return text;
}

void read_line(std::string_view line) {
  const auto key = ClusterKey::parse(line);
  if (!key) {
    VR_CHECK(key.error().code > 0 && !key.error().what.empty());
    VR_CHECK(key.error().what.find('\n') == std::string::npos);
    return;
  }
  VR_CHECK(!key->cluster().empty() && key->cluster().size() <= 63 && key->guest().size() <= 63);
  const auto again = ClusterKey::parse(key->line());
  VR_CHECK(again && again->line() == key->line() && again->check() == key->check());
}

// Whoever is recognized would have shown the same secret.
void read_identity(std::string_view identity) {
  static const auto cluster = ClusterKey::parse(
      with_check("vremote-cluster-key 1 c "
                 "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f x"));
  VR_CHECK(cluster.has_value());
  static const ClusterKey guest = cluster->for_guest("n1");
  const auto known = cluster->recognize(identity, "n1");
  const bool shown_by_guest = identity.find("guest") != std::string_view::npos;
  if (known) {
    const auto by_member = cluster->dial(known->ends);
    const auto by_guest = cluster->for_guest(known->ends.from).dial(known->ends);
    VR_CHECK(known->secret == by_member.secret ||
             (shown_by_guest && known->secret == by_guest.secret));
  }
  const auto known_to_guest = guest.recognize(identity, "n1");
  if (known_to_guest) {
    VR_CHECK(known_to_guest->ends.to == "n1" && known.has_value());
    VR_CHECK(known_to_guest->secret == known->secret);
  }
}

void read_ring(std::string_view text) {
  const auto ring = net::KeyRing::parse(text);
  if (!ring) return;
  VR_CHECK(!ring->keys().empty() && ring->keys().size() <= net::KeyRing::kKeysMax);
  const auto again = net::KeyRing::parse(ring->text());
  VR_CHECK(again && *again == *ring);
}

}  // namespace

void key(std::span<const std::byte> bytes) {
  const Exact exact(bytes);
  const std::string_view text(reinterpret_cast<const char*>(exact.view().data()), bytes.size());
  read_line(text);
  read_line(with_check(text));
  read_identity(text);
  read_ring(text);
  const size_t end = text.find('\n');
  if (end != std::string_view::npos)
    read_ring(with_check(text.substr(0, end)) + "\n" + with_check(text.substr(end + 1)));
}

}  // namespace vremote::fuzz
