#include "node/guardian/guardian_words.h"

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

namespace {

constexpr size_t kFilesAtOnce = 64;

// How a file is named on the link.
struct WireFile {
  uint64_t inode = 0;
  uint32_t export_index = 0, generation = 0;
};
WireFile wire_file(FileId file) { return {file.inode, file.export_index, file.generation}; }
FileId file_of(const WireFile& file) {
  return {.export_index = file.export_index, .generation = file.generation, .inode = file.inode};
}

// The descriptors that came with a message.
std::vector<Fd> descriptors_of(msghdr& message) {
  std::vector<Fd> found;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
      found.emplace_back(fd);
    }
  }
  return found;
}

template <size_t N>
void attach(msghdr& message, std::array<char, N>& control, std::span<const int> descriptors) {
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptors.size());
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
  std::memcpy(CMSG_DATA(header), descriptors.data(), sizeof(int) * descriptors.size());
}

ssize_t receive_message(int link, msghdr& message, int flags) {
  ssize_t n = 0;
  do n = ::recvmsg(link, &message, MSG_CMSG_CLOEXEC | flags);
  while (n < 0 && errno == EINTR);
  return n;
}

}  // namespace

// One message: it gets there as a whole or not at all, whatever else is said.
bool tell_of_file(int link, GuardianWord word, FileId file, int descriptor) {
  const WireFile name = wire_file(file);
  std::array<char, 1 + sizeof name> bytes{static_cast<char>(word)};
  std::memcpy(bytes.data() + 1, &name, sizeof name);
  iovec part{bytes.data(), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (descriptor >= 0) attach(message, control, std::span(&descriptor, 1));
  return ::sendmsg(link, &message, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

std::optional<Heard> hear(int link) {
  char letter = 0;
  iovec part{&letter, 1};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  std::array<char, CMSG_SPACE(sizeof(int))> control{};
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  if (receive_message(link, message, 0) != 1) return std::nullopt;
  Heard heard{static_cast<GuardianWord>(letter), Fd()};
  for (Fd& fd : descriptors_of(message)) heard.descriptor = std::move(fd);
  return heard;
}

std::optional<FileId> receive_file(int link) {
  WireFile file;
  if (!receive_all(link, std::as_writable_bytes(std::span(&file, 1)))) return std::nullopt;
  return file_of(file);
}

bool send_files(int link, std::span<const std::pair<FileId, int>> files) {
  files = files.first(std::min<size_t>(files.size(), kKeptFilesMax));
  const auto count = static_cast<uint32_t>(files.size());
  if (!send_all(link, std::as_bytes(std::span(&count, 1)))) return false;
  for (; !files.empty(); files = files.subspan(std::min(files.size(), kFilesAtOnce))) {
    std::vector<WireFile> names;
    std::vector<int> descriptors;
    for (const auto& [file, fd] : files.first(std::min(files.size(), kFilesAtOnce))) {
      names.push_back(wire_file(file));
      descriptors.push_back(fd);
    }
    iovec part{names.data(), names.size() * sizeof(WireFile)};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    std::array<char, CMSG_SPACE(sizeof(int) * kFilesAtOnce)> control{};
    attach(message, control, descriptors);
    if (::sendmsg(link, &message, MSG_NOSIGNAL) != static_cast<ssize_t>(part.iov_len)) return false;
  }
  return true;
}

// What came without a descriptor is left out: there was no room for more.
bool receive_files(int link, std::vector<KeptNameless>& files) {
  uint32_t count = 0;
  if (!receive_all(link, std::as_writable_bytes(std::span(&count, 1))) || count > kKeptFilesMax)
    return false;
  while (count > 0) {
    std::array<WireFile, kFilesAtOnce> names;
    const size_t now = std::min<size_t>(count, kFilesAtOnce);
    iovec part{names.data(), now * sizeof(WireFile)};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    std::array<char, CMSG_SPACE(sizeof(int) * kFilesAtOnce)> control{};
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (receive_message(link, message, MSG_WAITALL) != static_cast<ssize_t>(part.iov_len))
      return false;
    std::vector<Fd> descriptors = descriptors_of(message);
    for (size_t i = 0; i < std::min(now, descriptors.size()); ++i)
      files.push_back({file_of(names[i]), std::move(descriptors[i])});
    count -= static_cast<uint32_t>(now);
  }
  return true;
}

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
  attach(message, control, descriptors);
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
  const ssize_t n = receive_message(link, message, MSG_WAITALL);
  GuardianArms arms;
  if (n >= 0) arms.descriptors = descriptors_of(message);
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
