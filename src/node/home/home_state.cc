#include "node/home/home_state.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <span>
#include <system_error>

#include "base/durable_file.h"

namespace vremote::node {

using coherence::CallNote;

namespace {

constexpr size_t kMembersMax = 65536;
constexpr size_t kNodeNameMax = 255;
constexpr size_t kSessionsBytesMax = 4096 + kMembersMax * (kNodeNameMax + 48);
constexpr int64_t kTermMaxMs = 24 * 3600 * 1000;
constexpr std::string_view kSessionsHead = "vremote sessions 2";
constexpr std::string_view kSessionsHeadBefore = "vremote sessions 1";  // without epochs
// Then a new file is begun, with those of before that must stay: a few milliseconds' work.
constexpr uint64_t kRecordsMax = 128 << 10;
constexpr size_t kRecordsAtOnce = 4096;

struct Record {
  uint64_t incarnation, call;
  uint64_t value;  // of a call that begins: heard_below; 0 from daemons that did not note it
  int32_t error;
  uint32_t ended;
  uint64_t check;
};

uint64_t check_of(const Record& r) {
  uint64_t h = 0xCBF29CE484222325u;
  for (uint64_t part : {r.incarnation, r.call, r.value, uint64_t{static_cast<uint32_t>(r.error)},
                        uint64_t{r.ended}})
    h = (h ^ part) * 0x9E3779B97F4A7C15u ^ h >> 29;
  return h;
}

Record record_of(const CallNote& note) {
  Record r{.incarnation = note.incarnation,
           .call = note.call,
           .value = note.done.ended ? note.done.value : note.heard_below,
           .error = note.done.error,
           .ended = note.done.ended ? 1u : 0u,
           .check = 0};
  r.check = check_of(r);
  return r;
}

CallNote note_of(const Record& r) {
  if (r.ended == 0) return {r.incarnation, r.call, {}, r.value};
  return {r.incarnation, r.call, {true, r.error, r.value}};
}

// Daemons of before began a new file with nothing, and kept the full one here.
std::string before(const std::string& path) { return path + ".1"; }

}  // namespace

std::optional<SessionsFile> parse_sessions(std::string_view text) {
  const auto next_line = [&]() -> std::optional<std::string_view> {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    return line;
  };
  // "TEXT NUMBER"; a name may hold spaces, so the last one parts them.
  const auto parts = [](std::string_view line, auto& number) -> std::optional<std::string_view> {
    const size_t space = line.rfind(' ');
    if (space == std::string_view::npos) return std::nullopt;
    const char* end = line.data() + line.size();
    const auto [at, error] = std::from_chars(line.data() + space + 1, end, number);
    if (error != std::errc() || at != end) return std::nullopt;
    return line.substr(0, space);
  };
  const auto head = next_line();
  if (head != kSessionsHead && head != kSessionsHeadBefore) return std::nullopt;
  SessionsFile out;
  size_t announced = 0;
  const auto line = next_line();
  const auto term = line ? parts(*line, announced) : std::nullopt;
  if (!term || announced > kMembersMax) return std::nullopt;
  const auto [at, error] = std::from_chars(term->data(), term->data() + term->size(), out.term_ms);
  if (error != std::errc() || at != term->data() + term->size() || out.term_ms < 0 ||
      out.term_ms > kTermMaxMs)
    return std::nullopt;
  for (size_t i = 0; i < announced; ++i) {
    coherence::Grace::Member member;
    const auto member_line = next_line();
    auto name = member_line ? parts(*member_line, member.incarnation) : std::nullopt;
    if (name && head == kSessionsHead) name = parts(*name, member.epoch);
    if (!name || name->empty() || name->size() > kNodeNameMax) return std::nullopt;
    member.node = *name;
    out.members.push_back(std::move(member));
  }
  if (!text.starts_with("end")) return std::nullopt;
  return out;
}

Result<SessionsFile> read_sessions(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd.valid() && errno == ENOENT) return SessionsFile{};
  const auto not_read = [&](int code, const char* why) {
    return fail(code,
                fmt::format("{}: {}; nodes that had a session are not waited for", path, why));
  };
  struct stat st {};
  if (!fd.valid() || ::fstat(fd.get(), &st) != 0) return not_read(errno, std::strerror(errno));
  if (!S_ISREG(st.st_mode)) return not_read(EINVAL, "not a regular file");
  if (static_cast<uint64_t>(st.st_size) > kSessionsBytesMax) return not_read(EINVAL, "damaged");
  std::string text(static_cast<size_t>(st.st_size), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n =
        ::pread(fd.get(), text.data() + done, text.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return not_read(errno, std::strerror(errno));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  auto sessions = parse_sessions(text);
  if (!sessions) return not_read(EINVAL, "damaged");
  return std::move(*sessions);
}

Status write_sessions(const std::string& path, const SessionsFile& sessions, Sync sync) {
  if (sessions.members.size() > kMembersMax)
    return fail(E2BIG, fmt::format("{}: more than {} nodes have a session", path, kMembersMax));
  std::string text =
      fmt::format("{}\n{} {}\n", kSessionsHead, sessions.term_ms, sessions.members.size());
  for (const auto& member : sessions.members)
    text += fmt::format("{} {} {}\n", member.node, member.epoch, member.incarnation);
  text += "end\n";
  return sync == Sync::Now ? replace_durably(path, text) : replace_soon(path, text);
}

std::vector<coherence::Grace::Member> with_expected(
    std::vector<coherence::Grace::Member> members,
    const std::vector<coherence::Grace::Member>& expected) {
  for (const coherence::Grace::Member& was : expected) {
    const auto it = std::ranges::find_if(
        members, [&](const coherence::Grace::Member& m) { return m.same_daemon(was); });
    // The oldest session is the one from which it may bring back (Grace::may_reclaim).
    if (it == members.end())
      members.push_back(was);
    else
      it->epoch = std::min(it->epoch, was.epoch);
  }
  return members;
}

Status CallLog::open(const std::string& path, Askers askers, std::function<void()> on_loss) {
  path_ = path;
  askers_ = std::move(askers);
  on_loss_ = std::move(on_loss);
  for (const std::string& name : {before(path), path}) {
    VR_TRY(notes, read_file(name));
    for (const CallNote& note : notes) earlier_[{note.incarnation, note.call}] = note.done;
    records_ = notes.size();
  }
  // Behind what is there: a node may be away while several daemons of this one come and go.
  if (go_on_in_file()) return {};
  return begin_file();
}

// Those that are whole: half a one hides those behind it.
Result<std::vector<CallNote>> CallLog::read_file(const std::string& name) {
  std::vector<CallNote> notes;
  const auto failed = [&] { return fail(errno, name + ": " + std::strerror(errno)); };
  const Fd fd(::open(name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd.valid() && (errno == ENOENT || errno == ELOOP)) return notes;
  struct stat st {};
  if (!fd.valid() || ::fstat(fd.get(), &st) != 0) return failed();
  if (!S_ISREG(st.st_mode)) return notes;
  std::vector<Record> some(kRecordsAtOnce);
  for (;;) {
    const ssize_t n = ::pread(fd.get(), some.data(), some.size() * sizeof(Record),
                              static_cast<off_t>(notes.size() * sizeof(Record)));
    if (n < 0) return failed();
    const size_t count = static_cast<size_t>(n) / sizeof(Record);
    if (count == 0) return notes;
    for (const Record& r : std::span(some).first(count)) {
      if (r.check != check_of(r)) return notes;
      notes.push_back(note_of(r));
    }
  }
}

Status CallLog::go_on_in_file() {
  fd_ = Fd(::open(path_.c_str(),
                  O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600));
  struct stat st {};
  const auto whole = static_cast<off_t>(records_ * sizeof(Record));
  if (!fd_.valid() || ::fstat(fd_.get(), &st) != 0 || !S_ISREG(st.st_mode) ||
      ::ftruncate(fd_.get(), whole) != 0)
    return fail(errno, path_ + ": " + std::strerror(errno));
  // A daemon that dies leaves half a record at most.
  if (st.st_size - whole >= static_cast<off_t>(sizeof(Record))) {
    spdlog::warn("{}: damaged; calls of other nodes that were under way end with EIO", path_);
    if (on_loss_) on_loss_();
  }
  return {};
}

// Under its name only when all is there that must stay: this daemon may die in between.
Status CallLog::begin_file() {
  VR_TRY(notes, read_file(before(path_)));
  VR_TRY(newer, read_file(path_));
  notes.insert(notes.end(), newer.begin(), newer.end());
  std::vector<Record> records;
  for (const CallNote& note : coherence::notes_that_stay(notes, askers_()))
    records.push_back(record_of(note));
  const std::string fresh = path_ + ".new";
  const auto failed = [&] { return fail(errno, fresh + ": " + std::strerror(errno)); };
  (void)::unlink(fresh.c_str());
  fd_ = Fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600));
  if (!fd_.valid()) return failed();
  const auto bytes = std::as_bytes(std::span(records));
  VR_TRY_VOID(write_all(fd_, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  if (::rename(fresh.c_str(), path_.c_str()) != 0) return failed();
  (void)::unlink(before(path_).c_str());
  records_ = 0;
  return {};
}

std::optional<CallLog::Done> CallLog::earlier(Key key) const {
  std::lock_guard lock(mutex_);
  auto it = earlier_.find(key);
  if (it == earlier_.end()) return std::nullopt;
  return it->second;
}

void CallLog::note(const CallNote& note) {
  const Record r = record_of(note);
  std::lock_guard lock(mutex_);
  if (!fd_.valid()) return;
  Status noted;
  if (records_ >= kRecordsMax) noted = begin_file();
  if (noted) noted = write_all(fd_, {reinterpret_cast<const char*>(&r), sizeof r});
  ++records_;
  if (noted) return;
  // No more of them: half a record would hide those behind it.
  spdlog::error("{}: {}; calls that are under way when this daemon dies end with EIO", path_,
                noted.error().what);
  fd_.reset();
  if (on_loss_) on_loss_();
}

}  // namespace vremote::node
