// Deliberate protocol mistakes, so that the simulator can prove that its checkers notice them
// (docs/simulation.md). The daemon never switches one on.
#pragma once

#include <cstdint>
#include <string_view>

namespace vremote::coherence {

enum class Mistake : uint8_t {
  AckBeforePurge,  // K4: a recall is acked while cached pages of its range may live
  AckBeforeFlush,  // the dirty bytes of a recalled range follow the ack instead of going before it
  FillFromRecalled,  // K3: a fill that stood for absence is answered from what was known before the
                     // recall
  ApplyBeforePurge,  // K12: a direct write is applied and answered before the local pages are
                     // purged
  ForgetMayWrite,  // K2: an O_RDWR handle is not thought of: Shared fills, downgrades without purge
  OldPurgeCounts,  // K4: a purge's return drops pages although a fill of them was answered since it
                   // began
  WaitForStuckPurge,  // K5: no second purge is started beside one that a pending fill may hold up
  KeepVoidFetch,      // K11: bytes fetched before a recall, or a flush of ours, still answer a fill
  GrantBeforeAcks,    // the home grants when the first holder, not the last, has acked
  StaleOverlay,       // dirty bytes that were flushed go on overlaying later fills
  NoResidency,        // K13: a page just filled is purged at once (costs progress, not coherence)
  ShrinkBelowHolders,            // a truncation does not recall the pages beyond the new end
  TruncationSeenElsewhereFirst,  // B4: others may learn a truncation's size before its own node
  KeepAttributes,                // the kernel keeps attributes whose lease is gone
  UnsettledSizes,                // Z2: answers rely on a size smaller than the kernel may have
  LetGoBetweenPieces,            // K15: others may append between the pieces of a long append
  KeepNames,           // a directory's names are given up while the kernel still uses them
  ExpireUnsettled,     // names are expired although a lookup of them may not be over
  ExpiryOnly,          // an expiry that cannot get through is waited for, for ever
  ForgetRenamedNames,  // the kernel's right to a name that was renamed is not followed
  WakeNobody,          // a lock is given back and who waits for it is not told
  AllowCircles,        // lock requests may wait for each other in a circle
  ServeAfterExpiry,    // T3: caches and leases are used although their time is over
  FlushAfterFence,     // T5: dirty bytes of a fenced session go to the home in the next
  GrowUnannounced,     // K16: what makes a file longer does not wait until other kernels know
  OpenUnshown,         // K16: a file is opened although the kernel takes it for shorter than it is
  GrowWithinPageUnannounced,  // K16: only growth by a page is made known, not growth within the
                              // last
  HandOnTooEarly,           // T4: a home gives away what a node has before that node's time is over
  CountFromAnswer,          // T1: a node counts its time from when it got the home's answer
  ForgetSentSize,           // R2: a size is forgotten when it was sent, not when the home has it
  RepeatTruncations,        // a truncation of a session that was fenced is made again in the next
  ReclaimBehindTruncation,  // R6: pages held back behind a truncation are not claimed
  ShowTails,                // K20: ftruncate(2) shows what a mapping stored behind the end
  TruncateAfterExpiry,      // T3: a truncation holds pages back when the leases are over
  LostReclaim,              // R2: bytes under way to a home that has restarted are not sent again
  NoGrace,                  // R1: a home that has restarted serves everybody at once
  ForgetCalls,        // R4: a call that the home had carried out before its restart is done again
  ForgetUnsynced,     // S1: what a power failure of the origin took is not told by an fsync
  ForgetLostSize,     // S1: what is brought back is cut where the power failure has left the end
  UndoTruncations,    // S1: what is brought back brings a size that another node has cut since
  TellLossToOne,      // S1: of several fsyncs under way only the first tells what was lost
  ForgetOthersBytes,  // S2: the same, of bytes of other nodes that were seen here
  RepeatAfterPowerLoss,  // S3: calls are made again by a home whose notes of them may be lost
  FailAppliedWrites,     // of a soft mount: a write is told to have failed that has been done
  SyncWithoutPatience,   // the same: an fsync is told 0 when it has waited for long enough
  ForgetUnheardCalls,    // R4: a note of a call goes although its node may make it again
  kCount,
};

class Mistakes {
 public:
  constexpr bool has(Mistake m) const { return (bits_ >> static_cast<unsigned>(m) & 1u) != 0; }
  constexpr void add(Mistake m) { bits_ |= uint64_t{1} << static_cast<unsigned>(m); }

 private:
  uint64_t bits_ = 0;
};

// The name used by `vremote-sim --break=NAME`.
constexpr std::string_view name_of(Mistake m) {
  switch (m) {
    case Mistake::AckBeforePurge:
      return "ack-before-purge";
    case Mistake::AckBeforeFlush:
      return "ack-before-flush";
    case Mistake::FillFromRecalled:
      return "fill-from-recalled";
    case Mistake::ApplyBeforePurge:
      return "apply-before-purge";
    case Mistake::ForgetMayWrite:
      return "forget-may-write";
    case Mistake::OldPurgeCounts:
      return "old-purge-counts";
    case Mistake::WaitForStuckPurge:
      return "wait-for-stuck-purge";
    case Mistake::KeepVoidFetch:
      return "keep-void-fetch";
    case Mistake::GrantBeforeAcks:
      return "grant-before-acks";
    case Mistake::StaleOverlay:
      return "stale-overlay";
    case Mistake::NoResidency:
      return "no-residency";
    case Mistake::ShrinkBelowHolders:
      return "shrink-below-holders";
    case Mistake::TruncationSeenElsewhereFirst:
      return "truncation-seen-elsewhere-first";
    case Mistake::KeepAttributes:
      return "keep-attributes";
    case Mistake::UnsettledSizes:
      return "unsettled-sizes";
    case Mistake::LetGoBetweenPieces:
      return "let-go-between-pieces";
    case Mistake::KeepNames:
      return "keep-names";
    case Mistake::ExpireUnsettled:
      return "expire-unsettled";
    case Mistake::ExpiryOnly:
      return "expiry-only";
    case Mistake::ForgetRenamedNames:
      return "forget-renamed-names";
    case Mistake::WakeNobody:
      return "wake-nobody";
    case Mistake::AllowCircles:
      return "allow-circles";
    case Mistake::ServeAfterExpiry:
      return "serve-after-expiry";
    case Mistake::FlushAfterFence:
      return "flush-after-fence";
    case Mistake::GrowUnannounced:
      return "grow-unannounced";
    case Mistake::OpenUnshown:
      return "open-unshown";
    case Mistake::GrowWithinPageUnannounced:
      return "grow-within-page-unannounced";
    case Mistake::HandOnTooEarly:
      return "hand-on-too-early";
    case Mistake::CountFromAnswer:
      return "count-from-answer";
    case Mistake::ForgetSentSize:
      return "forget-sent-size";
    case Mistake::RepeatTruncations:
      return "repeat-truncations";
    case Mistake::ReclaimBehindTruncation:
      return "reclaim-behind-truncation";
    case Mistake::ShowTails:
      return "show-tails";
    case Mistake::TruncateAfterExpiry:
      return "truncate-after-expiry";
    case Mistake::LostReclaim:
      return "lost-reclaim";
    case Mistake::NoGrace:
      return "no-grace";
    case Mistake::ForgetCalls:
      return "forget-calls";
    case Mistake::ForgetUnsynced:
      return "forget-unsynced";
    case Mistake::ForgetLostSize:
      return "forget-lost-size";
    case Mistake::UndoTruncations:
      return "undo-truncations";
    case Mistake::TellLossToOne:
      return "tell-loss-to-one";
    case Mistake::ForgetOthersBytes:
      return "forget-others-bytes";
    case Mistake::RepeatAfterPowerLoss:
      return "repeat-after-power-loss";
    case Mistake::FailAppliedWrites:
      return "fail-applied-writes";
    case Mistake::SyncWithoutPatience:
      return "sync-without-patience";
    case Mistake::ForgetUnheardCalls:
      return "forget-unheard-calls";
    case Mistake::kCount:
      break;
  }
  return "?";
}

}  // namespace vremote::coherence
