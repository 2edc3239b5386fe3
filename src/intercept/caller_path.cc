#include "intercept/caller_path.h"

#include <fmt/format.h>
#include <limits.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cerrno>
#include <deque>
#include <string_view>

#include "intercept/resolve.h"

namespace vremote::intercept {
namespace {

constexpr int kLinksMax = 40;  // as in the kernel

std::vector<std::string> components(std::string_view path) {
  std::vector<std::string> parts;
  while (!path.empty()) {
    size_t slash = path.find('/');
    std::string_view part = path.substr(0, slash);
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
    if (!part.empty() && part != ".") parts.emplace_back(part);
  }
  return parts;
}

void go_up(std::string& current, const std::string& root) {
  if (current == root || current.empty()) return;
  current.resize(current.rfind('/'));
}

// Links of /proc/PID lead to what this process names so, not to what its text means inside the
// caller's root.
bool in_proc_of_a_process(std::string_view path) {
  return path.starts_with("/proc/") && path.size() > 6 && std::isdigit(path[6]);
}

class Walk {
 public:
  Walk(const View& view, bool follow_last, bool strict, const ReadLink& read_link)
      : view_(view), follow_last_(follow_last), strict_(strict), read_link_(read_link) {}

  Result<std::string> run(std::string current, std::string_view path) {
    current_ = std::move(current);
    push_front(path);
    while (!todo_.empty()) {
      std::string part = std::move(todo_.front());
      todo_.pop_front();
      VR_TRY_VOID(step(part));
      if (current_.size() > PATH_MAX) return fail(ENAMETOOLONG);
    }
    return current_.empty() ? "/" : current_;
  }

 private:
  Status step(const std::string& part) {
    if (part == "..") {
      if (missing_ && strict_) return fail(missing_);
      go_up(current_, view_.root);
      return {};
    }
    std::string next = current_ + "/" + part;
    if (missing_ || (todo_.empty() && !follow_last_)) {
      current_ = std::move(next);
      return {};
    }
    VR_TRY(text, link_text(next));
    if (!text) {
      current_ = std::move(next);
      return {};
    }
    if (++links_ > kLinksMax) return fail(ELOOP);
    if (text->starts_with('/')) current_ = in_proc_of_a_process(next) ? std::string() : view_.root;
    push_front(*text);
    return {};
  }

  Result<std::optional<std::string>> link_text(const std::string& path) {
    if (path == "/proc/self") return fmt::format("{}", view_.process);
    if (path == "/proc/thread-self") return fmt::format("{}/task/{}", view_.process, view_.thread);
    auto text = read_link_(view_.lookup + path);
    if (text) return text;
    missing_ = text.error().code;
    return std::nullopt;
  }

  void push_front(std::string_view path) {
    auto parts = components(path);
    todo_.insert(todo_.begin(), parts.begin(), parts.end());
  }

  const View& view_;
  const bool follow_last_;
  const bool strict_;
  const ReadLink& read_link_;
  std::string current_;
  std::deque<std::string> todo_;
  int missing_ =
      0;  // why the last name could not be looked at; from there on the words alone count
  int links_ = 0;
};

// Empty when a ".." follows a name.
std::string lexical_path(const std::string& start, const std::string& root,
                         const std::string& path) {
  std::string current = start;
  bool named = false;
  for (const std::string& part : components(path)) {
    if (part == "..") {
      if (named) return {};
      go_up(current, root);
    } else {
      named = true;
      current += "/" + part;
    }
  }
  return current.empty() ? "/" : current;
}

}  // namespace

Result<CallerPath> caller_path(const View& view, const std::string& path, bool follow_last,
                               bool strict, const ReadLink& read_link) {
  if (path.empty()) return fail(ENOENT);
  if (path.size() >= PATH_MAX) return fail(ENAMETOOLONG);
  std::string start = path.starts_with('/') ? view.root : view.start;
  while (start.ends_with('/')) start.pop_back();

  CallerPath result;
  result.slash = path.ends_with('/') || path.ends_with("/.") || path == ".";
  VR_TRY(resolved, Walk(view, follow_last || result.slash, strict, read_link).run(start, path));
  result.resolved = std::move(resolved);
  result.lexical = lexical_path(start, view.root, path);
  return result;
}

Result<std::optional<std::string>> read_link(const std::string& path) {
  std::array<char, PATH_MAX> buffer;
  ssize_t n = ::readlink(path.c_str(), buffer.data(), buffer.size());
  if (n >= 0) return std::string(buffer.data(), static_cast<size_t>(n));
  if (errno == EINVAL) return std::nullopt;
  return fail(errno);
}

}  // namespace vremote::intercept
