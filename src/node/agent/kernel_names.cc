#include "node/agent/kernel_names.h"

#include <signal.h>
#include <spdlog/spdlog.h>

#include <cerrno>

#include "node/guardian/known_to_hang.h"

namespace vremote::node {

using coherence::NameLedger;

KernelNames::~KernelNames() {
  std::map<uint64_t, Ending> dropped;  // timers are cancelled without the lock
  std::lock_guard lock(mutex_);
  dropped.swap(endings_);
}

bool KernelNames::give(uint64_t directory, const std::string& name, bool exists,
                       const NameLedger::Asked& asked, Instant now) {
  if (channel_ == nullptr) return false;
  std::lock_guard lock(mutex_);
  if (ledger_.many_unsettled())
    ledger_.settle_ended([](uint32_t thread) {
      return ::kill(static_cast<pid_t>(thread), 0) != 0 && errno == ESRCH;
    });
  const bool given = ledger_.give(directory, name, exists, asked, now);
  note_settled();
  return given;
}

bool KernelNames::move(uint64_t from, const std::string& old_name, uint64_t to,
                       const std::string& new_name, bool to_leased, uint32_t tid) {
  if (channel_ == nullptr) return true;
  std::lock_guard lock(mutex_);
  const bool followed = ledger_.move(from, old_name, to, new_name, to_leased, tid);
  note_settled();
  return followed;
}

void KernelNames::moved(uint64_t from, const std::string& old_name, bool done, Instant now) {
  if (channel_ == nullptr) return;
  std::lock_guard lock(mutex_);
  if (!ledger_.moved(from, old_name, done, now)) advance_epoch();
}

void KernelNames::renewed(uint64_t directory, const std::string& name) {
  std::lock_guard lock(mutex_);
  ledger_.renewed(directory, name);
}

void KernelNames::request_from(uint32_t tid) {
  if (all_settled_.load(std::memory_order_relaxed)) return;
  std::lock_guard lock(mutex_);
  ledger_.request_from(tid);
  note_settled();
}

void KernelNames::note_settled() { all_settled_ = ledger_.all_settled(); }

bool KernelNames::end(uint64_t directory, bool at_once, Instant now, Then then) {
  std::lock_guard lock(mutex_);
  NameLedger::Ending ending = ledger_.end(directory, at_once, now);
  switch (ending.how) {
    case NameLedger::How::Nothing:
      return true;
    case NameLedger::How::Epoch:
      advance_epoch();
      return true;
    case NameLedger::How::Expiry:
      break;
  }
  ++expiries_;
  const uint64_t id = ending.id;
  net::Timer timer;
  if (auto at = ledger_.deadline(now))
    timer = loop_.call_at(*at, [this, id] { finish(id, false); });
  endings_.emplace(id, Ending{std::move(then), std::move(timer)});
  threads_.submit(
      [this, id, directory, names = std::move(ending.names)] { expire(id, directory, names); });
  return false;
}

void KernelNames::expire(uint64_t id, uint64_t directory,
                         const std::vector<NameLedger::Name>& names) {
  bool sure = true;
  for (const auto& [name, exists] : names) {
    const KnownToHang hangs(guardian_, directory, GuardianTable::kNames, 0);
    const auto known = channel_.load()->expire_name(directory, name);
    // Some kernels do not find a name without a file to expire it.
    sure = sure && known.has_value() && (*known || exists);
  }
  finish(id, sure);
}

void KernelNames::finish(uint64_t id, bool expired) {
  Ending ending;
  {
    std::lock_guard lock(mutex_);
    const NameLedger::Finish what = ledger_.finish(id, expired);
    if (what == NameLedger::Finish::WasOver) return;
    if (what == NameLedger::Finish::Epoch) advance_epoch();
    auto it = endings_.find(id);
    if (it == endings_.end()) return;  // we are being destroyed
    ending = std::move(it->second);
    endings_.erase(it);
  }
  ending.then();
}

void KernelNames::end_all() {
  std::lock_guard lock(mutex_);
  if (channel_ != nullptr && ledger_.end_all()) advance_epoch();
}

void KernelNames::advance_epoch() {
  ++epochs_;
  if (auto done = channel_.load()->inc_epoch(); !done)
    spdlog::error("names in the kernel: {}", done.error().what);
  ledger_.epoch_advanced();
  note_settled();
}

void KernelNames::forget(uint64_t directory) {
  std::lock_guard lock(mutex_);
  ledger_.forget(directory);
}

KernelNames::Counts KernelNames::counts() const {
  std::lock_guard lock(mutex_);
  return {ledger_.names(), expiries_, epochs_};
}

}  // namespace vremote::node
