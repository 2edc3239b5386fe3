// Room for dirty bytes that several agents of a node share.
//
// Each agent has some of its own, which it always may use, and takes more from here, piece by piece
// so that a write seldom has to ask; it gives back what it does not need any more. So all of them
// together never have more than what is here and what they have of their own, and one whose home is
// away cannot take the others' last room.
//
// Nobody is woken when room is given back: who waits has its own bytes flushed, and goes on as soon
// as they fit in its own room.
#pragma once

#include <cstdint>

namespace vremote::coherence {

// Thread-safe.
class DirtyPool {
 public:
  virtual ~DirtyPool() = default;
  // Bytes of one piece.
  virtual uint64_t piece() const = 0;
  // False: nothing is left.
  virtual bool take() = 0;
  virtual void give_back() = 0;
};

}  // namespace vremote::coherence
