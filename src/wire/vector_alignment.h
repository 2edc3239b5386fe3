// The verifier of the schema library (2.0) sees to the alignment of a vector's length, not to that
// of its elements: what is damaged on purpose may have 8-byte numbers at any multiple of 4.
#pragma once

#include <cstdint>
#include <type_traits>

namespace vremote::wire {

// Whether the elements may be read where they lie. A vector that is missing is empty.
template <typename Vector>
bool is_aligned(const Vector* vector) {
  if (vector == nullptr || vector->size() == 0) return true;
  using Element = std::remove_cv_t<std::remove_pointer_t<decltype(vector->Get(0))>>;
  return reinterpret_cast<uintptr_t>(vector->Data()) % alignof(Element) == 0;
}

}  // namespace vremote::wire
