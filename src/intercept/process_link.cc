#include "intercept/process_link.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace vremote::intercept {
namespace {

constexpr size_t kTextMax = 256;
struct Packet {
  LinkMessage::Kind kind;
  int32_t value;
  char text[kTextMax];
};

union Control {
  char bytes[CMSG_SPACE(sizeof(int))];
  cmsghdr align;
};

}  // namespace

Result<std::pair<Fd, Fd>> make_link() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
    return fail(errno, "socketpair");
  return std::pair(Fd(ends[0]), Fd(ends[1]));
}

Status send_message(const Fd& link, const LinkMessage& message) {
  Packet packet{message.kind, message.value, {}};
  size_t length = std::min(message.text.size(), kTextMax);
  std::memcpy(packet.text, message.text.data(), length);
  iovec data{&packet, offsetof(Packet, text) + length};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  Control control{};
  if (message.fd.valid()) {
    header.msg_control = control.bytes;
    header.msg_controllen = sizeof control.bytes;
    cmsghdr* c = CMSG_FIRSTHDR(&header);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    int fd = message.fd.get();
    std::memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  while (::sendmsg(link.get(), &header, MSG_NOSIGNAL) < 0)
    if (errno != EINTR) return fail(errno);
  return {};
}

Result<LinkMessage> receive_message(const Fd& link) {
  Packet packet{};
  iovec data{&packet, sizeof packet};
  msghdr header{};
  header.msg_iov = &data;
  header.msg_iovlen = 1;
  Control control{};
  header.msg_control = control.bytes;
  header.msg_controllen = sizeof control.bytes;
  ssize_t n;
  while ((n = ::recvmsg(link.get(), &header, MSG_CMSG_CLOEXEC)) < 0)
    if (errno != EINTR) return fail(errno);
  LinkMessage message;
  if (cmsghdr* c = CMSG_FIRSTHDR(&header);
      c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
    int fd;
    std::memcpy(&fd, CMSG_DATA(c), sizeof fd);
    message.fd = Fd(fd);
  }
  if (n == 0) return fail(EPIPE);
  if (static_cast<size_t>(n) < offsetof(Packet, text)) return fail(EPROTO);
  message.kind = packet.kind;
  message.value = packet.value;
  message.text.assign(packet.text, static_cast<size_t>(n) - offsetof(Packet, text));
  return message;
}

}  // namespace vremote::intercept
