// What the log was told of strangers, so that nobody can fill it: one line per visitor and reason,
// again after some minutes, and not many in all.
#pragma once

#include <map>
#include <string>

#include "base/time.h"

namespace vremote::net {

class Told {
 public:
  // True when this is worth a line.
  bool is_news(const std::string& who, const std::string& what, Instant now) {
    if (last_.size() >= kVisitorsMax) last_.clear();
    auto& [text, at] = last_[who];
    if (text == what && now - at < kAgainNs) return false;
    if (now - window_ >= kWindowNs) {
      window_ = now;
      lines_ = 0;
    }
    if (lines_ >= kLinesPerWindow) return false;
    ++lines_;
    text = what;
    at = now;
    return true;
  }
  void forget(const std::string& who) { last_.erase(who); }

 private:
  static constexpr size_t kVisitorsMax = 256;
  static constexpr int kLinesPerWindow = 32;
  static constexpr int64_t kWindowNs = 10'000'000'000;
  static constexpr int64_t kAgainNs = 600'000'000'000;
  std::map<std::string, std::pair<std::string, Instant>> last_;
  Instant window_;
  int lines_ = 0;
};

// "10.0.0.2:4711" without the port, which is another with every connection.
inline std::string host_of(const std::string& address) {
  return address.substr(0, address.rfind(':'));
}

}  // namespace vremote::net
