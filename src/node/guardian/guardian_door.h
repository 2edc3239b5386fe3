// The socket of a guardian, where the next daemon finds it: both sides of it.
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "node/guardian/guardian_words.h"

namespace vremote::node {

// The guardian's side.
class GuardianDoor {
 public:
  explicit GuardianDoor(std::string path) : path_(std::move(path)) {}

  // Takes the place of whoever listened there. Tells the log when it cannot.
  void open();
  int descriptor() const { return listening_.get(); }  // -1: not open
  // The guardian of the next daemon listens where we did.
  bool is_replaced() const;
  // Who came, if it may: root, and the user we run as. Waits a second at most for its word.
  struct Visitor {
    Fd socket;
    VisitorWord word = VisitorWord::Retire;  // or Take
  };
  std::optional<Visitor> receive() const;
  // And removes the file, unless it is replaced.
  void close();

 private:
  const std::string path_;
  Fd listening_;
  struct stat file_ {};
};
void answer(const Fd& visitor, VisitorAnswer answer);

// The visitor's side. Nothing: nobody listens there. An error: it cannot be known for the guardian
// of this node's last daemon, and gets no word.
Result<std::optional<Fd>> knock(const std::string& path);

// Ends the guardian of a dead daemon, and with it the connection and the mount. Asks also where
// knock() would give no word, as others can write to the directory; not who is of another user.
enum class Retired : uint8_t {
  Nobody,       // was there
  Guardian,     // has ended
  DaemonLives,  // and so does its guardian
};
Result<Retired> retire_guardian(const std::string& socket);

}  // namespace vremote::node
