// What both directions of the codec hold to be a possible value. The sender checks too: a message
// that the other side must refuse would otherwise be sent again after every reconnect.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string_view>

#include "base/page_range.h"
#include "coherence/messages.h"

namespace vremote::wire {

inline constexpr uint64_t kOffsetMax = std::numeric_limits<int64_t>::max();  // off_t is signed
inline constexpr int32_t kErrnoMax = 4095;  // the kernel's MAX_ERRNO

// A name within a directory. "." and ".." are the kernel's own business and never travel as names
// to look up or make.
inline bool valid_name(std::string_view name) {
  return !name.empty() && name.size() <= coherence::kNameMax && name != "." && name != ".." &&
         name.find('/') == name.npos && name.find('\0') == name.npos;
}
// A name in a listing, where "." and ".." do occur.
inline bool valid_entry_name(std::string_view name) {
  return name == "." || name == ".." || valid_name(name);
}
// An extended attribute's name may contain a slash.
inline bool valid_xattr_name(std::string_view name) {
  return !name.empty() && name.size() <= coherence::kNameMax && name.find('\0') == name.npos;
}
inline bool valid_link_target(std::string_view target) {
  return !target.empty() && target.size() <= coherence::kLinkMax &&
         target.find('\0') == target.npos;
}
inline bool valid_range(const PageRange& range) {
  return range.first <= range.end && range.end <= kPageEnd;
}
// Entries and attributes are one unit each.
inline bool valid_range(coherence::Resource resource, const PageRange& range) {
  return valid_range(range) &&
         (resource == coherence::Resource::Data || coherence::kUnit.contains(range));
}
inline bool valid_bytes(uint64_t offset, uint64_t length) {
  return offset <= kOffsetMax && length <= kOffsetMax - offset;
}
inline bool valid_errno(int32_t error) { return error >= 0 && error <= kErrnoMax; }
inline bool valid_time(const Timestamp& time) { return time.nanoseconds < 1'000'000'000; }
inline bool valid(const coherence::DirtyAttributes& a) {
  return a.size <= kOffsetMax && valid_time(a.mtime);
}
inline bool valid(const Attributes& a) {
  return a.size <= kOffsetMax && valid_time(a.atime) && valid_time(a.mtime) &&
         valid_time(a.ctime) && valid_time(a.btime);
}
inline bool valid(const coherence::LockCall& c) {
  return c.action <= coherence::LockAction::Refuse && c.kind <= coherence::LockKind::Flock &&
         c.type <= coherence::LockType::Unlock && c.start <= c.end && c.end <= kOffsetMax;
}
inline bool valid(const coherence::Trail& t) {
  return t.budget <= coherence::kTrailBudget && t.waits.size() <= coherence::kTrailMax;
}
inline bool valid(const coherence::CopyCall& c) {
  return c.length > 0 && c.length <= coherence::kCopyMax && valid_bytes(c.offset, c.length) &&
         valid_bytes(c.from_offset, c.length);
}
inline bool valid(const coherence::ReclaimCall& c) {
  return c.pages.size() <= coherence::kReclaimedRangesMax && (c.pages.empty() || !c.done) &&
         std::ranges::all_of(
             c.pages, [](const PageRange& range) { return valid_range(range) && !range.empty(); });
}
inline bool valid(coherence::Resource resource) { return resource <= coherence::Resource::Data; }
inline bool valid(coherence::LeaseMode mode) { return mode <= coherence::LeaseMode::Exclusive; }
// What gives nothing says why. A node that was refused at the door was given no number.
inline bool valid(const coherence::Grant& m) {
  if (!valid(m.resource) || !valid(m.mode) || !valid_range(m.resource, m.range) ||
      !valid_errno(m.error) || m.size_floor > kOffsetMax || !valid(m.attributes) ||
      !valid_bytes(m.data_offset, m.data.size()))
    return false;
  return m.error != 0 ||
         (m.sequence != 0 && m.mode != coherence::LeaseMode::None && !m.range.empty() &&
          (m.mode != coherence::LeaseMode::Update ||
           m.resource == coherence::Resource::Attributes));
}
// Recalls are numbered from 1: an agent names by 0 what it gives up unasked.
inline bool valid(const coherence::Recall& m) {
  return m.recall != 0 && valid(m.resource) && valid_range(m.resource, m.range) &&
         !m.range.empty() &&
         (m.to == coherence::LeaseMode::None || m.to == coherence::LeaseMode::Shared);
}

}  // namespace vremote::wire
