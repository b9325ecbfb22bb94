// Who works on what, and in which order results that many strips share are added up.
#pragma once

#include <atomic>
#include <memory>

#include "problem.h"

namespace regard {

// Threads that a new piece of work may use: OpenMP's setting, or one in a forked child, where
// OpenMP's pool is gone and starting it again would hang.
int threads();

// How many threads a problem is worth: waking one takes some microseconds, so each is to have about
// 20 of work.
Index worth_threads(const Problem& problem);

using Work = void (*)(void* context, Index task, int thread);

// Every task once, begun in rising order, on at most `threads` threads. What a task throws stops
// the tasks not yet begun and is thrown again here.
void run(Index tasks, int threads, Work work, void* context);

// Strips of a group add to the same numbers. They do so in the order of their positions, whichever
// thread is first, so that the sums have the same bits for every number of threads. A strip may
// wait only for strips begun before it, which never wait for it.
class Turns {
 public:
  explicit Turns(Index groups) : next_(new std::atomic<Index>[groups]()) {}
  void wait(Index group, Index position) const;
  void done(Index group) { next_[group].fetch_add(1, std::memory_order_release); }
  void abandon() { abandoned_.store(true, std::memory_order_release); }  // nobody waits any more

 private:
  std::unique_ptr<std::atomic<Index>[]> next_;
  std::atomic<bool> abandoned_{false};
};

}  // namespace regard
