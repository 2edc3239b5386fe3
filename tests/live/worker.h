// One hammering process: does random calls on the files until told to stop, and writes down what it
// saw.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/prng.h"
#include "live/shared.h"

namespace vremote::live {

// The files' names below the directory all nodes share.
std::string register_file(unsigned file);
inline constexpr const char* kAppendName = "appends";
inline constexpr const char* kSharedName = "name";

class Worker {
 public:
  // `dir`: the shared directory on the mount of the process's node.
  Worker(Shared& shared, unsigned process, std::string dir);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void run();

 private:
  struct File {
    Fd cached, writer, o_direct;  // writer: O_WRONLY, or O_RDWR of a mapped file
    std::byte* map = nullptr;
  };
  using Interval = std::pair<uint64_t, uint64_t>;

  void open_files();
  void one_call();
  void register_call(unsigned file);

  // worker_registers.cc
  void cached_read(unsigned file);
  void reopened_read(unsigned file);
  void o_direct_read(unsigned file);
  void read_write_handle(unsigned file);
  void spliced_read(unsigned file);
  void write_cells(unsigned file, int fd);
  void mapped_load(unsigned file);
  void mapped_store(unsigned file);
  void drop_or_advise(unsigned file);
  void truncate_mapped(unsigned file);
  void saw(unsigned file, How how, Interval when, uint64_t first_page,
           std::span<const std::byte> bytes);
  void read_at(unsigned file, How how, int fd, uint64_t first_page, uint64_t pages);

  // worker_others.cc
  void append();
  void read_appends();
  void rename_over();
  void read_name();
  void take_lock();
  void truncated_file();

  // Runs `call`, with the time around it known to the watchdog.
  template <typename Call>
  auto timed(const char* what, Interval& when, Call call) {
    log_.doing = what;
    when.first = now_ns();
    log_.doing_since.store(when.first, std::memory_order_relaxed);
    auto result = call();
    const int error = errno;
    when.second = now_ns();
    log_.doing_since.store(0, std::memory_order_relaxed);
    log_.calls.fetch_add(1, std::memory_order_relaxed);
    errno = error;
    return result;
  }
  void note(const Op& op);
  void note_read(const Op& op);
  void failed(const char* call, unsigned file, int64_t result, int64_t wanted);
  std::string path(const std::string& name) const { return dir_ + "/" + name; }
  uint64_t random_page() { return random_.below(settings_.pages); }

  Shared& shared_;
  const Settings settings_;
  ProcessLog& log_;
  const unsigned process_;
  const std::string dir_;
  Prng random_;
  uint64_t writes_ = 0;
  std::vector<File> files_;
  Fd append_writer_, append_reader_;
  uint64_t append_parsed_ = 0;
  uint64_t append_records_ = 0;
  std::map<std::pair<unsigned, uint64_t>, uint32_t>
      last_read_;                // (file; page, cells and kind) -> its place in the log
  std::byte* buffer_ = nullptr;  // page-aligned
  // Truncations.
  uint64_t started_ = 0;
  unsigned epoch_ = UINT32_MAX;
  unsigned epoch_ops_ = 0;
  Fd truncated_reader_, truncated_writer_;
};

inline constexpr size_t kBufferSize = 1 << 20;

// A record of the append file: length, process, number, and a body made of them.
inline constexpr uint32_t kRecordMagic = 0x56524150;
struct RecordHead {
  uint32_t magic = kRecordMagic;
  uint32_t length = 0;  // with the head; a multiple of 8
  uint32_t process = 0;
  uint32_t number = 0;
};
void make_record(std::span<std::byte> out, uint32_t process, uint32_t number);
// Length of the whole and sound record at the begin of `bytes`; 0: there is none.
uint32_t sound_record(std::span<const std::byte> bytes);

}  // namespace vremote::live
