// A few queries against many keys, as when a model generates: lanes of queries would stay empty, so
// keys lie in the lanes for the scores and the softmax, and columns for the context. Keys are cut
// into chunks of one grid, whatever the number of threads, and each chunk gives a part that is
// joined with the others by its maximum. What each key and value costs is its way from memory.
// Included inside each ISA's namespace.

// With more rows than this the wide product, whose lanes they fill, is faster than row by row.
template <class T>
constexpr Index kFewRows = std::min<Index>(kWidth<T>, 8);

constexpr Index kChunk = 256;  // keys that make one part
constexpr Index kAtOnce = 64;  // keys that stay in L1 while the rows take turns

template <class T>
inline T sum_lanes(Vec<T> x) {
  T sum = 0;
  for (Index n = 0; n < kWidth<T>; n++) sum += x[n];
  return sum;
}

// out[key] = key · query, W keys at a time: their products are turned and added up.
template <class T, class Stored>
inline void score_row(const Stored* key, Index step, Index keys, const T* query, Index columns,
                      T* out) {
  constexpr Index W = kWidth<T>;
  for (Index j0 = 0; j0 < keys; j0 += W) {
    const Stored* row[W];
    for (Index n = 0; n < W; n++) row[n] = key + std::min(j0 + n, keys - 1) * step;
    Vec<T> sums[W] = {};
    for (Index d = 0; d < columns; d += W) {
      const Vec<T> x = load(query + d);
#pragma GCC unroll 16
      for (Index n = 0; n < W; n++) sums[n] += load_as<T>(row[n] + d) * x;
    }
    store<T>(out + j0, sum_each<T>(sums));
  }
}

// out[column] += the sum over keys of weight · value, N vectors of columns at a time.
template <class T, int N, class Stored>
inline void blend_columns(const Stored* value, Index step, Index keys, const T* weights, T* out) {
  constexpr Index W = kWidth<T>;
  Vec<T> sums[N];
  for (int v = 0; v < N; v++) sums[v] = load(out + v * W);
  for (Index j = 0; j < keys; j++, value += step) {
    const Vec<T> weight = splat(weights[j]);
#pragma GCC unroll 8
    for (int v = 0; v < N; v++) sums[v] += weight * load_as<T>(value + v * W);
  }
  for (int v = 0; v < N; v++) store(out + v * W, sums[v]);
}

template <class T, class Stored>
inline void blend_row(const Stored* value, Index step, Index keys, const T* weights, Index columns,
                      T* out) {
  constexpr Index W = kWidth<T>;
  Index c = 0;
  for (; c + 8 * W <= columns; c += 8 * W)
    blend_columns<T, 8>(value + c, step, keys, weights, out + c);
  for (; c + 4 * W <= columns; c += 4 * W)
    blend_columns<T, 4>(value + c, step, keys, weights, out + c);
  for (; c < columns; c += W) blend_columns<T, 1>(value + c, step, keys, weights, out + c);
}

template <class T>
class Decode {
 public:
  static constexpr Index W = kWidth<T>;

  // Whether it serves: told from the number of queries that share a key head and from how keys and
  // values lie, never from the batch.
  static bool serves(const Extent& extent) {
    return extent.rows && extent.rows <= kFewRows<T> && extent.S && extent.adjacent &&
           extent.d_k % W == 0 && extent.d_v % W == 0;
  }

  explicit Decode(const Problem& problem)
      : problem_(problem),
        rows_(problem.group() * problem.L),
        chunks_((problem.S + kChunk - 1) / kChunk),
        size_(kHead + problem.d_v),
        parts_(problem.batch * problem.kv_heads * rows_ * chunks_ * size_) {}

  void operator()() {
    const Index groups = problem_.batch * problem_.kv_heads, tasks = groups * chunks_;
    const int count = int(std::min<Index>({threads(), tasks, worth_threads(problem_)}));
    for (int thread = 0; thread < count; thread++)
      workers_.push_back(std::make_unique<Worker>(problem_));
    if (count) run(tasks, count, &Decode::attend, this);
    for (Index group = 0; group < groups; group++)
      for_rows(rows_of(group), [&](Index row, Index matrix, Index head, Index i) {
        join(group, row, matrix, head, i);
      });
  }

 private:
  struct Worker {
    StripMask<T> mask;
    Room<Int<T>> visible;
    Room<T> query, vector, scores, value;
    Dropout<T, 1> dropout;
    Room<T> factors;

    explicit Worker(const Problem& problem)
        : mask(problem, W, kChunk),
          visible(problem.mask.empty() ? 0 : kChunk * W),
          query(kFewRows<T> * problem.d_k),
          vector(problem.score.kind == Score::additive ? problem.d_k : 0),
          scores(kFewRows<T> * kChunk),
          value(problem.d_v),
          dropout(problem),
          factors(dropout.active() ? kChunk * W : 0) {}

    T* scores_of(Index row) { return &scores[row * kChunk]; }
  };

  // What one chunk of keys gives to one row; the context, zeroed, lies behind it.
  struct Part {
    T maximum, sum, moment;
  };
  static constexpr Index kHead = sizeof(Part) / sizeof(T);

  T* part(Index group, Index row, Index chunk) {
    return &parts_[((group * rows_ + row) * chunks_ + chunk) * size_];
  }

  Rows rows_of(Index group) const {
    Rows rows;
    rows.batch = group / problem_.kv_heads;
    rows.rows = rows_;
    const Index first = group % problem_.kv_heads * problem_.group();
    for (Index head = 0; head < problem_.group(); head++)
      rows.runs.push_back({first + head, 0, head * problem_.L, problem_.L});
    return rows;
  }

  // f(row, matrix, head, i) for every row of a group.
  template <class F>
  void for_rows(const Rows& rows, F f) const {
    for (const Rows::Run& run : rows.runs)
      for (Index n = 0; n < run.count; n++)
        f(run.lane + n, rows.batch * problem_.heads + run.head, run.head, run.i + n);
  }

  static void attend(void* context, Index task, int thread) {
    Decode& self = *static_cast<Decode*>(context);
    Worker& worker = *self.workers_[thread];
    const Index group = task / self.chunks_, chunk = task % self.chunks_;
    const Rows rows = self.rows_of(group);
    worker.mask.enter(rows);
    // Whole vectors from the chunk's start on: a key keeps its lane whatever other rows see.
    const Index j0 = std::max(chunk * kChunk, worker.mask.first() / W * W);
    const Index j1 = std::min((chunk + 1) * kChunk, worker.mask.last());
    const Sight sight = j0 < j1 ? worker.mask.sight(j0, j1) : Sight::none;
    if (sight == Sight::some) worker.mask.write(j0, j1, worker.visible.data());
    if (sight != Sight::none && worker.dropout.active()) {
      worker.dropout.enter(rows);
      worker.dropout.each(j0, j1, [&](Index at, Vec<T> x) { store(&worker.factors[at], x); });
    }
    for (Index row = 0; row < self.rows_; row++)
      *reinterpret_cast<Part*>(self.part(group, row, chunk)) = {-kInf<T>, 0, 0};
    if (sight == Sight::none) return;
    self.score(worker, rows, group, j0, j1);
    for (Index row = 0; row < self.rows_; row++) {
      if (sight == Sight::some) hide(worker, row, j1 - j0);
      weigh(worker, row, j1 - j0, *reinterpret_cast<Part*>(self.part(group, row, chunk)));
      if (worker.dropout.active())
        for (Index j = 0; j < j1 - j0; j++) worker.scores_of(row)[j] *= worker.factors[j * W + row];
    }
    if (self.problem_.d_v) self.blend(worker, group, chunk, j0, j1);
  }

  // f(first row of a matrix's keys or values, in their own dtype).
  template <class F>
  static void with_rows(const Tensor& tensor, Index matrix, Index j0, F f) {
    with_type(tensor.dtype, [&](auto type) {
      const auto* row = reinterpret_cast<const decltype(type)*>(tensor.at(matrix, j0, 0));
      if constexpr (requires { load_as<T>(row); }) f(row);
    });
  }

  void multiply(Worker& worker, const Rows& rows, Index group, Index j0, Index j1) const {
    const Index d_k = problem_.d_k;
    for_rows(rows, [&](Index row, Index matrix, Index, Index i) {
      T* query = worker.query.data() + row * d_k;
      read_row(problem_.query, matrix, i, d_k, query);
      for (Index d = 0; d < d_k; d++) query[d] *= T(problem_.scale);
    });
    with_rows(problem_.key, group, j0, [&](const auto* key) {
      for (Index j = 0; j < j1 - j0; j += kAtOnce)
        for (Index row = 0; row < rows_; row++)
          score_row<T>(key + j * problem_.key.row, problem_.key.row, std::min(kAtOnce, j1 - j0 - j),
                       worker.query.data() + row * d_k, d_k, worker.scores_of(row) + j);
    });
  }

  // The additive score in its place: keys are not what it waits for, so rows need not take turns.
  void match(Worker& worker, const Rows& rows, Index group, Index j0, Index j1) const {
    const Index d_k = problem_.d_k;
    T *query = worker.query.data(), *vector = worker.vector.data();
    for_rows(rows, [&](Index row, Index matrix, Index head, Index i) {
      read_row(problem_.query, matrix, i, d_k, query);
      read_row(problem_.score.vector, head, 0, d_k, vector);
      for (Index d = 0; d < d_k; d++) vector[d] *= T(problem_.scale);
      with_rows(problem_.key, group, j0, [&](const auto* key) {
        match_row<T>(key, problem_.key.row, j1 - j0, query, vector, d_k, worker.scores_of(row));
      });
    });
  }

  // Scale, softcap and bias, as in Scores.
  void score(Worker& worker, const Rows& rows, Index group, Index j0, Index j1) const {
    if (problem_.score.kind == Score::additive)
      match(worker, rows, group, j0, j1);
    else
      multiply(worker, rows, group, j0, j1);
    for_rows(rows, [&](Index row, Index matrix, Index head, Index i) {
      T* scores = worker.scores_of(row);
      if (problem_.softcap) {
        const T cap = T(problem_.softcap), inverse = T(1 / problem_.softcap);
        for (Index j = 0; j < j1 - j0; j += W)
          store<T>(scores + j, tanh<T>(load(scores + j) * inverse) * cap);
      }
      if (problem_.bias.kind != Bias::none)
        add_bias_row(problem_, matrix, head, i, j0, j1, scores, 1);
    });
  }

  static void hide(Worker& worker, Index row, Index keys) {
    for (Index j = 0; j < keys; j++)
      if (!worker.visible[j * W + row]) worker.scores_of(row)[j] = -kInf<T>;
  }

  // Scores become exp(score - maximum).
  static void weigh(Worker& worker, Index row, Index keys, Part& part) {
    T* scores = worker.scores_of(row);
    std::fill(scores + keys, scores + whole<T>(keys), -kInf<T>);
    Vec<T> greatest = splat(-kInf<T>), sum = {}, moment = {};
    for (Index j = 0; j < keys; j += W) greatest = greater<T>(load(scores + j), greatest);
    for (Index n = 0; n < W; n++) part.maximum = std::max(part.maximum, greatest[n]);
    // Relative to 0 where nothing is seen, so that no inf - inf arises.
    const Vec<T> maximum = splat(part.maximum == -kInf<T> ? T(0) : part.maximum);
    for (Index j = 0; j < keys; j += W) {
      const Vec<T> x = load(scores + j) - maximum, weight = exp<T>(x);
      store(scores + j, weight);
      sum += weight;
      moment += weight * (x == -kInf<T> ? Vec<T>{} : x);
    }
    part.sum = sum_lanes<T>(sum);
    part.moment = sum_lanes<T>(moment);
  }

  // Values are read once, so whether they are finite is told from the sums.
  void blend(Worker& worker, Index group, Index chunk, Index j0, Index j1) {
    const Index d_v = problem_.d_v;
    with_rows(problem_.value, group, j0, [&](const auto* value) {
      for (Index j = 0; j < j1 - j0; j += kAtOnce)
        for (Index row = 0; row < rows_; row++)
          blend_row<T>(value + j * problem_.value.row, problem_.value.row,
                       std::min(kAtOnce, j1 - j0 - j), worker.scores_of(row) + j, d_v,
                       part(group, row, chunk) + kHead);
    });
    for (Index row = 0; row < rows_; row++) {
      T* out = part(group, row, chunk) + kHead;
      if (!Block<T>{out, d_v, 1}.finite(1, d_v)) blend_carefully(worker, group, row, j0, j1, out);
    }
  }

  // A key that is not seen gives nothing, whatever its value holds.
  void blend_carefully(Worker& worker, Index group, Index row, Index j0, Index j1, T* out) const {
    std::fill_n(out, problem_.d_v, T(0));
    for (Index j = j0; j < j1; j++) {
      const T weight = worker.scores_of(row)[j - j0];
      if (weight == T(0)) continue;
      read_row(problem_.value, group, j, problem_.d_v, worker.value.data());
      for (Index c = 0; c < problem_.d_v; c++) out[c] += weight * worker.value[c];
    }
  }

  // The parts of a row, relative to the greatest maximum, the sink's logit included.
  void join(Index group, Index row, Index matrix, Index head, Index i) {
    const T sink = problem_.sinks.empty() ? -kInf<T> : T(problem_.sinks[head]);
    const auto chunk = [&](Index c) { return part(group, row, c); };
    const auto sums = [&](Index c) { return *reinterpret_cast<const Part*>(chunk(c)); };
    T best = sink;
    bool seen = false;
    for (Index c = 0; c < chunks_; c++) {
      best = std::max(best, sums(c).maximum);
      seen = seen || sums(c).sum != T(0);
    }
    const T shift = best == -kInf<T> ? T(0) : best;
    T total = sink == -kInf<T> ? T(0) : std::exp(sink - shift);
    const T of_sink = total;
    T moment = of_sink == T(0) ? T(0) : of_sink * (sink - shift);
    Room<T> context(problem_.d_v);
    for (Index c = 0; c < chunks_; c++) {
      const Part p = sums(c);
      if (p.sum == T(0)) continue;
      const T change = p.maximum == -kInf<T> ? T(0) : p.maximum - shift, share = std::exp(change);
      if (share == T(0) && p.sum == p.sum) continue;
      total += share * p.sum;
      moment += share * (p.moment + change * p.sum);
      for (Index d = 0; d < problem_.d_v; d++) context[d] += share * chunk(c)[kHead + d];
    }
    for (T& x : context) x = seen ? x / total : T(0);
    if (problem_.d_v) write_row(problem_.context, matrix, i, problem_.d_v, context.data());
    const Index at = matrix * problem_.L + i;
    const auto put = [&](void* array, T x) {
      if (array) static_cast<T*>(array)[at] = x;
    };
    put(problem_.results.lse, seen ? shift + std::log(total) : sink);
    put(problem_.results.entropy, seen ? std::log(total) - moment / total : T(0));
    put(problem_.results.sink, sink == -kInf<T> ? T(0) : of_sink / total);
  }

  const Problem& problem_;
  Index rows_, chunks_, size_;
  Room<T> parts_;
  std::vector<std::unique_ptr<Worker>> workers_;
};
