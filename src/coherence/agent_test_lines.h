// What an agent does, each action a short line, as its scenarios expect it.
#pragma once

#include <fmt/format.h>

#include <string>
#include <vector>

#include "coherence/agent.h"
#include "coherence/test_text.h"

namespace vremote::coherence::test {

inline std::string line(const ToHome& message) {
  if (const auto* m = std::get_if<LeaseRequest>(&message))
    return fmt::format("ask {} {}{}", text(m->mode), text(m->resource, m->range),
                       m->want_data ? " with data" : "");
  if (const auto* m = std::get_if<RecallAck>(&message))
    return fmt::format("{} {}{}{}", m->busy ? "busy" : "ack", text(m->given),
                       m->attributes.has_size ? fmt::format(" size {}", m->attributes.size) : "",
                       m->watches  ? " watches"
                       : m->in_use ? " in use"
                                   : "");
  if (const auto* m = std::get_if<Flush>(&message)) {
    std::string out = "flush";
    for (const Extent& extent : m->extents)
      out += fmt::format(" @{}+{}", extent.offset, runs(std::vector<Bytes>{extent.bytes}));
    if (m->attributes.has_size) out += fmt::format(" size {}", m->attributes.size);
    if (m->attributes.has_mtime) out += " time";
    return out;
  }
  if (const auto* m = std::get_if<Fetch>(&message)) return fmt::format("fetch {}", text(m->range));
  if (const auto* m = std::get_if<Announce>(&message)) return fmt::format("announce {}", m->size);
  if (const auto* m = std::get_if<SizeShown>(&message)) return fmt::format("shown {}", m->show);
  if (const auto* m = std::get_if<Release>(&message))
    return m->leases ? "release" : "release of the last open";
  return "?";
}

inline std::string line(const AgentAction& action) {
  if (const auto* a = std::get_if<ReplyData>(&action)) {
    uint64_t length = 0;
    for (const Bytes& piece : a->pieces) length += piece.size();
    EXPECT_EQ(length, a->length);
    return length == 0 ? fmt::format("data {} end", a->token)
                       : fmt::format("data {} {}", a->token, runs(a->pieces));
  }
  if (const auto* a = std::get_if<ReplyWritten>(&action))
    return fmt::format("written {} @{}+{}", a->token, a->offset, a->length);
  if (const auto* a = std::get_if<ReplyOpened>(&action)) return fmt::format("opened {}", a->token);
  if (const auto* a = std::get_if<ReplyAttributes>(&action))
    return fmt::format("attributes {} size {}", a->token, a->attributes.size);
  if (const auto* a = std::get_if<ReplyFlushed>(&action))
    return fmt::format("flushed {}{}", a->token,
                       a->error == 0 ? "" : fmt::format(" error {}", a->error));
  if (const auto* a = std::get_if<ReplyTruncateReady>(&action))
    return fmt::format("truncate {}", a->token);
  if (const auto* a = std::get_if<ReplyEntries>(&action))
    return fmt::format("entries {}", a->token);
  if (const auto* a = std::get_if<ReplyError>(&action))
    return fmt::format("error {} {}", a->token, a->error);
  if (const auto* a = std::get_if<StartPurge>(&action))
    return fmt::format("purge {}", text(a->range));
  if (const auto* a = std::get_if<PushSize>(&action)) return fmt::format("push size {}", a->size);
  if (std::holds_alternative<TellOpen>(action)) return "tell of the open";
  if (const auto* a = std::get_if<ClaimPages>(&action)) {
    std::string out = "claim";
    for (PageRange range : a->pages) out += " " + text(range);
    return out;
  }
  if (std::holds_alternative<EndTruncation>(action)) return "end the truncation";
  if (const auto* a = std::get_if<LookAtSize>(&action))
    return fmt::format("look for size {}", a->size);
  if (std::holds_alternative<DropAttributes>(action)) return "drop attributes";
  if (const auto* a = std::get_if<SettleSize>(&action))
    return a->access ? fmt::format("settle mode {:o}", a->access->mode)
                     : fmt::format("settle size {}{}", a->size,
                                   a->behind_truncation ? " behind the truncation" : "");
  if (std::holds_alternative<EntriesLost>(action)) return "names lost";
  if (const auto* a = std::get_if<Rescue>(&action)) {
    std::string out = "rescue";
    for (const Extent& extent : a->extents)
      out += fmt::format(" @{}+{}", extent.offset, runs(std::vector<Bytes>{extent.bytes}));
    return out;
  }
  if (const auto* a = std::get_if<EndNames>(&action))
    return a->at_once ? "end names at once" : "end names";
  if (const auto* a = std::get_if<SendToHome>(&action)) return line(a->message);
  return "?";
}

}  // namespace vremote::coherence::test
