#include "live/register_check.h"

#include <algorithm>
#include <unordered_map>

namespace vremote::live {
namespace {

constexpr uint32_t kNobody = UINT32_MAX;

// One value: its write and what was seen of it.
struct Value {
  bool written = false;
  uint64_t write_begin = 0;
  uint32_t write_index = kNobody;
  uint64_t first_end = kNever, last_begin = 0;
  uint32_t first_ended = kNobody, last_began = kNobody;
  // The reads alone.
  uint64_t first_read_end = kNever;
  uint32_t first_read = kNobody;

  bool forward() const { return first_end < last_begin; }
  uint64_t low() const { return std::min(first_end, last_begin); }
  uint64_t high() const { return std::max(first_end, last_begin); }
};

void add(std::vector<uint32_t>& to, const Value& value) {
  for (uint32_t index : {value.write_index, value.first_ended, value.last_began}) {
    if (index != kNobody && std::find(to.begin(), to.end(), index) == to.end()) to.push_back(index);
  }
}

}  // namespace

std::optional<Contradiction> check_register(std::span<const CellOp> operations) {
  std::unordered_map<uint64_t, Value> values;
  Value& beginning = values[0];
  beginning.written = true;
  beginning.first_end = 0;
  for (const CellOp& op : operations) {
    Value& value = values[op.value];
    if (op.write) {
      if (value.written)
        return Contradiction{"two writes of one value: the test itself is wrong", {op.index}};
      value.written = true;
      value.write_begin = op.begin;
      value.write_index = op.index;
    } else if (op.end < value.first_read_end) {
      value.first_read_end = op.end;
      value.first_read = op.index;
    }
    if (op.end < value.first_end) {
      value.first_end = op.end;
      value.first_ended = op.index;
    }
    const uint64_t last_begin = op.write ? op.begin : std::max(op.begin, op.last_begin);
    if (last_begin >= value.last_begin) {
      value.last_begin = last_begin;
      value.last_began = op.index;
    }
  }
  std::vector<const Value*> forward, backward;
  for (const auto& [stamp, value] : values) {
    if (!value.written)
      return Contradiction{"a value was read that nobody wrote there", {value.first_read}};
    if (value.first_read_end < value.write_begin)
      return Contradiction{"a value was read before its write began",
                           {value.first_read, value.write_index}};
    (value.forward() ? forward : backward).push_back(&value);
  }
  auto by_low = [](const Value* a, const Value* b) { return a->low() < b->low(); };
  std::sort(forward.begin(), forward.end(), by_low);
  for (size_t i = 1; i < forward.size(); ++i) {
    if (forward[i]->low() >= forward[i - 1]->high()) continue;
    Contradiction found{"two values were both current at one time (old after new)", {}};
    add(found.operations, *forward[i - 1]);
    add(found.operations, *forward[i]);
    return found;
  }
  for (const Value* inner : backward) {
    // Forward zones do not overlap: only the last that begins before can hold it.
    auto after = std::lower_bound(forward.begin(), forward.end(), inner, by_low);
    if (after == forward.begin()) continue;
    const Value* outer = *std::prev(after);
    if (inner->high() >= outer->high()) continue;
    Contradiction found{
        "a value came and went while another was seen before and after it (an overwritten value "
        "was read)",
        {}};
    add(found.operations, *outer);
    add(found.operations, *inner);
    return found;
  }
  return std::nullopt;
}

}  // namespace vremote::live
