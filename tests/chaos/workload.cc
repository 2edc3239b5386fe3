#include "chaos/workload.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <new>
#include <optional>
#include <sstream>
#include <utility>

#include "base/fd.h"
#include "base/prng.h"

namespace vremote::chaos {
namespace {

constexpr size_t kPage = 4096;
using Page = std::array<uint64_t, kPage / 8>;

void fill(Page& page, uint64_t value) { page.fill(value); }
// Whether all of it is one value.
bool whole(const Page& page) {
  return std::all_of(page.begin(), page.end(), [&](uint64_t word) { return word == page[0]; });
}

std::string register_name(size_t origin) { return fmt::format("registers{}", origin); }
size_t origin_of(const Plan& plan, size_t reg) { return (reg / plan.nodes + reg) % plan.nodes; }
size_t writer_node(const Plan& plan, size_t reg) { return reg % plan.nodes; }

// Raises the floor to `value` unless a disturbance has come since `epoch`.
void raise(Register& r, uint64_t epoch, uint64_t value) {
  uint64_t old = r.floor_word;
  while (old >> 40 == epoch && (old & Register::kValueMask) < value &&
         !r.floor_word.compare_exchange_weak(old, epoch << 40 | value)) {
  }
}
// In whatever epoch: it is on the origin's disk.
void raise_synced(Register& r, uint64_t value) {
  uint64_t old = r.floor_word;
  while ((old & Register::kValueMask) < value &&
         !r.floor_word.compare_exchange_weak(old, (old >> 40) << 40 | value)) {
  }
}

void pause_after_error() { ::usleep(20'000); }

// Reading a mapping whose node is gone raises SIGBUS.
thread_local sigjmp_buf on_bus;
void bus(int) { siglongjmp(on_bus, 1); }

struct Worker {
  const Plan& plan;
  const Job& job;
  Shared& shared;
  Process& self;
  size_t process;
  Prng random;

  bool count(bool ok) {
    self.calls.fetch_add(1, std::memory_order_relaxed);
    if (ok) return true;
    const int error = errno;
    if (error == ENOTCONN || error == ECONNABORTED) ++self.cut_off;
    self.errors.fetch_add(1, std::memory_order_relaxed);
    if (plan.only_full && going() && (job.role != Role::Appender || error != ENOSPC))
      shared.fail(fmt::format("process {} on node{}: {}, and that has nothing to do with the disk",
                              process, job.node + 1, std::strerror(error)));
    return false;
  }
  bool going() const { return !shared.stop && !shared.failed; }

  void write_register();
  void read_registers();
  void append();
  void lock();
  struct Seen {
    uint64_t floor_word = 0, durable = 0;
  };
  Seen seen(size_t reg) const {
    const Register& r = shared.registers[reg];
    const uint64_t durable = r.durable;
    return {r.floor_word, durable};
  }
  void check(size_t reg, const Page& page, const Seen& before, bool mapped);
};

void Worker::write_register() {
  const size_t reg = job.number;
  Register& r = shared.registers[reg];
  const std::string path =
      plan.path(job.node, origin_of(plan, reg), register_name(origin_of(plan, reg)));
  const off_t at = static_cast<off_t>(reg * kPage);
  auto& disturbed = shared.disturbed[job.node][origin_of(plan, reg)];
  Fd fd;
  Page page;
  uint64_t value = 0;
  // The floor rises again when something written after a disturbance has been synced.
  uint64_t synced_in = 0;
  while (going()) {
    if (!fd.valid()) {
      fd = Fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
      if (!count(fd.valid())) {
        pause_after_error();
        continue;
      }
    }
    const uint64_t before = disturbed;
    fill(page, ++value);
    r.started = value;
    if (!count(::pwrite(fd.get(), page.data(), kPage, at) == static_cast<ssize_t>(kPage))) {
      fd.reset();
      pause_after_error();
      continue;
    }
    if (before % 2 == 0 && synced_in == before) raise(r, before, value);
    if (random.chance(10)) {
      if (!count(::fsync(fd.get()) == 0)) {
        fd.reset();
        pause_after_error();
        continue;
      }
      shared.syncs.fetch_add(1, std::memory_order_relaxed);
      r.durable = value;
      raise_synced(r, value);
      synced_in = before;
    }
    if (random.chance(3)) fd.reset();
    if (random.chance(30)) ::usleep(static_cast<useconds_t>(random.below(2000)));
  }
}

void Worker::check(size_t reg, const Page& page, const Seen& before, bool mapped) {
  // A disturbance while the read was under way: it may have waited for the one that was put out.
  const bool same = shared.registers[reg].floor_word >> 40 == before.floor_word >> 40;
  const uint64_t floor = same ? before.floor_word & Register::kValueMask : before.durable;
  const uint64_t highest = shared.registers[reg].started;
  if (!whole(page)) {
    // A load of a mapping is atomic by word only.
    if (!mapped)
      shared.fail(fmt::format("node{} read a torn page of register {}: {} and {}", job.node + 1,
                              reg, page[0], page.back()));
    return;
  }
  if (page[0] >= floor && page[0] <= highest) return;
  shared.fail(fmt::format(
      "node{} {} {} in register {} (of node{}, at node{}'s disk), when {} had been written and {} "
      "begun",
      job.node + 1, mapped ? "loaded" : "read", page[0], reg, writer_node(plan, reg) + 1,
      origin_of(plan, reg) + 1, floor, highest));
}

void Worker::read_registers() {
  struct Open {
    Fd fd;
    void* map = MAP_FAILED;
  };
  std::vector<Open> files(plan.nodes);
  auto forget = [](Open& file) {
    if (file.map != MAP_FAILED) ::munmap(std::exchange(file.map, MAP_FAILED), kWritersMax * kPage);
    file.fd.reset();
  };
  struct sigaction action {};
  action.sa_handler = bus;
  action.sa_flags = SA_NODEFER;
  ::sigaction(SIGBUS, &action, nullptr);
  Page page;
  while (going()) {
    const size_t reg = random.below(plan.registers());
    const size_t origin = origin_of(plan, reg);
    Open& file = files[origin];
    if (!file.fd.valid()) {
      file.fd = Fd(
          ::open(plan.path(job.node, origin, register_name(origin)).c_str(), O_RDONLY | O_CLOEXEC));
      if (!count(file.fd.valid())) {
        pause_after_error();
        continue;
      }
    }
    const bool mapped = random.chance(40);
    if (mapped && file.map == MAP_FAILED)
      file.map = ::mmap(nullptr, kWritersMax * kPage, PROT_READ, MAP_SHARED, file.fd.get(), 0);
    const Seen before = seen(reg);
    if (mapped && file.map != MAP_FAILED) {
      if (sigsetjmp(on_bus, 0) != 0) {
        errno = EIO;
        count(false);
        forget(file);
        pause_after_error();
        continue;
      }
      std::memcpy(page.data(), static_cast<std::byte*>(file.map) + reg * kPage, kPage);
      shared.mapped_reads.fetch_add(1, std::memory_order_relaxed);
    } else if (!count(::pread(file.fd.get(), page.data(), kPage, static_cast<off_t>(reg * kPage)) ==
                      static_cast<ssize_t>(kPage))) {
      forget(file);
      pause_after_error();
      continue;
    }
    check(reg, page, before, mapped);
    shared.reads.fetch_add(1, std::memory_order_relaxed);
    if (random.chance(2)) forget(file);
    if (random.chance(5)) ::usleep(static_cast<useconds_t>(random.below(1000)));
  }
}

// A record: length of all of it, writer, number, and a body that both decide.
struct RecordHead {
  uint32_t length = 0, writer = 0;
  uint64_t number = 0;
};
constexpr size_t kRecordMax = 6000;

std::vector<std::byte> record(uint32_t writer, uint64_t number) {
  const size_t body = 8 + (number * 2654435761u + writer * 40503u) % (kRecordMax - 100);
  std::vector<std::byte> bytes(sizeof(RecordHead) + body);
  const RecordHead head{static_cast<uint32_t>(bytes.size()), writer, number};
  std::memcpy(bytes.data(), &head, sizeof head);
  for (size_t i = 0; i < body; ++i)
    bytes[sizeof head + i] = static_cast<std::byte>(number * 31 + writer * 7 + i);
  return bytes;
}

void Worker::append() {
  Log& log = shared.logs[job.number];
  Fd fd;
  uint64_t number = 0;
  while (going()) {
    if (!fd.valid()) {
      // All in one file: of the first node.
      fd = Fd(::open(plan.path(job.node, 0, "log").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
      if (!count(fd.valid())) {
        pause_after_error();
        continue;
      }
    }
    const auto bytes = record(static_cast<uint32_t>(job.number), ++number);
    log.started = number;
    if (!count(::write(fd.get(), bytes.data(), bytes.size()) ==
               static_cast<ssize_t>(bytes.size())) ||
        !count(::fsync(fd.get()) == 0)) {
      fd.reset();
      pause_after_error();
      continue;
    }
    shared.appends.fetch_add(1, std::memory_order_relaxed);
    log.durable = number;
    ::usleep(static_cast<useconds_t>(random.below(20'000)));
  }
}

void Worker::lock() {
  Fd fd;
  size_t origin = 0;
  while (going()) {
    if (!fd.valid()) {
      origin = random.below(plan.nodes);
      fd = Fd(::open(plan.path(job.node, origin, "lock").c_str(), O_RDWR | O_CLOEXEC));
      if (!count(fd.valid())) {
        pause_after_error();
        continue;
      }
    }
    struct flock wanted {};
    wanted.l_type = F_WRLCK;
    if (!count(::fcntl(fd.get(), F_OFD_SETLKW, &wanted) == 0)) {
      fd.reset();
      pause_after_error();
      continue;
    }
    const uint64_t deaths = shared.deaths[job.node];
    const uint64_t state = shared.disturbed[job.node][origin];
    // Who held it, and how well its node was then.
    const uint64_t mine = (uint64_t{process} + 1) << 48 | uint64_t{job.node} << 40 | state;
    const uint64_t other = shared.holders[origin].word.exchange(mine);
    if (other != 0) {
      const size_t other_node = other >> 40 & 0xff;
      const uint64_t other_state = other & 0xff'ffff'ffff;
      // Still well since it took the lock: it cannot have lost it.
      if (other_state % 2 == 0 && shared.disturbed[other_node][origin] == other_state)
        shared.fail(fmt::format("processes {} (node{}) and {} (node{}) hold one lock of node{}",
                                process, job.node + 1, (other >> 48) - 1, other_node + 1,
                                origin + 1));
    }
    shared.locks.fetch_add(1, std::memory_order_relaxed);
    ::usleep(static_cast<useconds_t>(random.below(3000)));
    uint64_t expected = mine;
    shared.holders[origin].word.compare_exchange_strong(expected, 0);
    wanted.l_type = F_UNLCK;
    const bool died = shared.deaths[job.node] != deaths;
    const bool given_back = count(::fcntl(fd.get(), F_OFD_SETLK, &wanted) == 0);
    if (died && given_back)
      shared.fail(
          fmt::format("process {} was not told that its lock died with the daemon of node{}",
                      process, job.node + 1));
    if (!given_back || random.chance(20)) fd.reset();
    ::usleep(static_cast<useconds_t>(random.below(3000)));
  }
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return file ? text.str() : std::string();
}

// The whole record at this place, if one is there.
std::optional<RecordHead> record_at(const Plan& plan, const std::string& text, size_t at,
                                    const Shared& shared) {
  RecordHead head;
  if (text.size() - at < sizeof head) return std::nullopt;
  std::memcpy(&head, text.data() + at, sizeof head);
  if (head.writer >= plan.nodes || head.number == 0 || head.length > kRecordMax ||
      head.number > shared.logs[head.writer].started)
    return std::nullopt;
  const auto expected = record(head.writer, head.number);
  if (text.size() - at < expected.size() ||
      std::memcmp(text.data() + at, expected.data(), expected.size()) != 0)
    return std::nullopt;
  return head;
}

std::string judge_log(const Plan& plan, const std::string& text, const Shared& shared) {
  std::map<uint32_t, uint64_t> last;
  std::map<uint32_t, std::vector<bool>> seen;
  for (size_t at = 0; at < text.size();) {
    const auto found = record_at(plan, text, at, shared);
    if (!found) {
      if (shared.disturbances == 0 && !shared.disk_was_full)
        return fmt::format("at {} of the log is no whole record", at);
      ++at;
      continue;
    }
    const RecordHead& head = *found;
    if (head.number <= last[head.writer])
      return fmt::format("record {} of writer {} comes after its record {}", head.number,
                         head.writer, last[head.writer]);
    last[head.writer] = head.number;
    auto& there = seen[head.writer];
    there.resize(std::max<size_t>(there.size(), head.number + 1));
    there[head.number] = true;
    at += head.length;
  }
  for (uint32_t writer = 0; writer < plan.nodes; ++writer) {
    const uint64_t durable = shared.logs[writer].durable;
    if (durable > 0 && (seen[writer].size() <= durable || !seen[writer][durable]))
      return fmt::format("record {} of writer {} was synced and is not in the log", durable,
                         writer);
  }
  return {};
}

}  // namespace

Shared* Shared::create() {
  void* memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? nullptr : new (memory) Shared;
}

void Shared::fail(const std::string& what) {
  if (failed.exchange(true)) return;
  std::strncpy(failure, what.c_str(), sizeof failure - 1);
}

std::string Plan::path(size_t node, size_t origin, const std::string& name) const {
  return fmt::format("{}/node{}/mnt/node{}/{}", dir, node + 1, origin + 1, name);
}

std::vector<Job> jobs_of(const Plan& plan) {
  std::vector<Job> jobs;
  for (size_t reg = 0; reg < plan.registers(); ++reg)
    jobs.push_back({Role::Writer, writer_node(plan, reg), reg});
  for (size_t node = 0; node < plan.nodes; ++node) {
    jobs.push_back({Role::Reader, node, 2 * node});
    jobs.push_back({Role::Reader, node, 2 * node + 1});
    jobs.push_back({Role::Appender, node, node});
    jobs.push_back({Role::Locker, node, 2 * node});
    jobs.push_back({Role::Locker, node, 2 * node + 1});
  }
  return jobs;
}

void work(const Plan& plan, const Job& job, size_t process, Shared& shared) {
  Worker worker{
      plan, job, shared, shared.processes[process], process, Prng(plan.seed * 1000 + process)};
  while (!shared.go) ::usleep(10'000);
  switch (job.role) {
    case Role::Writer:
      worker.write_register();
      break;
    case Role::Reader:
      worker.read_registers();
      break;
    case Role::Appender:
      worker.append();
      break;
    case Role::Locker:
      worker.lock();
      break;
  }
  shared.processes[process].finished = 1;
}

void set_epoch(const Plan& plan, size_t node, size_t origin, uint64_t epoch, Shared& shared) {
  shared.disturbed[node][origin] = epoch;
  for (size_t reg = 0; reg < plan.registers(); ++reg) {
    Register& r = shared.registers[reg];
    if (writer_node(plan, reg) != node || origin_of(plan, reg) != origin) continue;
    // Its durable value may rise meanwhile; then its writer raises this, too.
    r.floor_word = epoch << 40 | r.durable;
  }
}

void disturb(const Plan& plan, size_t node, size_t origin, Shared& shared) {
  ++shared.disturbances;
  const uint64_t epoch = shared.disturbed[node][origin];
  if (epoch % 2 == 0) set_epoch(plan, node, origin, epoch + 1, shared);
}

void is_well(const Plan& plan, Shared& shared) {
  for (size_t node = 0; node < plan.nodes; ++node)
    for (size_t origin = 0; origin < plan.nodes; ++origin)
      if (const uint64_t epoch = shared.disturbed[node][origin]; epoch % 2 == 1)
        set_epoch(plan, node, origin, epoch + 1, shared);
}

std::string judge(const Plan& plan, Shared& shared) {
  for (size_t node = 0; node < plan.nodes; ++node) {
    for (size_t reg = 0; reg < plan.registers(); ++reg) {
      const size_t origin = origin_of(plan, reg);
      const Fd fd(::open(plan.path(node, origin, register_name(origin)).c_str(), O_RDONLY));
      Page page;
      if (!fd.valid() || ::pread(fd.get(), page.data(), kPage, static_cast<off_t>(reg * kPage)) !=
                             static_cast<ssize_t>(kPage))
        return fmt::format("node{} cannot read register {}: {}", node + 1, reg,
                           std::strerror(errno));
      const Register& r = shared.registers[reg];
      if (!whole(page) || page[0] < r.floor() || page[0] > r.started)
        return fmt::format("node{} has {} in register {} at the end: {} had been written, {} begun",
                           node + 1, page[0], reg, r.floor(), r.started.load());
    }
    if (const std::string wrong = judge_log(plan, read_file(plan.path(node, 0, "log")), shared);
        !wrong.empty())
      return fmt::format("{} (through node{})", wrong, node + 1);
  }
  return {};
}

}  // namespace vremote::chaos
