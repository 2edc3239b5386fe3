// The sizes that this node's kernel shows: told to it, looked at, and waited for (K16).
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "node/agent/agent_service.h"
#include "node/agent/inode_table.h"
#include "node/guardian/known_to_hang.h"

namespace vremote::node {

using namespace coherence;

void AgentService::size_told(FileId file, uint64_t size) {
  with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.size_told(now, file, size, actions);
  });
}

// An inode that is open and that the kernel does not know is one whose CREATE has just been
// answered.
void AgentService::push_size(const PushSize& wanted) {
  bool there = false;
  for (int64_t pause_us = 50;; pause_us *= 2) {
    if (const auto node = environment_.inodes->find(this, wanted.file)) {
      const KnownToHang known(environment_.guardian, *node, wanted.size - 1, 1);
      const Status done = environment_.notify_channel()->push_size(*node, wanted.size);
      there = done.has_value();
      if (!there && done.error().code != ENOENT)
        spdlog::debug("push of a size: {}", done.error().what);
    }
    if (there || !wanted.open || pause_us > 20'000) break;
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  }
  with(shard_of(wanted.file), [&](Agent& agent, Instant now, AgentActions& next) {
    agent.size_pushed(now, wanted.push, wanted.file, there, next);
  });
}

void AgentService::look_at_size(const LookAtSize& wanted) {
  fuse::OwnView* view = environment_.own_view();
  const std::optional<uint64_t> node = environment_.inodes->find(this, wanted.file);
  if (view == nullptr || !node) return;
  const auto file = view->open(*node);
  if (!file) {
    spdlog::debug("size of a file: {}", file.error().what);
    return;
  }
  const Instant give_up = net::EventLoop::now() + kPushPatience;
  for (int64_t pause_us = 50; net::EventLoop::now() < give_up;
       pause_us = std::min<int64_t>(2 * pause_us, 5'000)) {
    if (const auto seen = fuse::OwnView::look(*file); seen && seen->size >= wanted.size) {
      with(shard_of(wanted.file), [&](Agent& agent, Instant now, AgentActions& next) {
        agent.size_pushed(now, wanted.push, wanted.file, true, next);
      });
      return;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  }
}

// Several threads share a settle; the last of them ends it.
struct AgentService::Settling {
  SettleSize settle;
  Fd file;
  std::atomic<uint32_t> asking{1};
};

void AgentService::settle(const SettleSize& wanted) {
  auto settling = std::make_shared<Settling>();
  settling->settle = wanted;
  fuse::OwnView* view = environment_.own_view();
  const std::optional<uint64_t> node = environment_.inodes->find(this, wanted.file);
  if (view != nullptr && node) {
    if (auto file = view->open(*node)) {
      settling->file = std::move(*file);
    } else if (file.error().code != ESTALE) {
      spdlog::debug("size of a file: {}", file.error().what);
    }
  }
  if (!settling->file.valid()) {  // the kernel does not know it, or cannot be asked
    settled(wanted);
    settle_ended(settling);
    return;
  }
  if (wanted.under_lock) {
    ++settling->asking;
    environment_.purge_threads->submit([this, settling] {
      fuse::OwnView::pass_lock(settling->file);
      settle_ended(settling);
    });
  }
  const Instant give_up = net::EventLoop::now() + kSettlePatience;
  for (int64_t pause_ns = 20'000; net::EventLoop::now() < give_up;
       pause_ns = std::min<int64_t>(2 * pause_ns, 5'000'000)) {
    const auto seen = fuse::OwnView::look(settling->file);
    if (!seen ||
        (seen->size <= wanted.size && (!wanted.access || *wanted.access == seen->access))) {
      settled(wanted);
      break;
    }
    if (!wanted.behind_truncation && settling->asking == 1) {
      ++settling->asking;
      environment_.purge_threads->submit([this, view, settling] {
        view->ask(settling->file);
        settle_ended(settling);
      });
    }
    std::this_thread::sleep_for(std::chrono::nanoseconds(pause_ns));
  }
  // An O_TRUNC: what cuts the pages holds no lock, and follows the size at once.
  if (wanted.behind_truncation && !wanted.under_lock)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  settle_ended(settling);
}

void AgentService::settled(const SettleSize& wanted) {
  with(shard_of(wanted.file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.size_settled(now, wanted.settle, wanted.file, actions);
  });
}

void AgentService::settle_ended(const std::shared_ptr<Settling>& settling) {
  if (--settling->asking != 0) return;
  const SettleSize& wanted = settling->settle;
  with(shard_of(wanted.file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.settle_ended(now, wanted.settle, wanted.file, actions);
  });
}

}  // namespace vremote::node
