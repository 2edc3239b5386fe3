#include "node/guardian/guardian.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "fuse/fusectl.h"
#include "fuse/mount.h"
#include "fuse/mountinfo.h"
#include "node/guardian/guardian_door.h"
#include "node/guardian/guardian_held.h"
#include "node/guardian/guardian_process.h"
#include "node/guardian/guardian_purge.h"
#include "node/guardian/guardian_reader.h"
#include "node/guardian/guardian_sweep.h"
#include "node/guardian/guardian_words.h"

namespace vremote::node {
namespace {

constexpr int kLookMs = 50;
constexpr int kCorpseMs = 5'000;
// How long the next daemon waits until all is purged, and the dead one's process is gone; and we
// for it to begin.
constexpr int64_t kHandingMs = 10'000;
// Then something holds dirty pages back.
constexpr int64_t kSweepMs = 500;
// A process that has not gone by then hangs in the kernel.
constexpr int64_t kGoneMs = 300;
constexpr int64_t kTakingMs = 30'000;

class Guardian {
 public:
  Guardian(const GuardianOptions& options, GuardianTable& table, Fd link)
      : options_(options), table_(table), door_(options.socket), link_(std::move(link)) {}
  int run();

 private:
  enum class State : uint8_t {
    Watching,  // the daemon answers
    Standing,  // in for a daemon that has stopped
    Alone,     // the daemon is dead
  };

  bool arm();   // false: the daemon is gone
  void word();  // the daemon says something, or is gone
  void look();  // has it stopped?
  void stand_in();
  void be_alone();
  void purge(std::vector<uint64_t> nodes);
  void look_at_corpse();
  void stop_reading();
  void give_back();
  void look_whether_it_has_all();
  void end_truncations();
  void visitor();
  void hand_on();
  void taker();
  void leave_to_the_next();
  void end_connection(const std::string& why);
  bool connection_is_gone() const { return reader_ && reader_->gone(); }

  const GuardianOptions options_;
  GuardianTable& table_;
  GuardianDoor door_;
  Fd link_, visitor_, signals_;
  Fd taker_;  // the next daemon, which wants the mount
  Instant taker_came_;
  bool handed_ = false;  // it has what it needs, and we read nothing until it says more
  State state_ = State::Watching;
  bool quit_ = false, told_to_end_ = false, replaced_ = false;
  const pid_t daemon_ = ::getppid();

  std::vector<Fd>
      held_descriptors_;  // of the daemon: what was read by them lives as long as they do
  // Of its exports, open and without a name: they are there as long as somebody has them open.
  std::unordered_map<FileId, Fd, FileIdHash> nameless_;
  std::optional<fuse::Channel> channel_;
  uint32_t connection_ = 0;
  std::string mount_;

  std::optional<GuardianRecovery> recovery_;
  std::optional<GuardianHeld> held_;
  std::optional<GuardianLedger> ledger_;
  // Never destroyed: a purge may hang until the connection ends.
  GuardianPurge* purge_ = nullptr;
  GuardianSweep* sweep_ = nullptr;
  bool purging_ = false;
  Instant purge_began_, died_, sweep_began_;
  bool corpse_hangs_ = false;
  size_t purged_ = 0;
  // Until when its leases were good when it was purged last: once is enough.
  std::array<int64_t, GuardianTable::kHomesMax> purged_until_{};

  // The inodes of write-backs that the daemon has been given back, until it says that it has them.
  std::optional<std::vector<uint64_t>> given_back_;
  std::optional<GuardianReader> reader_;
};

// ---- the daemon's words

bool Guardian::arm() {
  auto arms = receive_arms(link_.get());
  if (!arms) return false;
  mount_ = std::move(arms->mount);
  connection_ = arms->connection;
  channel_.emplace(std::move(arms->descriptors.front()));
  arms->descriptors.erase(arms->descriptors.begin());
  held_descriptors_ = std::move(arms->descriptors);
  door_.open();
  recovery_.emplace(options_.recovery_dir, table_);
  purge_ = new GuardianPurge([this](uint64_t node, uint64_t offset, uint64_t length) {
    (void)channel_->invalidate_data(node, offset, length);
  });
  sweep_ = new GuardianSweep([this](uint64_t node, uint64_t offset, uint64_t length) {
    (void)channel_->invalidate_data(node, offset, length);
  });
  held_.emplace(*channel_, table_, *recovery_, options_.soft_timeout_ms,
                [this](uint64_t node, uint64_t offset, uint64_t length) {
                  if (state_ == State::Alone) sweep_->fill(node, offset, length);
                  purge_->fill(node, offset, length);
                });
  reader_.emplace(*channel_, *held_);
  return true;
}

void Guardian::word() {
  auto heard = hear(link_.get());
  if (!heard) {
    link_.reset();
    be_alone();
    return;
  }
  switch (heard->word) {
    case GuardianWord::Arm:
      if (channel_ || !arm()) quit_ = true;
      return;
    case GuardianWord::TakeBack:
      give_back();
      return;
    case GuardianWord::Keep:
    case GuardianWord::LetGo:
      if (const auto file = receive_file(link_.get())) {
        nameless_.erase(*file);
        if (heard->descriptor.valid() && nameless_.size() < kKeptFilesMax)
          nameless_.emplace(*file, std::move(heard->descriptor));
      }
      return;
    case GuardianWord::Quit:
      quit_ = true;
      return;
  }
  quit_ = true;  // not our daemon's language
}

// ---- standing in

void Guardian::look() {
  if (!channel_) return;
  const Instant now = GuardianTable::clock();
  if (now - table_.last_alive() < options_.stall_ms * 1'000'000) return;
  if (is_a_corpse(daemon_)) {
    be_alone();
    return;
  }
  bool over = false;
  for (uint32_t home = 0; home < table_.homes(); ++home) {
    const int64_t until = table_.leases_until(home);
    over = over || (until != 0 && until <= now.ns && until != purged_until_[home]);
  }
  if (over) stand_in();
}

void Guardian::stand_in() {
  const Instant now = GuardianTable::clock();
  std::array<bool, GuardianTable::kHomesMax + 1> over{};
  for (uint32_t home = 0; home < table_.homes(); ++home) {
    const int64_t until = table_.leases_until(home);
    over[home] = until != 0 && until <= now.ns && until != purged_until_[home];
    if (!over[home]) continue;
    purged_until_[home] = until;
    spdlog::warn(
        "guardian: the daemon has not moved for {} ms and the leases of {} are over: what the "
        "kernel keeps of it is purged",
        (now - table_.last_alive()) / 1'000'000, table_.home_name(home));
  }
  over[GuardianTable::kHomesMax] = true;
  if (table_.incomplete()) {
    end_connection("it keeps more files than can be purged without the daemon");
    return;
  }
  if (state_ == State::Watching) {
    table_.take_charge();
    state_ = State::Standing;
    purge_->forget_fills();
    for (const GuardianTable::Fill& fill : table_.fills())
      purge_->fill(fill.node, fill.offset, fill.length);
    reader_->start(true);
  }
  std::vector<uint64_t> nodes;
  for (const GuardianTable::Inode& inode : table_.inodes())
    if (over[std::min<size_t>(inode.home, GuardianTable::kHomesMax)]) nodes.push_back(inode.node);
  purge(std::move(nodes));
}

void Guardian::be_alone() {
  if (!channel_) {
    quit_ = true;  // it died before it had a mount
    return;
  }
  if (state_ == State::Alone) {
    // It hung, and is gone only now: also those of its threads that may have read something since.
    stop_reading();
    (void)channel_->resend();
    reader_->start(false);
    return;
  }
  state_ = State::Alone;
  died_ = GuardianTable::clock();
  spdlog::error("guardian: the daemon is dead; {} holds still until the next one comes, for {} s",
                mount_, options_.restart_wait_ms / 1000);
  look_whether_it_has_all();
  table_.take_charge();
  if (table_.incomplete()) {
    end_connection("it keeps more files than can be purged without the daemon");
    return;
  }
  // What the daemon had read is ours now, and comes first. What it had not noted as ended may have
  // been: start() sees to that.
  stop_reading();
  ledger_.emplace(table_);
  held_->write_into(&*ledger_);
  for (uint64_t node : given_back_.value_or(std::vector<uint64_t>{})) ledger_->owes(node);
  held_->drop();
  purge_->forget_fills();
  for (const GuardianTable::Fill& fill : table_.fills())
    purge_->fill(fill.node, fill.offset, fill.length);
  if (auto resent = channel_->resend(); !resent)
    spdlog::warn("guardian: the kernel cannot deliver again what the daemon had read ({})",
                 resent.error().what);
  reader_->start(false);
  std::vector<uint64_t> nodes;
  for (const GuardianTable::Inode& inode : table_.inodes()) nodes.push_back(inode.node);
  purge(std::move(nodes));
}

void Guardian::purge(std::vector<uint64_t> nodes) {
  // Names first: this waits for nothing. Kernels without it were given none.
  (void)channel_->inc_epoch();
  (void)channel_->invalidate_attributes(FUSE_ROOT_ID);
  if (!purging_) purge_began_ = GuardianTable::clock();
  purging_ = true;
  purged_ += nodes.size();
  purge_->start(std::move(nodes));
}

void Guardian::look_at_corpse() {
  const bool there = ::getppid() == daemon_;
  if (!corpse_hangs_ && there && GuardianTable::clock() - died_ >= kGoneMs * 1'000'000) {
    corpse_hangs_ = true;
    spdlog::warn("guardian: the dead daemon's process hangs in the kernel; it is set free");
    held_->free_corpse(daemon_);
  } else if (corpse_hangs_ && !there) {
    corpse_hangs_ = false;
    held_->free_corpse(0);
    spdlog::info(
        "guardian: the dead daemon's process is gone after {} ms; {} requests were refused",
        (GuardianTable::clock() - died_) / 1'000'000, held_->refused_for_corpse());
  }
}

void Guardian::stop_reading() {
  if (reader_) reader_->stop();
}

// The stopped daemon's: what it has read of them lies with one of its descriptors.
void Guardian::end_truncations() {
  held_->end_truncations();
  for (uint64_t unique : table_.take_truncations()) {
    spdlog::warn("guardian: a truncation that holds dirty pages back is ended (EIO)");
    (void)channel_->reply_error(unique, EIO);
    const fuse_out_header answer{.len = sizeof answer, .error = -EIO, .unique = unique};
    for (const Fd& fd : held_descriptors_) (void)!::write(fd.get(), &answer, sizeof answer);
  }
}

void Guardian::give_back() {
  stop_reading();
  held_->end_truncations(false);
  if (state_ == State::Standing) {
    const size_t count = held_->count();
    // Of the last time it has all, or it would not ask.
    given_back_ = held_->written_back();
    held_->give_back([&](std::span<const std::byte> bytes) {
      return bytes.empty() || send_held(link_.get(), bytes);
    });
    spdlog::info("guardian: the daemon is back; it gets {} requests; {} bytes were written back",
                 count, recovery_->bytes());
    state_ = State::Watching;
  }
  (void)send_held(link_.get(), {});
}

// It may die with what it has been given: until it has gone through all of that, the bytes are in
// their recovery files, and its successor must tell of them.
void Guardian::look_whether_it_has_all() {
  if (!given_back_ || state_ != State::Watching || table_.guardian_in_charge()) return;
  given_back_.reset();
  recovery_->remove();
}

// ---- the end

void Guardian::end_connection(const std::string& why) {
  quit_ = true;
  // Its number may be another mount's already.
  if (!channel_ || channel_->is_gone()) return;
  spdlog::warn("guardian: {} is ended: {}", mount_, why);
  if (auto ended = fuse::abort_connection(connection_); !ended)
    spdlog::error("guardian: {}", ended.error().what);
  const auto top = fuse::mounted_at(mount_);
  if (top && *top && (*top)->type == fuse::kMountType && (*top)->minor == connection_ &&
      ::umount2(mount_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0)
    spdlog::error("guardian: {}: {}", mount_, std::strerror(errno));
}

void Guardian::visitor() {
  auto visitor = door_.receive();
  if (!visitor) return;
  Fd& guest = visitor->socket;
  if (state_ != State::Alone) {
    answer(guest, VisitorAnswer::Lives);
  } else if (taker_.valid()) {
    answer(guest, VisitorAnswer::Cannot);  // two daemons at once
  } else if (visitor->word == VisitorWord::Take) {
    taker_ = std::move(guest);
    taker_came_ = GuardianTable::clock();
    // Neither must wait for the other for good.
    const timeval patience{.tv_sec = 5, .tv_usec = 0};
    (void)::setsockopt(taker_.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  } else {
    end_connection("the next daemon is here");
    visitor_ = std::move(guest);
  }
}

// ---- to the next daemon
// -------------------------------------------------------------------------------------------------------

// When nothing of before can be seen, and the dead daemon's process has let go of its ports. Until
// the next one says more, nobody reads the kernel's requests.
void Guardian::hand_on() {
  if (!taker_.valid() || handed_ || !reader_->all_read()) return;
  const bool hangs = ::getppid() == daemon_ || link_.valid();
  if (!sweep_->done() || hangs) {
    const int64_t waited = GuardianTable::clock() - taker_came_;
    if (waited < kHandingMs * 1'000'000) return;
    spdlog::warn("guardian: {} cannot be given to the next daemon: {}", mount_,
                 sweep_->done() ? "the dead one's process does not end" : "a purge does not end");
    answer(taker_, VisitorAnswer::Cannot);
    taker_.reset();
    return;
  }
  stop_reading();
  recovery_->sync();
  std::vector<int> descriptors{channel_->fd()};
  for (const Fd& fd : held_descriptors_) descriptors.push_back(fd.get());
  descriptors.push_back(table_.descriptor());
  handed_ = true;
  taker_came_ = GuardianTable::clock();
  answer(taker_, VisitorAnswer::Here);
  std::vector<std::pair<FileId, int>> nameless;
  for (const auto& [file, fd] : nameless_) nameless.emplace_back(file, fd.get());
  if (!send_arms(taker_.get(), connection_, mount_, descriptors) ||
      !send_unseen(taker_.get(), held_->unseen()) || !send_files(taker_.get(), nameless))
    (void)::shutdown(taker_.get(), SHUT_RDWR);  // and taker() sees it go
}

void Guardian::taker() {
  char letter = 0;
  const ssize_t n = ::recv(taker_.get(), &letter, 1, MSG_DONTWAIT);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  const Fd guest = std::move(taker_);
  const bool handed = std::exchange(handed_, false);
  if (n == 1 && handed && static_cast<VisitorWord>(letter) == VisitorWord::Has) {
    spdlog::info("guardian: the next daemon has {}", mount_);
    replaced_ = quit_ = true;
  } else if (n == 1 && static_cast<VisitorWord>(letter) == VisitorWord::Retire) {
    end_connection("the next daemon cannot go on with it");
    visitor_ = Fd(::fcntl(guest.get(), F_DUPFD_CLOEXEC, 0));
  } else if (handed && door_.is_replaced()) {
    leave_to_the_next();
  } else if (handed) {
    spdlog::warn("guardian: the next daemon is gone before it went on with {}", mount_);
    held_->drop();
    (void)channel_->resend();
    reader_->start(false);
  }
}

// It is delivered to the other guardian then.
void Guardian::leave_to_the_next() {
  stop_reading();
  (void)channel_->resend();
  replaced_ = quit_ = true;
}

int Guardian::run() {
  ::prctl(PR_SET_NAME, "vremote-guard");
  ::setsid();
  be_modest_and_last();
  sigset_t mask;
  sigfillset(&mask);
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGTERM);
  signals_ = Fd(::signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK));
  while (!quit_) {
    std::array<pollfd, 4> wait{pollfd{link_.get(), POLLIN, 0}, pollfd{signals_.get(), POLLIN, 0},
                               pollfd{door_.descriptor(), POLLIN, 0},
                               pollfd{taker_.get(), POLLIN, 0}};
    (void)::poll(wait.data(), wait.size(), kLookMs);
    if (wait[1].revents != 0) {
      signalfd_siginfo info;
      // While the daemon lives it ends with it: both are told at once by a service manager.
      if (::read(signals_.get(), &info, sizeof info) > 0) told_to_end_ = true;
    }
    if (link_.valid() && wait[0].revents != 0) word();
    if (quit_) break;
    if (taker_.valid() && wait[3].revents != 0) taker();
    if (quit_) break;
    if (wait[2].revents != 0) visitor();
    if (connection_is_gone()) {
      if (state_ == State::Alone) break;  // unmounted, or ended by somebody
      stop_reading();                     // the daemon finds it out itself
    }
    look_whether_it_has_all();
    if (state_ != State::Alone) look();
    if (state_ != State::Watching) {
      reader_->help();
      purge_->help();
      if (purging_ && purge_->done()) {
        purging_ = false;
        recovery_->sync();
        spdlog::info("guardian: {} inodes purged in {} ms; {} bytes were written back",
                     std::exchange(purged_, 0), (GuardianTable::clock() - purge_began_) / 1'000'000,
                     recovery_->bytes());
      }
    }
    if (state_ == State::Standing && purging_ &&
        GuardianTable::clock() - purge_began_ >= kSweepMs * 1'000'000)
      end_truncations();
    if (state_ != State::Alone || quit_) continue;
    if (reader_->all_read() && !sweep_->started()) {
      std::vector<uint64_t> nodes;
      for (const GuardianTable::Inode& inode : table_.inodes()) nodes.push_back(inode.node);
      sweep_->start(std::move(nodes));
      sweep_began_ = GuardianTable::clock();
    }
    sweep_->help();
    held_->end_truncations(sweep_->started() && !sweep_->done() &&
                           GuardianTable::clock() - sweep_began_ >= kSweepMs * 1'000'000);
    look_at_corpse();
    hand_on();
    // It comes in time, however late it came.
    const bool taken = handed_ && GuardianTable::clock() - taker_came_ < kTakingMs * 1'000'000;
    if (handed_ && !taken) (void)::shutdown(taker_.get(), SHUT_RDWR);  // then as if it had gone
    if (told_to_end_) {
      end_connection("told to end");
    } else if (!handed_ && door_.is_replaced()) {
      leave_to_the_next();
    } else if (handed_) {
      continue;
    } else if (GuardianTable::clock() - died_ >= options_.restart_wait_ms * 1'000'000) {
      end_connection(fmt::format("no daemon came within {} s", options_.restart_wait_ms / 1000));
    }
  }
  stop_reading();
  if (recovery_) recovery_->sync();
  if (!replaced_) door_.close();
  // What hung with the connection lets go now, and with it the ports of a daemon that is dead.
  for (int waited = 0;
       state_ == State::Alone && !replaced_ && ::getppid() == daemon_ && waited < kCorpseMs;
       waited += 10)
    ::poll(nullptr, 0, 10);
  if (visitor_.valid()) answer(visitor_, VisitorAnswer::Retired);
  return 0;
}

}  // namespace

int run_guardian(const GuardianOptions& options, GuardianTable& table, Fd link) {
  // Never destroyed: threads that purge for it may hang in the kernel until the process is gone.
  static Guardian* guardian = nullptr;
  guardian = std::make_unique<Guardian>(options, table, std::move(link)).release();
  return guardian->run();
}

}  // namespace vremote::node
