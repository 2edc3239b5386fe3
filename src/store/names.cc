// Names: lookup, create, symlink, link, remove, rename.
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "store/credentials.h"
#include "store/departed.h"
#include "store/handle.h"
#include "store/store.h"
#include "store/table.h"

namespace vremote::store {
namespace {

// A name is one component of a path and nothing else (S1).
Status check_name(const std::string& name) {
  if (name.empty()) return fail(ENOENT);
  if (name.size() > coherence::kNameMax) return fail(ENAMETOOLONG);
  if (name == "." || name == "..") return fail(EINVAL);
  if (name.find('/') != std::string::npos || name.find('\0') != std::string::npos)
    return fail(EINVAL);
  return {};
}

Fd open_beneath(int dir, const char* name) {
  open_how how{};
  how.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  auto fd = static_cast<int>(::syscall(SYS_openat2, dir, name, &how, sizeof how));
  // Some container runtimes refuse openat2. A checked name cannot leave the directory but over a
  // mount point, which identify() sees.
  if (fd < 0 && errno == ENOSYS) fd = ::openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  return Fd(fd);
}

}  // namespace

Result<Fd> Store::open_child(int dir, const std::string& name) const {
  Fd fd = open_beneath(dir, name.c_str());
  if (!fd.valid() && (errno == EMFILE || errno == ENFILE)) {
    table_->close_some();
    fd = open_beneath(dir, name.c_str());
  }
  if (!fd.valid()) return fail(errno);
  return fd;
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::LookupCall& call) {
  VR_TRY_VOID(check_name(call.name));
  VR_TRY(dir, acquire_directory(call.dir));
  auto open = [&]() -> Result<Fd> {
    VR_TRY(scope, CallerScope::enter(caller, judges_));
    static_cast<void>(scope);
    return open_child(dir->path(), call.name);
  };
  VR_TRY(fd, open());
  return learn_existing(std::move(fd));
}

Result<coherence::Node> Store::create_in(const coherence::Caller& caller, OpenFile& dir,
                                         const coherence::CreateCall& call) {
  mode_t type = call.mode & S_IFMT, permissions = call.mode & 07777;
  const char* name = call.name.c_str();
  if (type == S_IFREG || type == 0) {
    VR_TRY(raw, as_caller(caller, privileged_, [&] {
             return ::openat(dir.path(), name, O_CREAT | O_EXCL | O_RDWR | O_NOFOLLOW | O_CLOEXEC,
                             permissions);
           }));
    // Writing follows a creation, and a file made with mode 0444 could not be opened for it again
    // by an unprivileged daemon.
    Fd file(raw);
    ::fcntl(file.get(), F_SETFL, O_NOATIME);  // S5; not permitted everywhere, and not necessary
    VR_TRY(path, reopen(file.get(), O_PATH));
    return learn(std::move(path), std::move(file));
  }
  if (type == S_IFDIR) {
    VR_TRY_VOID(
        as_caller(caller, privileged_, [&] { return ::mkdirat(dir.path(), name, permissions); }));
  } else if (type == S_IFIFO || type == S_IFSOCK || type == S_IFCHR || type == S_IFBLK) {
    VR_TRY_VOID(as_caller(caller, privileged_, [&] {
      return ::mknodat(dir.path(), name, type | permissions, dev_t{call.rdev});
    }));
  } else {
    return fail(EINVAL);
  }
  VR_TRY(fd, open_child(dir.path(), call.name));
  return learn(std::move(fd));
}

Result<coherence::Node> Store::create_nameless(const coherence::Caller& caller,
                                               const coherence::CreateCall& call) {
  VR_TRY(dir, acquire_directory(call.dir));
  VR_TRY_VOID(has_room());
  const int never = call.exclusive ? O_EXCL : 0;
  VR_TRY(raw, as_caller(caller, privileged_, [&] {
           return ::openat(dir->path(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC | never,
                           call.mode & 07777);
         }));
  Fd file(raw);
  ::fcntl(file.get(), F_SETFL, O_NOATIME);  // S5
  VR_TRY(path, reopen(file.get(), O_PATH));
  VR_TRY(made, learn(std::move(path), std::move(file)));
  VR_TRY_VOID(pin(made.file));
  if (const OpenRef opened = table_->use_if_open(made.file)) tell_nameless(made.file, *opened);
  return made;
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::CreateCall& call) {
  if (call.is_nameless()) return create_nameless(caller, call);
  VR_TRY_VOID(check_name(call.name));
  VR_TRY(dir, acquire_directory(call.dir));
  VR_TRY_VOID(has_room());
  // Somebody on this machine may remove the name between the two looks at it.
  for (int attempt = 0; attempt < 8; ++attempt) {
    auto made = create_in(caller, *dir, call);
    if (made || call.exclusive || made.error().code != EEXIST) return made;
    auto existing = open_child(dir->path(), call.name);
    if (existing) return learn_existing(std::move(*existing));
    if (existing.error().code != ENOENT) return std::unexpected(existing.error());
  }
  return fail(EAGAIN);
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::SymlinkCall& call) {
  VR_TRY_VOID(check_name(call.name));
  if (call.target.size() >= coherence::kLinkMax) return fail(ENAMETOOLONG);
  if (call.target.find('\0') != std::string::npos) return fail(EINVAL);
  VR_TRY(dir, acquire_directory(call.dir));
  VR_TRY_VOID(has_room());
  VR_TRY_VOID(as_caller(caller, privileged_, [&] {
    return ::symlinkat(call.target.c_str(), dir->path(), call.name.c_str());
  }));
  VR_TRY(fd, open_child(dir->path(), call.name));
  return learn(std::move(fd));
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::LinkCall& call) {
  VR_TRY_VOID(check_name(call.name));
  VR_TRY(file, acquire(call.file));
  VR_TRY(dir, acquire_directory(call.dir));
  // "Following" the magic link ends at the file itself, also when that is a symbolic link;
  // AT_EMPTY_PATH would need a capability.
  ProcPath source(file->path());
  VR_TRY_VOID(as_caller(caller, judges_, [&] {
    return ::linkat(AT_FDCWD, source.c_str(), dir->path(), call.name.c_str(), AT_SYMLINK_FOLLOW);
  }));
  VR_TRY(st, file->stat());
  return coherence::Node{call.file, attributes_of(st)};
}

// A file that may lose its last name.
struct Store::Victim {
  FileId file;
  Fd fd;  // invalid: nothing there, or nothing of ours
};

Store::Victim Store::victim(OpenFile& dir, const std::string& name) const {
  auto fd = open_child(dir.path(), name);
  if (!fd) return {};
  auto identity = identify(fd->get(), "");
  if (!identity) return {};
  return {identity->file, std::move(*fd)};
}

void Store::after_removal(Victim&& victim) {
  struct stat st {};
  if (!victim.fd.valid() || ::fstat(victim.fd.get(), &st) != 0 || st.st_nlink != 0) return;
  const auto opened = std::make_shared<OpenFile>(std::move(victim.fd), st.st_mode & S_IFMT);
  const bool keep = has_handles_ || opened->path() < names_end_;
  departed_->add(victim.file, st, keep ? opened : nullptr);
  if (table_->pinned(victim.file)) tell_nameless(victim.file, *opened);
  table_->gone(victim.file);
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::RemoveCall& call) {
  VR_TRY_VOID(check_name(call.name));
  VR_TRY(dir, acquire_directory(call.dir));
  Victim removed = victim(*dir, call.name);
  VR_TRY_VOID(as_caller(caller, judges_, [&] {
    return ::unlinkat(dir->path(), call.name.c_str(), call.directory ? AT_REMOVEDIR : 0);
  }));
  after_removal(std::move(removed));
  return Outcome{};
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::RenameCall& call) {
  VR_TRY_VOID(check_name(call.from));
  VR_TRY_VOID(check_name(call.to));
  // RENAME_WHITEOUT makes a device node on the origin: for overlay file systems on this machine,
  // not for nodes.
  if ((call.flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) != 0) return fail(EINVAL);
  VR_TRY(from, acquire_directory(call.from_dir));
  VR_TRY(to, acquire_directory(call.to_dir));
  Victim replaced;
  if (call.flags == 0) replaced = victim(*to, call.to);
  VR_TRY_VOID(as_caller(caller, judges_, [&] {
    return ::renameat2(from->path(), call.from.c_str(), to->path(), call.to.c_str(), call.flags);
  }));
  after_removal(std::move(replaced));
  return Outcome{};
}

}  // namespace vremote::store
