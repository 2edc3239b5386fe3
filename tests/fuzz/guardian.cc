// What a guardian and its daemon read of each other: words on their link, the table in memory that
// both see, and the kernel's requests, which the guardian gives back.
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "base/check.h"
#include "fuse/buffer.h"
#include "fuse/channel.h"
#include "fuzz/scratch.h"
#include "fuzz/table_memory.h"
#include "fuzz/targets.h"
#include "node/base/handle.h"
#include "node/guardian/guardian_held.h"
#include "node/guardian/guardian_ledger.h"
#include "node/guardian/guardian_table.h"
#include "node/guardian/guardian_words.h"
#include "node/handover/salvage.h"

namespace vremote::fuzz {
namespace {

using namespace vremote::node;

// `bytes` on a link whose other end is gone, and with its first byte so many descriptors.
Fd link_with(std::span<const std::byte> bytes, size_t descriptors) {
  std::array<int, 2> ends{};
  VR_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  Fd reading(ends[0]), writing(ends[1]);
  if (!bytes.empty()) {
    std::array<char, CMSG_SPACE(sizeof(int) * 4)> control{};
    iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (descriptors > 0) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptors);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int) * descriptors);
      const std::array<int, 4> sent{writing.get(), writing.get(), writing.get(), writing.get()};
      std::memcpy(CMSG_DATA(header), sent.data(), sizeof(int) * descriptors);
    }
    const ssize_t n = ::sendmsg(writing.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    VR_CHECK(n > 0);
  }
  VR_CHECK(::shutdown(writing.get(), SHUT_WR) == 0);
  return reading;
}

}  // namespace

// The first byte: which of the two ends reads, and how many descriptors come along.
void words(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto how = static_cast<uint8_t>(bytes.front());
  const Fd link = link_with(bytes.subspan(1), how & 3);
  if ((how & 16) != 0) {
    size_t said = 0;
    while (const auto heard = hear(link.get())) {
      ++said;
      if (heard->word == GuardianWord::Keep || heard->word == GuardianWord::LetGo)
        (void)receive_file(link.get());
    }
    VR_CHECK(said < bytes.size());
    return;
  }
  if ((how & 32) != 0) {
    std::vector<KeptNameless> files;
    const bool whole = receive_files(link.get(), files);
    VR_CHECK(files.size() <= (how & 3) && files.size() <= bytes.size() / 16);
    for (const KeptNameless& kept : files) VR_CHECK(kept.descriptor.valid());
    if (whole) VR_CHECK(bytes.size() > 4);
    return;
  }
  if ((how & 8) != 0) {
    std::vector<uint64_t> unseen;
    if (receive_unseen(link.get(), unseen)) VR_CHECK(unseen.size() * 8 < bytes.size());
    return;
  }
  if ((how & 4) == 0) {
    const auto arms = receive_arms(link.get());
    if (!arms) return;
    VR_CHECK(arms->descriptors.size() >= 2 && arms->descriptors.size() <= kGuardianDescriptorsMax);
    VR_CHECK(arms->mount.starts_with('/') && arms->mount.size() <= kGuardianMountMax);
    VR_CHECK(arms->mount.find('\0') == std::string::npos);
    return;
  }
  std::vector<std::byte> request;
  size_t total = 0;
  while (receive_held(link.get(), request) && !request.empty()) {
    VR_CHECK(request.size() <= fuse::kReceiveBufferSize);
    total += request.size() + 4;
    VR_CHECK(total < bytes.size());
  }
}

// Bytes as a list of patches to an empty table: the number of a word, and 8 bytes for it.
void table(std::span<const std::byte> bytes) {
  auto made = GuardianTable::make();
  VR_CHECK(made.has_value());
  GuardianTable& table = *made;
  const TableMemory shared(table);
  const auto memory = shared.bytes();
  for (; bytes.size() >= kTablePatch; bytes = bytes.subspan(kTablePatch)) {
    uint32_t word = 0;
    std::memcpy(&word, bytes.data(), sizeof word);
    std::memcpy(memory.data() + word % (memory.size() / 8) * 8, bytes.data() + 4, 8);
  }
  VR_CHECK(table.homes() <= GuardianTable::kHomesMax);
  for (uint32_t home = 0; home < table.homes(); ++home) {
    VR_CHECK(table.home_name(home).size() <= 64);
    (void)table.leases_until(home);
  }
  const auto inodes = table.inodes();
  VR_CHECK(inodes.size() <= GuardianTable::kInodesMax);
  for (const auto& inode : inodes) {
    VR_CHECK(inode.node != 0 && table.home_name(inode.home).size() <= 64);
    (void)table.leases_until(inode.home);
  }
  if (!inodes.empty()) VR_CHECK(table.find(inodes.front().node).has_value());
  VR_CHECK(table.fills().size() <= GuardianTable::kFillsMax);
  // What the next daemon takes of it, when it can be.
  const auto salvage = read_salvage(table, table.identity());
  if (salvage) {
    VR_CHECK(salvage->generation < kGenerationsMax);
    for (const auto& inode : salvage->inodes) {
      VR_CHECK(inode.node >= 2 && inode.home < salvage->homes.size() && inode.lookups > 0);
      VR_CHECK(inode.opens.all >= inode.opens.reading &&
               inode.opens.reading >= inode.opens.mapping);
    }
    for (const auto& shown : salvage->exports)
      VR_CHECK(shown.home < salvage->homes.size() && !shown.name.empty());
    for (const auto& lock : salvage->locks) VR_CHECK(lock.handle != 0 && lock.kind <= 1);
  }
  // And what a guardian writes into it.
  GuardianLedger ledger(table);
  for (const auto& inode : inodes) {
    fuse::Request gone;
    gone.header.node = inode.node;
    gone.body = fuse::Release{.fh = inode.lookups};
    ledger.note(gone);
    gone.body = fuse::Forget{.lookups = 1};
    ledger.note(gone);
  }
}

// The first byte: whether the daemon may come back. Then requests: two bytes of length and so many
// bytes each.
void held(std::span<const std::byte> bytes) {
  spdlog::set_level(spdlog::level::off);
  if (bytes.empty()) return;
  const bool give_back = (static_cast<uint8_t>(bytes.front()) & 1) != 0;
  bytes = bytes.subspan(1);
  static GuardianTable& table = *[] {
    auto made = GuardianTable::make();
    VR_CHECK(made.has_value());
    auto* kept = new GuardianTable(std::move(*made));
    kept->add_inode(1, kept->add_home("../n"), {0, 1, 2});
    return kept;
  }();
  const fuse::Channel channel{Fd(::open("/dev/null", O_RDWR | O_CLOEXEC))};
  GuardianRecovery recovery(scratch() + "/recovery", table);
  GuardianHeld held(channel, table, recovery, 0, [](uint64_t, uint64_t, uint64_t) {});
  std::deque<std::vector<std::byte>> taken;
  uint64_t total = 0;
  while (bytes.size() >= 2) {
    uint16_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    bytes = bytes.subspan(2);
    const Exact request(bytes.first(std::min<size_t>(length, bytes.size())));
    bytes = bytes.subspan(request.view().size());
    held.take(request.view(), give_back);
    taken.emplace_back(request.view().begin(), request.view().end());
    total += request.view().size();
    VR_CHECK(held.count() <= taken.size());
  }
  VR_CHECK(recovery.bytes() <= total);
  // What comes back is some of what was taken, in its order.
  held.give_back([&](std::span<const std::byte> request) {
    if (!give_back) {
      VR_CHECK(request.empty());
      return true;
    }
    while (!taken.empty() && !std::ranges::equal(taken.front(), request)) taken.pop_front();
    VR_CHECK(!taken.empty());
    taken.pop_front();
    return true;
  });
  VR_CHECK(held.count() == 0);
  recovery.remove();
}

}  // namespace vremote::fuzz
