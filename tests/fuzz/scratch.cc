#include "fuzz/scratch.h"

#include <cstdlib>
#include <filesystem>

#include "base/check.h"

namespace vremote::fuzz {
namespace {

struct Directory {
  Directory() {
    path = (std::filesystem::temp_directory_path() / "vremote-fuzz-XXXXXX").string();
    VR_CHECK(::mkdtemp(path.data()) != nullptr);
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  std::string path;
};

}  // namespace

const std::string& scratch() {
  static const Directory directory;
  return directory.path;
}

}  // namespace vremote::fuzz
