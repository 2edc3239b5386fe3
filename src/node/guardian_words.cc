#include "node/guardian_words.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "fuse/buffer.h"

namespace vremote::node {
namespace {

struct ArmsHead {
  uint32_t connection = 0;
  uint32_t mount_length = 0;
};

bool send_all(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return true;
}

bool receive_all(int fd, std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t n = ::recv(fd, into.data(), into.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    into = into.subspan(static_cast<size_t>(n));
  }
  return true;
}

}  // namespace

bool say(int link, GuardianWord word) {
  const char letter = static_cast<char>(word);
  return ::send(link, &letter, 1, MSG_NOSIGNAL) == 1;
}

Status send_arms(int link, uint32_t connection, const std::string& mount,
                 std::span<const int> descriptors) {
  if (descriptors.size() > kGuardianDescriptorsMax) return fail(E2BIG, "too many channels");
  if (mount.size() > kGuardianMountMax) return fail(ENAMETOOLONG, "the mount's path is too long");
  ArmsHead head{connection, static_cast<uint32_t>(mount.size())};
  std::array<char, CMSG_SPACE(sizeof(int) * kGuardianDescriptorsMax)> control{};
  iovec part{&head, sizeof head};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptors.size());
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
  std::memcpy(CMSG_DATA(header), descriptors.data(), sizeof(int) * descriptors.size());
  if (::sendmsg(link, &message, MSG_NOSIGNAL) != sizeof head ||
      !send_all(link, std::as_bytes(std::span(mount))))
    return fail(EPIPE, "the guardian has ended");
  return {};
}

std::optional<GuardianArms> receive_arms(int link) {
  ArmsHead head;
  std::array<char, CMSG_SPACE(sizeof(int) * kGuardianDescriptorsMax)> control{};
  iovec part{&head, sizeof head};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t n = 0;
  do n = ::recvmsg(link, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
  while (n < 0 && errno == EINTR);
  GuardianArms arms;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); n >= 0 && c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      arms.descriptors.emplace_back(fd);
    }
  }
  if (n != sizeof head || (message.msg_flags & MSG_CTRUNC) != 0 || arms.descriptors.size() < 2 ||
      head.mount_length == 0 || head.mount_length > kGuardianMountMax)
    return std::nullopt;
  arms.connection = head.connection;
  arms.mount.resize(head.mount_length);
  if (!receive_all(link, std::as_writable_bytes(std::span(arms.mount)))) return std::nullopt;
  if (arms.mount.front() != '/' || arms.mount.find('\0') != std::string::npos) return std::nullopt;
  return arms;
}

// What is left out may have been seen.
bool send_unseen(int link, std::span<const uint64_t> requests) {
  const auto count = static_cast<uint32_t>(std::min<size_t>(requests.size(), kUnseenMax));
  return send_all(link, std::as_bytes(std::span(&count, 1))) &&
         send_all(link, std::as_bytes(requests.first(count)));
}

bool receive_unseen(int link, std::vector<uint64_t>& requests) {
  uint32_t count = 0;
  if (!receive_all(link, std::as_writable_bytes(std::span(&count, 1))) || count > kUnseenMax)
    return false;
  requests.resize(count);
  return receive_all(link, std::as_writable_bytes(std::span(requests)));
}

bool send_held(int link, std::span<const std::byte> request) {
  const auto length = static_cast<uint32_t>(request.size());
  return send_all(link, std::as_bytes(std::span(&length, 1))) && send_all(link, request);
}

bool receive_held(int link, std::vector<std::byte>& request) {
  uint32_t length = 0;
  if (!receive_all(link, std::as_writable_bytes(std::span(&length, 1))) ||
      length > fuse::kReceiveBufferSize)
    return false;
  request.resize(length);
  return receive_all(link, request);
}

}  // namespace vremote::node
