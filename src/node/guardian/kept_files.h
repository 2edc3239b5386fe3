// What a guardian has not heard yet of the files without a name that it is to keep (rule G6 of
// guardian.h): in order, and never more than it can keep. Not thread-safe.
#pragma once

#include <list>
#include <unordered_map>
#include <unordered_set>

#include "base/fd.h"
#include "base/ids.h"
#include "node/guardian/guardian_words.h"

namespace vremote::node {

class KeptFiles {
 public:
  explicit KeptFiles(size_t most = kKeptFilesMax) : most_(most) {}

  struct Word {
    FileId file;
    Fd descriptor;  // not valid: let go of it
  };
  // False: there are too many.
  bool keep(FileId file, Fd descriptor) {
    if (kept_.contains(file)) return true;
    if (kept_.size() >= most_) return false;
    kept_.insert(file);
    words_.push_back({file, std::move(descriptor)});
    not_told_.emplace(file, std::prev(words_.end()));
    return true;
  }
  void let_go(FileId file) {
    if (kept_.erase(file) == 0) return;
    if (auto word = not_told_.find(file); word != not_told_.end()) {
      words_.erase(word->second);
      not_told_.erase(word);
    } else {
      words_.push_back({file, Fd()});
    }
  }

  // What is to be told next; null: nothing.
  const Word* next() const { return words_.empty() ? nullptr : &words_.front(); }
  void told() {
    if (words_.front().descriptor.valid()) not_told_.erase(words_.front().file);
    words_.pop_front();
  }
  // Nobody is there any more who could be told.
  void drop() { words_.clear(), not_told_.clear(), kept_.clear(); }

 private:
  const size_t most_;
  std::list<Word> words_;
  std::unordered_map<FileId, std::list<Word>::iterator, FileIdHash> not_told_;  // to be kept
  std::unordered_set<FileId, FileIdHash> kept_;  // by the guardian, or as soon as it has heard
};

}  // namespace vremote::node
