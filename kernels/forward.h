// The whole forward pass: strips of queries, shared out among threads.
// Included inside each ISA's namespace.

// Vectors of queries in a strip: as many as the micro-kernel takes, unless so few rows are there
// that lanes would stay empty, or the masses kept of a strip would outgrow a few MB a thread.
template <class T>
inline Index vectors_in_strip(const Problem& problem, const Cuts& cuts) {
  constexpr Index kMassBytes = 16 << 20;
  Index most = REGARD_VECTORS;
  while (most > 1 && cuts.count() * most * kWidth<T> * Index(sizeof(T)) > kMassBytes) most--;
  const Index rows = problem.group() * problem.L, vectors = (rows + kWidth<T> - 1) / kWidth<T>;
  const Index strips = (vectors + most - 1) / most;
  return strips ? (vectors + strips - 1) / strips : 1;
}

// Sums over the queries of a span become means over those of them that see something.
template <class T>
inline void divide_pools(const Problem& problem, const std::vector<uint8_t>& seen, Index matrix) {
  for (const Pool& pool : problem.results.pools) {
    const Index rows = Index(pool.queries.size()), columns = Index(pool.keys.size());
    for (Index q = 0; q < rows; q++) {
      Index count = 0;
      for (Index i = pool.queries[q].start; i < pool.queries[q].stop; i++)
        count += seen[matrix * problem.L + i];
      T* out = static_cast<T*>(pool.out) + (matrix * rows + q) * columns;
      for (Index c = 0; c < columns; c++) out[c] /= T(std::max<Index>(count, 1));
    }
  }
}

template <class T, int NV>
struct Forward {
  const Problem& problem;
  Cuts cuts;
  Index strips, blocks;  // per group of heads; per key head
  Turns turns;
  std::vector<std::atomic<uint8_t>> finite;
  std::vector<uint8_t> seen;
  std::vector<std::unique_ptr<Strip<T, NV>>> workers;

  Forward(const Problem& problem, Cuts cuts_of)
      : problem(problem),
        cuts(std::move(cuts_of)),
        strips((problem.group() * problem.L + Strip<T, NV>::R - 1) / Strip<T, NV>::R),
        blocks((problem.S + kBlock - 1) / kBlock),
        turns(problem.batch * problem.kv_heads),
        finite(problem.batch * problem.kv_heads * blocks),
        seen(problem.results.pools.empty() ? 0 : problem.batch * problem.heads * problem.L) {}

  void operator()() {
    const Index tasks = problem.batch * problem.kv_heads * strips;
    const int count = int(std::min<Index>({threads(), tasks, worth_threads(problem)}));
    for (int thread = 0; thread < count; thread++)
      workers.push_back(std::make_unique<Strip<T, NV>>(problem, cuts));
    if (count) run(tasks, count, &Forward::attend, this);
    for (Index matrix = 0; matrix < problem.batch * problem.heads; matrix++)
      divide_pools<T>(problem, seen, matrix);
  }

  // The last strip first: under a causal mask it sees the most keys, and the least is left for the
  // end, when threads run out of work.
  static void attend(void* context, Index task, int thread) {
    Forward& self = *static_cast<Forward*>(context);
    // As many groups side by side as there are threads, so that strips that add to the same results
    // seldom run at once and wait for each other.
    const Index groups = self.problem.batch * self.problem.kv_heads;
    const Index width = std::min<Index>(groups, self.workers.size());
    const Index first = task / (width * self.strips) * width, inside = task - first * self.strips;
    const Index beside = std::min(width, groups - first);
    const Index group = first + inside % beside, position = inside / beside;
    const Index r0 = (self.strips - 1 - position) * Strip<T, NV>::R;
    const auto turn = [&](const Rows& rows, const bool* seen, auto add) {
      for (const Rows::Run& run : rows.runs)
        if (!self.seen.empty())
          std::copy_n(
              seen + run.lane, run.count,
              &self.seen[(rows.batch * self.problem.heads + run.head) * self.problem.L + run.i]);
      if (!self.problem.results.keeps_mass()) return;
      self.turns.wait(group, position);
      add();
      self.turns.done(group);
    };
    try {
      self.workers[thread]->attend(group / self.problem.kv_heads, group % self.problem.kv_heads, r0,
                                   self.finite.data() + group * self.blocks, turn);
    } catch (...) {
      self.turns.abandon();
      throw;
    }
  }
};

template <class T>
inline void by_strips(const Problem& problem) {
  Cuts cuts(problem, kBlock);
  switch (vectors_in_strip<T>(problem, cuts)) {
    case 1:
      return Forward<T, 1>(problem, std::move(cuts))();
    case 2:
      return Forward<T, 2>(problem, std::move(cuts))();
#if REGARD_VECTORS == 4
    case 3:
      return Forward<T, 3>(problem, std::move(cuts))();
    case 4:
      return Forward<T, 4>(problem, std::move(cuts))();
#endif
  }
}

// What a few queries see key by key is gathered by a strip without values, so that their context
// has the same bits whatever is observed.
template <class T>
inline void forward_as(const Problem& problem) {
  if (!Decode<T>::serves(problem)) return by_strips<T>(problem);
  Decode<T> decode(problem);
  decode();
  Problem rest = problem;
  rest.d_v = 0;
  rest.results.lse = rest.results.entropy = rest.results.sink = nullptr;
  const Results& results = rest.results;
  if (results.peak_key || results.top || results.keeps_mass()) by_strips<T>(rest);
}

// float64 in double; float32, bfloat16 and float16 in float.
inline void forward(const Problem& problem) {
  problem.query.dtype == Dtype::f64 ? forward_as<double>(problem) : forward_as<float>(problem);
}
