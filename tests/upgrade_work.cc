#include "upgrade_work.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>

#include "base/check.h"
#include "base/fd.h"
#include "faults_support.h"

namespace vremote::live {
namespace {

constexpr size_t kWorkersMax = 64;
constexpr size_t kWordsMax = 400;

std::string failed(const std::string& what) {
  return fmt::format("{}: {}", what, std::strerror(errno));
}

}  // namespace

struct Work::Shared {
  std::atomic<bool> stop{false};
  struct One {
    std::atomic<uint64_t> rounds{0};
    char words[kWordsMax] = {};
  };
  One each[kWorkersMax];
};

Work::Work() {
  void* memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  VR_CHECK(memory != MAP_FAILED);
  shared_ = new (memory) Shared;
}

Work::~Work() {
  (void)stop();
  ::munmap(shared_, sizeof(Shared));
}

void Work::add(const std::string& name, const std::function<Round()>& begin) {
  VR_CHECK(workers_.size() < kWorkersMax);
  Shared::One& mine = shared_->each[workers_.size()];
  const pid_t pid = in_child([&] {
    const Round round = begin();
    while (!shared_->stop) {
      const std::string wrong = round(mine.rounds);
      if (!wrong.empty()) {
        std::strncpy(mine.words, wrong.c_str(), kWordsMax - 1);
        return 1;
      }
      ++mine.rounds;
    }
    return 0;
  });
  workers_.push_back({name, pid, 0});
}

std::string Work::who_stands_still(uint64_t rounds) {
  std::string who;
  const auto all_moved = [&] {
    who.clear();
    for (size_t i = 0; i < workers_.size(); ++i) {
      const Shared::One& one = shared_->each[i];
      if (one.words[0] != 0) {
        who = fmt::format("{}: {}", workers_[i].name, one.words);
        return true;
      }
      if (one.rounds < workers_[i].seen + rounds) who += workers_[i].name + " ";
    }
    return who.empty();
  };
  (void)eventually(all_moved);
  for (size_t i = 0; i < workers_.size(); ++i) workers_[i].seen = shared_->each[i].rounds;
  return who;
}

std::string Work::stop() {
  shared_->stop = true;
  std::string words;
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].pid <= 0) continue;
    int status = 0;
    const bool ended =
        eventually([&] { return ::waitpid(workers_[i].pid, &status, WNOHANG) != 0; });
    if (!ended) {
      ::kill(workers_[i].pid, SIGKILL);
      words += workers_[i].name + ": hangs\n";
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      words +=
          fmt::format("{}: {} (status {:#x})\n", workers_[i].name, shared_->each[i].words, status);
    }
    workers_[i].pid = -1;
  }
  return words;
}

uint64_t Work::rounds(const std::string& name) const {
  for (size_t i = 0; i < workers_.size(); ++i)
    if (workers_[i].name == name) return shared_->each[i].rounds;
  return 0;
}

// ---- data

Work::Round writes_and_reads(const std::string& path, unsigned part) {
  auto fd = std::make_shared<Fd>(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
  return [fd, part](uint64_t round) -> std::string {
    std::string bytes(10'000, static_cast<char>('a' + round % 26));
    std::memcpy(bytes.data(), &round, sizeof round);
    const off_t at = static_cast<off_t>(part) * 40'000 + static_cast<off_t>(round % 3) * 10'000;
    if (::pwrite(fd->get(), bytes.data(), bytes.size(), at) != ssize_t(bytes.size()))
      return failed("pwrite");
    if (round % 8 == 0 && ::fsync(fd->get()) != 0) return failed("fsync");
    std::string found(bytes.size(), '\0');
    if (::pread(fd->get(), found.data(), found.size(), at) != ssize_t(found.size()))
      return failed("pread");
    return found == bytes ? "" : "other bytes were read than written";
  };
}

namespace {
constexpr size_t kRecord = 64;
}

Work::Round appends(const std::string& path, const std::string& who) {
  auto fd =
      std::make_shared<Fd>(::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666));
  return [fd, who](uint64_t round) -> std::string {
    std::string record = fmt::format("{} {} ", who, round);
    record.resize(kRecord - 1, '.');
    record += '\n';
    return ::write(fd->get(), record.data(), record.size()) == ssize_t(kRecord) ? ""
                                                                                : failed("append");
  };
}

std::string check_log(const std::string& log,
                      const std::vector<std::pair<std::string, uint64_t>>& written) {
  std::map<std::string, uint64_t> next;
  if (log.size() % kRecord != 0) return "a part of a record";
  for (size_t at = 0; at < log.size(); at += kRecord) {
    const std::string record = log.substr(at, kRecord);
    const size_t space = record.find(' ');
    if (space == std::string::npos || record.back() != '\n') return "no record: " + record;
    const std::string who = record.substr(0, space);
    const uint64_t number = std::strtoull(record.c_str() + space, nullptr, 10);
    if (next[who]++ != number)
      return fmt::format("record {} of {} at {}, where {} should be", number, who, at,
                         next[who] - 1);
  }
  for (const auto& [who, count] : written)
    if (next[who] != count)
      return fmt::format("{} records of {} are there, {} were written", next[who], who, count);
  return {};
}

Work::Round stores(const std::string& path, unsigned part, unsigned parts) {
  const Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  auto* pages = static_cast<volatile uint64_t*>(
      ::mmap(nullptr, parts * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  if (pages == MAP_FAILED) {
    const std::string why = failed("mmap");
    return [why](uint64_t) { return why; };
  }
  auto seen = std::make_shared<std::vector<uint64_t>>(parts);
  return [pages, part, parts, seen](uint64_t round) -> std::string {
    if (pages[part * 512] != round)
      return fmt::format("stored {} in page {}, loaded {}", round, part, pages[part * 512]);
    pages[part * 512] = round + 1;
    for (unsigned i = 0; i < parts; ++i) {
      const uint64_t now = pages[i * 512];
      if (now < (*seen)[i])
        return fmt::format("page {} went back from {} to {}", i, (*seen)[i], now);
      (*seen)[i] = now;
    }
    ::usleep(200);  // two nodes that never rest would hand the page back and forth alone
    return {};
  };
}

// ---- locks

Work::Round counts_under_a_lock(const std::string& path, LockBy how) {
  auto fd = std::make_shared<Fd>(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  return [fd, how](uint64_t) -> std::string {
    const auto set = [&](short type) {
      if (how == LockBy::Flock) return ::flock(fd->get(), type == F_UNLCK ? LOCK_UN : LOCK_EX);
      struct flock lock {};
      lock.l_type = type;
      lock.l_whence = SEEK_SET;
      lock.l_len = 8;
      return ::fcntl(fd->get(), how == LockBy::Ofd ? F_OFD_SETLKW : F_SETLKW, &lock);
    };
    if (set(F_WRLCK) != 0) return failed("lock");
    uint64_t count = 0;
    if (::pread(fd->get(), &count, sizeof count, 0) != sizeof count) return failed("pread");
    ::usleep(300);
    ++count;
    if (::pwrite(fd->get(), &count, sizeof count, 0) != sizeof count) return failed("pwrite");
    if (set(F_UNLCK) != 0) return failed("unlock");
    return {};
  };
}

// ---- names

Work::Round lists(const std::string& path, unsigned files) {
  return [path, files](uint64_t) -> std::string {
    DIR* dir = ::opendir(path.c_str());
    if (dir == nullptr) return failed("opendir");
    std::set<std::string> names;
    errno = 0;
    while (const dirent* entry = ::readdir(dir)) {
      if (entry->d_name[0] == '.') continue;
      if (!names.insert(entry->d_name).second) {
        ::closedir(dir);
        return fmt::format("{} was listed twice", entry->d_name);
      }
      if (names.size() % 64 == 0) ::usleep(500);
    }
    const int error = errno;
    ::closedir(dir);
    errno = error;
    if (error != 0) return failed("readdir");
    if (names.size() != files) return fmt::format("{} files were listed", names.size());
    struct stat st {};
    if (::stat((path + "/" + *names.begin()).c_str(), &st) != 0) return failed("stat");
    return {};
  };
}

Work::Round uses_a_nameless_file(const std::string& path) {
  auto fd = std::make_shared<Fd>(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  std::string why = fd->valid() ? "" : failed("open");
  if (why.empty() && ::unlink(path.c_str()) != 0) why = failed("unlink");
  return [fd, why](uint64_t round) -> std::string {
    if (!why.empty()) return why;
    uint64_t found = 0;
    if (round > 0 &&
        (::pread(fd->get(), &found, sizeof found, 4096) != sizeof found || found != round - 1))
      return failed(fmt::format("the file without a name has {} instead of {}", found, round - 1));
    if (::pwrite(fd->get(), &round, sizeof round, 4096) != sizeof round) return failed("pwrite");
    if (round % 16 == 0 && ::fsync(fd->get()) != 0) return failed("fsync");
    struct stat st {};
    if (::fstat(fd->get(), &st) != 0 || st.st_nlink != 0) return failed("fstat");
    ::usleep(1000);
    return {};
  };
}

Work::Round makes_and_removes(const std::string& directory, const std::string& who) {
  return [base = directory + "/" + who](uint64_t round) -> std::string {
    const std::string name = fmt::format("{}-{}", base, round);
    const std::string other = name + "-renamed", dir = name + "-dir", link = name + "-link";
    {
      const Fd fd(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
      if (!fd.valid()) return failed("create");
      if (::write(fd.get(), "x", 1) != 1) return failed("write");
      if (::fchmod(fd.get(), 0600) != 0) return failed("fchmod");
      if (::ftruncate(fd.get(), 5000) != 0) return failed("ftruncate");
    }
    if (::link(name.c_str(), link.c_str()) != 0) return failed("link");
    if (::rename(name.c_str(), other.c_str()) != 0) return failed("rename");
    if (::mkdir(dir.c_str(), 0755) != 0) return failed("mkdir");
    struct stat st {};
    if (::stat(other.c_str(), &st) != 0) return failed("stat");
    if (st.st_size != 5000 || st.st_nlink != 2 || (st.st_mode & 07777) != 0600)
      return fmt::format("size {}, {} names, mode {:o}", st.st_size, st.st_nlink, st.st_mode);
    if (::rmdir(dir.c_str()) != 0) return failed("rmdir");
    if (::unlink(link.c_str()) != 0) return failed("unlink");
    if (::unlink(other.c_str()) != 0) return failed("unlink");
    if (::stat(other.c_str(), &st) == 0 || errno != ENOENT) return failed("it is still there");
    return {};
  };
}

}  // namespace vremote::live
