#include "schedule.h"

#include <pthread.h>
#include <sched.h>

#include <exception>
#include <mutex>

#if defined(REGARD_STD_THREADS)
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif

namespace regard {
namespace {

bool forked = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

#if defined(REGARD_STD_THREADS)
// The thread sanitizer cannot see how OpenMP's threads meet; those of the standard library it can.
int available() { return 4; }

template <class Body>
void parallel(int threads, Body body) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; thread++) others.emplace_back(body, thread);
  body(0);
  for (std::thread& other : others) other.join();
}
#else
int available() { return omp_in_parallel() ? 1 : omp_get_max_threads(); }

template <class Body>
void parallel(int threads, Body body) {
#pragma omp parallel num_threads(threads)
  body(omp_get_thread_num());
}
#endif

}  // namespace

int threads() { return forked ? 1 : available(); }

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
  std::mutex failing;
  std::exception_ptr failure;
  parallel(threads, [&](int thread) {
    try {
      for (Index task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
        work(context, task, thread);
    } catch (...) {
      next.store(tasks, std::memory_order_relaxed);
      const std::lock_guard lock(failing);
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

void Turns::wait(Index group, Index position) const {
  while (next_[group].load(std::memory_order_acquire) != position &&
         !abandoned_.load(std::memory_order_acquire))
    sched_yield();
}

}  // namespace regard
