#include "intercept/trap_filter.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/seccomp.h>

#include <cerrno>
#include <cstring>

#include "intercept/flags.h"

namespace vremote::intercept {
namespace {

// The part of classic BPF the filter uses, as the kernel runs it.
uint32_t run_filter(const std::vector<sock_filter>& code, const seccomp_data& data) {
  uint32_t a = 0;
  for (size_t pc = 0; pc < code.size(); ++pc) {
    const sock_filter& i = code[pc];
    switch (i.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        EXPECT_LE(i.k + 4, sizeof data);
        std::memcpy(&a, reinterpret_cast<const char*>(&data) + i.k, 4);
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        a &= i.k;
        break;
      case BPF_JMP | BPF_JA:
        pc += i.k;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
        pc += a == i.k ? i.jt : i.jf;
        break;
      case BPF_JMP | BPF_JSET | BPF_K:
        pc += a & i.k ? i.jt : i.jf;
        break;
      case BPF_RET | BPF_K:
        return i.k;
      default:
        ADD_FAILURE() << "unknown instruction " << i.code;
        return 0;
    }
  }
  ADD_FAILURE() << "ran off the end";
  return 0;
}

seccomp_data call(uint32_t arch, int number, uint64_t a1, uint64_t a2) {
  seccomp_data d{};
  d.arch = arch;
  d.nr = number;
  d.args[1] = a1;
  d.args[2] = a2;
  return d;
}

#if defined(__x86_64__)
constexpr int kX32 = 0x40000000;
constexpr uint32_t kEnosys = SECCOMP_RET_ERRNO | ENOSYS;

TEST(TrapFilterTest, OnlyOpensWithTheFlagAreTrapped) {
  auto code = build_trap_filter(false);
  struct Call {
    uint32_t arch;
    int open, openat;
  };
  for (Call c : {Call{AUDIT_ARCH_X86_64, 2, 257}, Call{AUDIT_ARCH_X86_64, 2 | kX32, 257 | kX32},
                 Call{AUDIT_ARCH_I386, 5, 295}}) {
    for (int number = 0; number < 600; ++number) {
      int nr = number | (c.open & kX32);
      for (uint32_t flags :
           {0u, O_RDWR | 0u, kRemoteFlag, kRemoteFlag | kDecimalOrigin, ~kRemoteFlag, ~0u}) {
        bool has = flags & kRemoteFlag;
        uint32_t want = number == 425 ? kEnosys : SECCOMP_RET_ALLOW;
        auto as_open = call(c.arch, nr, flags, ~uint64_t{flags});
        EXPECT_EQ(run_filter(code, as_open), nr == c.open && has      ? SECCOMP_RET_USER_NOTIF
                                             : nr == c.openat && !has ? SECCOMP_RET_USER_NOTIF
                                                                      : want);
        auto as_openat = call(c.arch, nr, ~uint64_t{flags}, flags);
        EXPECT_EQ(run_filter(code, as_openat), nr == c.openat && has  ? SECCOMP_RET_USER_NOTIF
                                               : nr == c.open && !has ? SECCOMP_RET_USER_NOTIF
                                                                      : want);
      }
    }
  }
}

TEST(TrapFilterTest, IoUringIsAllowedWhenAskedFor) {
  EXPECT_EQ(run_filter(build_trap_filter(true), call(AUDIT_ARCH_X86_64, 425, 0, 0)),
            SECCOMP_RET_ALLOW);
  EXPECT_EQ(run_filter(build_trap_filter(true), call(AUDIT_ARCH_X86_64, 2, kRemoteFlag, 0)),
            SECCOMP_RET_USER_NOTIF);
}

TEST(TrapFilterTest, AnUnknownArchitectureGetsNothingDone) {
  EXPECT_EQ(run_filter(build_trap_filter(true), call(AUDIT_ARCH_AARCH64, 56, 0, 0)), kEnosys);
}

TEST(TrapFilterTest, TheHighHalfOfAnArgumentDoesNotCount) {
  EXPECT_EQ(run_filter(build_trap_filter(false),
                       call(AUDIT_ARCH_X86_64, 2, uint64_t{kRemoteFlag} << 32, 0)),
            SECCOMP_RET_ALLOW);
}

TEST(TrapFilterTest, DecodesEveryAbisCall) {
  seccomp_data d{};
  d.arch = AUDIT_ARCH_I386;
  d.nr = 295;
  d.args[0] = 0xffffff9c;  // AT_FDCWD of a 32-bit program
  d.args[1] = 0x1000;
  d.args[2] = kRemoteFlag | O_CREAT;
  d.args[3] = 0600;
  auto t = decode_trap(d);
  ASSERT_TRUE(t);
  EXPECT_TRUE(t->relative_to_fd && t->directory == AT_FDCWD && t->path == 0x1000 &&
              t->mode == 0600);
  d.nr = 5;
  EXPECT_FALSE(decode_trap(d)) << "its second argument has no O_REMOTE";
  d.args[1] = kRemoteFlag;
  EXPECT_EQ(decode_trap(d)->path, 0xffffff9cu);
  EXPECT_FALSE(decode_trap(call(AUDIT_ARCH_X86_64, 437, ~0u, ~0u)));
}
#endif

}  // namespace
}  // namespace vremote::intercept
