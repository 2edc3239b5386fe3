// vremote recover: what a node had written and may not flush any more, because its leases were
// gone.
#include <dirent.h>
#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/file.h>
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
#include "node/base/shown_inode.h"
#include "node/config/config.h"
#include "node/recovery/recovery_file.h"

namespace vremote::cli {
namespace {

constexpr size_t kFilesMax = 100'000;

struct Options {
  std::string config, directory, id, to;
  std::string mount;  // of the configuration, if there is one
  bool force = false, damaged = false;
};

Result<std::string> directory_of(Options& options) {
  if (!options.directory.empty()) return options.directory;
  if (options.config.empty()) return std::string(node::kDefaultRecoveryDir);
  VR_TRY(config, node::read_config(options.config));
  options.mount = config.mount;
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
  auto fd = node::open_recovery_file(path);
  if (!fd && fd.error().code == ENOENT)
    return fail(ENOENT,
                fmt::format("nothing is kept as '{}' in {}; `vremote recover --dir {} list` "
                            "shows what is",
                            id, directory, directory));
  return fd;
}

// Its node may be adding to it. Until the descriptor is closed it does not.
Result<Fd> take(const std::string& directory, const std::string& id) {
  VR_TRY(fd, open_kept(directory, id));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return fail(EBUSY, fmt::format("{} is being written; try again in a moment", id));
  return std::move(fd);
}

bool is_being_written(const std::string& directory, const std::string& id) {
  const auto fd = open_kept(directory, id);
  return fd && ::flock(fd->get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
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

// How much of a damaged one is left.
std::string readable(const node::RecoverySummary& summary) {
  const std::string read = fmt::format("{} bytes in {} pieces", summary.bytes, summary.pieces);
  return summary.kept
             ? fmt::format("{} of {} bytes in {}", read, summary.kept->bytes, summary.kept->pieces)
             : read + ", and nobody can tell how many there were";
}

uint64_t shown_inode_of(const node::RecoveryHeader& header) {
  return header.shown_inode != 0
             ? header.shown_inode
             : node::shown_inode(header.home, header.file.export_index, header.file.inode);
}

// How to come to a name.
std::string how_to_find(const node::RecoveryHeader& header, const Options& options) {
  const std::string mount = options.mount.empty() ? "MOUNT" : options.mount;
  return fmt::format(
      "`find {}/{} -inum {}` on a node finds it, or `find DIR -inum {}` on {}, DIR being what it "
      "exports",
      mount, header.export_name.empty() ? "EXPORT" : header.export_name, shown_inode_of(header),
      header.file.inode, header.home);
}

// A damaged file may lack what its last record said.
Timestamp written_at(const Kept& kept) {
  return std::max(kept.header.written, kept.summary.attributes.mtime);
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
               name_of(kept->header),
               is_being_written(directory, id) ? "  (is being written)"
               : kept->summary.damaged
                   ? fmt::format("  (DAMAGED: {} can be read)", readable(kept->summary))
                   : "");
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
  auto kept = look(directory, options.id);
  if (!kept) return complain("recover", kept.error().what, kExitFailed);
  fmt::print("file      {}\nhome      {}\nkept      {}\n", name_of(kept->header), kept->header.home,
             time_text(static_cast<int64_t>(kept->header.saved_at)));
  if (kept->header.path.empty())
    fmt::print("name      not known; {}\n", how_to_find(kept->header, options));
  if (const Timestamp written = written_at(*kept); written != Timestamp{})
    fmt::print("written   {}\n", time_text(written.seconds));
  if (kept->summary.attributes.has_size)
    fmt::print("size      {} (as its writer knew it)\n", kept->summary.attributes.size);
  fmt::print("bytes     {} in {} pieces, up to {}\n", kept->summary.bytes, kept->summary.pieces,
             kept->summary.end);
  if (kept->summary.damaged) fmt::print("damaged   {} can be read\n", readable(kept->summary));
  // Read once more: there may be more of them than should be remembered.
  auto pieces = look(directory, options.id, [](const node::RecoveryPiece& piece) -> Status {
    fmt::print("  {} bytes at {}\n", piece.bytes.size(), piece.offset);
    return {};
  });
  if (!pieces) return complain("recover", pieces.error().what, kExitFailed);
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

// What speaks against writing the bytes of `kept` into this file; empty: nothing.
std::string objection(const Kept& kept, const std::string& target, const struct stat& st,
                      const Options& options) {
  if (shown_inode_of(kept.header) != st.st_ino) {
    if (options.to.empty())
      return fmt::format("{} is another file now; name the right one with --to ({})", target,
                         how_to_find(kept.header, options));
    if (!options.force)
      return fmt::format(
          "{} is not the file that these bytes were written to (its inode is {}, not {}); --force "
          "writes them there all the same",
          target, st.st_ino, shown_inode_of(kept.header));
  }
  if (options.force) return {};
  const Timestamp changed{st.st_mtim.tv_sec, static_cast<uint32_t>(st.st_mtim.tv_nsec)};
  const Timestamp written = written_at(kept);
  // When they were put aside says little: others may have changed the file before that.
  if (written == Timestamp{})
    return fmt::format(
        "when these bytes were written is not known (they were kept on {}), {} was changed on {}; "
        "--force writes over it",
        time_text(static_cast<int64_t>(kept.header.saved_at)), target, time_text(changed.seconds));
  if (written < changed)
    return fmt::format(
        "{} was changed on {}, after these bytes were written ({}); --force writes over it", target,
        time_text(changed.seconds), time_text(written.seconds));
  return {};
}

// Whoever wrote it may have named any file in it, which root must not write to for him.
Status check_author(const Fd& fd, const Options& options) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return fail(errno, std::strerror(errno));
  if (!options.to.empty() || st.st_uid == 0 || st.st_uid == ::geteuid()) return {};
  return fail(EPERM, fmt::format("{} belongs to user {}, who may have named any file in it; apply "
                                 "it as that user, or name the file with --to",
                                 options.id, st.st_uid));
}

// Through the mount, like any program: all nodes see it.
int apply(const std::string& directory, const Options& options) {
  const auto taken = take(directory, options.id);
  if (!taken) return complain("recover", taken.error().what, kExitFailed);
  if (auto author = check_author(*taken, options); !author)
    return complain("recover", author.error().what, kExitFailed);
  auto kept = look(directory, options.id);
  if (!kept) return complain("recover", kept.error().what, kExitFailed);
  const node::RecoverySummary& summary = kept->summary;
  if (summary.bytes == 0)
    return complain(
        "recover",
        fmt::format("{}: {}; nothing was written", options.id,
                    summary.damaged ? fmt::format("damaged, {} can be read", readable(summary))
                                    : "no bytes are in it, only the size or the time of a file"),
        kExitFailed);
  if (summary.damaged && !options.damaged)
    return complain("recover",
                    fmt::format("{} is damaged: {} can be read; --damaged writes these, and what "
                                "cannot be read stays as it is in the file",
                                options.id, readable(summary)),
                    kExitFailed);
  const std::string target = options.to.empty() ? kept->header.path : options.to;
  if (target.empty())
    return complain("recover",
                    fmt::format("where {} was is not known: {}; name it with --to",
                                name_of(kept->header), how_to_find(kept->header, options)),
                    kExitUsage);
  Fd fd(::open(target.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat st {};
  if (!fd.valid() || ::fstat(fd.get(), &st) != 0)
    return complain("recover", fmt::format("{}: {}", target, std::strerror(errno)), kExitFailed);
  if (!S_ISREG(st.st_mode))
    return complain("recover", fmt::format("{}: not a regular file", target), kExitFailed);
  if (const std::string why_not = objection(*kept, target, st, options); !why_not.empty())
    return complain("recover", why_not, kExitFailed);
  uint64_t written = 0;
  auto done = look(directory, options.id, [&](const node::RecoveryPiece& piece) -> Status {
    VR_TRY_VOID(write_piece(fd, piece));
    written += piece.bytes.size();
    return {};
  });
  if (!done)
    return complain("recover",
                    fmt::format("{}: {}; {} of {} bytes were written", target, done.error().what,
                                written, summary.bytes),
                    kExitFailed);
  if (::fsync(fd.get()) != 0)
    return complain("recover", fmt::format("{}: fsync: {}", target, std::strerror(errno)),
                    kExitFailed);
  // Nobody is told to remove the only copy of what may be got out of it yet.
  if (summary.damaged || done->summary.damaged || written != summary.bytes)
    return complain("recover",
                    fmt::format("{}: not all was written: {}", target, readable(done->summary)),
                    kExitFailed);
  fmt::print("{} bytes written to {}; `vremote recover --dir {} discard {}` removes the copy\n",
             written, target, directory, options.id);
  return 0;
}

int discard(const std::string& directory, const Options& options) {
  const auto taken = take(directory, options.id);
  if (!taken) return complain("recover", taken.error().what, kExitFailed);
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
    // Not required(): the library would name that before an argument that it does not know.
    const CLI::Option* id =
        with_id ? sub->add_option("ID", options->id, "As `list` shows it; needed") : nullptr;
    sub->callback([options, act, id, &context] {
      const bool lacks = id != nullptr && id->count() == 0;
      context.action = [options, act, lacks] {
        if (lacks)
          return complain("recover", "ID is required; `vremote recover list` shows them",
                          kExitUsage);
        // The log names the file.
        if (options->id.ends_with(node::kRecoverySuffix))
          options->id.resize(options->id.size() - node::kRecoverySuffix.size());
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
                          "Also when the file was changed after they were written, or is another");
  apply_command->add_flag("--damaged", options->damaged,
                          "Also when only a part of them can be read: that part");
  add("discard", "Remove one", discard, true);
  command->footer(
      "Examples:\n"
      "  vremote recover --config /etc/vremote/node.toml list\n"
      "  vremote recover show 1767225600-node2-0-4711\n"
      "  vremote recover apply 1767225600-node2-0-4711 --to /vremote/data/report.txt\n"
      "Without --config and --dir: those in /var/lib/vremote/recovery.");
}

}  // namespace vremote::cli
