// The Namespace as JSON, the answer to the control socket's "namespace" request:
//   {"mount": "/vremote", "exports": [{"name": "data", "path": "/srv/data", "local": true}]}
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "intercept/resolve.h"

namespace vremote::intercept {

// One line, without a newline.
std::string to_json(const Namespace& names);

// Refuses (EPROTO) what is not such an object, paths that are not absolute, and export names that
// are no single path component. Unknown keys are ignored: a newer node may tell more. An {"error":
// "..."} reply becomes an Error with that sentence.
Result<Namespace> namespace_from_json(std::string_view json);

}  // namespace vremote::intercept
