// The additive score, vector · tanh(query + key) (Bahdanau et al. 2014). Its cost is the tanh of
// every query, key and feature, some 20 operations each, beside which a sum across lanes for every
// pair is nothing: so features lie in the lanes here, and what follows the scores gets them where a
// product would have left them. Included inside each ISA's namespace.

// Keys side by side: tanh is one long chain of operations, and four of them overlap.
template <class T>
constexpr Index kAbreast = std::min<Index>(kWidth<T>, 4);

// out[key] = vector · tanh(query + key), W keys at a time. Columns are whole vectors.
template <class T, class Stored>
inline void match_row(const Stored* key, Index step, Index keys, const T* query, const T* vector,
                      Index columns, T* out) {
  constexpr Index W = kWidth<T>, N = kAbreast<T>;
  for (Index j0 = 0; j0 < keys; j0 += W) {
    Vec<T> sums[W] = {};
    for (Index j = j0; j < std::min(j0 + W, keys); j += N) {
      const Stored* row[N];
      for (Index n = 0; n < N; n++) row[n] = key + std::min(j + n, keys - 1) * step;
      Vec<T> part[N] = {};
      for (Index d = 0; d < columns; d += W) {
        const Vec<T> x = load(query + d), weight = load(vector + d);
#pragma GCC unroll 4
        for (Index n = 0; n < N; n++) part[n] += weight * tanh<T>(x + load_as<T>(row[n] + d));
      }
      for (Index n = 0; n < N; n++) sums[j - j0 + n] = part[n];
    }
    store<T>(out + j0, sum_each<T>(sums));
  }
}

// What gradients of the scores of one query and N keys give to all that they are made of.
template <class T>
inline void unmatch(const T* const (&key)[kAbreast<T>], T* const (&of_key)[kAbreast<T>],
                    const T (&of_score)[kAbreast<T>], const T* query, const T* vector,
                    Index columns, T* of_query, T* of_vector) {
  for (Index d = 0; d < columns; d += kWidth<T>) {
    const Vec<T> x = load(query + d), weight = load(vector + d);
    Vec<T> for_query = load(of_query + d), for_vector = load(of_vector + d);
#pragma GCC unroll 4
    for (Index n = 0; n < kAbreast<T>; n++) {
      const Vec<T> bent = tanh<T>(x + load(key[n] + d));
      const Vec<T> through = (of_score[n] * weight) * (T(1) - bent * bent);
      for_query += through;
      for_vector += of_score[n] * bent;
      store<T>(of_key[n] + d, load(of_key[n] + d) + through);
    }
    store(of_query + d, for_query);
    store(of_vector + d, for_vector);
  }
}

// The additive scores of a strip of R queries. Rows are padded to whole vectors, with zeros: a
// feature whose weight is 0 adds nothing.
template <class T, Index R>
class AdditiveScores {
 public:
  static constexpr Index W = kWidth<T>, N = kAbreast<T>;

  AdditiveScores(const Problem& problem, bool with_gradients)
      : problem_(problem),
        active_(problem.score.kind == Score::additive),
        stride_(active_ ? whole<T>(problem.d_k) : 0),
        queries_(R * stride_),
        vectors_(R * stride_),
        keys_((W + 1) * stride_),
        of_queries_(with_gradients ? R * stride_ : 0),
        of_vectors_(of_queries_.size()),
        of_keys_(with_gradients ? (W + 1) * stride_ : 0) {}

  bool active() const { return active_; }

  void enter(const Rows& rows) {
    rows_ = &rows;
    each_row([&](const Rows::Run& run, Index lane, Index matrix, Index i) {
      read_row(problem_.query, matrix, i, problem_.d_k, queries_.data() + lane * stride_);
      if (lane > run.lane) return;
      T* vector = vectors_.data() + lane * stride_;  // one for each run of queries
      read_row(problem_.score.vector, run.head, 0, problem_.d_k, vector);
      for (Index d = 0; d < problem_.d_k; d++) vector[d] *= T(problem_.scale);
    });
    std::fill(of_queries_.begin(), of_queries_.end(), T(0));
    std::fill(of_vectors_.begin(), of_vectors_.end(), T(0));
  }

  // The tile becomes the scores, (keys, lanes), 0 in lanes without a query.
  void compute(const Block<T>& key, Index keys, T* tile) {
    if (rows_->rows < R) std::fill_n(tile, keys * R, T(0));
    T found[W];
    for (Index j0 = 0; j0 < keys; j0 += W) {
      const Index count = std::min(W, keys - j0);
      const Block<T> some = whole_rows(key, j0, count);
      each_row([&](const Rows::Run& run, Index lane, Index, Index) {
        match_row(some.data, some.row, count, queries_.data() + lane * stride_,
                  vectors_.data() + run.lane * stride_, stride_, found);
        for (Index n = 0; n < count; n++) tile[(j0 + n) * R + lane] = found[n];
      });
    }
  }

  // Adds what the gradients of the scores, a tile, give to the keys, (keys, d_k); what they give to
  // queries and vectors is kept. A gradient of 0 gives nothing, whatever the key holds.
  void add_gradients(const T* tile, const Block<T>& key, Index keys, T* out) {
    for (Index j0 = 0; j0 < keys; j0 += W) {
      const Index count = std::min(W, keys - j0);
      const Block<T> some = whole_rows(key, j0, count);
      std::fill(of_keys_.begin(), of_keys_.end(), T(0));
      each_row([&](const Rows::Run& run, Index lane, Index, Index) {
        add_row(tile + j0 * R + lane, some, count, lane, run.lane);
      });
      for (Index n = 0; n < count; n++)
        for (Index d = 0; d < problem_.d_k; d++)
          out[(j0 + n) * problem_.d_k + d] += of_keys_[n * stride_ + d];
    }
  }

  // Writes the gradients of the queries, and adds those of the vectors of a group of heads.
  void finish(const Tensor& of_query, T* of_vector) {
    each_row([&](const Rows::Run& run, Index lane, Index matrix, Index i) {
      write_row(of_query, matrix, i, problem_.d_k, of_queries_.data() + lane * stride_);
      if (lane > run.lane) return;
      T* out = of_vector + run.head % problem_.group() * problem_.d_k;
      for (Index d = 0; d < problem_.d_k; d++)
        out[d] += T(problem_.scale) * of_vectors_[lane * stride_ + d];
    });
  }

 private:
  // f(run, lane, matrix, i) for every lane with a query.
  template <class F>
  void each_row(F f) const {
    for (const Rows::Run& run : rows_->runs)
      for (Index n = 0; n < run.count; n++)
        f(run, run.lane + n, rows_->batch * problem_.heads + run.head, run.i + n);
  }

  // Up to W keys from j0 on, each in whole vectors.
  Block<T> whole_rows(const Block<T>& key, Index j0, Index count) {
    const T* first = key.data + j0 * key.row;
    if (key.column == 1 && stride_ == problem_.d_k) return {first, key.row, 1};
    for (Index n = 0; n < count; n++)
      for (Index d = 0; d < problem_.d_k; d++)
        keys_[n * stride_ + d] = first[n * key.row + d * key.column];
    return {keys_.data(), stride_, 1};
  }

  // One query's part, N keys at a time; where fewer are left, a row of zeros stands in.
  void add_row(const T* tile, const Block<T>& some, Index count, Index lane, Index vector) {
    const T* key[N];
    T* of_key[N];
    T of_score[N];
    Index held = 0;
    const auto put = [&](const T* row, Index place, T x) {
      key[held] = row;
      of_key[held] = of_keys_.data() + place * stride_;
      of_score[held++] = x;
    };
    const auto add = [&] {
      unmatch<T>(key, of_key, of_score, queries_.data() + lane * stride_,
                 vectors_.data() + vector * stride_, stride_, of_queries_.data() + lane * stride_,
                 of_vectors_.data() + vector * stride_);
      held = 0;
    };
    for (Index n = 0; n < count; n++) {
      if (tile[n * R] != T(0)) put(some.data + n * some.row, n, tile[n * R]);
      if (held == N) add();
    }
    if (!held) return;
    while (held < N) put(keys_.data() + W * stride_, W, T(0));
    add();
  }

  const Problem& problem_;
  bool active_;
  Index stride_;
  const Rows* rows_ = nullptr;
  Room<T> queries_, vectors_, keys_;  // (lanes, features); the last row of keys_ is zeros
  Room<T> of_queries_, of_vectors_, of_keys_;
};
