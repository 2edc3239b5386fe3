#include "node/guardian/guardian_door.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace vremote::node {
namespace {

constexpr int kRetirePatienceMs = 20'000;
constexpr int kLivesRetries = 10, kLivesRetryMs = 100;

std::optional<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return std::nullopt;
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

bool is_trusted(uid_t user) { return user == 0 || user == ::geteuid(); }

// What it hands over is this node's to the last byte: whoever could put another socket there, or
// listens and is somebody else, is not believed.
Status judge_place(const std::string& path) {
  std::string directory = path.substr(0, path.find_last_of('/'));
  if (directory.empty()) directory = "/";
  struct stat st {};
  if (::stat(directory.c_str(), &st) != 0)
    return fail(errno, fmt::format("{}: {}", directory, std::strerror(errno)));
  if (!is_trusted(st.st_uid))
    return fail(EPERM, fmt::format("{} belongs to user {}: a guardian there is not believed; give "
                                   "it to the user of this node",
                                   directory, st.st_uid));
  if ((st.st_mode & (S_IWGRP | S_IWOTH)) != 0)
    return fail(EPERM, fmt::format("{} can be written to by others (mode {:04o}): a guardian there "
                                   "is not believed; chmod 0700 it",
                                   directory, st.st_mode & 07777));
  return {};
}

// Nothing: nobody listens there. An error: it is nobody of ours.
Result<std::optional<Fd>> reach(const std::string& path) {
  const auto address = address_of(path);
  if (!address) return fail(ENAMETOOLONG, path + ": the path is too long for a socket");
  // A link would lead to others.
  struct stat st {};
  if (::lstat(path.c_str(), &st) == 0 && !S_ISSOCK(st.st_mode))
    return fail(EPERM, path + ": that is no socket; remove it");
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return fail(errno, "socket");
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0) {
    if (errno == EAGAIN) return fail(EBUSY, path + ": whoever listens there lets nobody in");
    return std::nullopt;  // none, or a file that one left
  }
  (void)::fcntl(fd.get(), F_SETFL, 0);
  ucred who{};  // of the one who listens
  socklen_t length = sizeof who;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0)
    return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  if (!is_trusted(who.uid))
    return fail(EPERM, fmt::format("{}: user {} listens there (process {}), who is not believed to "
                                   "be this node's guardian; end that and remove the file",
                                   path, who.uid, who.pid));
  return std::optional(std::move(fd));
}

}  // namespace

void GuardianDoor::open() {
  if (auto place = judge_place(path_); !place)
    spdlog::warn("guardian: were its daemon to die, the next could not go on with the mount: {}",
                 place.error().what);
  const auto address = address_of(path_);
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ::unlink(path_.c_str());
  const mode_t before = ::umask(0177);
  const bool bound =
      address && socket.valid() &&
      ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) == 0 &&
      ::listen(socket.get(), 4) == 0;
  ::umask(before);
  if (!bound) {
    spdlog::error("guardian: {}: {}; no daemon can retire it", path_, std::strerror(errno));
    return;
  }
  (void)::lstat(path_.c_str(), &file_);
  listening_ = std::move(socket);
}

bool GuardianDoor::is_replaced() const {
  struct stat st {};
  return listening_.valid() && ::lstat(path_.c_str(), &st) == 0 &&
         (st.st_ino != file_.st_ino || st.st_dev != file_.st_dev);
}

std::optional<GuardianDoor::Visitor> GuardianDoor::receive() const {
  Fd guest(::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!guest.valid()) return std::nullopt;
  ucred who{};
  socklen_t length = sizeof who;
  char letter = 0;
  pollfd wait{guest.get(), POLLIN, 0};
  if (::getsockopt(guest.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0 ||
      (who.uid != 0 && who.uid != ::geteuid()) || ::poll(&wait, 1, 1000) != 1 ||
      ::recv(guest.get(), &letter, 1, 0) != 1)
    return std::nullopt;
  const auto word = static_cast<VisitorWord>(letter);
  if (word != VisitorWord::Retire && word != VisitorWord::Take) return std::nullopt;
  return Visitor{std::move(guest), word};
}

void GuardianDoor::close() {
  if (listening_.valid() && !is_replaced()) ::unlink(path_.c_str());
  listening_.reset();
}

void answer(const Fd& visitor, VisitorAnswer answer) {
  const char letter = static_cast<char>(answer);
  (void)::send(visitor.get(), &letter, 1, MSG_NOSIGNAL);
}

Result<std::optional<Fd>> knock(const std::string& path) {
  VR_TRY(door, reach(path));
  if (door) VR_TRY_VOID(judge_place(path));
  return std::move(door);
}

// Whoever could put another guardian of ours there can end a mount by it whose daemon is dead, not
// more; not asking would keep the next daemon from mounting until the guardian gives up.
Result<Retired> retire_guardian(const std::string& socket) {
  for (int attempt = 0;; ++attempt) {
    VR_TRY(door, reach(socket));
    if (!door) return Retired::Nobody;
    const Fd fd = std::move(*door);
    char letter = static_cast<char>(VisitorWord::Retire);
    pollfd wait{fd.get(), POLLIN, 0};
    if (::send(fd.get(), &letter, 1, MSG_NOSIGNAL) != 1 ||
        ::poll(&wait, 1, kRetirePatienceMs) != 1 || ::recv(fd.get(), &letter, 1, 0) != 1)
      return fail(EBUSY,
                  socket + ": the guardian of the last daemon does not end; end it (SIGTERM)");
    if (static_cast<VisitorAnswer>(letter) == VisitorAnswer::Retired) {
      if (auto place = judge_place(socket); !place)
        spdlog::warn("the mount of the last daemon is begun anew: {}", place.error().what);
      return Retired::Guardian;
    }
    // Lives, or was killed this instant.
    if (attempt == kLivesRetries) return Retired::DaemonLives;
    ::poll(nullptr, 0, kLivesRetryMs);
  }
}

}  // namespace vremote::node
