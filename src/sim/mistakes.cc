#include "sim/mistakes.h"

namespace vremote::sim {
namespace {

struct DriverBreak {
  std::string_view name;
  bool Breaks::*flag;
};
constexpr DriverBreak kDriverBreaks[] = {
    {"fixed-purge-pool", &Breaks::fixed_purge_pool},
    {"small-background", &Breaks::small_background},
    {"deaf-to-busy", &Breaks::deaf_to_busy},
    {"unordered-home", &Breaks::unordered_home},
    {"early-grant-data", &Breaks::early_grant_data},
    {"deaf-to-death", &Breaks::deaf_to_death},
    {"claims-given-up", &Breaks::claims_given_up},
    {"done-before-claims", &Breaks::done_before_claims},
    {"forgets-epochs", &Breaks::forgets_epochs},
    {"no-guardian", &Breaks::no_guardian},
    {"purges-before-taking-back", &Breaks::purges_before_taking_back},
    {"forgets-unacknowledged", &Breaks::forgets_unacknowledged},
    {"doubles-messages", &Breaks::doubles_messages},
    {"frees-at-once", &Breaks::frees_at_once},
    {"wild-clocks", &Breaks::wild_clocks},
};

}  // namespace

std::string_view name_of(WorldKind kind) {
  switch (kind) {
    case WorldKind::Pages:
      return "pages";
    case WorldKind::Names:
      return "names";
    case WorldKind::Locks:
      return "locks";
    case WorldKind::Faults:
      return "faults";
    case WorldKind::Power:
      return "power";
  }
  return "?";
}

std::optional<WorldKind> world_kind(std::string_view name) {
  for (WorldKind kind :
       {WorldKind::Pages, WorldKind::Names, WorldKind::Locks, WorldKind::Faults, WorldKind::Power})
    if (name_of(kind) == name) return kind;
  return {};
}

WorldKind world_of(std::string_view break_name) {
  using coherence::Mistake;
  for (Mistake m : {Mistake::KeepNames, Mistake::ExpireUnsettled, Mistake::ExpiryOnly,
                    Mistake::ForgetRenamedNames})
    if (coherence::name_of(m) == break_name) return WorldKind::Names;
  for (Mistake m : {Mistake::WakeNobody, Mistake::AllowCircles})
    if (coherence::name_of(m) == break_name) return WorldKind::Locks;
  for (Mistake m :
       {Mistake::ServeAfterExpiry, Mistake::FlushAfterFence, Mistake::HandOnTooEarly,
        Mistake::CountFromAnswer, Mistake::ForgetSentSize, Mistake::RepeatTruncations,
        Mistake::ReclaimBehindTruncation, Mistake::TruncateAfterExpiry, Mistake::LostReclaim,
        Mistake::NoGrace, Mistake::ForgetCalls, Mistake::ForgetUnsynced, Mistake::ForgetLostSize,
        Mistake::TellLossToOne, Mistake::ForgetOthersBytes, Mistake::RepeatAfterPowerLoss,
        Mistake::FailAppliedWrites, Mistake::SyncWithoutPatience, Mistake::ForgetUnheardCalls})
    if (coherence::name_of(m) == break_name) return WorldKind::Faults;
  if (break_name == coherence::name_of(Mistake::UndoTruncations) || break_name == "forgets-epochs")
    return WorldKind::Power;
  if (break_name == "no-guardian" || break_name == "purges-before-taking-back" ||
      break_name == "frees-at-once" || break_name == "forgets-unacknowledged" ||
      break_name == "doubles-messages" || break_name == "wild-clocks")
    return WorldKind::Faults;
  return break_name == "deaf-to-death" || break_name == "claims-given-up" ||
                 break_name == "done-before-claims"
             ? WorldKind::Locks
             : WorldKind::Pages;
}

bool add_break(std::string_view name, Breaks& breaks) {
  for (unsigned i = 0; i < static_cast<unsigned>(coherence::Mistake::kCount); ++i) {
    if (coherence::name_of(static_cast<coherence::Mistake>(i)) == name) {
      breaks.protocol.add(static_cast<coherence::Mistake>(i));
      return true;
    }
  }
  for (const DriverBreak& b : kDriverBreaks) {
    if (b.name == name) {
      breaks.*b.flag = true;
      return true;
    }
  }
  return false;
}

std::vector<std::string> break_names() {
  std::vector<std::string> names;
  for (unsigned i = 0; i < static_cast<unsigned>(coherence::Mistake::kCount); ++i) {
    names.emplace_back(coherence::name_of(static_cast<coherence::Mistake>(i)));
  }
  for (const DriverBreak& b : kDriverBreaks) names.emplace_back(b.name);
  return names;
}

}  // namespace vremote::sim
