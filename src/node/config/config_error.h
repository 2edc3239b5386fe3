// How an error tells of the key of a configuration that is to be corrected.
#pragma once

#include <fmt/format.h>

#include <string_view>

#include "base/result.h"
#include "node/config/config.h"

namespace vremote::node {

// "FILE: key 'KEY': WHY", with the code of the error.
inline std::unexpected<Error> bad_key(const Config& config, std::string_view key,
                                      const Error& error) {
  return fail(error.code, fmt::format("{}: key '{}': {}", config.file, key, error.what));
}

}  // namespace vremote::node
