#include "bench/null_fuse.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "base/fd.h"
#include "base/overload.h"
#include "bench/compare.h"
#include "fuse/buffer.h"
#include "fuse/channel.h"
#include "fuse/init.h"
#include "fuse/mount.h"
#include "fuse/reply.h"
#include "fuse/request.h"

namespace vremote::bench {
namespace {

constexpr uint64_t kFile = 2;
constexpr uint64_t kFileSize = uint64_t{1} << 30;

Attributes attributes_of(uint64_t node) {
  Attributes a;
  a.mode = node == kFile ? S_IFREG | 0644 : S_IFDIR | 0755;
  a.nlink = 1;
  a.size = node == kFile ? kFileSize : 0;
  return a;
}

Status answer(const fuse::Channel& channel, const fuse::Request& request) {
  const uint64_t unique = request.header.wire_unique();
  const uint64_t node = request.header.node;
  return std::visit(
      Overload{
          [&](const fuse::Write& r) {
            return channel.reply(unique, fuse::write_out(static_cast<uint32_t>(r.payload.size())));
          },
          [&](const fuse::Init& r) -> Status {
            VR_TRY(agreed,
                   fuse::negotiate(r, {.max_pages_limit = fuse::Mount::kernel_max_pages()}));
            return channel.reply(unique, agreed.reply);
          },
          [&](const fuse::Lookup&) {
            return channel.reply(unique,
                                 fuse::entry_out(kFile, 1, attributes_of(kFile), kFile,
                                                 fuse::kUntilInvalidated, fuse::kUntilInvalidated));
          },
          [&](const fuse::GetAttr&) {
            return channel.reply(
                unique, fuse::attr_out(attributes_of(node), node, fuse::kUntilInvalidated));
          },
          [&](const fuse::Open&) {
            return channel.reply(unique, fuse::open_out(1, FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE));
          },
          [&](const fuse::Flush&) { return channel.reply(unique); },
          [&](const fuse::Release&) { return channel.reply(unique); },
          [&](const auto&) {
            return fuse::wants_reply(request.header.opcode) ? channel.reply_error(unique, ENOSYS)
                                                            : Status();
          },
      },
      request.body);
}

[[noreturn]] void serve(const std::string& point, Fd ready) {
  auto mount = fuse::Mount::mount(point, {.name = "vremote-null"});
  if (!mount) ::_exit(1);
  const fuse::Channel channel = mount->take_channel();
  // Blocking reads: no poll(2) between two requests.
  ::fcntl(channel.fd(), F_SETFL, ::fcntl(channel.fd(), F_GETFL) & ~O_NONBLOCK);
  ready.reset();
  fuse::BufferPool pool(1);
  fuse::ReceiveBuffer buffer = pool.take();
  for (;;) {
    const auto memory = buffer.next();
    const auto length = channel.receive(memory);
    if (!length && length.error().code == EAGAIN) continue;
    if (!length) ::_exit(0);
    const auto request = fuse::decode(memory.first(*length));
    if (!request || !answer(channel, *request)) ::_exit(1);
  }
}

}  // namespace

NullFuse::NullFuse(const std::string& directory) : point_(directory + "/null") {
  must(::mkdir(point_.c_str(), 0755) == 0, point_);
  int ends[2];
  must(::pipe2(ends, O_CLOEXEC) == 0, "pipe");
  Fd told(ends[0]), ready(ends[1]);
  process_ = ::fork();
  must(process_ >= 0, "fork");
  if (process_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    told.reset();
    serve(point_, std::move(ready));
  }
  ready.reset();
  char byte = 0;
  (void)!::read(told.get(), &byte, 1);  // ends when it serves, or is gone
  must(::access(file().c_str(), F_OK) == 0, "the do-nothing file system");
}

NullFuse::~NullFuse() {
  ::kill(process_, SIGKILL);  // its descriptor goes with it, and that ends the connection
  ::waitpid(process_, nullptr, 0);
  ::umount2(point_.c_str(), MNT_DETACH);
}

}  // namespace vremote::bench
