// The backward pass: weights are computed again from the log-sum-exp (Dao et al. 2022), block by
// block, and never stored. Five products, by the micro-kernel of product.h or by tiles: scores,
// what the weights' gradients are made of, and the gradients of values, keys and queries. Included
// inside each ISA's namespace.

template <class T, int NV, bool kByTiles>
class BackwardStrip {
 public:
  using Joint = std::conditional_t<kByTiles, JointTiles<T, NV>, JointGradients<T, NV>>;
  static constexpr Index W = kWidth<T>, R = NV * W;
  static constexpr bool kTiles = kByTiles, kGradients = true;

  BackwardStrip(const Problem& problem, const Gradients& gradients, Blocks<T>& keys,
                Blocks<T>& values, Workspace<T, R>& space)
      : problem_(problem),
        gradients_(gradients),
        keys_(keys),
        values_(values),
        space_(space),
        scores_(problem, keys, space, true),
        dropout_(problem),
        context_(kTiles ? 0 : problem.d_v * R),
        context_rows_(kTiles ? R : 0, problem.d_v, gradients.of_context.dtype),
        context_tiles_(kTiles ? Tile::sides(R) * context_rows_.width() / Tile::kDepth : 0),
        query_((kTiles ? whole<T>(problem.d_k) : problem.d_k) * R),
        row_(whole<T>(problem.d_v)),
        of_row_(row_.size()) {}

  // What the strip gives to keys and values goes there, as that of the strip of this number.
  void join(Joint& joint, Index number) {
    joint_ = &joint;
    number_ = number;
  }

  // At most `most` rows from r0 on, as Scores counts them.
  void enter(Index batch, Index kv_head, Index r0, Index most = R) {
    scores_.enter(batch, kv_head, r0, most);
    dropout_.enter(scores_.rows());
    load_rows();
    std::fill(query_.begin(), query_.end(), T(0));
  }

  Scores<T, NV, kTiles>& scores() { return scores_; }

  // Keys whose gradients additive scores add to, (S, d_k); others' are added by the joint.
  void attend(Index j0, Index j1, Sight sight, T* key) {
    weigh(j0, j1, sight);
    joint_->weights(number_, j0, j1, weights());
    weigh_scores(j0, j1);
    bend(j0, j1);
    if (scores_.additive().active())
      return scores_.additive().add_gradients(scores_.tile(), keys_.from(scores_.key_matrix(), j0),
                                              j1 - j0, key + j0 * problem_.d_k);
    joint_->changes(number_, j0, j1, scores_.tile());
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
  // Per lane: the log-sum-exp, and the part of a score's gradient that all keys of the row share:
  // weight · (its own gradient - shared).
  void load_rows() {
    const Rows& rows = scores_.rows();
    if constexpr (kTiles) {
      context_factor_ = scores_.pack_across(gradients_.of_context, context_rows_, context_tiles_);
      if (joint_) joint_->enter(number_, scores_.query_rows(), context_rows_, rows.rows);
    } else {
      scores_.turn(gradients_.of_context, problem_.d_v, T(1), context_.data());
    }
    std::fill_n(lse_, R, T(0));
    std::fill_n(live_, R, Int<T>(0));
    std::fill_n(shared_, R, T(0));
    for (const Rows::Run& run : rows.runs)
      for (Index n = 0; n < run.count; n++) {
        const Index lane = run.lane + n, i = run.i + n, matrix = scores_.matrix(run);
        read_row(gradients_.of_context, matrix, i, problem_.d_v, of_row_.data());
        read_row(problem_.context, matrix, i, problem_.d_v, row_.data());
        if constexpr (!kTiles)
          if (joint_) joint_->enter(number_, lane, matrix, i, of_row_.data());
        T shared = dot(of_row_, row_);
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
  }

  // Of rows that are padded with zeros to whole vectors.
  static T dot(const Room<T>& a, const Room<T>& b) {
    Vec<T> sums = {};
    for (size_t c = 0; c < a.size(); c += W) sums += load(&a[c]) * load(&b[c]);
    T sum = 0;
    for (Index n = 0; n < W; n++) sum += sums[n];
    return sum;
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
        store<T>(&space_.dropped[at], load(tile + at) * factor);
      });
  }

  // The weights that values were blended with.
  const T* weights() { return dropout_.active() ? space_.dropped.data() : scores_.tile(); }

  // The tile's weights become the gradients of the scores that the softmax took:
  // weight · (value · of_context - shared), where what was dropped has no part in the first.
  void weigh_scores(Index j0, Index j1) {
    const auto weigh_at = [&](Index at, Vec<T> product, Vec<T> shared) {
      T* const to = scores_.tile() + at;
      const Vec<T> weight = load(to), change = weight * (kept(product, at) - shared);
      store<T>(to, weight == T(0) ? Vec<T>{} : change);  // a hidden key's value may hold anything
    };
    const Index matrix = scores_.key_matrix();
    if constexpr (kTiles) {
      T* products = space_.products.data();
      multiply_tiles(values_.left(matrix, j0), Tile::sides(j1 - j0), context_factor_, NV,
                     Tile::depths(problem_.d_v), products, R);
      for (int v = 0; v < NV; v++) {
        const Vec<T> shared = load(shared_ + v * W);
        for (Index at = v * W; at < (j1 - j0) * R; at += R)
          weigh_at(at, load(products + at), shared);
      }
    } else {
      const Block<T> value = values_.from(matrix, j0);
      product<T, NV>(value.data, j1 - j0, value.row, value.column, context_.data(), R, problem_.d_v,
                     [&](Index j, const Vec<T>(&sums)[NV]) {
                       for (int v = 0; v < NV; v++)
                         weigh_at(j * R + v * W, sums[v], load(shared_ + v * W));
                     });
    }
  }

  // A weight of 0 is no different when it is dropped: its gradient is 0.
  Vec<T> kept(Vec<T> x, Index at) const {
    if (!dropout_.active()) return x;
    return load(&space_.dropped[at]) == T(0) ? Vec<T>{} : x * dropout_.scale();
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
    const Index matrix = scores_.key_matrix();
    if constexpr (kTiles)
      if (keys_.finite_packed(matrix, j0)) return add_to_query_by_tiles(j0, j1);
    const Block<T> key = keys_.from(matrix, j0);
    const auto add = [&](Index d, const Vec<T>(&sums)[NV]) {
      for (int v = 0; v < NV; v++) {
        T* at = &query_[d * R + v * W];
        store<T>(at, load(at) + sums[v]);
      }
    };
    if (!kTiles && keys_.finite(matrix, j0))
      product<T, NV>(key.data, problem_.d_k, key.column, key.row, scores_.tile(), R, j1 - j0, add);
    else
      blend_carefully<T, NV>(key, problem_.d_k, scores_.tile(), j1 - j0, add);
  }

  void add_to_query_by_tiles(Index j0, Index j1) {
    multiply_tiles(keys_.left_turned(scores_.key_matrix(), j0), Tile::sides(problem_.d_k),
                   scores_.pack_tile(j1 - j0), NV, Tile::depths(j1 - j0), query_.data(), R, true);
  }

  const Problem& problem_;
  const Gradients& gradients_;
  Blocks<T>&keys_, &values_;
  Workspace<T, R>& space_;
  Scores<T, NV, kTiles> scores_;
  Dropout<T, NV> dropout_;
  Room<T> context_;  // (columns, lanes): of_context, unless tiles multiply with it
  Rows16 context_rows_;
  Room<Tile> context_tiles_;  // its columns are the rows
  tiles::Factor context_factor_{};
  Room<T> query_;  // (columns, lanes): the gradient of the queries
  Room<T> row_, of_row_;
  Joint* joint_ = nullptr;  // none in the bias's pass
  Index number_ = 0;
  T lse_[R], shared_[R];
  Int<T> live_[R];  // all bits set for queries that see a key
};

// A group of heads shares the gradients of its keys and values. Groups are cut into parts with
// gradients of their own, which are added up in order: as many as keep some processors busy and
// have some rows each, and never a number that depends on how many processors there are.
template <class T, int NV, bool kTiles>
struct Backward {
  using Strip = BackwardStrip<T, NV, kTiles>;
  static constexpr Index kTasks = 16, kPartRows = 128, R = Strip::R;
  static constexpr Index kMost = std::max<Index>(Bundle<T, Strip>::kRows / R, 1);

  struct Worker {
    Bundle<T, Strip> strips;
    Strip::Joint joint;

    Worker(const Problem& problem, Index count, const Gradients& gradients)
        : strips(problem, count, gradients), joint(problem, count) {
      for (Index n = 0; n < count; n++) strips[n].join(joint, n);
    }
  };

  const Problem& problem;
  const Gradients& gradients;
  Index groups, strips, parts, at_once;
  Index vector_size;
  using Others = std::unique_ptr<T[]>;
  Others keys, values, vectors;  // of the parts after the first, per group; not yet zeroed
  std::vector<std::unique_ptr<Worker>> workers;

  Backward(const Problem& problem, const Gradients& gradients)
      : problem(problem),
        gradients(gradients),
        groups(problem.batch * problem.kv_heads),
        strips((problem.group() * problem.L + R - 1) / R),
        parts(std::clamp<Index>(kTasks / std::max<Index>(groups, 1), 1,
                                std::max<Index>(strips * R / kPartRows, 1))),
        at_once(std::clamp<Index>(strips, 1, kMost)),
        vector_size(gradients.vector ? problem.group() * problem.d_k : 0),
        keys(others(problem.S * problem.d_k)),
        values(others(problem.S * problem.d_v)),
        vectors(others(vector_size)) {}

  Others others(Index size) const {
    return std::make_unique_for_overwrite<T[]>(groups * (parts - 1) * size);
  }

  void operator()() {
    const int count = int(std::min<Index>(threads(), groups * parts));
    for (int thread = 0; thread < count; thread++)
      workers.push_back(std::make_unique<Worker>(problem, at_once, gradients));
    if (!count) return;
    run(groups * parts, count, &Backward::attend_part, this);
    if (parts > 1) run(groups, int(std::min<Index>(count, groups)), &Backward::join, this);
  }

  T* part_of(void* first, const Others& others, Index group, Index part, Index size) {
    return part == 0 ? static_cast<T*>(first) + group * size
                     : others.get() + (group * (parts - 1) + part - 1) * size;
  }

  // Strips are dealt out in turn: under a causal mask they differ in length.
  static void attend_part(void* context, Index task, int thread) {
    Backward& self = *static_cast<Backward*>(context);
    const Problem& problem = self.problem;
    auto& [bundle, joint] = *self.workers[thread];
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
      bundle.each_block(
          count,
          [&](auto& entered, Index j0, Index j1, Sight sight) {
            begin(j0 / kBlock);
            entered.attend(j0, j1, sight, key);
          },
          [&](Index block) { joint.add(block, key, value); });
      for (Index n = 0; n < count; n++) bundle[n].finish(vector);
    }
    for (Index block = 0; block < Index(begun.size()); block++) begin(block);
  }

  static void join(void* context, Index group, int) {
    Backward& self = *static_cast<Backward*>(context);
    const auto add = [&](void* first, const Others& others, Index size) {
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
