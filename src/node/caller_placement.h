#pragma once

#include <sched.h>

#include <cstdint>

#include "base/fd.h"

namespace vremote::node {

// Keeps a thread that answers upcalls on the processor of the one caller it works for.
//
// A caller that waits for each answer, and the thread that gives it, never run at the same time. On
// two processors each request costs two wake-ups of a halted processor (some 40 us each on virtual
// machines), on one two switches (5 us). The scheduler begins with one processor, but any other
// thread that runs for a moment on the second one may take the answering thread there (the caller
// preempts it at each reply, so it looks as if it waited for a processor), and nothing brings it
// back: a wake-up prefers the idle processor where the thread was last (select_task_rq_fair in
// kernel/sched/fair.c). So, while requests come from one thread alone, look now and then where that
// runs and stay bound to there; the first request of another thread ends that. Several callers are
// left to the scheduler, which spreads them well.
//
// For use by the thread it was made on.
class CallerPlacement {
 public:
  CallerPlacement();

  // A request of thread `tid` (in this process's pid namespace; 0: unknown) was read.
  void request_from(uint32_t tid);

 private:
  // The processor `tid` runs on or ran on last; negative when it cannot be told.
  int processor_of(uint32_t tid);
  void bind_to(int processor);
  void unbind();

  cpu_set_t allowed_;
  bool usable_ = false;  // there is more than one processor to choose from
  uint32_t tid_ = 0;
  uint32_t in_a_row_ = 0;
  int bound_to_ = -1;  // negative: to none
  Fd stat_;            // /proc/TID/stat of tid_
};

}  // namespace vremote::node
