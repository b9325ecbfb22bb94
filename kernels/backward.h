// The backward pass: weights are computed again from the log-sum-exp (Dao et al. 2022), block by
// block, and never stored. Five products, all by the micro-kernel of product.h: scores, what the
// weights' gradients are made of, and the gradients of values, keys and queries.
// Included inside each ISA's namespace.

template <class T, int NV>
class BackwardStrip {
 public:
  static constexpr Index W = kWidth<T>, R = NV * W;

  BackwardStrip(const Problem& problem, const Gradients& gradients, Blocks<T>& keys,
                Blocks<T>& values)
      : problem_(problem),
        gradients_(gradients),
        keys_(keys),
        values_(values),
        scores_(problem, keys, true),
        dropout_(problem),
        k_stride_(whole(problem.d_k)),
        v_stride_(whole(problem.d_v)),
        query_rows_(R * k_stride_),
        context_rows_(R * v_stride_),
        context_(problem.d_v * R),
        query_(problem.d_k * R),
        dropped_(dropout_.active() ? kBlock * R : 0),
        row_(problem.d_v) {}

  // At most `most` rows from r0 on, as Scores counts them.
  void enter(Index batch, Index kv_head, Index r0, Index most = R) {
    scores_.enter(batch, kv_head, r0, most);
    dropout_.enter(scores_.rows());
    load_rows();
    std::fill(query_.begin(), query_.end(), T(0));
  }

  Scores<T, NV>& scores() { return scores_; }

  // Adds what the rows give to the gradients of the keys and values, (S, d_k) and (S, d_v).
  void attend(Index j0, Index j1, Sight sight, T* key, T* value) {
    weigh(j0, j1, sight);
    add_product(weights(), j1 - j0, context_rows_.data(), v_stride_, problem_.d_v,
                value + j0 * problem_.d_v);
    weigh_scores(j0, j1);
    bend(j0, j1);
    if (scores_.additive().active())
      return scores_.additive().add_gradients(scores_.tile(), keys_.from(scores_.key_matrix(), j0),
                                              j1 - j0, key + j0 * problem_.d_k);
    add_product(scores_.tile(), j1 - j0, query_rows_.data(), k_stride_, problem_.d_k,
                key + j0 * problem_.d_k);
    add_to_query(j0, j1);
  }

  // Writes the gradients of the queries; adds those of the vectors of a group's additive scores.
  void finish(T* vector) {
    if (scores_.additive().active()) return scores_.additive().finish(gradients_.query, vector);
    T scale[R];
    std::fill_n(scale, R, T(problem_.scale));
    scores_.turn_back(query_.data(), scale, problem_.d_k, gradients_.query);
  }

  // The gradients of the scores after the softcap, which are the bias's, as the tile.
  const T* score_gradients(Index j0, Index j1, Sight sight) {
    weigh(j0, j1, sight);
    weigh_scores(j0, j1);
    return scores_.tile();
  }

 private:
  static Index whole(Index n) { return (n + W - 1) / W * W; }

  // Per lane: the log-sum-exp, and the part of a score's gradient that all keys of the row share:
  // weight · (its own gradient - shared).
  void load_rows() {
    const Rows& rows = scores_.rows();
    scores_.turn(gradients_.of_context, problem_.d_v, T(1), context_.data());
    std::fill_n(lse_, R, T(0));
    std::fill_n(live_, R, Int<T>(0));
    std::fill_n(shared_, R, T(0));
    std::fill(query_rows_.begin(), query_rows_.end(), T(0));
    std::fill(context_rows_.begin(), context_rows_.end(), T(0));
    for (const Rows::Run& run : rows.runs)
      for (Index n = 0; n < run.count; n++) {
        const Index lane = run.lane + n, i = run.i + n, matrix = scores_.matrix(run);
        T* query = query_rows_.data() + lane * k_stride_;
        T* of_context = context_rows_.data() + lane * v_stride_;
        read_row(problem_.query, matrix, i, problem_.d_k, query);
        for (Index d = 0; d < problem_.d_k; d++) query[d] *= T(problem_.scale);
        read_row(gradients_.of_context, matrix, i, problem_.d_v, of_context);
        read_row(problem_.context, matrix, i, problem_.d_v, row_.data());
        T shared = 0;
        for (Index c = 0; c < problem_.d_v; c++) shared += of_context[c] * row_[c];
        const Index at = matrix * problem_.L + i;
        const T lse = static_cast<const T*>(gradients_.lse)[at];
        if (gradients_.of_lse) shared -= static_cast<const T*>(gradients_.of_lse)[at];
        live_[lane] = lse == -kInf<T> ? 0 : -1;  // such a row sees nothing: its weights are 0
        lse_[lane] = lse == -kInf<T> ? T(0) : lse;
        shared_[lane] = lse == -kInf<T> ? T(0) : shared;
        if (gradients_.sinks) {
          const T sink = T(problem_.sinks[run.head]);
          static_cast<T*>(gradients_.sinks)[at] =
              lse == -kInf<T> ? T(0) : -std::exp(sink - lse) * shared;
        }
      }
    const Block<T> queries{query_rows_.data(), k_stride_, 1};
    const Block<T> contexts{context_rows_.data(), v_stride_, 1};
    finite_ = queries.finite(R, problem_.d_k) && contexts.finite(R, problem_.d_v);
  }

  // The tile becomes the weights, computed again; beside it what dropout leaves of them.
  void weigh(Index j0, Index j1, Sight sight) {
    Vec<T> maximum[NV] = {};
    scores_.compute(j0, j1, sight, maximum);
    T* tile = scores_.tile();
    for (int v = 0; v < NV; v++) {
      const Vec<T> lse = load(lse_ + v * W);
      const Vec<Int<T>> live = load(live_ + v * W);
      for (Index j = 0; j < j1 - j0; j++) {
        T* at = tile + j * R + v * W;
        const Vec<T> weight = exp<T>(load(at) - lse);
        store<T>(at, live ? weight : Vec<T>{});  // a bias hides no key from lanes without a query
      }
    }
    if (dropout_.active())
      dropout_.each(j0, j1, [&](Index at, Vec<T> factor) {
        store<T>(&dropped_[at], load(tile + at) * factor);
      });
  }

  // The weights that values were blended with.
  const T* weights() { return dropout_.active() ? dropped_.data() : scores_.tile(); }

  // out[key][column] += sum over lanes of tile[key][lane] · rows[lane][column].
  void add_product(const T* tile, Index keys, const T* rows, Index stride, Index columns, T* out) {
    if (!finite_) return add_carefully(tile, keys, rows, stride, columns, out);
    for (Index c0 = 0; c0 < columns; c0 += R) {
      const Index left = columns - c0;
      switch ((std::min(left, R) + W - 1) / W) {
        case 1:
          add_columns<1>(tile, keys, rows, stride, columns, c0, out);
          break;
        case 2:
          add_columns<2>(tile, keys, rows, stride, columns, c0, out);
          break;
        case 3:
          add_columns<3>(tile, keys, rows, stride, columns, c0, out);
          break;
        case 4:
          add_columns<4>(tile, keys, rows, stride, columns, c0, out);
          break;
      }
    }
  }

  // With NaN or inf in a query's row, a key that it does not see must get nothing of it.
  static void add_carefully(const T* tile, Index keys, const T* rows, Index stride, Index columns,
                            T* out) {
    for (Index j = 0; j < keys; j++)
      for (Index lane = 0; lane < R; lane++)
        if (const T weight = tile[j * R + lane]; weight != T(0))
          for (Index c = 0; c < columns; c++)
            out[j * columns + c] += weight * rows[lane * stride + c];
  }

  template <int N>
  void add_columns(const T* tile, Index keys, const T* rows, Index stride, Index columns, Index c0,
                   T* out) const {
    const Index lanes = scores_.rows().rows;
    if constexpr (N <= NV)
      product<T, N>(tile, keys, R, 1, rows + c0, stride, lanes,
                    [&](Index j, const Vec<T>(&sums)[N]) {
                      T* at = out + j * columns + c0;
                      for (int v = 0; v < N; v++) {
                        const Index left = columns - c0 - v * W;
                        if (left >= W) {
                          store<T>(at + v * W, load(at + v * W) + sums[v]);
                        } else {
                          for (Index n = 0; n < left; n++) at[v * W + n] += sums[v][n];
                        }
                      }
                    });
  }

  // The tile's weights become the gradients of the scores that the softmax took:
  // weight · (value · of_context - shared), where what was dropped has no part in the first.
  void weigh_scores(Index j0, Index j1) {
    const Block<T> value = values_.from(scores_.key_matrix(), j0);
    T* tile = scores_.tile();
    product<T, NV>(value.data, j1 - j0, value.row, value.column, context_.data(), R, problem_.d_v,
                   [&](Index j, const Vec<T>(&sums)[NV]) {
                     for (int v = 0; v < NV; v++) {
                       const Index at = j * R + v * W;
                       const Vec<T> weight = load(tile + at);
                       const Vec<T> change = weight * (kept(sums[v], at) - load(shared_ + v * W));
                       // A hidden key's value may hold anything.
                       store<T>(tile + at, weight == T(0) ? Vec<T>{} : change);
                     }
                   });
  }

  // A weight of 0 is no different when it is dropped: its gradient is 0.
  Vec<T> kept(Vec<T> x, Index at) const {
    if (!dropout_.active()) return x;
    return load(&dropped_[at]) == T(0) ? Vec<T>{} : x * dropout_.scale();
  }

  // Through the softcap.
  void bend(Index j0, Index j1) {
    const T* slope = scores_.slope();
    T* tile = scores_.tile();
    if (!slope) return;
    for (Index at = 0; at < (j1 - j0) * R; at += W) {
      const Vec<T> change = load(tile + at);
      store<T>(tile + at, change == T(0) ? Vec<T>{} : change * load(slope + at));
    }
  }

  void add_to_query(Index j0, Index j1) {
    const Block<T> key = keys_.from(scores_.key_matrix(), j0);
    const auto add = [&](Index d, const Vec<T>(&sums)[NV]) {
      for (int v = 0; v < NV; v++) {
        T* at = &query_[d * R + v * W];
        store<T>(at, load(at) + sums[v]);
      }
    };
    if (keys_.finite(scores_.key_matrix(), j0))
      product<T, NV>(key.data, problem_.d_k, key.column, key.row, scores_.tile(), R, j1 - j0, add);
    else
      blend_carefully<T, NV>(key, problem_.d_k, scores_.tile(), j1 - j0, add);
  }

  const Problem& problem_;
  const Gradients& gradients_;
  Blocks<T>&keys_, &values_;
  Scores<T, NV> scores_;
  Dropout<T, NV> dropout_;
  Index k_stride_, v_stride_;
  std::vector<T> query_rows_,
      context_rows_;                // (lanes, columns), padded: scaled queries; of_context
  std::vector<T> context_, query_;  // (columns, lanes): of_context; gradient of the queries
  std::vector<T> dropped_, row_;
  T lse_[R], shared_[R];
  Int<T> live_[R];  // all bits set for queries that see a key
  bool finite_ = true;
};

// A group of heads shares the gradients of its keys and values. Groups are cut into parts with
// gradients of their own, which are added up in order: as many as keep some processors busy, and
// never a number that depends on how many there are.
template <class T, int NV>
struct Backward {
  using Strips = Bundle<T, BackwardStrip<T, NV>>;
  static constexpr Index kTasks = 16, R = BackwardStrip<T, NV>::R;
  const Problem& problem;
  const Gradients& gradients;
  Index groups, strips, parts, at_once;
  Index vector_size;
  std::vector<T> keys, values, vectors;  // of the parts after the first, per group
  std::vector<std::unique_ptr<Strips>> workers;

  Backward(const Problem& problem, const Gradients& gradients)
      : problem(problem),
        gradients(gradients),
        groups(problem.batch * problem.kv_heads),
        strips((problem.group() * problem.L + R - 1) / R),
        parts(
            std::clamp<Index>(kTasks / std::max<Index>(groups, 1), 1, std::max<Index>(strips, 1))),
        at_once(std::clamp<Index>(Strips::kRows / R, 1, std::max<Index>(strips, 1))),
        vector_size(gradients.vector ? problem.group() * problem.d_k : 0),
        keys(groups * (parts - 1) * problem.S * problem.d_k),
        values(groups * (parts - 1) * problem.S * problem.d_v),
        vectors(groups * (parts - 1) * vector_size) {}

  void operator()() {
    const int count = int(std::min<Index>(threads(), groups * parts));
    for (int thread = 0; thread < count; thread++)
      workers.push_back(std::make_unique<Strips>(problem, at_once, gradients));
    if (!count) return;
    run(groups * parts, count, &Backward::attend_part, this);
    if (parts > 1) run(groups, int(std::min<Index>(count, groups)), &Backward::join, this);
  }

  T* part_of(void* first, std::vector<T>& others, Index group, Index part, Index size) {
    return part == 0 ? static_cast<T*>(first) + group * size
                     : others.data() + (group * (parts - 1) + part - 1) * size;
  }

  // Strips are dealt out in turn: under a causal mask they differ in length. What they add to a key
  // comes in the same order for every size of bundle.
  static void attend_part(void* context, Index task, int thread) {
    Backward& self = *static_cast<Backward*>(context);
    const Problem& problem = self.problem;
    Strips& bundle = *self.workers[thread];
    const Index group = task / self.parts, part = task % self.parts;
    T* key = self.part_of(self.gradients.key, self.keys, group, part, problem.S * problem.d_k);
    T* value =
        self.part_of(self.gradients.value, self.values, group, part, problem.S * problem.d_v);
    T* vector = self.part_of(self.gradients.vector, self.vectors, group, part, self.vector_size);
    std::fill_n(vector, self.vector_size, T(0));
    // A block is zeroed just before the first strip adds to it: the zeros are still near then,
    // which is a third of the time where there are few queries.
    std::vector<uint8_t> begun((problem.S + kBlock - 1) / kBlock);
    const auto begin = [&](Index block) {
      if (begun[block]) return;
      begun[block] = true;
      const Index j = block * kBlock, keys = std::min(kBlock, problem.S - j);
      std::fill_n(key + j * problem.d_k, keys * problem.d_k, T(0));
      std::fill_n(value + j * problem.d_v, keys * problem.d_v, T(0));
    };
    for (Index strip = part; strip < self.strips;) {
      Index count = 0;
      for (; count < self.at_once && strip < self.strips; count++, strip += self.parts)
        bundle[count].enter(group / problem.kv_heads, group % problem.kv_heads, strip * R);
      bundle.each_block(count, [&](auto& entered, Index j0, Index j1, Sight sight) {
        begin(j0 / kBlock);
        entered.attend(j0, j1, sight, key, value);
      });
      for (Index n = 0; n < count; n++) bundle[n].finish(vector);
    }
    for (Index block = 0; block < Index(begun.size()); block++) begin(block);
  }

  static void join(void* context, Index group, int) {
    Backward& self = *static_cast<Backward*>(context);
    const auto add = [&](void* first, std::vector<T>& others, Index size) {
      T* sum = self.part_of(first, others, group, 0, size);
      for (Index part = 1; part < self.parts; part++) {
        const T* other = self.part_of(first, others, group, part, size);
        for (Index n = 0; n < size; n++) sum[n] += other[n];
      }
    };
    add(self.gradients.key, self.keys, self.problem.S * self.problem.d_k);
    add(self.gradients.value, self.values, self.problem.S * self.problem.d_v);
    add(self.gradients.vector, self.vectors, self.vector_size);
  }
};
