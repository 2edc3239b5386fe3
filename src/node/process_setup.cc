#include "node/process_setup.h"

#include <fmt/format.h>
#include <malloc.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <string_view>

#include "node/config/config_error.h"
#include "node/privileges.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57  // Linux 5.6
#endif

namespace vremote::node {
namespace {

spdlog::level::level_enum level_of(LogLevel level) {
  switch (level) {
    case LogLevel::Trace:
      return spdlog::level::trace;
    case LogLevel::Debug:
      return spdlog::level::debug;
    case LogLevel::Info:
      return spdlog::level::info;
    case LogLevel::Warn:
      return spdlog::level::warn;
    case LogLevel::Error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// What a node with a handful of others and a few open files needs; it then says itself that it has
// too few.
constexpr rlim_t kDescriptorsMin = 256;
// The guardian's table, and what is kept for recovery.
constexpr rlim_t kFileSizeMin = rlim_t{64} << 20;

[[noreturn]] void out_of_memory() {
  // Nothing that needs any.
  constexpr std::string_view kWhy =
      "vremote node: out of memory (ulimit -v, MemoryMax=): the daemon ends; its mount waits for "
      "the next start\n";
  (void)!::write(STDERR_FILENO, kWhy.data(), kWhy.size());
  ::_exit(1);
}

}  // namespace

Status start_log(const Config& config) {
  std::shared_ptr<spdlog::logger> logger;
  if (config.log_file.empty()) {
    logger = std::make_shared<spdlog::logger>(config.node,
                                              std::make_shared<spdlog::sinks::stderr_sink_mt>());
  } else {
    // The library throws when the file cannot be opened; errors of ours are values.
    try {
      logger = std::make_shared<spdlog::logger>(
          config.node, std::make_shared<spdlog::sinks::basic_file_sink_mt>(config.log_file));
    } catch (const spdlog::spdlog_ex& error) {
      return bad_key(config, "log.file", {EINVAL, error.what()});
    }
  }
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %L %n: %v");
  logger->set_level(level_of(config.log_level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
  return {};
}

void prepare_process() {
  if (const std::string why = drop_privileges(); !why.empty()) spdlog::warn("{}", why);
  if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0)
    spdlog::warn(
        "PR_SET_IO_FLUSHER refused ({}): under extreme memory pressure the node may wait for "
        "itself; it needs CAP_SYS_RESOURCE",
        strerror(errno));
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < files.rlim_max) {
    files.rlim_cur = files.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &files) != 0)
      spdlog::warn("the limit of open files stays at its soft value: {}", strerror(errno));
  }
  rlimit size{};
  if (getrlimit(RLIMIT_FSIZE, &size) == 0 && size.rlim_cur != RLIM_INFINITY) {
    const rlimit none{RLIM_INFINITY, RLIM_INFINITY}, most{size.rlim_max, size.rlim_max};
    if (setrlimit(RLIMIT_FSIZE, &none) != 0) (void)setrlimit(RLIMIT_FSIZE, &most);
    if (getrlimit(RLIMIT_FSIZE, &size) == 0 && size.rlim_cur != RLIM_INFINITY)
      spdlog::warn(
          "no file of the exports can become larger than {} bytes here (EFBIG): raise the limit "
          "(ulimit -f, LimitFSIZE=)",
          size.rlim_cur);
  }
  std::set_new_handler(out_of_memory);
  // Page buffers come and go by the megabyte: let the allocator keep them rather than ask the
  // kernel each time.
  mallopt(M_MMAP_THRESHOLD, 64 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
}

Status limits_are_fit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < kDescriptorsMin)
    return fail(EMFILE, fmt::format("this process may have {} descriptors, and a node needs {} at "
                                    "least: raise the limit (ulimit -n, LimitNOFILE=)",
                                    limit.rlim_cur, kDescriptorsMin));
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < kFileSizeMin)
    return fail(EFBIG, fmt::format("files of this process may have {} bytes, and a node needs {} "
                                   "at least: raise the limit (ulimit -f, LimitFSIZE=)",
                                   limit.rlim_cur, kFileSizeMin));
  return {};
}

int kernel_version() {
  utsname name{};
  int major = 0, minor = 0;
  if (uname(&name) != 0 || std::sscanf(name.release, "%d.%d", &major, &minor) != 2) return 0;
  return major * 1000 + minor;
}

}  // namespace vremote::node
