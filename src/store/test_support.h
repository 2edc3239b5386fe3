// A store on a fresh directory, and short ways to use it.
#pragma once

#include <fcntl.h>
#include <ftw.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <string_view>

#include "store/store.h"

namespace vremote::store::test {

using coherence::Caller;
using coherence::Node;

// A directory of our own, removed at the end. Files are looked at through its path: behind the
// store's back.
class TempDir {
 public:
  TempDir() {
    const char* base = std::getenv("TMPDIR");
    path_ = std::string(base != nullptr && *base != '\0' ? base : "/tmp") + "/vremote-store-XXXXXX";
    if (::mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~TempDir() {
    ::nftw(
        path_.c_str(),
        [](const char* p, const struct stat*, int, struct FTW*) { return ::remove(p); }, 32,
        FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline Bytes bytes(std::string_view text) { return Bytes::copy_of(std::as_bytes(std::span(text))); }
inline std::string text(const Bytes& b) {
  return {reinterpret_cast<const char*>(b.data()), b.size()};
}

// 0, or the errno of a Result or Status.
template <typename T>
int code(const Result<T>& result) {
  return result ? 0 : result.error().code;
}

// A store with handles (parameter true) or with descriptors only.
class StoreTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    reopen();
    if (store == nullptr) GTEST_FAIL() << "cannot open the store";
    if (GetParam() && !store->has_handles()) GTEST_SKIP() << "no file handles here";
    EXPECT_EQ(store->has_handles(), GetParam());
  }
  void reopen() {
    store.reset();
    auto opened = Store::open(
        dir.path(), 3,
        {.departed_files_max = departed_files,
         .use_handles = GetParam(),
         .nameless = [this](FileId file, int) { EXPECT_TRUE(told_nameless.insert(file).second); },
         .nameless_gone = [this](FileId file) { EXPECT_EQ(told_nameless.erase(file), 1u); }});
    ASSERT_TRUE(opened) << opened.error().what;
    store = std::move(*opened);
  }

  template <typename Call>
  Result<coherence::Outcome> run(const Call& call) {
    return store->execute(caller, coherence::Operation(call));
  }
  template <typename Call>
  Result<Node> node(const Call& call) {
    auto outcome = run(call);
    if (!outcome) return std::unexpected(outcome.error());
    return std::get<Node>(*outcome);
  }
  Result<Node> lookup(const std::string& name) {
    return node(coherence::LookupCall{store->root(), name});
  }
  Result<Node> create(const std::string& name, uint32_t mode = S_IFREG | 0644,
                      bool exclusive = true) {
    return node(coherence::CreateCall{store->root(), name, mode, 0, exclusive});
  }
  FileId make(const std::string& name, std::string_view content = {}) {
    auto made = create(name);
    EXPECT_TRUE(made) << name << ": " << std::strerror(code(made));
    if (!made) return {};
    if (!content.empty()) {
      EXPECT_EQ(put(made->file, 0, content), 0);
    }
    return made->file;
  }
  int put(FileId file, uint64_t offset, std::string_view content) {
    coherence::Extent extent{offset, bytes(content)};
    return code(store->write(file, {&extent, 1}));
  }
  int remove(const std::string& name, bool directory = false) {
    return code(run(coherence::RemoveCall{store->root(), name, directory}));
  }
  int rename(const std::string& from, const std::string& to, uint32_t flags = 0) {
    return code(run(coherence::RenameCall{store->root(), from, store->root(), to, flags}));
  }
  std::string content(FileId file, uint64_t offset = 0, uint64_t length = 1 << 20) {
    auto result = store->read(file, offset, length);
    return result ? text(*result) : std::string("error: ") + std::strerror(code(result));
  }

  TempDir dir;
  size_t departed_files = 0;       // of Options; counts at reopen()
  std::set<FileId> told_nameless;  // by the store
  std::unique_ptr<Store> store;
  Caller caller;  // root
};

inline std::string how(const testing::TestParamInfo<bool>& info) {
  return info.param ? "Handles" : "Descriptors";
}

}  // namespace vremote::store::test
