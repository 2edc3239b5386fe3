#include "net/cluster_key.h"

#include <fmt/format.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <sys/random.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/check.h"

namespace vremote::net {
namespace {

constexpr std::string_view kClusterWord = "vremote-cluster-key";
constexpr std::string_view kGuestWord = "vremote-guest-key";
constexpr std::string_view kVersion = "1";
constexpr size_t kLineMax = 1024;
constexpr size_t kNameMax = 63;
constexpr size_t kCheckDigits = 16;

// Nothing that the configuration would not take for a name: no space, so that words stay words.
bool is_name(std::string_view s) {
  return !s.empty() && s.size() <= kNameMax && s.front() != '.' &&
         std::ranges::all_of(s, [](unsigned char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '.' || c == '_' || c == '-';
         });
}

// Parts of `info` are names, which hold no zero byte: joined by it they cannot run into each other.
Secret hkdf(const Secret& key, std::initializer_list<std::string_view> info) {
  std::string joined;
  for (std::string_view part : info) joined.append(part).push_back('\0');
  std::unique_ptr<EVP_KDF, decltype(&EVP_KDF_free)> kdf(EVP_KDF_fetch(nullptr, "HKDF", nullptr),
                                                        EVP_KDF_free);
  VR_CHECK(kdf != nullptr);
  std::unique_ptr<EVP_KDF_CTX, decltype(&EVP_KDF_CTX_free)> context(EVP_KDF_CTX_new(kdf.get()),
                                                                    EVP_KDF_CTX_free);
  VR_CHECK(context != nullptr);
  char digest[] = "SHA256";
  char salt[] = "vremote 1";
  OSSL_PARAM params[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, const_cast<unsigned char*>(key.data()),
                                        Secret::kSize),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, salt, sizeof salt - 1),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, joined.data(), joined.size()),
      OSSL_PARAM_construct_end()};
  Secret out;
  VR_CHECK(EVP_KDF_derive(context.get(), out.data(), Secret::kSize, params) == 1);
  return out;
}

std::string hex_of(const unsigned char* data, size_t size) {
  std::string out;
  for (size_t i = 0; i < size; ++i) out += fmt::format("{:02x}", data[i]);
  return out;
}

std::optional<Secret> secret_of(std::string_view hex) {
  if (hex.size() != 2 * Secret::kSize) return std::nullopt;
  auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  Secret out;
  for (size_t i = 0; i < Secret::kSize; ++i) {
    const int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    out.data()[i] = static_cast<unsigned char>(high * 16 + low);
  }
  return out;
}

std::string check_of(std::string_view text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  VR_CHECK(EVP_Digest(text.data(), text.size(), digest, &size, EVP_sha256(), nullptr) == 1);
  return hex_of(digest, kCheckDigits / 2);
}

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (true) {
    const size_t begin = line.find_first_not_of(" \t\r\n");
    if (begin == std::string_view::npos) return words;
    const size_t end = std::min(line.find_first_of(" \t\r\n", begin), line.size());
    words.push_back(line.substr(begin, end - begin));
    line.remove_prefix(end);
  }
}

}  // namespace

Secret::~Secret() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

Result<ClusterKey> ClusterKey::generate(std::string cluster) {
  if (!is_name(cluster))
    return fail(EINVAL, fmt::format("'{}' is no valid name of a cluster", cluster));
  Secret secret;
  VR_CHECK(::getrandom(secret.data(), Secret::kSize, 0) == Secret::kSize);
  return ClusterKey(std::move(cluster), {}, secret);
}

Result<ClusterKey> ClusterKey::parse(std::string_view line) {
  constexpr const char* kMend = "copy the whole line of 'vremote cluster invite' again";
  if (line.size() > kLineMax) return fail(EINVAL, fmt::format("is too long for a key; {}", kMend));
  const auto words = words_of(line);
  const bool guest = !words.empty() && words[0] == kGuestWord;
  if (!guest && (words.empty() || words[0] != kClusterWord))
    return fail(EINVAL, fmt::format("is no key of vremote; {}", kMend));
  if (words.size() < 2 || words[1] != kVersion)
    return fail(EINVAL,
                "is a key of another version of vremote; bring the nodes to the same version");
  if (words.size() != (guest ? 6u : 5u))
    return fail(EINVAL, fmt::format("lacks a part of the key, or has one too many; {}", kMend));
  const std::string_view cluster = words[2], node = guest ? words[3] : std::string_view();
  auto secret = secret_of(words[words.size() - 2]);
  if (!is_name(cluster) || (guest && !is_name(node)) || !secret)
    return fail(EINVAL, fmt::format("holds a damaged key; {}", kMend));
  ClusterKey key{std::string(cluster), std::string(node), *secret};
  if (key.check() != words.back())
    return fail(EINVAL, fmt::format("holds a damaged key; {}", kMend));
  return key;
}

std::string ClusterKey::text() const {
  return fmt::format("{} {} {} {}{}{}", is_guest() ? kGuestWord : kClusterWord, kVersion, cluster_,
                     guest_, is_guest() ? " " : "", hex_of(secret_.data(), Secret::kSize));
}
std::string ClusterKey::check() const { return check_of(text()); }
std::string ClusterKey::line() const { return text() + " " + check() + "\n"; }

Secret ClusterKey::key_of(std::string_view node) const {
  return hkdf(secret_, {"node", cluster_, node});
}

ClusterKey ClusterKey::for_guest(std::string node) const {
  VR_CHECK(!is_guest());
  const Secret key = key_of(node);
  return ClusterKey(cluster_, std::move(node), key);
}

std::string ClusterKey::mark_of(std::string_view node) const {
  return for_guest(std::string(node)).check();
}

ClusterKey::Shown ClusterKey::dial(const Dialled& ends) const {
  const char* kind = is_guest() ? "guest" : "member";
  return {.identity = fmt::format("vremote 2 {} {} {} {} {}", kind, cluster_, ends.from, ends.to,
                                  is_guest() ? check() : mark_of(ends.to)),
          .secret = is_guest() ? hkdf(secret_, {"to", ends.to})
                               : hkdf(key_of(ends.to), {"from", ends.from})};
}

std::optional<ClusterKey::Known> ClusterKey::recognize(std::string_view identity,
                                                       std::string_view own_name) const {
  if (identity.size() > kLineMax) return std::nullopt;
  const auto words = words_of(identity);
  if (words.size() != 7 || words[0] != "vremote" || words[1] != "2" || words[3] != cluster_)
    return std::nullopt;
  if (!is_name(words[4]) || !is_name(words[5])) return std::nullopt;
  const std::string_view mark = words[6];
  Known known{.ends = {std::string(words[4]), std::string(words[5])}, .secret = {}};
  if (words[2] == "guest") {
    if (is_guest() || mark != mark_of(known.ends.from)) return std::nullopt;
    known.secret = hkdf(key_of(known.ends.from), {"to", known.ends.to});
  } else if (words[2] == "member") {
    if (is_guest() && (known.ends.to != guest_ || own_name != guest_)) return std::nullopt;
    if (mark != (is_guest() ? check() : mark_of(known.ends.to))) return std::nullopt;
    known.secret = hkdf(is_guest() ? secret_ : key_of(known.ends.to), {"from", known.ends.from});
  } else {
    return std::nullopt;
  }
  return known;
}

}  // namespace vremote::net
