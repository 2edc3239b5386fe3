// What a home must know after a crash of its daemon: which nodes had a session, and which calls
// were carried out. (Which files had which identity: store/journal.h.)
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "coherence/call_memory.h"
#include "coherence/grace.h"

namespace vremote::node {

// The sessions, in a small file that is replaced as a whole before anything depends on it.
struct SessionsFile {
  int64_t term_ms = 0;
  std::vector<coherence::Grace::Member> members;
};
// Nothing when the text is damaged.
std::optional<SessionsFile> parse_sessions(std::string_view text);
// No file is no error: there was no home here before. One that is damaged or cannot be read is.
Result<SessionsFile> read_sessions(const std::string& path);
enum class Sync {
  Soon,  // a power failure until then brings back those of before
  Now,
};
Status write_sessions(const std::string& path, const SessionsFile& sessions, Sync sync = Sync::Now);
// With those of before a restart who have not brought back all yet: should this daemon die now,
// they may in the next, as they might in this one. Each daemon of a node stands there once.
std::vector<coherence::Grace::Member> with_expected(
    std::vector<coherence::Grace::Member> members,
    const std::vector<coherence::Grace::Member>& expected);

// Calls that change something and must not be done twice: noted before and after. One that was
// begun and not ended may have been carried out or not.
//
// Thread-safe. What is noted outlives the process, not a power failure: after one the nodes make
// no such call again (S3).
class CallLog {
 public:
  struct Key {
    uint64_t incarnation = 0;  // of the asking node
    uint64_t call = 0;
    auto operator<=>(const Key&) const = default;
  };
  using Done = coherence::CallDone;
  // The incarnations of those who may make calls again (coherence::notes_that_stay()).
  using Askers = std::function<std::set<uint64_t>()>;

  // Reads what earlier incarnations noted, and goes on in the same file. `on_loss`: of
  // calls that were carried out no note is left, as the file is damaged; or from now on none is
  // made, and it is called before any such call is carried out.
  Status open(const std::string& path, Askers askers, std::function<void()> on_loss = {});
  std::optional<Done> earlier(Key key) const;
  // `heard_below`: as the call says.
  void begin(Key key, uint64_t heard_below) { note({key.incarnation, key.call, {}, heard_below}); }
  void end(Key key, int32_t error, uint64_t value) {
    note({key.incarnation, key.call, {true, error, value}});
  }

 private:
  Status begin_file();
  Status go_on_in_file();
  static Result<std::vector<coherence::CallNote>> read_file(const std::string& name);
  void note(const coherence::CallNote& note);

  std::string path_;
  Askers askers_;
  mutable std::mutex mutex_;
  Fd fd_;
  uint64_t records_ = 0;  // in the file, but for those that were taken over as it was begun
  std::function<void()> on_loss_;
  std::map<Key, Done> earlier_;
};

}  // namespace vremote::node
