// The files a store knows: FileId -> handle, open descriptors, pins.
//
// An entry is *referenced* from its first use by FileId until forget(); the rest (given out by a
// lookup or a listing, or forgotten) are kept for a while in order of age. Open files are kept in
// order of use; pinned ones, and those that have no handle, stay open.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "store/open_file.h"

namespace vremote::store {

using OpenRef = std::shared_ptr<OpenFile>;

// Thread-safe, never blocks on the disk under its lock: what it drops is closed after.
class Table {
 public:
  Table(size_t open_max, size_t unreferenced_max)
      : open_max_(open_max), unreferenced_max_(unreferenced_max) {}

  // Makes the file known. `file` may be null when there is a handle. True: it was not before.
  bool learn(FileId id, const std::string& handle, OpenRef file);

  struct Found {
    OpenRef file;        // null: open it by its handle
    std::string handle;  // set when file is null
    bool pinned = false;
  };
  // A use of the file; nullopt when it is not known.
  std::optional<Found> use(FileId id);
  // The same without opening anything afterwards: null when the file is not known or not open.
  OpenRef use_if_open(FileId id);

  // Keeps an opened file for the next use, and gives back the one all should use (somebody may have
  // been faster).
  OpenRef keep_open(FileId id, OpenRef file);

  // False when the file is not known any more.
  bool pin(FileId id, OpenRef file);
  // True when that was the last pin.
  bool unpin(FileId id);
  bool pinned(FileId id) const;

  std::optional<FileId> find(std::string_view handle) const;

  bool knows(FileId id) const;

  void forget(FileId id);
  // Of the unreferenced, but for what calls under way have just been given. False: there is none.
  bool drop_oldest();
  // The file has no name any more: closes it unless it is pinned. Without a handle it cannot come
  // back and is dropped.
  void gone(FileId id);
  // Closes half of what is kept open only for speed (the process is short of descriptors).
  void close_some();

  struct Counts {
    size_t known = 0, open = 0, pinned = 0;
  };
  Counts counts() const;
  std::vector<std::pair<FileId, std::string>> referenced() const;  // with their handles
  std::vector<std::pair<FileId, std::string>> all() const;
  struct Open {
    FileId id;
    OpenRef file;
    bool pinned = false;
  };
  std::vector<Open> all_open() const;

 private:
  struct Entry {
    std::string handle;
    OpenRef file;
    uint32_t pins = 0;
    bool referenced = false;
    bool in_open = false;  // `open_place` is valid
    std::list<FileId>::iterator open_place, unreferenced_place;
  };
  using Entries = std::unordered_map<FileId, Entry, FileIdHash>;
  using Closing = std::vector<OpenRef>;  // destroyed after the lock is released

  void touch_open(FileId id, Entry& entry, Closing& closing);
  void leave_open(Entry& entry);
  void reference(Entry& entry);
  void unreference(FileId id, Entry& entry, Closing& closing);
  void erase(Entries::iterator it, Closing& closing);
  void close_oldest(Closing& closing);

  const size_t open_max_, unreferenced_max_;
  mutable std::mutex mutex_;
  Entries entries_;
  std::unordered_map<std::string_view, FileId> by_handle_;  // views of the entries' own
  std::list<FileId> open_;                                  // most recently used first
  std::list<FileId> unreferenced_;                          // oldest last
  size_t pinned_ = 0;
};

}  // namespace vremote::store
