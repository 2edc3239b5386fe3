// Which path under the mount an O_REMOTE open means.
//
//   with O_ORIGIN   a path in an export of this node:    /srv/data/x      ->  /vremote/data/x
//   without         the same path as on the origin,
//                   another node:                        /srv/data/x      ->  /vremote/data/x
//                   or a path under the mount:           /vremote/data/x  ->  itself
//
// Prefixes match by whole components ("/srv/data2" is not in "/srv/data"), the longest export wins.
// Whatever does not match exactly one export on the side the flags name is refused: never a guess,
// never a local open.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace vremote::intercept {

// One export of the cluster, as this node knows it.
struct Export {
  std::string name;
  std::string path;    // on its origin, as the origin's configuration says; absolute
  bool local = false;  // this node is the origin
  bool operator==(const Export&) const = default;
};

// What one node shows: its mount and the exports under it.
struct Namespace {
  std::string mount;  // absolute
  std::vector<Export> exports;
  bool operator==(const Namespace&) const = default;
};

// A place under the mount.
struct Target {
  std::string name;    // of the export; empty for the mount's own root
  std::string rest;    // relative to the export; empty for its root
  std::string origin;  // the export's path on its origin; empty when the export is not known
  bool operator==(const Target&) const = default;
  std::string path(const Namespace& names) const;
};

// Lexical normalisation of an absolute path: no "//", ".", "..", nor a final "/". ("/.." is "/".)
// Symbolic links are the caller's.
std::string normalise(std::string_view path);

// Whether normalised `path` is `prefix` or beneath it; if so `*rest` is what follows, without a
// leading "/".
bool has_prefix(std::string_view path, std::string_view prefix, std::string_view* rest);

// `path` is absolute and normalised. Errors: ENXIO (in no export), EINVAL (on the other side than
// `origin` says, or in several exports), with a sentence that says how to mend it.
Result<Target> resolve(const Namespace& names, std::string_view path, bool origin);

}  // namespace vremote::intercept
