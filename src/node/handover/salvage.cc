#include "node/handover/salvage.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <tuple>

#include "node/base/handle.h"
#include "wire/bounds.h"

namespace vremote::node {

using namespace coherence;

namespace {

constexpr uint64_t kCountMax = uint64_t{1} << 62;

std::unexpected<Error> cannot_be(const char* what) {
  return fail(EPROTO, fmt::format("what it has left cannot be: {}", what));
}

// A count that was being changed when the daemon died may be short of a part of itself.
GuardianTable::Opens mended(GuardianTable::Opens opens) {
  opens.reading = std::max(opens.reading, opens.mapping);
  opens.all = std::max(opens.all, opens.reading);
  return opens;
}

}  // namespace

uint64_t identity_of(const Config& config) {
  uint64_t h = 1469598103934665603u;  // FNV-1a
  const auto add = [&h](std::string_view text) {
    for (char c : text) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211u;
    h = (h ^ 0x1FF) * 1099511628211u;
  };
  add(config.node);
  add(config.cluster);
  add(config.mount);
  add(config.mount_suid ? "suid" : "");
  for (const ExportConfig& e : config.exports) {
    add(e.name);
    add(e.path);
  }
  return h;
}

Result<Salvage> read_salvage(const GuardianTable& table, uint64_t identity) {
  if (table.identity() != identity)
    return fail(EINVAL, "the node has another name, mount or list of exports than it had");
  if (table.incomplete()) return fail(E2BIG, "it kept more files than could be noted");
  Salvage out;
  out.generation = table.generation();
  if (out.generation >= kGenerationsMax - 1) return cannot_be("its number");
  out.early_deaths = table.early_deaths();
  if (out.early_deaths >= kEarlyDeathsMax)
    return fail(ELOOP, fmt::format("{} daemons in a row died soon after they had gone on with it",
                                   out.early_deaths));
  const auto capabilities = table.capabilities();
  if (!capabilities) return fail(EAGAIN, "it had not begun");
  out.capabilities = *capabilities;
  if (!out.capabilities.resend)
    return fail(EOPNOTSUPP, "this kernel cannot deliver requests again (Linux 6.9)");
  if (out.capabilities.max_pages == 0 || out.capabilities.max_pages > fuse::kMaxPages)
    return cannot_be("what was agreed on with the kernel");
  std::set<std::string> names;
  for (uint32_t home = 0; home < table.homes(); ++home) {
    out.homes.push_back(table.home_name(home));
    if (!names.insert(out.homes.back()).second) return cannot_be("two homes of one name");
  }
  auto exports = table.exports();
  auto locks = table.locks().all();
  if (!exports || !locks) return fail(E2BIG, "it had more locks or exports than could be noted");
  for (const GuardianTable::Export& e : *exports)
    if (e.home >= out.homes.size() || !wire::valid_name(e.name)) return cannot_be("an export");
  out.exports = std::move(*exports);
  const uint64_t numbers_end = first_number(out.generation + 1);
  for (const GuardianLock& l : *locks)
    if (l.handle >> kHandleShift >= numbers_end || l.kind > static_cast<uint8_t>(LockKind::Flock))
      return cannot_be("a lock");
  out.locks = std::move(*locks);
  out.inodes = table.inodes();
  std::set<uint64_t> nodes;
  std::set<std::tuple<uint32_t, FileId>> files;
  for (GuardianTable::Inode& inode : out.inodes) {
    if (inode.node < 2 || inode.node >= numbers_end || inode.home >= out.homes.size() ||
        inode.lookups == 0 || inode.lookups > kCountMax || !nodes.insert(inode.node).second ||
        !files.insert({inode.home, inode.file}).second)
      return cannot_be("an inode");
    inode.opens = mended(inode.opens);
  }
  return out;
}

}  // namespace vremote::node
