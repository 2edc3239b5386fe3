#include "node/process_setup.h"

#include <malloc.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

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
  // Page buffers come and go by the megabyte: let the allocator keep them rather than ask the
  // kernel each time.
  mallopt(M_MMAP_THRESHOLD, 64 << 20);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
}

int kernel_version() {
  utsname name{};
  int major = 0, minor = 0;
  if (uname(&name) != 0 || std::sscanf(name.release, "%d.%d", &major, &minor) != 2) return 0;
  return major * 1000 + minor;
}

}  // namespace vremote::node
