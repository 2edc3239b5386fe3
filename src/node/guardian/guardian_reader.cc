#include "node/guardian/guardian_reader.h"

#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "base/start_thread.h"

namespace vremote::node {
namespace {

constexpr int kInterruptsMs = 50;

}  // namespace

void GuardianReader::start(bool give_back) {
  if (running_) return;
  all_read_ = false;
  stop_ = Fd(::eventfd(0, EFD_CLOEXEC));
  running_ = true;
  auto thread = start_thread([this, give_back] { read(give_back); });
  if (thread) {
    thread_ = std::move(*thread);
    refused_.reset();
    return;
  }
  running_ = false;
  if (!std::exchange(refused_, give_back))
    spdlog::error("guardian: {}; requests wait", thread.error().what);
}

void GuardianReader::help() {
  if (refused_) start(*refused_);
}

void GuardianReader::stop() {
  refused_.reset();
  if (!thread_.joinable()) return;
  running_ = false;
  const uint64_t one = 1;
  (void)!::write(stop_.get(), &one, sizeof one);
  thread_.join();
}

void GuardianReader::read(bool give_back) {
  fuse::ReceiveBuffer buffer = buffers_.take();
  while (running_) {
    std::array<pollfd, 2> wait{pollfd{channel_.fd(), POLLIN, 0}, pollfd{stop_.get(), POLLIN, 0}};
    if (::poll(wait.data(), wait.size(), kInterruptsMs) < 0 && errno != EINTR) break;
    held_.look();
    while (running_) {
      std::span<std::byte> memory = buffer.next();
      auto length = channel_.receive(memory);
      if (!length) {
        if (length.error().code == ENODEV || length.error().code == ECONNABORTED) {
          gone_ = true;
          return;
        }
        if (length.error().code == EAGAIN) all_read_ = true;
        break;
      }
      held_.take(memory.first(*length), give_back);
    }
  }
}

}  // namespace vremote::node
