#include "node/guardian/guardian_purge.h"

namespace vremote::node {
namespace {

constexpr size_t kWorkers = 4;
constexpr size_t kWorkersMax = 2048;

}  // namespace

GuardianPurge::GuardianPurge(Drop drop)
    : drop_(std::move(drop)), threads_("guardian-purge", HelperThreads::kUnbounded) {}

void GuardianPurge::fill(uint64_t node, uint64_t offset, uint64_t length) {
  if (length == 0) return;
  bool behind = false;
  {
    std::lock_guard lock(mutex_);
    uint64_t& end = fills_[node][offset];
    end = std::max(end, offset + length);
    behind = under_way_.contains(node);
  }
  if (behind) threads_.submit([this, node, from = offset + length] { purge(node, from); });
}

void GuardianPurge::forget_fills() {
  std::lock_guard lock(mutex_);
  fills_.clear();
}

// What of the inode has no unanswered fill, from `from` on.
std::vector<GuardianPurge::Part> GuardianPurge::parts(uint64_t node, uint64_t from) const {
  std::vector<Part> out;
  if (auto it = fills_.find(node); it != fills_.end()) {
    for (const auto& [offset, end] : it->second) {
      if (offset > from) out.push_back({from, offset - from});
      from = std::max(from, end);
    }
  }
  out.push_back({from, 0});
  return out;
}

void GuardianPurge::purge(uint64_t node, uint64_t from) {
  std::vector<Part> todo;
  {
    std::lock_guard lock(mutex_);
    todo = parts(node, from);
  }
  for (const Part& part : todo) drop_(node, part.offset, part.length);
}

void GuardianPurge::start(std::vector<uint64_t> nodes) {
  auto job = std::make_shared<Job>();
  *left_ += nodes.size();
  {
    std::lock_guard lock(mutex_);
    under_way_.insert(nodes.begin(), nodes.end());
    // A fill that was noted may have been answered just before its daemon stopped: then its pages
    // are there, and a purge of their own gets them. Otherwise it waits with the fill.
    for (uint64_t node : nodes)
      if (auto it = fills_.find(node); it != fills_.end())
        for (const auto& [offset, end] : it->second)
          threads_.submit(
              [this, node, first = offset, length = end - offset] { drop_(node, first, length); });
    job->nodes = std::move(nodes);
    jobs_.push_back(job);
  }
  for (size_t i = 0; i < kWorkers; ++i) threads_.submit([this, job] { work(job); });
  workers_ += kWorkers;
}

void GuardianPurge::work(const std::shared_ptr<Job>& job) {
  for (;;) {
    uint64_t node = 0;
    {
      std::lock_guard lock(job->mutex);
      if (job->next == job->nodes.size()) return;
      node = job->nodes[job->next++];
    }
    purge(node, 0);
    {
      std::lock_guard lock(mutex_);
      under_way_.erase(node);
    }
    ++progress_;
    --*left_;
  }
}

void GuardianPurge::help() {
  threads_.help();
  const uint64_t progress = progress_;
  if (progress != seen_progress_ || done() || workers_ >= kWorkersMax) {
    seen_progress_ = progress;
    return;
  }
  std::lock_guard lock(mutex_);
  for (const auto& job : jobs_) threads_.submit([this, job] { work(job); });
  workers_ += jobs_.size();
}

}  // namespace vremote::node
