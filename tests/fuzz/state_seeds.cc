// Seeds of what is read from state files and links, made by those who write them.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "base/check.h"
#include "fuzz/scratch.h"
#include "fuzz/seeds.h"
#include "fuzz/table_memory.h"
#include "fuzz/targets.h"
#include "node/guardian/guardian_table.h"
#include "node/guardian/guardian_words.h"
#include "node/home/home_state.h"
#include "node/recovery/recovery_file.h"
#include "store/handle.h"
#include "store/journal.h"

namespace vremote::fuzz {
namespace {

namespace fs = std::filesystem;

class Seeds {
 public:
  explicit Seeds(fs::path directory) : directory_(std::move(directory)) {
    fs::create_directories(directory_);
  }
  void add(const std::string& bytes) {
    std::ofstream(directory_ / std::to_string(++count_), std::ios::binary) << bytes;
  }
  void add_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    add({std::istreambuf_iterator<char>(file), {}});
  }

 private:
  fs::path directory_;
  int count_ = 0;
};

std::string patterned(size_t size) {
  std::string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>(i * 7 + 1);
  return out;
}

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

void write_recovery(const fs::path& directory) {
  Seeds seeds(directory / "recovery");
  for (uint64_t i = 0; i < 12; ++i) {
    const std::string path = scratch() + "/r" + std::to_string(i);
    const node::RecoveryHeader header{.saved_at = 1'700'000'000 + i,
                                      .home = "node" + std::to_string(i),
                                      .file = {0, 7, 11 + i},
                                      .shown_inode = i,
                                      .path = i % 2 == 0 ? "" : "data/a"};
    const auto fd = node::begin_recovery_file(path, header);
    VR_CHECK(fd.has_value());
    std::vector<coherence::Extent> extents;
    for (uint64_t n = 0; n < i % 4; ++n)
      extents.push_back(
          {.offset = n << (4 * i), .bytes = Bytes::copy_of(bytes_of(patterned(3 + 20 * n)))});
    coherence::DirtyAttributes attributes;
    attributes.has_size = i % 3 == 0;
    attributes.has_mtime = i % 5 == 0;
    attributes.size = 100 * i;
    attributes.mtime = {.seconds = 1'700'000'000, .nanoseconds = 5};
    VR_CHECK(node::append_recovery(*fd, extents, attributes));
    seeds.add_file(path);
  }
}

void write_journals(const fs::path& directory) {
  Seeds seeds(directory / "journal");
  for (size_t i = 0; i < 12; ++i) {
    const std::string path = scratch() + "/j" + std::to_string(i);
    store::Journal journal(path);
    FileId root = kJournalRoot;
    if (i == 11) root.inode = 9;
    VR_CHECK(journal.open(root).has_value());
    for (size_t n = 0; n < i; ++n) {
      const std::string handle = patterned(5 + n * 12);
      journal.add({root.export_index, store::generation_of(handle), 3 + n}, handle,
                  [] { return store::KnownFiles{}; });
    }
    seeds.add_file(path);
  }
}

void write_home_files(const fs::path& directory) {
  Seeds sessions(directory / "sessions");
  Seeds calls(directory / "calls");
  for (size_t i = 0; i < 12; ++i) {
    node::SessionsFile file{.term_ms = static_cast<int64_t>(1000 * i), .members = {}};
    for (size_t n = 0; n < i; ++n)
      file.members.push_back(
          {n == 3 ? "a name with 3" : "node" + std::to_string(n), (~uint64_t{0}) >> n});
    const std::string path = scratch() + "/s" + std::to_string(i);
    VR_CHECK(node::write_sessions(path, file).has_value());
    sessions.add_file(path);

    const std::string log_path = scratch() + "/c" + std::to_string(i);
    node::CallLog log;
    VR_CHECK(log.open(log_path, [] { return std::set<uint64_t>{}; }).has_value());
    for (uint64_t n = 0; n < i; ++n) {
      log.begin({.incarnation = 7, .call = n}, 0);
      if (n % 3 != 0) log.end({.incarnation = 7, .call = n}, static_cast<int32_t>(n), n * n);
    }
    calls.add_file(log_path);
  }
}

void write_keys(const fs::path& directory) {
  Seeds seeds(directory / "key");
  const std::string hex = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
  for (const char* cluster : {"c", "cluster-of.many_nodes", ".bad", "two words"})
    for (const char* ending : {"", " \t\r\n"}) {
      // The check is put right by the target, where it does not fit.
      seeds.add("vremote-cluster-key 1 " + std::string(cluster) + " " + hex + " x" + ending);
      seeds.add("vremote-guest-key 1 " + std::string(cluster) + " n1 " + hex + " x" + ending);
    }
  for (const char* kind : {"member", "guest", "other"})
    for (const char* to : {"n1", "n2"}) seeds.add("vremote 1 " + std::string(kind) + " c n3 " + to);
}

// What `send` sends on a link, with the byte before it that says how it is read.
template <typename Send>
std::string sent(char how, Send send) {
  std::array<int, 2> ends{};
  VR_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
  const Fd reading(ends[0]), writing(ends[1]);
  send(writing.get());
  std::string out(1, how);
  std::array<char, 8192> bytes;
  const ssize_t n = ::recv(reading.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (n > 0) out.append(bytes.data(), static_cast<size_t>(n));
  return out;
}

std::string text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write_words(const fs::path& directory) {
  Seeds seeds(directory / "words");
  for (const char* mount : {"/mnt/vremote", "/", "relative", "/a/much/longer/path/than/the/others"})
    for (const char how : {2, 3, 1})
      seeds.add(sent(how, [&](int link) {
        const std::array<int, 2> descriptors{link, link};
        VR_CHECK(node::send_arms(link, 7, mount, descriptors).has_value());
      }));
  for (size_t count = 0; count < 4; ++count)
    seeds.add(sent(4, [&](int link) {
      for (size_t i = 0; i < count; ++i)
        VR_CHECK(node::send_held(link, bytes_of(patterned(40 + i))));
      if (count != 3) VR_CHECK(node::send_held(link, {}));
    }));
  const FileId file{.export_index = 1, .generation = 2, .inode = 3};
  seeds.add(sent(16 + 1, [&](int link) {
    VR_CHECK(node::tell_of_file(link, node::GuardianWord::Keep, file, link));
    VR_CHECK(node::tell_of_file(link, node::GuardianWord::LetGo, file, -1));
    VR_CHECK(node::say(link, node::GuardianWord::Quit));
  }));
  for (const char descriptors : {0, 1, 3})
    seeds.add(sent(static_cast<char>(32 + descriptors), [&](int link) {
      const std::vector<std::pair<FileId, int>> files(3, {file, link});
      VR_CHECK(node::send_files(link, files));
    }));
}

void write_tables(const fs::path& directory) {
  Seeds seeds(directory / "table");
  for (uint64_t i = 0; i < 12; ++i) {
    auto made = node::GuardianTable::make();
    VR_CHECK(made.has_value());
    made->alive({static_cast<int64_t>(1000 + i)});
    for (uint64_t n = 0; n < i; ++n) {
      const uint32_t home = made->add_home("node" + std::to_string(n));
      made->renew(home, static_cast<int64_t>(2000 * n));
      made->add_inode(2 + n, home, {0, 1, 100 + n});
      made->fill_begins(2 + 2 * n, 2 + n, 4096 * n, 4096);
    }
    const TableMemory memory(*made);
    std::string patches;
    for (size_t at = 0; at < memory.bytes().size() && patches.size() < 3000; at += 8) {
      if (at == (size_t{1} << 20)) break;  // empty from here on
      uint64_t value = 0;
      std::memcpy(&value, memory.bytes().data() + at, sizeof value);
      if (value == 0) continue;
      const auto word = static_cast<uint32_t>(at / 8);
      patches += text_of(std::as_bytes(std::span(&word, 1)));
      patches += text_of(std::as_bytes(std::span(&value, 1)));
    }
    seeds.add(patches);
  }
}

}  // namespace

void write_state_seeds(const fs::path& directory) {
  write_recovery(directory);
  write_journals(directory);
  write_home_files(directory);
  write_keys(directory);
  write_words(directory);
  write_tables(directory);
}

// The requests of the other corpus, some at a time.
void write_held(const fs::path& directory) {
  Seeds seeds(directory / "held");
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(directory / "request"))
    paths.push_back(entry.path());
  std::ranges::sort(paths);
  std::string some;
  for (size_t i = 0; i < paths.size(); ++i) {
    std::ifstream file(paths[i], std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(file), {}};
    const auto length = static_cast<uint16_t>(bytes.size());
    if (some.empty()) some.assign(1, static_cast<char>(i / 4 % 2));
    some += text_of(std::as_bytes(std::span(&length, 1))) + bytes;
    if (i % 4 != 3 && i + 1 != paths.size()) continue;
    seeds.add(some);
    some.clear();
  }
}

}  // namespace vremote::fuzz
