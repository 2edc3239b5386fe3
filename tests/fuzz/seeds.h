// The seeds of the binary corpora (fuzz_seeds).
#pragma once

#include <filesystem>

namespace vremote::fuzz {

void write_state_seeds(const std::filesystem::path& directory);
void write_handovers(const std::filesystem::path& directory);
// After the requests.
void write_held(const std::filesystem::path& directory);

}  // namespace vremote::fuzz
