// From FileIds to open files and back.
#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "store/departed.h"
#include "store/handle.h"
#include "store/journal.h"
#include "store/store.h"
#include "store/table.h"

namespace vremote::store {

// The identity of `name` in `dir`, or of `dir` itself when the name is empty. EXDEV when it lies in
// another file system.
Result<Identity> Store::identify(int dir, const char* name) const {
  Identity identity;
  int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (*name == '\0' ? AT_EMPTY_PATH : 0);
  if (::fstatat(dir, name, &identity.stat, flags) != 0) return fail(errno);
  // A subvolume has the same mount but another device, and its inode numbers repeat ours.
  if (identity.stat.st_dev != device_) return fail(EXDEV);
  identity.file.export_index = export_index_;
  identity.file.inode = identity.stat.st_ino;
  if (has_handles_) {
    VR_TRY(named, handle_of(dir, name));
    if (named.mount_id != mount_id_) return fail(EXDEV);
    identity.file.generation = generation_of(named.handle);
    identity.handle = std::move(named.handle);
  } else {
    VR_TRY(generation, generation_by_birth(dir, name));
    identity.file.generation = generation;
  }
  return identity;
}

Result<Fd> Store::open_by_handle(const std::string& handle) {
  auto fd = open_handle(root_.get(), handle);
  if (fd || (fd.error().code != EMFILE && fd.error().code != ENFILE)) return fd;
  table_->close_some();
  return open_handle(root_.get(), handle);
}

Result<Store::OpenRef> Store::acquire(FileId file, Keep keep) {
  const auto gone = [&]() -> Result<OpenRef> {
    if (OpenRef left = departed_->open(file)) return left;
    return fail(ESTALE);
  };
  auto found = table_->use(file);
  if (!found) return gone();
  if (found->file != nullptr) return std::move(found->file);
  auto fd = open_by_handle(found->handle);
  if (!fd && fd.error().code == ESTALE) return gone();
  if (!fd) return std::unexpected(fd.error());
  struct stat st {};
  if (::fstat(fd->get(), &st) != 0) return fail(errno);
  // Somebody on this machine has it open still, or we do, but no node had it pinned.
  if (st.st_nlink == 0) return gone();
  auto opened = std::make_shared<OpenFile>(std::move(*fd), st.st_mode & S_IFMT);
  if (keep == Keep::No) return opened;
  return table_->keep_open(file, std::move(opened));
}

Result<Store::OpenRef> Store::acquire_directory(FileId dir) {
  VR_TRY(file, acquire(dir));
  if (!file->is_directory()) return fail(ENOTDIR);
  return std::move(file);
}

Result<Store::OpenRef> Store::acquire_data(FileId id) {
  VR_TRY(file, acquire(id));
  if (has_handles_ || !file->is_regular() || file->readable_if_open() >= 0) return file;
  Fd path(::fcntl(file->path(), F_DUPFD_CLOEXEC, 0));
  if (!path.valid()) return fail(errno);
  if (path.get() < data_end_) return file;
  return std::make_shared<OpenFile>(std::move(path), file->type());
}

std::unexpected<Error> Store::too_many() {
  if (tell_full_ && !full_told_.exchange(true)) tell_full_(descriptors_);
  return fail(ENFILE);
}

Status Store::has_room() {
  if (has_handles_) return {};
  // Each gives one back, or more.
  for (;;) {
    const Fd next(::fcntl(root_.get(), F_DUPFD_CLOEXEC, 0));
    if (next.valid() && next.get() < names_end_) return {};
    if (!next.valid() && errno != EMFILE) return fail(errno);
    if (!table_->drop_oldest()) return too_many();
  }
}

Result<coherence::Node> Store::learn_existing(Fd path) {
  if (!has_handles_ && path.get() >= names_end_) {
    VR_TRY(identity, identify(path.get(), ""));
    if (!table_->knows(identity.file)) VR_TRY_VOID(has_room());
  }
  return learn(std::move(path));
}

Result<coherence::Node> Store::learn(Fd path, Fd writable) {
  VR_TRY(identity, identify(path.get(), ""));
  OpenRef file;
  if (!has_handles_ && writable.get() >= data_end_) {
    // What stays gets the lower number, or there would always be one that seems to be left.
    writable = Fd();
    if (Fd lower(::fcntl(path.get(), F_DUPFD_CLOEXEC, 0)); lower.valid()) path = std::move(lower);
  }
  // What is only looked up is not kept open, lest a walk through a large tree closes the files in
  // use.
  if (writable.valid() || !has_handles_)
    file = std::make_shared<OpenFile>(std::move(path), identity.stat.st_mode & S_IFMT,
                                      std::move(writable));
  if (table_->learn(identity.file, identity.handle, std::move(file)) && journal_)
    journal_->add(identity.file, identity.handle, [this] { return table_->all(); });
  return coherence::Node{identity.file, attributes_of(identity.stat)};
}

Status Store::pin(FileId file) {
  VR_TRY(opened, acquire(file));
  if (!table_->pin(file, opened)) {
    // One that is only left of a file (departed.h) is not known any more.
    VR_TRY(identity, identify(opened->path(), ""));
    table_->learn(file, identity.handle, opened);
    if (!table_->pin(file, opened)) return fail(ESTALE);
  }
  // Behind the pin, as after_removal() looks for it when it has noted the file here.
  if (departed_->attributes(file) && is_nameless(file)) tell_nameless(file, *opened);
  return {};
}

void Store::tell_nameless(FileId file, const OpenFile& opened) {
  if (!tell_nameless_) return;
  {
    std::lock_guard lock(nameless_mutex_);
    if (!nameless_.insert(file).second) return;
  }
  tell_nameless_(file, opened.path());
  // Whoever unpinned it meanwhile found nothing to tell, or told it too soon.
  if (table_->pinned(file)) return;
  {
    std::lock_guard lock(nameless_mutex_);
    nameless_.erase(file);
  }
  if (tell_nameless_gone_) tell_nameless_gone_(file);
}

bool Store::pinned(FileId file) const { return table_->pinned(file); }

bool Store::is_nameless(FileId file) const {
  const OpenRef opened = table_->use_if_open(file);
  if (opened == nullptr) return false;
  const auto st = opened->stat();
  return st && st->st_nlink == 0;
}

void Store::unpin(FileId file) {
  OpenRef opened = table_->use_if_open(file);
  if (!table_->unpin(file)) return;
  bool told = false;
  if (tell_nameless_gone_) {
    std::lock_guard lock(nameless_mutex_);
    told = nameless_.erase(file) != 0;
  }
  if (told) tell_nameless_gone_(file);
  if (opened == nullptr) return;
  auto st = opened->stat();
  if (!st || st->st_nlink != 0) return;
  departed_->add(file, *st, std::move(opened));
  table_->gone(file);
}

void Store::forget(FileId file) {
  if (file != root_id_) table_->forget(file);
}

std::optional<FileId> Store::find(std::string_view handle) const { return table_->find(handle); }

std::string Store::path_of(FileId file) {
  const auto found = table_->use(file);
  if (!found) return {};
  Fd opened;
  if (found->file == nullptr) {
    auto fd = open_by_handle(found->handle);
    if (!fd) return {};
    opened = std::move(*fd);
  }
  const ProcPath link(found->file != nullptr ? found->file->path() : opened.get());
  std::array<char, PATH_MAX> text;
  const ssize_t length = ::readlink(link.c_str(), text.data(), text.size());
  return length > 0 ? std::string(text.data(), static_cast<size_t>(length)) : std::string();
}

std::vector<KnownFile> Store::known() const {
  std::vector<KnownFile> result;
  for (auto& [file, handle] : table_->referenced()) result.push_back({file, std::move(handle)});
  return result;
}

Status Store::restore(const KnownFile& known) {
  if (!has_handles_) return fail(EOPNOTSUPP);
  if (known.file.export_index != export_index_ ||
      known.file.generation != generation_of(known.handle))
    return fail(EINVAL);
  VR_TRY(fd, open_by_handle(known.handle));
  VR_TRY(identity, identify(fd.get(), ""));
  if (identity.file != known.file) return fail(EINVAL);
  if (identity.stat.st_nlink == 0) return fail(ESTALE);
  table_->learn(identity.file, identity.handle, nullptr);
  return {};
}

std::vector<Store::Held> Store::held() const {
  std::vector<Held> out;
  for (const Table::Open& open : table_->all_open()) {
    if (open.id == root_id_) continue;
    bool pinned = false;
    if (open.pinned) {
      auto st = open.file->stat();
      pinned = st && st->st_nlink == 0;
    }
    if (pinned || !has_handles_) out.push_back({open.id, open.file->path(), pinned});
  }
  return out;
}

Status Store::hold(FileId file, Fd descriptor, bool pinned) {
  VR_TRY(identity, identify(descriptor.get(), ""));
  if (identity.file != file) return fail(EINVAL, "a descriptor of another file");
  auto opened = std::make_shared<OpenFile>(std::move(descriptor), identity.stat.st_mode & S_IFMT);
  table_->learn(file, identity.handle, opened);
  if (!pinned) return {};
  if (!table_->pin(file, opened)) return fail(ESTALE);
  if (identity.stat.st_nlink == 0) tell_nameless(file, *opened);
  return {};
}

Store::Counts Store::counts() const {
  auto counts = table_->counts();
  return {counts.known, counts.open, counts.pinned};
}

}  // namespace vremote::store
