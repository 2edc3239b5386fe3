#include "store/store.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstring>
#include <mutex>

#include "store/credentials.h"
#include "store/departed.h"
#include "store/handle.h"
#include "store/journal.h"
#include "store/size_locks.h"
#include "store/table.h"

namespace vremote::store {
namespace {

void prepare_process() {
  static std::once_flag once;
  std::call_once(once, [] {
    ::umask(0);
    std::signal(SIGXFSZ, SIG_IGN);
  });
}

// The kernel's own limit (fs.nr_open) is below INT_MAX.
uint64_t descriptors_allowed() {
  rlimit limit{};
  const bool known = ::getrlimit(RLIMIT_NOFILE, &limit) == 0;
  return known ? std::min<uint64_t>(limit.rlim_cur, INT_MAX) : INT_MAX;
}

// `want`, but at most `divisor`-th of the descriptors this process may have.
size_t part_of_descriptors(size_t want, size_t divisor) {
  return std::clamp<size_t>(want, 16, std::max<size_t>(16, descriptors_allowed() / divisor));
}

// For connections, the control socket, an upgrade, the end of the mount, and what calls under way
// have open for a moment: each disk thread some.
constexpr uint64_t kReserve = 96;

std::unexpected<Error> cannot_export(const std::string& path, int code) {
  const char* why = code == ENOENT                    ? "it does not exist"
                    : code == ENOTDIR                 ? "it is not a directory"
                    : code == EACCES || code == EPERM ? "permission denied"
                                                      : nullptr;
  return fail(code, "cannot export " + path + ": " + (why != nullptr ? why : std::strerror(code)));
}

}  // namespace

// An open file has up to three descriptors (its path, reading, writing).
Store::Store(uint32_t export_index, const Options& options)
    : export_index_(export_index),
      size_locks_(std::make_unique<SizeLocks>()),
      departed_(std::make_unique<Departed>(std::min(
          options.departed_files_max, part_of_descriptors(options.departed_files_max, 24)))),
      tell_nameless_(options.nameless),
      tell_nameless_gone_(options.nameless_gone),
      tell_full_(options.full) {
  has_handles_ = options.use_handles;
  descriptors_ = options.descriptors != 0 ? options.descriptors : descriptors_allowed();
  names_end_ = static_cast<int>(descriptors_ - std::min(kReserve, descriptors_ / 4));
  data_end_ = static_cast<int>(descriptors_ / 2);
  size_t unreferenced = std::max<size_t>(options.unreferenced_max, 16);
  if (!options.use_handles) unreferenced = part_of_descriptors(unreferenced, 4);
  table_ = std::make_unique<Table>(part_of_descriptors(options.open_files_max, 12), unreferenced);
}

Store::~Store() = default;

Result<std::unique_ptr<Store>> Store::open(const std::string& path, uint32_t export_index,
                                           Options options) {
  prepare_process();
  if (path.find('\0') != std::string::npos) return cannot_export(path.c_str(), EINVAL);
  Fd root(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return cannot_export(path, errno);
  struct stat st {};
  if (::fstat(root.get(), &st) != 0) return cannot_export(path, errno);

  int mount_id = 0;
  bool refused = false;
  if (options.use_handles) {
    auto named = handle_of(root.get(), "");
    auto opened = named ? open_handle(root.get(), named->handle) : fail(EOPNOTSUPP);
    options.use_handles = opened.has_value();
    refused = !opened && opened.error().code == EPERM;
    if (named) mount_id = named->mount_id;
  }
  std::unique_ptr<Store> store(new Store(export_index, options));
  store->handles_refused_ = refused;
  store->root_ = std::move(root);
  store->device_ = st.st_dev;
  store->mount_id_ = mount_id;
  store->privileged_ = may_act_as_others();
  store->judges_ = options.judge_callers && store->privileged_;

  auto root_path = reopen(store->root_.get(), O_PATH | O_DIRECTORY);
  if (!root_path) return cannot_export(path, root_path.error().code);
  auto node = store->learn(std::move(*root_path));
  if (!node) return cannot_export(path, node.error().code);
  store->root_id_ = node->file;
  if (auto pinned = store->pin(node->file); !pinned)
    return cannot_export(path, pinned.error().code);
  if (!options.journal.empty() && store->has_handles_) {
    auto journal = std::make_unique<Journal>(options.journal);
    VR_TRY(known, journal->open(store->root_id_));
    // Whether they are still there is found out when they are used.
    for (const auto& [file, handle] : known)
      if (file != store->root_id_) store->table_->learn(file, handle, nullptr);
    store->journal_ = std::move(journal);
  }
  return store;
}

Result<coherence::Outcome> Store::execute(const coherence::Caller& caller,
                                          const coherence::Operation& operation) {
  const auto once = [&] {
    return std::visit([&](const auto& call) { return run(caller, call); }, operation);
  };
  auto outcome = once();
  if (!outcome && makes_room(outcome.error().code)) return once();
  return outcome;
}

// A full disk is not kept full by what was removed from it.
bool Store::makes_room(int error) {
  return (error == ENOSPC || error == EDQUOT) && departed_->let_go_files();
}

std::string Store::why_no_handles() const {
  if (has_handles_) return {};
  return handles_refused_ ? "file handles need CAP_DAC_READ_SEARCH (root)"
                          : "its file system has no file handles";
}

size_t Store::lost_of_journal() const { return journal_ ? journal_->lost() : 0; }

bool Store::has_old_departed() const { return departed_->has_old(); }
void Store::let_go_departed() { departed_->let_go_old(); }

}  // namespace vremote::store
