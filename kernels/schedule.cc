#include "schedule.h"

#include <omp.h>
#include <pthread.h>
#include <sched.h>

#include <exception>

namespace regard {
namespace {

bool forked = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

int threads() { return forked || omp_in_parallel() ? 1 : omp_get_max_threads(); }

Index worth_threads(const Problem& problem) {
  constexpr double kWork = 1 << 20;  // multiply-adds
  const double rows = double(problem.batch * problem.heads) * problem.L;
  const Index each = problem.score.kind == Score::additive ? 16 : 1;  // a tanh is worth so many
  return 1 + Index(rows * problem.S * (problem.d_k * each + problem.d_v) / kWork);
}

void run(Index tasks, int threads, Work work, void* context) {
  if (threads == 1) {
    for (Index task = 0; task < tasks; task++) work(context, task, 0);
    return;
  }
  // Not OpenMP's own loop: Turns needs tasks to begin in rising order across all threads.
  std::atomic<Index> next{0};
  std::exception_ptr failure;
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    try {
      for (Index task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
        work(context, task, thread);
    } catch (...) {
      next.store(tasks, std::memory_order_relaxed);
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

void Turns::wait(Index group, Index position) const {
  while (next_[group].load(std::memory_order_acquire) != position &&
         !abandoned_.load(std::memory_order_acquire))
    sched_yield();
}

}  // namespace regard
