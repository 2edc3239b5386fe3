// The origin's disk: every operation on the files of one exported directory.
//
// Rules:
//  S1  Nothing from outside is a path. A file is named by its FileId, a child by its directory and
//  one component; a child is reached from
//      its directory's descriptor, without following links and without leaving the export's file
//      system.
//  S2  A FileId is only good if this store gave it out (lookup, create, a listing) or restored it.
//  Any other, and any whose file is gone,
//      is ESTALE: an agent cannot reach a file outside the export by guessing inode numbers. Of
//      what was removed through this store something is left for a while (departed.h): the
//      attributes, directories and the like as a whole, and for a moment small files.
//  S3  Identity is the file handle of the file system: it survives renames and hard links, and an
//  inode number used again is another
//      FileId. Without handles (some file systems, no CAP_DAC_READ_SEARCH) each known file keeps a
//      descriptor instead, and FileIds do not survive a restart.
//  S4  What is remembered is bounded: files in use (acquired by FileId since, and not forgotten),
//  plus `unreferenced_max` others. Without handles so are the files in use: once the descriptors
//  of this process come near its limit, whatever has them, a file that is not known is ENFILE, so
//  that there are some left for all else, and those for the data of files are closed after each
//  call.
//  S5  Reads never change a file's atime (O_NOATIME where
//  permitted): it would change under the attribute leases of other nodes, and reads
//      served from caches never get here anyway.
//  S6  What a caller may do was judged by its own kernel. With judge_callers the origin's file
//  system judges it again, for what changes names and attributes or reads extended ones and
//  listings; contents have no caller.
//
// A mount point inside the export is not crossed: looking it up is EXDEV; a listing shows it with
// generation 0.
//
// Tried before: one O_RDWR descriptor per file. It makes execve() of an exported program fail with
// ETXTBSY on the origin although nobody writes; so files are opened for writing at the first write
// only.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "base/attributes.h"
#include "base/bytes.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "coherence/messages.h"

namespace vremote::store {

class Departed;
class OpenFile;
class SizeLocks;
class Table;
class Journal;
struct Identity;

struct Options {
  size_t open_files_max =
      1024;  // files kept open for the next call; cut to a part of RLIMIT_NOFILE
  size_t unreferenced_max = 256 << 10;  // files given out and not used since, or forgotten
  // Files without a name that are kept open for a moment (departed.h); cut likewise.
  size_t departed_files_max = 1024;
  bool use_handles = true;  // false: descriptors even where handles work (S3)
  // Where the identities given out are kept, so that they are still good after a crash; empty: not.
  std::string journal = {};
  bool judge_callers = false;  // S6
  // A pinned file has no name any more: what `path` refers to is gone with its last descriptor.
  // Then that it is not pinned any more. Any thread; neither may come back here.
  std::function<void(FileId file, int path)> nameless = {};
  std::function<void(FileId file)> nameless_gone = {};
  // Once: there are as many descriptors as this process may have, but for a reserve (S4).
  std::function<void(uint64_t limit)> full = {};
  uint64_t descriptors = 0;  // 0: RLIMIT_NOFILE
};

// A file as it can be kept across a restart: restore() of the next process takes it.
struct KnownFile {
  FileId file;
  std::string handle;
};

// Longest read in one call.
inline constexpr uint64_t kReadMax = uint64_t{64} << 20;

// Thread-safe. Calls block on the disk, except try_read. open() once sets the process's umask to 0
// (modes from agents are final) and ignores SIGXFSZ (a too large file is an error, not the end of
// the daemon).
class Store {
 public:
  static Result<std::unique_ptr<Store>> open(const std::string& path, uint32_t export_index,
                                             Options options = {});
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  FileId root() const { return root_id_; }
  // True when files are known by file-system handles (S3).
  bool has_handles() const { return has_handles_; }
  // For people; empty when it has them.
  std::string why_no_handles() const;
  // Bytes of the journal that were not legible when the store was opened.
  size_t lost_of_journal() const;

  // nlink 0: removed, and to be looked at only.
  Result<Attributes> stat(FileId file);
  // False only when the file certainly has no extended attribute (POSIX ACLs are some).
  bool has_xattrs(FileId file);
  // Cut at the end of the file.
  Result<Bytes> read(FileId file, uint64_t offset, uint64_t length);
  // The same from memory alone: EAGAIN when it would wait for the disk or open the file. Never
  // blocks.
  Result<Bytes> try_read(FileId file, uint64_t offset, uint64_t length);
  // All bytes or an error (after which some may be written).
  Status write(FileId file, std::span<const coherence::Extent> extents);
  // Grows the file to the size (never shrinks it) and sets the modification time. Call it after the
  // writes it belongs to.
  Status apply(FileId file, const coherence::DirtyAttributes& changes);

  // Runs one operation. A file made without a name is pinned. Lookup, Create, Symlink, Link and
  // SetAttributes return a Node;
  // ReadDirectory a DirectoryPage; StatFs FileSystemStats; ReadLink, GetXattr and ListXattr a Text;
  // Seek an Offset; the others nothing.
  Result<coherence::Outcome> execute(const coherence::Caller& caller,
                                     const coherence::Operation& operation);

  // Files that have lost their last name are kept for a moment (departed.h): whether some of them
  // are due, and to let those go, which takes time.
  bool has_old_departed() const;
  void let_go_departed();

  // Counted. A pinned file stays usable after its last name is gone, until the last unpin.
  Status pin(FileId file);
  bool pinned(FileId file) const;
  // Open here, and without a name.
  bool is_nameless(FileId file) const;
  void unpin(FileId file);
  // No agent knows the file any more. It may be used again as long as it is remembered (S4).
  void forget(FileId file);

  // The file of a handle, when it is known (S2). Empty without handles.
  std::optional<FileId> find(std::string_view handle) const;
  // Where the file is now, for people; empty when that is not known.
  std::string path_of(FileId file);
  // For watching: the exported directory itself.
  int root_descriptor() const { return root_.get(); }
  // Everything that was written to the file system that has the export.
  Status sync_everything();

  // The files in use, and the way back in after a restart: EINVAL when the handle does not belong
  // to the id, ESTALE when the file is gone, EOPNOTSUPP without handles.
  std::vector<KnownFile> known() const;
  Status restore(const KnownFile& known);

  // What another process could not find again: files without a name that are pinned, and all that
  // are known when there are no handles. Their descriptors (O_PATH) stay ours.
  struct Held {
    FileId file;
    int descriptor = -1;
    bool pinned = false;
  };
  std::vector<Held> held() const;
  // One of those, in the program that this process has become; pinned until unpin() if it was.
  Status hold(FileId file, Fd descriptor, bool pinned);

  struct Counts {
    size_t known = 0, open = 0, pinned = 0;
  };
  Counts counts() const;

 private:
  using OpenRef = std::shared_ptr<OpenFile>;
  enum class Keep : bool { No, Yes };

  Store(uint32_t export_index, const Options& options);
  bool makes_room(int error);

  // Identity (identity.cc).
  Result<Identity> identify(int dir, const char* name) const;
  Result<OpenRef> acquire(FileId file, Keep keep = Keep::Yes);
  Result<OpenRef> acquire_directory(FileId dir);
  // For reading or writing its bytes.
  Result<OpenRef> acquire_data(FileId file);
  Result<Fd> open_by_handle(const std::string& handle);
  void tell_nameless(FileId file, const OpenFile& opened);
  // Makes the file of an O_PATH descriptor known; `writable`: a descriptor open for reading and
  // writing, when there is one.
  Result<coherence::Node> learn(Fd path, Fd writable = Fd());
  // The same for one that was there already, and may be one too many.
  Result<coherence::Node> learn_existing(Fd path);
  // Before a file is made.
  Status has_room();
  std::unexpected<Error> too_many();

  // Names (names.cc).
  Result<Fd> open_child(int dir, const std::string& name) const;
  Result<coherence::Node> create_in(const coherence::Caller& caller, OpenFile& dir,
                                    const coherence::CreateCall& call);
  Result<coherence::Node> create_nameless(const coherence::Caller& caller,
                                          const coherence::CreateCall& call);
  struct Victim;
  Victim victim(OpenFile& dir, const std::string& name) const;
  void after_removal(Victim&& victim);

  // One overload per operation.
  using Caller = coherence::Caller;
  using Outcome = coherence::Outcome;
  Result<Outcome> run(const Caller&, const coherence::LookupCall&);
  Result<Outcome> run(const Caller&, const coherence::CreateCall&);
  Result<Outcome> run(const Caller&, const coherence::SymlinkCall&);
  Result<Outcome> run(const Caller&, const coherence::LinkCall&);
  Result<Outcome> run(const Caller&, const coherence::RemoveCall&);
  Result<Outcome> run(const Caller&, const coherence::RenameCall&);
  Result<Outcome> run(const Caller&, const coherence::SetAttributesCall&);
  Result<Outcome> run(const Caller&, const coherence::ReadLinkCall&);
  Result<Outcome> run(const Caller&, const coherence::ReadDirectoryCall&);
  Result<Outcome> run(const Caller&, const coherence::StatFsCall&);
  Result<Outcome> run(const Caller&, const coherence::SyncCall&);
  Result<Outcome> run(const Caller&, const coherence::GetXattrCall&);
  Result<Outcome> run(const Caller&, const coherence::ListXattrCall&);
  Result<Outcome> run(const Caller&, const coherence::SetXattrCall&);
  Result<Outcome> run(const Caller&, const coherence::RemoveXattrCall&);
  Result<Outcome> run(const Caller&, const coherence::AllocateCall&);
  Status strip_as(const Caller&, FileId);
  Result<Outcome> run(const Caller&, const coherence::SeekCall&);
  Result<Outcome> run(const Caller&, const coherence::CopyCall&);
  Result<Outcome> run(const Caller&, const coherence::LockCall&);
  Result<Outcome> run(const Caller&, const coherence::LeaveCall&);
  Result<Outcome> run(const Caller&, const coherence::ReclaimCall&);

  const uint32_t export_index_;
  Fd root_;  // open for reading: open_by_handle_at wants more than O_PATH
  FileId root_id_;
  uint64_t device_ = 0;
  int mount_id_ = 0;
  bool has_handles_ = false;
  bool handles_refused_ = false;  // the file system has some, and this process may not use them
  bool privileged_ = false;       // may act as other users
  bool judges_ = false;           // S6: only then are changes of what exists made as the caller
  // Without handles. The kernel gives the lowest free number, so one that is not below these says
  // how many there are: then no file becomes known, and nothing is kept open for its data.
  uint64_t descriptors_ = 0;
  int names_end_ = 0, data_end_ = 0;
  std::atomic<bool> full_told_{false};
  std::unique_ptr<Table> table_;
  std::unique_ptr<Journal> journal_;  // null: nothing is kept
  std::unique_ptr<SizeLocks> size_locks_;
  std::unique_ptr<Departed> departed_;
  const std::function<void(FileId, int)> tell_nameless_;
  const std::function<void(FileId)> tell_nameless_gone_;
  const std::function<void(uint64_t)> tell_full_;
  std::mutex nameless_mutex_;
  std::unordered_set<FileId, FileIdHash> nameless_;  // pinned and told of
};

}  // namespace vremote::store
