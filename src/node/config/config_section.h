// One table of node.toml, read key by key: types and values are checked here, and every error line
// is made here.
//
// A getter leaves `out` alone when its key is not there, so the defaults are those of the caller's
// values.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/toml.h"
#include "node/config/config.h"

namespace vremote::node {

// An error is one line, also when a quoted key or a value in it holds a newline.
std::string one_line(std::string text);

class Section {
 public:
  // `table` and `file` must outlive it. `prefix` is that of the keys in error lines: "log.",
  // "export[0].".
  Section(const toml::table& table, std::string prefix, const std::string& file)
      : table_(table), prefix_(std::move(prefix)), file_(file) {}

  // "FILE:LINE:COLUMN: key 'PREFIXKEY': WHY"
  std::unexpected<Error> bad(std::string_view key, std::string_view why) const;
  // Refuses keys other than these.
  Status only(std::initializer_list<std::string_view> keys) const;
  bool has(std::string_view key) const { return table_.contains(key); }

  Status string(std::string_view key, std::string& out) const;
  Status name(std::string_view key,
              std::string& out) const;  // [A-Za-z0-9._-]{1,63}, no leading dot
  Status path(std::string_view key, std::string& out) const;  // absolute; comes back normal
  Status endpoint(std::string_view key, Endpoint& out) const;
  Status boolean(std::string_view key, bool& out) const;
  Status names(std::string_view key, std::optional<std::vector<std::string>>& out) const;
  template <typename Integer>
  Status integer(std::string_view key, Integer& out, uint64_t low, uint64_t high) const {
    VR_TRY(value, number(key, low, high));
    if (value) out = static_cast<Integer>(*value);
    return {};
  }

  Result<std::optional<Section>> section(std::string_view key) const;  // [key]
  Result<std::vector<Section>> sections(std::string_view key) const;   // [[key]]

 private:
  Result<std::optional<uint64_t>> number(std::string_view key, uint64_t low, uint64_t high) const;
  std::unexpected<Error> bad_at(const toml::node& node, const std::string& key,
                                std::string_view why) const;
  std::unexpected<Error> wrong_type(std::string_view key, const toml::node& node,
                                    std::string_view wanted) const;

  const toml::table& table_;
  std::string prefix_;
  const std::string& file_;
};

}  // namespace vremote::node
