// Messages as short lines, for the scenario tests of this folder.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "coherence/lease_mode_name.h"
#include "coherence/messages.h"

namespace vremote::coherence::test {

// The pages first to last, both included, as scenarios read best.
constexpr PageRange pages(uint64_t first, uint64_t last) { return {first, last + 1}; }
inline PageRange pages_from(uint64_t first) { return {first, kPageEnd}; }

inline std::string text(PageRange range) {
  if (range == PageRange::all()) return "all";
  if (range.end == kPageEnd) return fmt::format("{}-end", range.first);
  return fmt::format("{}-{}", range.first, range.end - 1);
}

inline const char* text(LeaseMode mode) { return name_of(mode); }

// What a lease or recall is about: pages, or the one unit of the other resources.
inline std::string text(Resource resource, PageRange range) {
  switch (resource) {
    case Resource::Entries:
      return "entries";
    case Resource::Attributes:
      return "attributes";
    case Resource::Data:
      return text(range);
  }
  return "?";
}

// Bytes as runs: "4096*A 100*B"; zeros are shown as '0'.
template <typename Pieces>
std::string runs(const Pieces& pieces) {
  std::string out;
  uint64_t count = 0;
  char last = 0;
  auto close = [&] {
    if (count > 0) out += fmt::format("{}{}*{}", out.empty() ? "" : " ", count, last);
  };
  for (const Bytes& bytes : pieces) {
    for (std::byte b : bytes.view()) {
      const char c = b == std::byte{0} ? '0' : static_cast<char>(b);
      if (c != last) {
        close();
        count = 0;
        last = c;
      }
      ++count;
    }
  }
  close();
  return out;
}

inline Bytes repeated(char c, size_t length) {
  auto memory = std::make_shared_for_overwrite<std::byte[]>(length);
  std::fill_n(memory.get(), length, static_cast<std::byte>(c));
  std::span<const std::byte> view(memory.get(), length);
  return Bytes(std::move(memory), view);
}

}  // namespace vremote::coherence::test
