// Homes that nodes may have few leases of (docs/protocol.md, M1 to M3).
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/page_range.h"
#include "faults_support.h"

namespace vremote::live {
namespace {

class LeasesTest : public FaultsTest {
 protected:
  uint64_t counter(size_t node, const std::string& name) {
    const auto status = nlohmann::json::parse(nodes().ask(node, "status"), nullptr, false);
    return status.contains("counters") ? status["counters"].value(name, uint64_t{0}) : 0;
  }
};

TEST_F(LeasesTest, FarMoreFilesThanLeasesAreUsedByBothNodesAndStayCoherent) {
  constexpr size_t kFiles = 2500;
  nodes(2, "[lease]\nmax = 1000\n").start_all();
  ASSERT_EQ(0, ::mkdir(nodes().path(1, 0, "many").c_str(), 0755));
  const auto path = [&](size_t node, size_t i) {
    return nodes().path(node, 0, "many/" + std::to_string(i));
  };
  ASSERT_EQ(0, put(nodes().path(1, 0, "mapped"), std::string(2 * kPageSize, 'a')));
  const Fd mapped = open_at(nodes().path(1, 0, "mapped"), O_RDONLY);
  const void* const map = ::mmap(nullptr, 2 * kPageSize, PROT_READ, MAP_SHARED, mapped.get(), 0);
  ASSERT_NE(MAP_FAILED, map);
  const volatile char& shown = *static_cast<const char*>(map);
  EXPECT_EQ('a', shown);

  for (size_t i = 0; i < kFiles; ++i) ASSERT_EQ(0, put(path(1, i), std::to_string(i))) << i;
  for (size_t i = 0; i < kFiles; ++i) {
    // Every third is written by the other node in turn, while both have it in their caches.
    if (i % 3 != 0) continue;
    ASSERT_EQ(std::to_string(i), read_all(path(0, i)));
    ASSERT_EQ(0, write_at(open_at(path(0, i), O_WRONLY | O_APPEND), 0, "!")) << i;
  }
  for (size_t i = 0; i < kFiles; ++i)
    ASSERT_EQ(std::to_string(i) + (i % 3 == 0 ? "!" : ""), read_all(path(1, i)));

  ASSERT_EQ(0, write_at(open_at(nodes().path(0, 0, "mapped"), O_WRONLY), 0, "b"));
  EXPECT_EQ('b', shown);
  ::munmap(const_cast<void*>(map), 2 * kPageSize);

  EXPECT_GT(counter(0, "home_leases_taken_back"), kFiles / 2);
  EXPECT_TRUE(eventually([&] { return counter(0, "home_leases") <= 1001; }))
      << counter(0, "home_leases");
  EXPECT_LT(counter(0, "home_files"), 1500u) << "what nobody has a lease of is forgotten";
}

}  // namespace
}  // namespace vremote::live
