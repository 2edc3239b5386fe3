#include "node/process_setup.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cerrno>
#include <cstdlib>
#include <new>

namespace vremote::node {
namespace {

// Each in a process of its own.
int with_limit(int resource, rlim_t most) {
  const rlimit limit{most, most};
  if (::setrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return 100;
  const Status fit = limits_are_fit();
  return fit ? 0 : fit.error().code;
}

TEST(ProcessSetupDeathTest, TooFewDescriptorsAndTooSmallFilesAreRefused) {
  EXPECT_EXIT(::_exit(with_limit(RLIMIT_NOFILE, 255)), ::testing::ExitedWithCode(EMFILE), "");
  EXPECT_EXIT(::_exit(with_limit(RLIMIT_NOFILE, 256)), ::testing::ExitedWithCode(0), "");
  EXPECT_EXIT(::_exit(with_limit(RLIMIT_FSIZE, 1 << 20)), ::testing::ExitedWithCode(EFBIG), "");
  EXPECT_EXIT(::_exit(with_limit(RLIMIT_FSIZE, 64 << 20)), ::testing::ExitedWithCode(0), "");
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they end it themselves
TEST(ProcessSetupDeathTest, TheEndOfMemoryIsToldInOneLine) {
  EXPECT_EXIT(
      {
        prepare_process();
        ::operator delete(::operator new (size_t{1} << 60));
      },
      ::testing::ExitedWithCode(1), "out of memory");
}
#endif

}  // namespace
}  // namespace vremote::node
