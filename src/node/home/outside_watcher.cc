#include "node/home/outside_watcher.h"

#include <poll.h>
#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>

#include "net/event_loop.h"

namespace vremote::node {

using coherence::OutsideChange;

namespace {

// Between two looks at the events: what comes in bursts is merged by the kernel meanwhile, and our
// own changes, which come as events too, cost few wake-ups.
constexpr int64_t kPause = 10'000'000;
// Then others get their turn; the rest waits for the next look.
constexpr int kReadsMax = 64;

}  // namespace

OutsideWatcher::OutsideWatcher(HomeService& home) : home_(home), why_not_(home.exports()) {
  if (home.exports() == 0) return;
  stop_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  Result<store::OutsideWatch> opened = fail(EMFILE, "out of file descriptors");
  if (stop_.valid()) opened = store::OutsideWatch::open();
  bool any = false;
  for (size_t i = 0; i < home.exports(); ++i) {
    Status watched =
        opened ? opened->watch(home.store(i)) : Status(std::unexpected(opened.error()));
    any = any || watched;
    if (!watched) why_not_[i] = watched.error().what;
  }
  if (!any) return;
  watch_ = std::make_unique<store::OutsideWatch>(std::move(*opened));
  thread_ = std::thread([this] { run(); });
}

OutsideWatcher::~OutsideWatcher() { stop(); }

void OutsideWatcher::stop() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  while (::write(stop_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
  thread_.join();
}

void OutsideWatcher::run() {
  pthread_setname_np(pthread_self(), "vremote-outside");
  while (wait(changes_.next(), true)) {
    const Instant now = net::EventLoop::now();
    take_events(now);
    for (const auto& [file, change] : changes_.take_due(now))
      if (!home_.changed_outside(file, change)) changes_.note(now, file, change);
    if (!wait(now + kPause, false)) break;
  }
}

void OutsideWatcher::take_events(Instant now) {
  store::OutsideEvents told;
  for (int i = 0; i < kReadsMax && watch_->read(told); ++i) {
    for (const auto& event : told.events)
      for (FileId file : home_.files_of(event.handle)) changes_.note(now, file, event.change);
    told.events.clear();
  }
  if (!told.lost) return;
  // A busy disk may do this again and again: told once, counted each time.
  if (overflows_++ == 0)
    spdlog::warn(
        "more changes behind the exports' back than the kernel keeps: all that nodes have cached "
        "is recalled, each time (fs.fanotify.max_queued_events can be raised)");
  for (FileId file : home_.known_files()) changes_.note(now, file, OutsideChange::everything());
}

bool OutsideWatcher::wait(std::optional<Instant> until, bool for_events) {
  for (;;) {
    int patience_ms = -1;
    if (until) {
      const int64_t left = *until - net::EventLoop::now();
      patience_ms = static_cast<int>(std::clamp<int64_t>((left + 999'999) / 1'000'000, 0, 60'000));
    }
    pollfd waited[2] = {{stop_.get(), POLLIN, 0},
                        {for_events ? watch_->descriptor() : -1, POLLIN, 0}};
    const int ready = ::poll(waited, 2, patience_ms);
    if (ready < 0 && errno == EINTR) continue;
    return waited[0].revents == 0;
  }
}

}  // namespace vremote::node
