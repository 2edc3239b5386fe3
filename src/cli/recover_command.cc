// vremote recover: what a node had written and may not flush any more, because its leases were
// gone.
#include <dirent.h>
#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "cli/commands.h"
#include "node/config/config.h"
#include "node/recovery/recovery_file.h"

namespace vremote::cli {
namespace {

constexpr size_t kFilesMax = 100'000;

struct Options {
  std::string config, directory, id, to;
  bool force = false;
};

Result<std::string> directory_of(const Options& options) {
  if (!options.directory.empty()) return options.directory;
  if (options.config.empty()) return std::string(node::kDefaultRecoveryDir);
  VR_TRY(config, node::read_config(options.config));
  return config.recovery_dir;
}

std::string time_text(int64_t seconds) {
  const time_t t = static_cast<time_t>(seconds);
  tm parts{};
  if (::localtime_r(&t, &parts) == nullptr) return "?";
  return fmt::format("{:%Y-%m-%d %H:%M:%S}", parts);
}

struct Kept {
  std::string id;
  node::RecoveryHeader header;
  node::RecoverySummary summary;
};

Result<Fd> open_kept(const std::string& directory, const std::string& id) {
  if (id.empty() || id.starts_with('.') || id.find('/') != std::string::npos)
    return fail(EINVAL, fmt::format("'{}' is no id; `vremote recover list` shows them", id));
  const std::string path = fmt::format("{}/{}{}", directory, id, node::kRecoverySuffix);
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid() && errno == ENOENT)
    return fail(ENOENT,
                fmt::format("nothing is kept as '{}' in {}; `vremote recover --dir {} list` "
                            "shows what is",
                            id, directory, directory));
  if (!fd.valid()) return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  return fd;
}

Result<Kept> look(const std::string& directory, const std::string& id,
                  const std::function<Status(const node::RecoveryPiece&)>& piece = {}) {
  VR_TRY(fd, open_kept(directory, id));
  Kept kept{.id = id, .header = {}, .summary = {}};
  auto header = node::read_recovery(fd, piece, kept.summary);
  if (!header)
    return fail(header.error().code,
                fmt::format("{}/{}{}: {}", directory, id, node::kRecoverySuffix,
                            header.error().what.empty() ? std::strerror(header.error().code)
                                                        : header.error().what));
  kept.header = std::move(*header);
  return kept;
}

std::string name_of(const Kept& kept) {
  return kept.header.path.empty()
             ? fmt::format("inode {} of export {} of {}", kept.header.file.inode,
                           kept.header.file.export_index, kept.header.home)
             : kept.header.path;
}

int list(const std::string& directory, const Options& options) {
  std::vector<std::string> ids;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == node::kRecoverySuffix) ids.push_back(it->path().stem().string());
    if (ids.size() >= kFilesMax) break;
  }
  if (error && error.value() != ENOENT)
    return complain("recover", fmt::format("{}: {}", directory, error.message()), kExitFailed);
  std::ranges::sort(ids);
  int status = 0;
  for (const std::string& id : ids) {
    auto kept = look(directory, id);
    if (!kept) {
      status = complain("recover", kept.error().what, kExitFailed);
      continue;
    }
    fmt::print("{}  {}  {} bytes  {}{}\n", id,
               time_text(static_cast<int64_t>(kept->header.saved_at)), kept->summary.bytes,
               name_of(*kept), kept->summary.damaged ? "  (its end is damaged)" : "");
  }
  if (ids.empty()) {
    // Nobody must take the emptiness of a place that no node uses for good news.
    const bool guessed = options.directory.empty() && options.config.empty();
    fmt::print("nothing was kept in {}{}{}\n", directory, error ? ", which does not exist" : "",
               guessed ? "; a node that keeps it elsewhere is named with --config FILE" : "");
  }
  return status;
}

int show(const std::string& directory, const Options& options) {
  auto kept = look(directory, options.id, [](const node::RecoveryPiece& piece) -> Status {
    fmt::print("  {} bytes at {}\n", piece.bytes.size(), piece.offset);
    return {};
  });
  if (!kept) return complain("recover", kept.error().what, kExitFailed);
  fmt::print("file      {}\nhome      {}\nkept      {}\n", name_of(*kept), kept->header.home,
             time_text(static_cast<int64_t>(kept->header.saved_at)));
  if (kept->summary.attributes.has_mtime)
    fmt::print("written   {}\n", time_text(kept->summary.attributes.mtime.seconds));
  if (kept->summary.attributes.has_size)
    fmt::print("size      {} (as its writer knew it)\n", kept->summary.attributes.size);
  fmt::print("bytes     {} in {} pieces, up to {}\n", kept->summary.bytes, kept->summary.pieces,
             kept->summary.end);
  if (kept->summary.damaged) fmt::print("damaged   what followed cannot be read\n");
  return 0;
}

Status write_piece(const Fd& fd, const node::RecoveryPiece& piece) {
  std::span<const std::byte> left = piece.bytes;
  uint64_t at = piece.offset;
  while (!left.empty()) {
    const ssize_t n = ::pwrite(fd.get(), left.data(), left.size(), static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(n < 0 ? errno : EIO, std::strerror(n < 0 ? errno : EIO));
    left = left.subspan(static_cast<size_t>(n));
    at += static_cast<uint64_t>(n);
  }
  return {};
}

// Through the mount, like any program: all nodes see it.
int apply(const std::string& directory, const Options& options) {
  auto kept = look(directory, options.id);
  if (!kept) return complain("recover", kept.error().what, kExitFailed);
  const std::string target = options.to.empty() ? kept->header.path : options.to;
  if (target.empty())
    return complain(
        "recover",
        fmt::format("where {} was is not known; name the file with --to", name_of(*kept)),
        kExitUsage);
  Fd fd(::open(target.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat st {};
  if (!fd.valid() || ::fstat(fd.get(), &st) != 0)
    return complain("recover", fmt::format("{}: {}", target, std::strerror(errno)), kExitFailed);
  if (!S_ISREG(st.st_mode))
    return complain("recover", fmt::format("{}: not a regular file", target), kExitFailed);
  if (options.to.empty() && kept->header.shown_inode != 0 && kept->header.shown_inode != st.st_ino)
    return complain("recover",
                    fmt::format("{} is another file now; name the right one with --to", target),
                    kExitFailed);
  const Timestamp changed{st.st_mtim.tv_sec, static_cast<uint32_t>(st.st_mtim.tv_nsec)};
  if (!options.force && kept->summary.attributes.has_mtime &&
      kept->summary.attributes.mtime < changed)
    return complain(
        "recover",
        fmt::format("{} was changed on {}, after these bytes were written ({}); --force "
                    "writes over it",
                    target, time_text(changed.seconds),
                    time_text(kept->summary.attributes.mtime.seconds)),
        kExitFailed);
  auto done = look(directory, options.id,
                   [&](const node::RecoveryPiece& piece) { return write_piece(fd, piece); });
  if (!done)
    return complain("recover", fmt::format("{}: {}", target, done.error().what), kExitFailed);
  if (::fsync(fd.get()) != 0)
    return complain("recover", fmt::format("{}: fsync: {}", target, std::strerror(errno)),
                    kExitFailed);
  fmt::print("{} bytes written to {}; `vremote recover --dir {} discard {}` removes the copy\n",
             done->summary.bytes, target, directory, options.id);
  return 0;
}

int discard(const std::string& directory, const Options& options) {
  if (auto fd = open_kept(directory, options.id); !fd)
    return complain("recover", fd.error().what, kExitFailed);
  const std::string path = fmt::format("{}/{}{}", directory, options.id, node::kRecoverySuffix);
  if (::unlink(path.c_str()) != 0)
    return complain("recover", fmt::format("{}: {}", path, std::strerror(errno)), kExitFailed);
  return 0;
}

}  // namespace

void add_recover_command(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("recover");
  command->description(
      "See to bytes that this node wrote and could not flush before its leases were gone\n"
      "They are kept, one file each, and never written by themselves: others may have changed the "
      "file since.");
  command->require_subcommand(1);
  command->add_option("--config", options->config, "The node's configuration")
      ->envname("VREMOTE_CONFIG")
      ->type_name("FILE");
  command
      ->add_option("--dir", options->directory,
                   "Where they are kept, instead of the recovery_dir of --config")
      ->type_name("DIR");
  const auto add = [&](const char* name, const char* what, auto act, bool with_id) {
    CLI::App* sub = command->add_subcommand(name, what);
    if (with_id) sub->add_option("ID", options->id, "As `list` shows it")->required();
    sub->callback([options, act, &context] {
      context.action = [options, act] {
        auto directory = directory_of(*options);
        if (!directory) return complain("recover", directory.error().what, kExitUsage);
        return act(*directory, *options);
      };
    });
    return sub;
  };
  add("list", "Show what was kept, oldest first", list, false);
  add("show", "Show where the bytes of one belong", show, true);
  CLI::App* apply_command =
      add("apply", "Write the bytes of one where they belong, through the mount", apply, true);
  apply_command->add_option("--to", options->to, "Into this file")->type_name("FILE");
  apply_command->add_flag("--force", options->force,
                          "Also when the file was changed after they were written");
  add("discard", "Remove one", discard, true);
  command->footer(
      "Examples:\n"
      "  vremote recover --config /etc/vremote/node.toml list\n"
      "  vremote recover show 1767225600-node2-0-4711\n"
      "  vremote recover apply 1767225600-node2-0-4711 --to /vremote/data/report.txt\n"
      "Without --config and --dir: those in /var/lib/vremote/recovery.");
}

}  // namespace vremote::cli
