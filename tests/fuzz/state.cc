// Files that a node reads at its start, or a person after it: they may be cut short, damaged, or of
// somebody's making.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/fd.h"
#include "fuzz/scratch.h"
#include "fuzz/targets.h"
#include "node/home/home_state.h"
#include "node/recovery/recovery_file.h"
#include "store/handle.h"
#include "store/journal.h"

namespace vremote::fuzz {
namespace {

std::string_view text_of(const Exact& exact) {
  return {reinterpret_cast<const char*>(exact.view().data()), exact.view().size()};
}

uint32_t number_at(std::span<const std::byte> bytes, size_t at) {
  uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}
void put(std::span<std::byte> bytes, size_t at, uint32_t value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

// Another writing of the CRC-32 than the reader's.
uint32_t crc(std::span<const std::byte> first, std::span<const std::byte> then = {}) {
  uint32_t value = ~0u;
  for (const auto& part : {first, then})
    for (const std::byte b : part) {
      value ^= static_cast<uint32_t>(b);
      for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ ((value & 1) != 0 ? 0xEDB88320u : 0);
    }
  return ~value;
}

// A fuzzer does not guess checks: with them set right, what they guard is reached.
std::vector<std::byte> with_checks_of_recovery(std::span<const std::byte> bytes) {
  std::vector<std::byte> out(bytes.begin(), bytes.end());
  const std::span<std::byte> all(out);
  if (all.size() < 16) return out;
  size_t at = 16;
  const size_t header = number_at(all, 8);
  if (header > all.size() - at) return out;
  put(all, 12, crc(all.subspan(at, header)));
  at += header;
  while (all.size() - at >= 20) {
    const size_t length = number_at(all, at + 4);
    if (length > all.size() - at - 20) break;
    put(all, at + 16, crc(all.subspan(at, 16), all.subspan(at + 20, length)));
    at += 20 + length;
  }
  return out;
}

void read_one_recovery(std::span<const std::byte> bytes) {
  const Fd fd(::memfd_create("fuzz", MFD_CLOEXEC));
  VR_CHECK(::write(fd.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  node::RecoverySummary summary;
  uint64_t pieces = 0, total = 0, end = 0;
  const auto header = node::read_recovery(
      fd,
      [&](const node::RecoveryPiece& piece) -> Status {
        VR_CHECK(piece.bytes.size() <= node::kRecoveryPieceMax);
        VR_CHECK(piece.offset <= uint64_t{INT64_MAX} - piece.bytes.size());
        ++pieces;
        total += piece.bytes.size();
        end = std::max(end, piece.offset + piece.bytes.size());
        return {};
      },
      summary);
  if (!header) {
    VR_CHECK(header.error().code > 0 && !header.error().what.empty());
    return;
  }
  VR_CHECK(summary.pieces == pieces && summary.bytes == total && summary.end == end);
  VR_CHECK(total <= bytes.size());
  VR_CHECK(summary.attributes.size <= uint64_t{INT64_MAX});
  VR_CHECK(summary.attributes.mtime.nanoseconds < 1'000'000'000);
}

std::vector<std::byte> with_checks_of_journal(std::span<const std::byte> bytes) {
  std::vector<std::byte> out(bytes.begin(), bytes.end());
  const std::span<std::byte> all(out);
  // After the magic, records: check, export, generation, length of the handle, inode; handle.
  for (size_t at = 8; at <= all.size() && all.size() - at >= 24;) {
    const size_t handle = number_at(all, at + 12);
    if (handle > all.size() - at - 24) break;
    const auto text = [&](size_t from, size_t length) {
      return std::string(reinterpret_cast<const char*>(all.data()) + from, length);
    };
    if (handle != 0) put(all, at + 8, store::generation_of(text(at + 24, handle)));
    put(all, at, store::generation_of(text(at + 4, 20 + handle)));
    at += 24 + handle;
  }
  return out;
}

void read_one_journal(std::span<const std::byte> bytes) {
  const Exact exact(bytes);
  // The root that the seeds have, and the one that this input says.
  FileId root = kJournalRoot;
  for (int round = 0; round < 2; ++round) {
    const auto known = store::read_journal(text_of(exact), root);
    VR_CHECK(known.size() * 24 <= bytes.size());
    for (const auto& [file, handle] : known) {
      VR_CHECK(!handle.empty() && handle.size() <= 132);
      VR_CHECK(file.export_index == root.export_index);
      VR_CHECK(file.generation == store::generation_of(handle));
    }
    if (bytes.size() < 32) return;
    root.export_index = number_at(bytes, 12);
    root.generation = number_at(bytes, 16);
    std::memcpy(&root.inode, bytes.data() + 24, sizeof root.inode);
  }
}

}  // namespace

void recovery(std::span<const std::byte> bytes) {
  read_one_recovery(bytes);
  read_one_recovery(with_checks_of_recovery(bytes));
}

void journal(std::span<const std::byte> bytes) {
  read_one_journal(bytes);
  read_one_journal(with_checks_of_journal(bytes));
}

void sessions(std::span<const std::byte> bytes) {
  const Exact exact(bytes);
  const auto read = node::parse_sessions(text_of(exact));
  if (!read) return;
  VR_CHECK(read->term_ms >= 0 && read->term_ms <= 24 * 3600 * 1000);
  VR_CHECK(read->members.size() <= bytes.size());
  for (const auto& member : read->members)
    VR_CHECK(!member.node.empty() && member.node.size() <= 255);
  // What was taken is written so that it is taken again.
  const std::string path = scratch() + "/sessions";
  VR_CHECK(node::write_sessions(path, *read).has_value());
  const auto again = node::read_sessions(path);
  VR_CHECK(again && again->term_ms == read->term_ms && again->members == read->members);
}

void calls(std::span<const std::byte> bytes) {
  const std::string path = scratch() + "/calls";
  (void)::unlink((path + ".1").c_str());
  {
    const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    VR_CHECK(::write(fd.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  }
  // Too few for a new file, which begins with what they may make again.
  const auto askers = [] { return std::set<uint64_t>{}; };
  node::CallLog first;
  VR_CHECK(first.open(path, askers).has_value());
  // A daemon that dies at once has gone on in the file: the next one still knows it all, and what
  // was noted since goes before.
  const node::CallLog::Key fresh{.incarnation = ~uint64_t{1}, .call = 5};
  first.begin(fresh, fresh.call);
  first.end(fresh, 17, 99);
  node::CallLog second;
  VR_CHECK(second.open(path, askers).has_value());
  const auto noted = second.earlier(fresh);
  VR_CHECK(noted && noted->ended && noted->error == 17 && noted->value == 99);
  constexpr size_t kRecord = 40;
  for (size_t at = 0; at + kRecord <= bytes.size(); at += kRecord) {
    node::CallLog::Key key;
    std::memcpy(&key.incarnation, bytes.data() + at, 8);
    std::memcpy(&key.call, bytes.data() + at + 8, 8);
    if (key == fresh) continue;
    const auto one = first.earlier(key), two = second.earlier(key);
    VR_CHECK(one.has_value() == two.has_value());
    if (one) VR_CHECK(one->ended == two->ended && one->error == two->error);
  }
}

}  // namespace vremote::fuzz
