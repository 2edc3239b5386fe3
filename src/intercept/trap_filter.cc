#include "intercept/trap_filter.h"

#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <iterator>

#include "intercept/flags.h"

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)  // Linux 5.19
#endif

namespace vremote::intercept {
namespace {

constexpr uint32_t kNone = 0xffffffff;  // the ABI has no such call
constexpr uint32_t kX32Bit = 0x40000000;

struct Abi {
  uint32_t arch, open, openat, io_uring_setup;
};
// The native one first.
constexpr Abi kAbis[] = {
#if defined(__x86_64__)
    {AUDIT_ARCH_X86_64, 2, 257, 425},  // x32 too: the same numbers with kX32Bit
    {AUDIT_ARCH_I386, 5, 295, 425},
#elif defined(__aarch64__)
    {AUDIT_ARCH_AARCH64, kNone, 56, 425},
    {AUDIT_ARCH_ARM, 5, 322, 425},
#elif defined(__riscv) && __riscv_xlen == 64
    {AUDIT_ARCH_RISCV64, kNone, 56, 425},
#else
#error "the call numbers of this architecture are missing here"
#endif
};

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
constexpr uint32_t kLowWord = 0;
#else
constexpr uint32_t kLowWord = 4;
#endif
constexpr uint32_t argument(unsigned i) { return offsetof(seccomp_data, args) + 8 * i + kLowWord; }

constexpr sock_filter load(uint32_t offset) { return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset); }
constexpr sock_filter verdict(uint32_t action) { return BPF_STMT(BPF_RET | BPF_K, action); }
constexpr sock_filter if_equal(uint32_t value, uint8_t yes, uint8_t no) {
  return BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no);
}

void append_abi(std::vector<sock_filter>& code, const Abi& abi, bool allow_io_uring) {
  const uint32_t io_uring =
      allow_io_uring ? uint32_t{SECCOMP_RET_ALLOW} : uint32_t{SECCOMP_RET_ERRNO} | ENOSYS;
  const sock_filter block[] = {
      // Jumps count the instructions between.
      /*  0 */ if_equal(abi.arch, 0, 13),  // else the next block
      /*  1 */ load(offsetof(seccomp_data, nr)),
      /*  2 */ BPF_STMT(BPF_ALU | BPF_AND | BPF_K, ~kX32Bit),
      /*  3 */ if_equal(abi.open, 3, 0),            // to 7
      /*  4 */ if_equal(abi.openat, 4, 0),          // to 9
      /*  5 */ if_equal(abi.io_uring_setup, 7, 0),  // to 13
      /*  6 */ verdict(SECCOMP_RET_ALLOW),
      /*  7 */ load(argument(1)),
      /*  8 */ BPF_STMT(BPF_JMP | BPF_JA, 1),  // to 10
      /*  9 */ load(argument(2)),
      /* 10 */ BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, kRemoteFlag, 0, 1),
      /* 11 */ verdict(SECCOMP_RET_USER_NOTIF),
      /* 12 */ verdict(SECCOMP_RET_ALLOW),
      /* 13 */ verdict(io_uring),
  };
  code.insert(code.end(), std::begin(block), std::end(block));
}

long seccomp_install(unsigned long flags, sock_fprog* program) {
  return ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, program);
}

}  // namespace

std::vector<sock_filter> build_trap_filter(bool allow_io_uring) {
  std::vector<sock_filter> code;
  code.push_back(load(offsetof(seccomp_data, arch)));
  for (const Abi& abi : kAbis) append_abi(code, abi, allow_io_uring);
  code.push_back(verdict(SECCOMP_RET_ERRNO | ENOSYS));
  return code;
}

std::optional<TrappedOpen> decode_trap(const seccomp_data& data) {
  for (const Abi& abi : kAbis) {
    if (data.arch != abi.arch) continue;
    uint32_t number = static_cast<uint32_t>(data.nr) & ~kX32Bit;
    auto word = [&](int i) { return static_cast<uint32_t>(data.args[i]); };
    TrappedOpen call;
    if (number == abi.open)
      call = {false, 0, data.args[0], word(1), word(2)};
    else if (number == abi.openat)
      call = {true, static_cast<int>(word(0)), data.args[1], word(2), word(3)};
    else
      return std::nullopt;
    return call.flags & kRemoteFlag ? std::optional(call) : std::nullopt;
  }
  return std::nullopt;
}

Result<InstalledFilter> install_trap_filter(bool allow_io_uring) {
  std::vector<sock_filter> code = build_trap_filter(allow_io_uring);
  sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  InstalledFilter result;
  unsigned long flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
  for (;;) {
    long fd = seccomp_install(flags, &program);
    if (fd >= 0) {
      result.listener = Fd(static_cast<int>(fd));
      return result;
    }
    int error = errno;
    if (error == EACCES && !result.no_new_privileges) {
      // Without CAP_SYS_ADMIN the kernel wants the promise that no setuid program runs under the
      // filter.
      if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return fail(errno, "no_new_privs was refused");
      result.no_new_privileges = true;
    } else if (error == EINVAL && result.wait_killable) {
      result.wait_killable = false;
      flags &= ~SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    } else if (error == EBUSY) {
      return fail(EBUSY,
                  "a seccomp supervisor watches this program already (vremote run inside vremote "
                  "run?); leave out the inner one");
    } else {
      return fail(error, std::string("this kernel does not let us install the seccomp filter: ") +
                             std::strerror(error));
    }
  }
}

}  // namespace vremote::intercept
