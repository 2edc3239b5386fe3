// Directories and the names in them. The root of the mount is ours: it lists the exports.
#include <dirent.h>
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <cerrno>

#include "fuse/reply.h"
#include "node/agent/kernel_names.h"
#include "node/base/handle.h"
#include "node/mount/fuse_server.h"

namespace vremote::node {

using namespace coherence;

namespace {

constexpr uint32_t kListingBytes = 128 << 10;  // asked of the home at once
// Offsets of a stream that are not the origin's: behind "." and behind "..". No file system gives
// these (ext4 ends with the greatest), and they are positive: lseek(2) takes no others.
constexpr uint64_t kAfterDot = INT64_MAX - 2;
constexpr uint64_t kAfterDotDot = INT64_MAX - 1;

// Entries in the form the kernel asked for. Of READDIRPLUS only the names are used (node 0).
class Listing {
 public:
  Listing(size_t capacity, bool plus) : writer_(capacity), plus_(plus) {}
  bool add(std::string_view name, uint64_t shown_inode, uint32_t type, uint64_t next_offset) {
    return plus_ ? writer_.add_plus(name, fuse_entry_out{}, shown_inode, type, next_offset)
                 : writer_.add(name, shown_inode, type, next_offset);
  }
  std::span<const std::byte> bytes() const { return writer_.bytes(); }

 private:
  fuse::DirentWriter writer_;
  bool plus_;
};

// For operations in a directory: one that has been removed meanwhile is empty for good, as on a
// local disk.
int error_in_directory(int error) { return error == ESTALE ? ENOENT : error; }

bool name_fits(std::string_view name) { return name.size() <= kNameMax; }

}  // namespace

// A stream of one open directory: what the home listed last and not all of which has been handed
// out.
struct FuseServer::Directory {
  std::mutex mutex;
  std::vector<DirectoryEntry> entries;
  size_t next = 0;
  uint64_t cookie = 0;  // the origin's, of entries[next]'s place
  bool end = false;
};

Attributes FuseServer::root_attributes() const {
  Attributes a;
  a.inode = 1;
  a.mode = S_IFDIR | 0755;
  a.nlink = 2 + static_cast<uint32_t>(exports_.all().size());
  return a;
}

void FuseServer::reply_entry(const Context& c, AgentService* agent, FileId file,
                             std::optional<Named> named, std::move_only_function<void()> stale,
                             std::optional<HalfDone> half_done) {
  agent->attributes(
      c.waiting(), file, false,
      [this, c, agent, file, named = std::move(named), stale = std::move(stale),
       half_done = std::move(half_done)](Answer answer) mutable {
        // It has lost its name since: there may be another of that name now. (If that is lost as
        // well, it is as if this had been a moment earlier.)
        if (stale && answer.error == 0 && answer.attributes.nlink == 0) answer.error = ESTALE;
        if (answer.error == ESTALE && stale) {
          stale();
          return;
        }
        if (answer.error != 0) {
          (void)c.channel->reply_error(c.unique, answer.error == ESTALE ? ENOENT : answer.error);
          return;
        }
        const uint64_t node = inodes_.look_up(agent, file);
        const Inode inode{node, agent, file};
        // Before the kernel goes on with it.
        if (moved_ && named && S_ISDIR(answer.attributes.mode))
          moved_->told(c.pid, named->dir.node, named->name, node);
        const bool kept = named && named->looked_up && keep_name(c, *named, file);
        const auto entry =
            fuse::entry_out(node, 0, answer.attributes, shown_inode(inode, answer.attributes.inode),
                            kept ? fuse::kUntilInvalidated : fuse::kNotCached, fuse::kNotCached);
        (void)c.channel->reply(c.unique, entry);
      });
}

// Whether the kernel may keep the name it has just looked up.
bool FuseServer::keep_name(const Context& c, const Named& named, FileId file) {
  if (named.dir.node != FUSE_ROOT_ID)
    return named.dir.agent->give_name(named.dir.node, named.dir.file, named.name, file, c.asked());
  const auto root = exports_.find(named.name);
  return root && root->root == file &&
         kernel_names_.give(FUSE_ROOT_ID, named.name, true, c.asked(), net::EventLoop::now());
}

void FuseServer::handle(const Context& c, const fuse::Lookup& r) {
  if (moved_ && moved_->any()) {
    MovedDirectories::Task later = [this, c, name = std::string(r.name)] {
      handle(c, fuse::Lookup{name});
    };
    if (moved_->hold_back(c.pid, c.node, later)) return;
  }
  metrics_.add(Counter::Lookups);
  if (!name_fits(r.name)) {
    (void)c.channel->reply_error(c.unique, ENAMETOOLONG);
    return;
  }
  if (c.node == FUSE_ROOT_ID) {
    auto root = exports_.find(r.name);
    if (!root) {
      (void)c.channel->reply_error(c.unique, ENOENT);
    } else {
      reply_entry(c, root->agent, root->root, Named{{FUSE_ROOT_ID, nullptr, {}}, root->name});
    }
    return;
  }
  auto dir = inode(c);
  if (!dir) return;
  look_up(c, *dir, std::string(r.name), false);
}

void FuseServer::look_up(const Context& c, const Inode& dir, std::string name, bool again) {
  const int64_t started = net::EventLoop::now().ns;
  dir.agent->lookup(
      c.waiting(), c.caller, dir.file, name,
      [this, c, dir, name, again, started](Result<FileId> file) {
        metrics_.record(Latency::Lookup, net::EventLoop::now().ns - started);
        if (!file) {
          if (file.error().code == ENOENT &&
              dir.agent->give_name(dir.node, dir.file, name, std::nullopt, c.asked())) {
            (void)c.channel->reply(c.unique, fuse::negative_entry_out(fuse::kUntilInvalidated));
          } else {
            (void)c.channel->reply_error(c.unique, error_in_directory(file.error().code));
          }
          return;
        }
        std::move_only_function<void()> stale;
        // The home knows files nobody has a lease on only as long as it has room: the
        // name is as good as before, and its file is found by it anew.
        if (!again)
          stale = [this, c, dir, name] {
            dir.agent->forget_name(dir.file, name);
            look_up(c, dir, name, true);
          };
        reply_entry(c, dir.agent, *file, Named{dir, name}, std::move(stale));
      });
}

void FuseServer::handle(const Context& c, const fuse::ReadLink&) {
  auto node = inode(c);
  if (!node) return;
  call(c, node->agent, ReadLinkCall{node->file},
       [this, c](Reply&& reply) { reply_text(c, std::move(reply), kLinkMax); });
}

// An operation that makes a name; answered with the new file.
void FuseServer::make(const Context& c, std::string_view name, Operation operation) {
  auto dir = inode(c);
  if (!dir) return;
  auto then = [this, c, named = Named{*dir, std::string(name), false}](Reply&& reply) mutable {
    const auto* made = std::get_if<Node>(&reply.outcome);
    if (reply.error != 0 || made == nullptr) {
      (void)c.channel->reply_error(c.unique,
                                   reply.error != 0 ? error_in_directory(reply.error) : EIO);
    } else {
      AgentService* agent = named.dir.agent;
      reply_entry(c, agent, made->file, std::move(named), {}, HalfDone(half_done_));
    }
  };
  call(c, dir->agent, std::move(operation), std::move(then),
       {{dir->file, std::string(name), dir->node}});
}

void FuseServer::handle(const Context& c, const fuse::Symlink& r) {
  auto dir = inode(c);
  if (!dir) return;
  make(c, r.name, SymlinkCall{dir->file, std::string(r.name), std::string(r.target)});
}

void FuseServer::handle(const Context& c, const fuse::MkNod& r) {
  auto dir = inode(c);
  if (!dir) return;
  make(c, r.name, CreateCall{dir->file, std::string(r.name), r.mode, r.rdev, true});
}

void FuseServer::handle(const Context& c, const fuse::MkDir& r) {
  auto dir = inode(c);
  if (!dir) return;
  make(c, r.name, CreateCall{dir->file, std::string(r.name), (r.mode & 07777) | S_IFDIR, 0, true});
}

void FuseServer::handle(const Context& c, const fuse::Link& r) {
  auto dir = inode(c);
  if (!dir) return;
  auto file = inode(c, r.old_node);
  if (!file) return;
  if (file->agent != dir->agent || file->file.export_index != dir->file.export_index) {
    (void)c.channel->reply_error(c.unique, EXDEV);
    return;
  }
  make(c, r.name, LinkCall{file->file, dir->file, std::string(r.name)});
}

void FuseServer::handle(const Context& c, const fuse::Create& r) {
  metrics_.add(Counter::Creates);
  auto dir = inode(c);
  if (!dir) return;
  // Exclusive at first, whatever was asked: of a file that exists already the kernel has not seen
  // whether the caller may open it.
  CreateCall operation{dir->file, std::string(r.name), (r.mode & 07777) | S_IFREG, 0, true};
  // Of a daemon before, that had found it there.
  if (const auto before = dir->agent->inherited(c.request))
    if (const auto* made = std::get_if<CreateCall>(&*before)) operation.exclusive = made->exclusive;
  create(c, *dir, std::move(operation), {.flags = r.flags, .kill_suidgid = r.kill_suidgid});
}

void FuseServer::create(const Context& c, const Inode& dir, CreateCall operation, fuse::Open how) {
  std::vector<AgentService::Change> changes{{operation.dir, operation.name, dir.node}};
  auto then = [this, c, dir, operation, how](Reply&& reply) mutable {
    if (reply.error == EEXIST && operation.exclusive && (how.flags & O_EXCL) == 0) {
      operation.exclusive = false;
      create(c, dir, std::move(operation), how);
      return;
    }
    const auto* made = std::get_if<Node>(&reply.outcome);
    if (reply.error != 0 || made == nullptr) {
      (void)c.channel->reply_error(c.unique,
                                   reply.error != 0 ? error_in_directory(reply.error) : EIO);
      return;
    }
    // Somebody else has made it since the kernel looked. What is no file the kernel looks at again
    // by itself (ESTALE).
    if (!S_ISREG(made->attributes.mode)) {
      (void)c.channel->reply_error(c.unique, S_ISDIR(made->attributes.mode) ? EISDIR : ESTALE);
      return;
    }
    if (!operation.exclusive && !may_open(c, made->attributes, how.flags)) {
      (void)c.channel->reply_error(c.unique, EACCES);
      return;
    }
    if (operation.exclusive) how.flags &= ~O_TRUNC;
    created(c, {inodes_.look_up(dir.agent, made->file), dir.agent, made->file}, how);
  };
  call(c, dir.agent, operation, std::move(then), std::move(changes));
}

void FuseServer::handle(const Context& c, const fuse::TmpFile& r) {
  metrics_.add(Counter::Creates);
  auto dir = inode(c);
  if (!dir) return;
  // The kernel would let nobody link it who must not; the origin's does not, either.
  const CreateCall operation{dir->file, "-", (r.mode & 07777) | kNamelessFile, 0,
                             (r.flags & O_EXCL) != 0};
  const fuse::Open how{.flags = r.flags & ~static_cast<uint32_t>(O_TRUNC),
                       .kill_suidgid = r.kill_suidgid};
  auto then = [this, c, agent = dir->agent, how](Reply&& reply) {
    const auto* made = std::get_if<Node>(&reply.outcome);
    if (reply.error != 0 || made == nullptr) {
      // EINVAL: a home that knows of no such files.
      (void)c.channel->reply_error(c.unique, reply.error == 0 ? EIO
                                             : reply.error == EINVAL
                                                 ? EOPNOTSUPP
                                                 : error_in_directory(reply.error));
      return;
    }
    created(c, {inodes_.look_up(agent, made->file), agent, made->file}, how, true);
  };
  // Nobody waits for it any more: it is opened and closed, and so gone.
  auto abandoned = [agent = dir->agent](Reply&& reply) {
    const auto* made = std::get_if<Node>(&reply.outcome);
    if (reply.error != 0 || made == nullptr) return;
    const Opening opening{.reads = false, .told = true};
    agent->open(made->file, opening,
                [agent, file = made->file, opening](Answer) { agent->close(file, opening); });
  };
  call(c, dir->agent, operation, std::move(then), {}, std::move(abandoned));
}

void FuseServer::created(const Context& c, const Inode& inode, fuse::Open how, bool told) {
  open_file(c, inode, how, told,
            [this, c, inode, how, half_done = HalfDone(half_done_)](int error, uint64_t fh,
                                                                    uint32_t fopen_flags) mutable {
              if (error != 0) {
                forget(inode.node, 1);
                (void)c.channel->reply_error(c.unique, error);
                return;
              }
              inode.agent->attributes(
                  {}, inode.file, false,
                  [this, c, inode, how, fh, fopen_flags,
                   half_done = std::move(half_done)](Answer answer) {
                    if (answer.error != 0) {
                      inode.agent->close(inode.file,
                                         {.reads = (how.flags & O_ACCMODE) != O_WRONLY,
                                          .may_map = (how.flags & O_ACCMODE) == O_RDWR});
                      forget(inode.node, 1);
                      (void)c.channel->reply_error(c.unique, answer.error);
                      return;
                    }
                    const auto entry = fuse::entry_out(inode.node, 0, answer.attributes,
                                                       shown_inode(inode, answer.attributes.inode),
                                                       fuse::kNotCached, fuse::kNotCached);
                    note_handle(inode.node, fh);
                    (void)c.channel->reply(c.unique, fuse::create_out(entry, fh, fopen_flags));
                  });
            });
}

void FuseServer::change(const Context& c, const Inode& dir,
                        std::vector<AgentService::Change> changes, Operation operation) {
  call(
      c, dir.agent, std::move(operation),
      [this, c](Reply&& reply) {
        reply.error = error_in_directory(reply.error);
        reply_done(c, reply);
      },
      std::move(changes));
}

void FuseServer::handle(const Context& c, const fuse::Unlink& r) {
  auto dir = inode(c);
  if (dir)
    change(c, *dir, {{dir->file, std::string(r.name), dir->node}},
           RemoveCall{dir->file, std::string(r.name), false});
}

void FuseServer::handle(const Context& c, const fuse::RmDir& r) {
  auto dir = inode(c);
  if (dir)
    change(c, *dir, {{dir->file, std::string(r.name), dir->node}},
           RemoveCall{dir->file, std::string(r.name), true});
}

void FuseServer::handle(const Context& c, const fuse::Rename& r) {
  if (c.node == FUSE_ROOT_ID || r.new_directory == FUSE_ROOT_ID) {
    (void)c.channel->reply_error(c.unique, EXDEV);
    return;
  }
  auto from = inode(c);
  if (!from) return;
  auto to = inode(c, r.new_directory);
  if (!to) return;
  if (from->agent != to->agent || from->file.export_index != to->file.export_index) {
    (void)c.channel->reply_error(c.unique, EXDEV);
    return;
  }
  change(c, *from,
         {{from->file, std::string(r.name), from->node},
          {to->file, std::string(r.new_name), to->node}},
         RenameCall{from->file, std::string(r.name), to->file, std::string(r.new_name), r.flags});
}

// ---- listing

// What it had listed and not handed out is asked for again, from where the kernel goes on.
void FuseServer::add_directory(uint64_t handle) {
  directories_.emplace(handle, std::make_shared<Directory>());
}

void FuseServer::handle(const Context& c, const fuse::OpenDir&) {
  uint64_t fh = 0;
  {
    std::lock_guard lock(directories_mutex_);
    fh = next_directory_++;
    directories_.emplace(fh, std::make_shared<Directory>());
  }
  (void)c.channel->reply(c.unique, fuse::open_out(fh, 0));
}

void FuseServer::handle(const Context& c, const fuse::ReleaseDir& r) {
  {
    std::lock_guard lock(directories_mutex_);
    directories_.erase(r.fh);
  }
  if (auto node = inodes_.get(c.node)) node->agent->directory_closed(node->file, r.fh);
  (void)c.channel->reply(c.unique);
}

void FuseServer::handle(const Context& c, const fuse::FsyncDir& r) {
  if (c.node == FUSE_ROOT_ID) {
    (void)c.channel->reply(c.unique);
    return;
  }
  auto node = inode(c);
  if (!node) return;
  AgentService::Sync wait{.file = node->file, .who = {.handle = r.fh}, .request = c.request};
  {
    std::lock_guard lock(directories_mutex_);
    wait.who.next = next_directory_;
  }
  node->agent->sync_asked(wait);
  node->agent->sync_begins(wait);
  call(
      c, node->agent, SyncCall{node->file, r.data_only},
      [this, c, node, wait](Reply&& reply) {
        if (reply.error == ESTALE) reply.error = 0;  // removed: there is nothing to keep
        reply.error = node->agent->synced(wait, reply);
        reply_done(c, reply);
      },
      {}, [node, wait](Reply&&) { node->agent->sync_ended(wait); });
}

void FuseServer::read_root(const Context& c, const fuse::ReadDir& r, bool plus) {
  Listing writer(r.size, plus);
  const std::vector<ExportRoot> roots = exports_.all();
  // Offsets: 1 behind ".", 2 behind "..", then the place in the sorted list of names.
  uint64_t at = r.offset;
  if (at == 0 && writer.add(".", 1, DT_DIR, 1)) at = 1;
  if (at == 1 && writer.add("..", 1, DT_DIR, 2)) at = 2;
  for (uint64_t i = at >= 2 ? at - 2 : roots.size(); i < roots.size(); ++i) {
    const Inode inode{0, roots[i].agent, roots[i].root};
    if (!writer.add(roots[i].name, shown_inode(inode, roots[i].root.inode), DT_DIR, i + 3)) break;
  }
  (void)c.channel->reply(c.unique, writer.bytes());
}

void FuseServer::read_directory(const Context& c, const fuse::ReadDir& r, bool plus) {
  if (c.node == FUSE_ROOT_ID) {
    read_root(c, r, plus);
    return;
  }
  auto node = inode(c);
  if (!node) return;
  std::shared_ptr<Directory> directory;
  {
    std::lock_guard lock(directories_mutex_);
    // Of a dead daemon: its number and where the kernel goes on are all that it is.
    if (r.fh < first_number(generation_)) add_directory(r.fh);
    auto it = directories_.find(r.fh);
    if (it != directories_.end()) directory = it->second;
  }
  if (!directory) {
    (void)c.channel->reply_error(c.unique, EBADF);
    return;
  }
  Listing writer(r.size, plus);
  uint64_t at = r.offset;
  if (at == 0 && writer.add(".", shown_inode(*node, node->file.inode), DT_DIR, kAfterDot))
    at = kAfterDot;
  if (at == kAfterDot && writer.add("..", 1, DT_DIR, kAfterDotDot)) at = kAfterDotDot;
  if (r.offset == 0 || r.offset == kAfterDot) {
    std::lock_guard lock(directory->mutex);  // rewound: what was listed before is old
    directory->entries.clear();
    directory->next = 0;
    directory->cookie = 0;
    directory->end = false;
    (void)c.channel->reply(c.unique, writer.bytes());
    return;
  }
  const uint64_t cookie = at == kAfterDotDot ? 0 : at;
  {
    std::lock_guard lock(directory->mutex);
    if (directory->cookie == cookie &&
        (directory->next < directory->entries.size() || directory->end)) {
      reply_directory(c, r, plus, *directory);
      return;
    }
  }
  node->agent->list(c.waiting(), c.caller, node->file, cookie, kListingBytes, plus,
                    [this, c, r, plus, directory, cookie](Reply&& reply) {
                      auto* page = std::get_if<DirectoryPage>(&reply.outcome);
                      if (reply.error != 0 || page == nullptr) {
                        (void)c.channel->reply_error(
                            c.unique, reply.error != 0 ? error_in_directory(reply.error) : EIO);
                        return;
                      }
                      std::lock_guard lock(directory->mutex);
                      directory->entries = std::move(page->entries);
                      directory->next = 0;
                      directory->cookie = cookie;
                      directory->end = page->end;
                      reply_directory(c, r, plus, *directory);
                    });
}

// Hands out what is at hand. Called with the directory's lock.
void FuseServer::reply_directory(const Context& c, const fuse::ReadDir& r, bool plus,
                                 Directory& directory) {
  Listing writer(r.size, plus);
  auto node = inodes_.get(c.node);
  while (directory.next < directory.entries.size()) {
    const DirectoryEntry& entry = directory.entries[directory.next];
    if (!writer.add(entry.name, node ? shown_inode(*node, entry.file.inode) : entry.file.inode,
                    entry.type, entry.cookie))
      break;
    directory.cookie = entry.cookie;
    ++directory.next;
  }
  (void)c.channel->reply(c.unique, writer.bytes());
}

}  // namespace vremote::node
