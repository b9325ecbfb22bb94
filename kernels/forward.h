// The whole forward pass: strips of queries, shared out among threads.
// Included inside each ISA's namespace.

// Bytes of the masses that a thread keeps of the strips it works on.
constexpr Index kMassBytes = 16 << 20;

// Vectors of queries in a strip: as many as the micro-kernel takes, unless so few rows are there
// that lanes would stay empty, or the masses kept of a strip would be too many.
template <class T>
inline Index vectors_in_strip(const Problem& problem, const Cuts& cuts) {
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

template <class T, int NV, bool kTiles>
struct Forward {
  using Work = Strip<T, NV, kTiles>;
  using Strips = Bundle<T, Work>;
  static constexpr Index R = Work::R;
  const Problem& problem;
  Cuts cuts;
  Index groups, strips, at_once, bundles;  // strips per group of heads; in a bundle; per group
  Turns turns;
  std::vector<uint8_t> seen;
  std::vector<std::unique_ptr<Strips>> workers;

  Forward(const Problem& problem, Cuts cuts_of)
      : problem(problem),
        cuts(std::move(cuts_of)),
        groups(problem.batch * problem.kv_heads),
        strips((problem.group() * problem.L + R - 1) / R),
        at_once(
            std::min({Strips::size(groups * strips), within_memory(), std::max<Index>(strips, 1)})),
        bundles((strips + at_once - 1) / at_once),
        turns(groups),
        seen(problem.results.pools.empty() ? 0 : problem.batch * problem.heads * problem.L) {}

  Index within_memory() const {
    const Index mass = cuts.count() * R * Index(sizeof(T));
    return std::max<Index>(kMassBytes / std::max<Index>(mass, 1), 1);
  }

  void operator()() {
    const Index tasks = groups * bundles;
    const int count = int(std::min<Index>({threads(), tasks, worth_threads(problem)}));
    for (int thread = 0; thread < count; thread++)
      workers.push_back(std::make_unique<Strips>(problem, at_once, cuts));
    if (count) run(tasks, count, &Forward::attend_task, this);
    for (Index matrix = 0; matrix < problem.batch * problem.heads; matrix++)
      divide_pools<T>(problem, seen, matrix);
  }

  static void attend_task(void* context, Index task, int thread) {
    Forward& self = *static_cast<Forward*>(context);
    // As many groups side by side as there are threads, so that strips that add to the same results
    // seldom run at once and wait for each other.
    const Index width = std::min<Index>(self.groups, self.workers.size());
    const Index first = task / (width * self.bundles) * width;
    const Index inside = task - first * self.bundles, beside = std::min(width, self.groups - first);
    try {
      self.attend(*self.workers[thread], first + inside % beside, inside / beside * self.at_once);
    } catch (...) {
      self.turns.abandon();
      throw;
    }
  }

  // A bundle from a position on, counted from the last strip: under a causal mask it sees the most
  // keys, and the least is left for the end, when threads run out of work.
  void attend(Strips& bundle, Index group, Index position) {
    const Index count = std::min(at_once, strips - position);
    for (Index n = 0; n < count; n++)
      bundle[n].enter(group / problem.kv_heads, group % problem.kv_heads,
                      (strips - 1 - position - n) * R);
    bundle.each_block(
        count, [](Work& strip, Index j0, Index j1, Sight sight) { strip.attend(j0, j1, sight); });
    for (Index n = 0; n < count; n++)
      bundle[n].finish([&](const Rows& rows, const bool* live, auto add) {
        note_seen(rows, live);
        if (!problem.results.keeps_mass()) return;
        turns.wait(group, position + n);
        add();
        turns.done(group);
      });
  }

  void note_seen(const Rows& rows, const bool* live) {
    if (seen.empty()) return;
    for (const Rows::Run& run : rows.runs)
      std::copy_n(live + run.lane, run.count,
                  &seen[(rows.batch * problem.heads + run.head) * problem.L + run.i]);
  }
};

template <class T, bool kTiles>
inline void by_strips(const Problem& problem) {
  static_assert(!kTiles || REGARD_VECTORS == 2, "a strip of 32 queries has two tiles");
  Cuts cuts(problem, kBlock);
  switch (vectors_in_strip<T>(problem, cuts)) {
    case 1:
      return Forward<T, 1, kTiles>(problem, std::move(cuts))();
    case 2:
      return Forward<T, 2, kTiles>(problem, std::move(cuts))();
#if REGARD_VECTORS == 4
    case 3:
      return Forward<T, 3, kTiles>(problem, std::move(cuts))();
    case 4:
      return Forward<T, 4, kTiles>(problem, std::move(cuts))();
#endif
  }
}

// What a few queries see key by key is gathered by a strip without values, so that their context
// has the same bits whatever is observed.
template <class T>
inline void forward_as(const Problem& problem) {
  if (!Decode<T>::serves(extent_of(problem))) return by_strips<T, false>(problem);
  Decode<T> decode(problem);
  decode();
  const Results& results = problem.results;
  if (!results.peak_key && !results.top && !results.keeps_mass()) return;
  Problem rest = problem;
  rest.d_v = 0;
  rest.results.lse = rest.results.entropy = rest.results.sink = nullptr;
  by_strips<T, false>(rest);
}

inline bool decodes(const Extent& extent, bool in_double) {
  return in_double ? Decode<double>::serves(extent) : Decode<float>::serves(extent);
}

// Whether the products of a problem are ones that tiles take: of bfloat16, or of float32 in parts.
inline bool fits_tiles(const Problem& problem) {
  const Dtype dtype = problem.query.dtype;
  return problem.score.kind == Score::product &&
         (dtype == Dtype::bf16 || (dtype == Dtype::f32 && problem.in_parts));
}

// float64 in double; float32, bfloat16 and float16 in float.
inline void forward(const Problem& problem) {
  problem.query.dtype == Dtype::f64 ? forward_as<double>(problem) : forward_as<float>(problem);
}

// By tiles where they fit; `others` are the kernels for the rest.
inline void forward_by_tiles(const Problem& problem, const auto& others) {
  if (!fits_tiles(problem) || others.decodes(extent_of(problem), false))
    return others.forward(problem);
  by_strips<float, true>(problem);
}
