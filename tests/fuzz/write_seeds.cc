// Writes the seeds of the binary corpora: fuzz_seeds DIRECTORY. For a new message or request: add
// it to wire_samples.cc, or let it be found here by its size.
#include <fcntl.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "fuse/protocol.h"
#include "fuse/request.h"
#include "fuzz/seeds.h"
#include "wire/codec.h"
#include "wire/handshake.h"
#include "wire/wire_samples.h"

namespace vremote::fuzz {
namespace {

constexpr size_t kSeedMax = 2048;  // long page data teaches the fuzzer nothing

void write(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

void write_frame(const std::filesystem::path& directory, int number, const wire::Encoded& frame) {
  std::vector<std::byte> bytes = frame.header;
  for (const Bytes& part : frame.bulk)
    bytes.insert(bytes.end(), part.view().begin(), part.view().end());
  if (bytes.size() > kSeedMax) return;
  write(directory /
            ("frame/" + std::string(wire::to_string(frame.type)) + "-" + std::to_string(number)),
        bytes);
}

void write_frames(const std::filesystem::path& directory) {
  int number = 0;
  for (const auto& message : wire::sample_to_home())
    if (const auto frame = wire::encode(message)) write_frame(directory, ++number, *frame);
  for (const auto& message : wire::sample_to_agent())
    if (const auto frame = wire::encode(message)) write_frame(directory, ++number, *frame);
  const auto hello =
      wire::encode(wire::Hello{.cluster = "c", .node_name = "n1", .home_name = "n2"});
  if (hello) write_frame(directory, ++number, *hello);
  wire::Welcome welcome;
  welcome.node_name = "n2";
  welcome.exports.push_back({.name = "data", .path = "/srv/data"});
  if (const auto frame = wire::encode(welcome)) write_frame(directory, ++number, *frame);
  const auto refuse = wire::encode(wire::Refuse{.text = "no"});
  if (refuse) write_frame(directory, ++number, *refuse);
}

// Bodies are a struct of a size that the kernel fixes, then names or bytes: the first of each kind
// that the decoder takes.
void write_requests(const std::filesystem::path& directory) {
  const std::string tails[] = {"", std::string("a\0", 2), std::string("a\0b\0", 4),
                               std::string(8, 'x')};
  for (uint32_t opcode = 1; opcode <= 60; ++opcode) {
    for (size_t size = 0; size <= 128; size += 4) {
      for (const std::string& tail : tails) {
        std::vector<std::byte> bytes(sizeof(fuse_in_header) + size);
        fuse_in_header head{};
        head.len = static_cast<uint32_t>(bytes.size() + tail.size());
        head.opcode = opcode;
        head.unique = 2;
        head.nodeid = 1;
        std::memcpy(bytes.data(), &head, sizeof(head));
        for (const char c : tail) bytes.push_back(static_cast<std::byte>(c));
        if (!fuse::decode(bytes)) continue;
        write(directory / ("request/" + std::to_string(opcode)), bytes);
        size = 129;
        break;
      }
    }
  }
}

}  // namespace
}  // namespace vremote::fuzz

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: fuzz_seeds DIRECTORY\n", stderr);
    return 2;
  }
  vremote::fuzz::write_frames(argv[1]);
  vremote::fuzz::write_requests(argv[1]);
  vremote::fuzz::write_state_seeds(argv[1]);
  vremote::fuzz::write_held(argv[1]);
  vremote::fuzz::write_handovers(argv[1]);
  return 0;
}
