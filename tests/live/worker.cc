#include "live/worker.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace vremote::live {

std::string register_file(unsigned file) { return fmt::format("registers-{}", file); }

Worker::Worker(Shared& shared, unsigned process, std::string dir)
    : shared_(shared),
      settings_(shared.settings),
      log_(shared.logs[process]),
      process_(process),
      dir_(std::move(dir)),
      random_(shared.settings.seed * 1000003 + process) {
  void* memory =
      ::mmap(nullptr, kBufferSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  VR_CHECK(memory != MAP_FAILED);
  buffer_ = static_cast<std::byte*>(memory);
}

Worker::~Worker() {
  for (File& file : files_)
    if (file.map != nullptr) ::munmap(file.map, settings_.pages * kPageSize);
  ::munmap(buffer_, kBufferSize);
}

void Worker::open_files() {
  for (unsigned f = 0; f < settings_.files; ++f) {
    const std::string name = path(register_file(f));
    File file;
    file.cached = Fd(::open(name.c_str(), O_RDONLY | O_CLOEXEC));
    file.writer =
        Fd(::open(name.c_str(), (is_mapped(settings_, f) ? O_RDWR : O_WRONLY) | O_CLOEXEC));
    file.o_direct = Fd(::open(name.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
    if (!file.cached.valid() || !file.writer.valid() || !file.o_direct.valid()) {
      failed("open", f, -1, 0);
      return;
    }
    if (is_mapped(settings_, f)) {
      void* map = ::mmap(nullptr, settings_.pages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED,
                         file.writer.get(), 0);
      if (map == MAP_FAILED) {
        failed("mmap", f, -1, 0);
        return;
      }
      file.map = static_cast<std::byte*>(map);
    }
    files_.push_back(std::move(file));
  }
  append_writer_ = Fd(::open(path(kAppendName).c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  append_reader_ = Fd(::open(path(kAppendName).c_str(), O_RDONLY | O_CLOEXEC));
  if (!append_writer_.valid() || !append_reader_.valid()) failed("open", kAppendFile, -1, 0);
}

void Worker::run() {
  open_files();
  while (!shared_.go && !shared_.stop) ::usleep(1000);
  started_ = now_ns();
  while (!shared_.stop && log_.count < kLogMax - 64) one_call();
  log_.done = true;
}

void Worker::one_call() {
  const uint64_t dice = random_.below(100);
  if (settings_.appends && dice < 6) return append();
  if (settings_.appends && dice < 9) return read_appends();
  if (settings_.names && dice < 13) return rename_over();
  if (settings_.names && dice < 17) return read_name();
  if (settings_.names && dice < 20) return take_lock();
  if (settings_.truncate && dice < 35) return truncated_file();
  register_call(static_cast<unsigned>(random_.below(settings_.files)));
}

void Worker::register_call(unsigned f) {
  const uint64_t dice = random_.below(100);
  if (is_mapped(settings_, f)) {
    if (settings_.truncate && random_.below(40) == 0) return truncate_mapped(f);
    if (dice < 25) return mapped_load(f);
    if (dice < 50) return mapped_store(f);
    if (dice < 65) return cached_read(f);
    if (dice < 80) return write_cells(f, files_[f].writer.get());
    if (dice < 92) return o_direct_read(f);
    if (dice < 97) return reopened_read(f);
    return drop_or_advise(f);
  }
  if (dice < 50) return cached_read(f);
  if (dice < 75) return write_cells(f, files_[f].writer.get());
  if (dice < 82) return o_direct_read(f);
  if (dice < 89) return reopened_read(f);
  if (dice < 94) return read_write_handle(f);
  if (dice < 97) return spliced_read(f);
  drop_or_advise(f);
}

void Worker::note(const Op& op) {
  const uint32_t at = log_.count.load(std::memory_order_relaxed);
  if (at >= kLogMax) return;
  log_.ops[at] = op;
  log_.ops[at].process = static_cast<uint8_t>(process_);
  log_.ops[at].last_begin = op.begin;
  log_.ops[at].last_end = op.end;
  log_.count.store(at + 1, std::memory_order_release);
}

// Equal reads one after another say no more than the first and the last of them.
void Worker::note_read(const Op& op) {
  const uint64_t place =
      uint64_t{op.page} << 16 | uint64_t{op.cells} << 8 | static_cast<uint64_t>(op.how);
  auto [it, fresh] =
      last_read_.try_emplace({op.file, place}, log_.count.load(std::memory_order_relaxed));
  if (!fresh) {
    Op& last = log_.ops[it->second];
    if (last.values == op.values) {
      last.last_begin = op.begin;
      last.last_end = op.end;
      return;
    }
    it->second = log_.count.load(std::memory_order_relaxed);
  }
  note(op);
}

void Worker::failed(const char* call, unsigned file, int64_t result, int64_t wanted) {
  shared_.fail(fmt::format("process {}: {} of file {} gave {} instead of {}{}{}", process_, call,
                           file, result, wanted, result < 0 ? ": " : "",
                           result < 0 ? std::strerror(errno) : ""));
}

}  // namespace vremote::live
