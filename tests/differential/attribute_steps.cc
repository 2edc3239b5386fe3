// Calls that look at attributes, and change them.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>

#include "differential/step.h"

namespace vremote::differential {
namespace {

std::string list_of(ssize_t n, const std::string& room) {
  if (n <= 0 || room.empty()) return outcome(n);
  std::vector<std::string> names;
  for (size_t at = 0; at < static_cast<size_t>(n);) {
    names.emplace_back(room.c_str() + at);
    at += names.back().size() + 1;
  }
  std::sort(names.begin(), names.end());
  return fmt::format("ok {}", fmt::join(names, " "));
}

Step xattr_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const size_t slot = draw.slot();
  const bool by_slot = draw.chance(30);
  const std::string key =
      draw.one_of<const char*>({"user.a", "user.b", "user.", "trusted.a", "security.a", "nothing.a",
                                "a", "", "system.posix_acl_access", "user.a"});
  const std::string value(draw.one_of<size_t>({0, 1, 10, 200, 70'000}), 'v');
  const int flags = draw.one_of<int>({0, 0, XATTR_CREATE, XATTR_REPLACE, 9});
  const size_t room = draw.one_of<size_t>({0, 1, 300, 70'000});
  const auto what = draw.random().below(5);
  const std::string of = by_slot ? fmt::format("slot {}", slot) : name;
  switch (what) {
    case 0:
    case 1:
      return {fmt::format("setxattr({}, {}, {} bytes, {})", of, key, value.size(), flags),
              [=](const Side& side) {
                return outcome(by_slot ? ::fsetxattr(side.seen_fd(slot), key.c_str(), value.data(),
                                                     value.size(), flags)
                                       : ::lsetxattr(side.at(name).c_str(), key.c_str(),
                                                     value.data(), value.size(), flags));
              },
              {}};
    case 2:
      return {fmt::format("getxattr({}, {}, {})", of, key, room),
              [=](const Side& side) {
                std::string got(room, '\0');
                const ssize_t n =
                    by_slot ? ::fgetxattr(side.fd(slot), key.c_str(), got.data(), room)
                            : ::lgetxattr(side.at(name).c_str(), key.c_str(), got.data(), room);
                const std::string result = outcome(n);
                got.resize(n > 0 && room > 0 ? static_cast<size_t>(n) : 0);
                return result + " " + quoted(got);
              },
              {}};
    case 3:
      return {fmt::format("listxattr({}, {})", of, room),
              [=](const Side& side) {
                std::string got(room, '\0');
                return list_of(by_slot ? ::flistxattr(side.fd(slot), got.data(), room)
                                       : ::llistxattr(side.at(name).c_str(), got.data(), room),
                               got);
              },
              {}};
    default:
      return {fmt::format("removexattr({}, {})", of, key),
              [=](const Side& side) {
                return outcome(by_slot ? ::fremovexattr(side.seen_fd(slot), key.c_str())
                                       : ::lremovexattr(side.at(name).c_str(), key.c_str()));
              },
              {}};
  }
}

Step times_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const size_t slot = draw.slot();
  const bool by_slot = draw.chance(30);
  // Long ago: what is not so old was set by the clock, and cannot be compared.
  const auto time = [&]() -> timespec {
    if (draw.chance(20)) return {0, UTIME_OMIT};
    if (draw.chance(15)) return {0, UTIME_NOW};
    if (draw.chance(5)) return {100, 1'000'000'000};
    return {static_cast<time_t>(100'000'000 + draw.random().below(100'000'000)),
            static_cast<long>(draw.random().below(1'000'000'000))};
  };
  const timespec access = time(), modification = time();
  const int flags = draw.one_of({0, AT_SYMLINK_NOFOLLOW, 0x4000});
  return {fmt::format("utimensat({}, {}.{}, {}.{}, {:#x})",
                      by_slot ? fmt::format("slot {}", slot) : name, access.tv_sec, access.tv_nsec,
                      modification.tv_sec, modification.tv_nsec, flags),
          [=](const Side& side) {
            const timespec times[2] = {access, modification};
            return outcome(by_slot ? ::futimens(side.seen_fd(slot), times)
                                   : ::utimensat(AT_FDCWD, side.at(name).c_str(), times, flags));
          },
          {name}};
}

Step owner_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const size_t slot = draw.slot();
  const auto how = draw.random().below(3);
  const auto uid = static_cast<uid_t>(draw.one_of({-1, -1, 0, 1001, 1002}));
  const auto gid = static_cast<gid_t>(draw.one_of({-1, -1, 0, 1001, 2000, 3000}));
  return {fmt::format("{}({}, {}, {})", std::array{"chown", "lchown", "fchown"}[how],
                      how == 2 ? fmt::format("slot {}", slot) : name, static_cast<int>(uid),
                      static_cast<int>(gid)),
          [=](const Side& side) {
            const std::string result =
                outcome(how == 0   ? ::chown(side.at(name).c_str(), uid, gid)
                        : how == 1 ? ::lchown(side.at(name).c_str(), uid, gid)
                                   : ::fchown(side.seen_fd(slot), uid, gid));
            // Of set-ID programs of others a local file system refuses this (promise.md, Limits).
            const bool nothing = uid == static_cast<uid_t>(-1) && gid == static_cast<gid_t>(-1);
            return nothing && result == "EPERM" ? "ok 0" : result;
          },
          {name}};
}

Step stat_fs_step(Draw& draw) {
  const std::string name = draw.odd_name();
  return {fmt::format("statvfs({})", name),
          [=](const Side& side) {
            struct statvfs st {};
            const std::string result = outcome(::statvfs(side.at(name).c_str(), &st));
            return fmt::format("{} {} {} {} {}", result, st.f_bsize, st.f_frsize, st.f_blocks,
                               st.f_namemax);
          },
          {}};
}

}  // namespace

Step draw_attribute_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const size_t slot = draw.slot();
  const uint32_t mode = draw.mode();
  const int64_t size = draw.odd_size();
  const int access = draw.one_of({F_OK, R_OK, W_OK, X_OK, R_OK | W_OK, 9});
  switch (draw.random().below(12)) {
    case 0:
    case 1:
      return {fmt::format("chmod({}, {:#o})", name, mode),
              [=](const Side& side) { return outcome(::chmod(side.at(name).c_str(), mode)); },
              {name}};
    case 2:
      return {fmt::format("fchmod(slot {}, {:#o})", slot, mode),
              [=](const Side& side) { return outcome(::fchmod(side.seen_fd(slot), mode)); },
              {}};
    case 3:
    case 4:
      return owner_step(draw);
    case 5:
      return times_step(draw);
    case 6:
      return {fmt::format("truncate({}, {})", name, size),
              [=](const Side& side) { return outcome(::truncate(side.at(name).c_str(), size)); },
              {name}};
    case 7:
      return {fmt::format("faccessat({}, {}, AT_EACCESS)", name, access),
              [=](const Side& side) {
                return outcome(::faccessat(AT_FDCWD, side.at(name).c_str(), access, AT_EACCESS));
              },
              {name}};
    case 8:
      return stat_fs_step(draw);
    default:
      return xattr_step(draw);
  }
}

}  // namespace vremote::differential
