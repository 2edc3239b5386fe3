// Records as a daemon leaves them to the next, from an idle one to one with everything.
#include <filesystem>
#include <fstream>
#include <string>

#include "base/check.h"
#include "fuzz/seeds.h"
#include "node/handover/handover.h"
#include "wire/codec.h"

namespace vremote::fuzz {
namespace {

using namespace coherence;
using node::Handover;

constexpr FileId kFile{0, 7, 1234};

KeptFile kept_file(uint64_t inode, int how) {
  KeptFile file{.file = {0, 7, inode}};
  file.opens = static_cast<uint32_t>(how);
  file.reading_opens = static_cast<uint32_t>(how) / 2;
  file.mapping_opens = file.reading_opens / 2;
  file.seen = static_cast<uint64_t>(how) * 5;
  file.told_in_use = how % 2 == 1;
  file.known_to_kernel = how % 3 != 0;
  file.kernel_size_most = how % 3 != 0 ? 8192 : 0;
  if (how % 2 == 0) file.told_access = Access{0100644, 1, 2};
  if (how > 3) {
    file.recalls = {{file.file, 31, Resource::Data, LeaseMode::Shared, {3, 9}},
                    {file.file, 32, Resource::Attributes, LeaseMode::None, kUnit}};
    file.shows = {{file.file, 33, 4096}};
  }
  return file;
}

net::KeptSession session(int how) {
  net::KeptSession out{.epoch = 8, .welcomed = true, .incarnation = 9, .session = 4, .lanes = {}};
  for (int lane = 0; lane < 1 + how % 3; ++lane) {
    auto& one = out.lanes.emplace_back();
    one.received = 12;
    one.first = 3;
    const std::string text(static_cast<size_t>(how), 'x');
    if (how > 2)
      one.queue.push_back(*wire::encode(
          ToHome(Flush{.file = kFile,
                       .flush = 6,
                       .extents = {{4096, Bytes::copy_of(std::as_bytes(std::span(text)))}},
                       .attributes = {}})));
    if (how > 3)
      one.queue.push_back(*wire::encode(ToHome(Release{.file = kFile, .seen = 4, .leases = true})));
  }
  return out;
}

Handover record(int how) {
  Handover h;
  h.node = "n1";
  h.cluster = "lab";
  h.mount_path = "/vremote";
  h.incarnation = 77;
  h.upgrades = static_cast<uint32_t>(how);
  h.began_ns = 12345;
  h.mount.connection = 9;
  h.mount.capabilities.resend = true;
  h.mount.channels = {5, 6};
  h.next_node = 12;
  if (how > 0) h.guardian = Handover::Guardian{8, 9, 4711};
  if (how > 0) h.mount.guardians_channel = 7;
  if (how > 1) {
    h.mount.locked = {{36, 4, LockKind::Flock, 99}, {37, 0, LockKind::Range, 1}};
    h.mount.generation = 2;
    h.mount.lost = {{40, 5, LockKind::Range, 77}};
    h.mount.locked_nodes = {2};
    h.mount.directories = {3, 4};
    h.held = {{kFile, 10, true}, {{0, 7, 99}, 11, false}};
  }
  for (int i = 0; i < how / 3; ++i) {
    Handover::Home home;
    home.name = "n" + std::to_string(i + 1);
    home.kept.next_id = 1000;
    home.kept.next_call = 2000;
    for (int f = 0; f < how / 2; ++f)
      home.kept.files.push_back(kept_file(static_cast<uint64_t>(f) + 2, (how + f) % 7));
    home.kept.locks = {{.file = kFile,
                        .action = LockAction::Reclaim,
                        .kind = LockKind::Range,
                        .type = LockType::Write,
                        .owner = 5,
                        .start = 0,
                        .end = 10,
                        .pid = 42}};
    if (how % 2 == 0)
      home.kept.calls = {
          {Call{.call = 55, .caller = {1, 2, {3}}, .operation = SyncCall{kFile, true}}, 202}};
    if (i > 0) home.session = session(how);
    home.exports = {
        {.name = "e", .export_index = 0, .root = kFile, .read_only = true, .path = "/x"}};
    home.bond = {.home_incarnation = 9, .was_broken = how % 2 == 1, .bringing_back = how % 3 == 1};
    h.homes.push_back(std::move(home));
    h.inodes.push_back({static_cast<uint64_t>(i) + 2, 1, static_cast<uint32_t>(i), kFile});
  }
  return h;
}

}  // namespace

void write_handovers(const std::filesystem::path& directory) {
  std::filesystem::create_directories(directory / "handover");
  for (int how = 0; how < 12; ++how) {
    const auto bytes = node::encode(record(how));
    VR_CHECK(bytes.has_value());
    std::ofstream(directory / "handover" / std::to_string(how + 1), std::ios::binary)
        << std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  }
}

}  // namespace vremote::fuzz
