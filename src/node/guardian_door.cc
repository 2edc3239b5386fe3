#include "node/guardian_door.h"

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

}  // namespace

void GuardianDoor::open() {
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

Result<bool> retire_guardian(const std::string& socket) {
  const auto address = address_of(socket);
  if (!address) return fail(ENAMETOOLONG, socket + ": the path is too long for a socket");
  for (int attempt = 0;; ++attempt) {
    const Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (!fd.valid()) return fail(errno, "socket");
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&*address), sizeof *address) != 0)
      return false;  // none, or a file that one left
    char letter = static_cast<char>(VisitorWord::Retire);
    pollfd wait{fd.get(), POLLIN, 0};
    if (::send(fd.get(), &letter, 1, MSG_NOSIGNAL) != 1 ||
        ::poll(&wait, 1, kRetirePatienceMs) != 1 || ::recv(fd.get(), &letter, 1, 0) != 1)
      return fail(EBUSY,
                  socket + ": the guardian of the last daemon does not end; end it (SIGTERM)");
    if (static_cast<VisitorAnswer>(letter) == VisitorAnswer::Retired) return true;
    // Lives, or was killed this instant.
    if (attempt == kLivesRetries) return false;
    ::poll(nullptr, 0, kLivesRetryMs);
  }
}

}  // namespace vremote::node
