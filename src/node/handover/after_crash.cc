#include "node/handover/after_crash.h"

#include <fmt/format.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "node/base/handle.h"
#include "node/guardian/guardian_door.h"
#include "node/guardian/guardian_words.h"
#include "node/handover/handover.h"
#include "node/handover/salvage.h"

namespace vremote::node {

using namespace coherence;

namespace {

constexpr int kPatienceMs = 20'000;
constexpr int kRetries = 10, kRetryMs = 100;

// The guardian that has something to give, when there is one. Of one that is not believed tells who
// would retire it.
Fd ask(const std::string& socket) {
  for (int attempt = 0; attempt <= kRetries; ++attempt) {
    auto door = knock(socket);
    if (!door || !*door) return Fd();
    Fd fd = std::move(**door);
    const timeval patience{.tv_sec = kPatienceMs / 1000, .tv_usec = 0};
    (void)::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    char letter = static_cast<char>(VisitorWord::Take);
    if (::send(fd.get(), &letter, 1, MSG_NOSIGNAL) != 1 || ::recv(fd.get(), &letter, 1, 0) != 1)
      return Fd();
    if (static_cast<VisitorAnswer>(letter) == VisitorAnswer::Here) return fd;
    // Its daemon lives, or was killed this instant.
    if (static_cast<VisitorAnswer>(letter) != VisitorAnswer::Lives) return Fd();
    ::poll(nullptr, 0, kRetryMs);
  }
  return Fd();
}

Handover handover_of(const Config& config, const Salvage& salvage, const GuardianArms& arms) {
  Handover out;
  out.node = config.node;
  out.cluster = config.cluster;
  out.mount_path = arms.mount;
  out.began_ns = 0;
  const uint32_t generation = salvage.generation + 1;
  out.mount.connection = arms.connection;
  out.mount.capabilities = salvage.capabilities;
  out.mount.generation = generation;
  out.next_node = out.mount.next_handle = out.mount.next_directory = first_number(generation);
  for (const GuardianLock& l : salvage.locks)
    out.mount.lost.push_back({l.handle, l.node, static_cast<LockKind>(l.kind), l.owner});
  for (const std::string& name : salvage.homes) {
    Handover::Home& home = out.homes.emplace_back();
    home.name = name;
    // Nothing goes to it before the first session has begun.
    home.bond.was_broken = true;
  }
  // Its own exports a node knows from its configuration.
  for (const GuardianTable::Export& e : salvage.exports)
    if (salvage.homes[e.home] != config.node)
      out.homes[e.home].exports.push_back({.name = e.name,
                                           .export_index = e.root.export_index,
                                           .root = e.root,
                                           .read_only = e.read_only,
                                           .path = {}});
  for (const GuardianTable::Inode& inode : salvage.inodes) {
    out.inodes.push_back({inode.node, inode.lookups, inode.home, inode.file});
    KeptFile kept;
    kept.file = inode.file;
    kept.opens = inode.opens.all;
    kept.reading_opens = inode.opens.reading;
    kept.mapping_opens = inode.opens.mapping;
    kept.errors.error = inode.owes ? EIO : 0;
    kept.kernel_size_most = INT64_MAX;
    out.homes[inode.home].kept.files.push_back(kept);
  }
  return out;
}

}  // namespace

std::optional<Handover> salvage_mount(const Config& config, const std::string& socket) {
  Fd guardian = ask(socket);
  if (!guardian.valid()) return std::nullopt;
  const auto refuse = [&](const std::string& why) {
    spdlog::warn("the mount of the last daemon is begun anew: {}", why);
    char letter = static_cast<char>(VisitorWord::Retire);
    if (::send(guardian.get(), &letter, 1, MSG_NOSIGNAL) == 1)
      (void)!::recv(guardian.get(), &letter, 1, 0);  // it has ended the connection, or itself
    return std::optional<Handover>();
  };
  auto arms = receive_arms(guardian.get());
  std::vector<uint64_t> unseen;
  std::vector<KeptNameless> nameless;
  if (!arms || arms->descriptors.size() < 3 || !receive_unseen(guardian.get(), unseen) ||
      !receive_files(guardian.get(), nameless))
    return refuse("its guardian is of another version, or has ended");
  Fd memory = std::move(arms->descriptors.back());
  arms->descriptors.pop_back();
  auto table = GuardianTable::take_over(std::move(memory));
  if (!table) return refuse(table.error().what);
  auto salvage = read_salvage(*table, identity_of(config));
  if (!salvage) return refuse(salvage.error().what);
  for (const std::string& home : salvage->homes)
    if (home != config.node &&
        std::ranges::find(config.peers, home, &PeerConfig::name) == config.peers.end())
      return refuse(fmt::format("{} is no peer of this node any more", home));
  Handover out = handover_of(config, *salvage, *arms);
  out.crash =
      std::make_shared<AfterCrash>(std::move(guardian), salvage->early_deaths + 1,
                                   std::unordered_set<uint64_t>(unseen.begin(), unseen.end()));
  for (KeptNameless& kept : nameless)
    out.held.push_back({kept.file, kept.descriptor.release(), true});
  // From here on they are the mount's.
  for (Fd& fd : arms->descriptors)
    (&fd == &arms->descriptors.front() ? out.mount.guardians_channel
                                       : out.mount.channels.emplace_back()) = fd.release();
  return out;
}

bool AfterCrash::has_it() {
  const char letter = static_cast<char>(VisitorWord::Has);
  const bool told = ::send(guardian_.get(), &letter, 1, MSG_NOSIGNAL) == 1;
  guardian_.reset();
  return told;
}

}  // namespace vremote::node
