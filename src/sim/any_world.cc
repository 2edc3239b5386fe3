#include "sim/any_world.h"

#include "sim/fault_world.h"
#include "sim/lock_world.h"
#include "sim/name_world.h"
#include "sim/world.h"

namespace vremote::sim {

std::unique_ptr<AnyWorld> make_world(WorldKind kind, uint64_t seed, const Breaks& breaks) {
  switch (kind) {
    case WorldKind::Pages:
      return std::make_unique<World>(seed, breaks);
    case WorldKind::Names:
      return std::make_unique<NameWorld>(seed, breaks);
    case WorldKind::Locks:
      return std::make_unique<LockWorld>(seed, breaks);
    case WorldKind::Faults:
      return std::make_unique<FaultWorld>(seed, breaks);
    case WorldKind::Power:
      return std::make_unique<FaultWorld>(seed, breaks, true);
  }
  return nullptr;
}

}  // namespace vremote::sim
