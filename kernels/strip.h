// One strip of queries against all its keys: the streaming softmax (Milakov and Gimelshein 2018,
// Rabe and Staats 2021, Dao et al. 2022), with every query of the strip in a lane of its own.
// Included inside each ISA's namespace.

// Keys in a block. The weights of a block for 64 queries in float are 16 KiB a 64 keys: with the
// queries (16 KiB at d_k 64) they should stay near the core while values pass over them.
constexpr Index kBlock = 128;

template <class T, int NV>
class Strip {
 public:
  static constexpr Index W = kWidth<T>, R = NV * W;

  Strip(const Problem& problem, const Cuts& cuts)
      : problem_(problem),
        mask_(problem, R, kBlock),
        observation_(problem, cuts, kBlock),
        queries_(problem.d_k * R),
        tile_(kBlock * R),
        visible_(problem.mask.empty() ? 0 : kBlock * R),
        context_(problem.d_v * R),
        stage_(W * padded(std::max(problem.d_k, problem.d_v))),
        room_(converts() ? kBlock * std::max(problem.d_k, problem.d_v) : 0),
        probe_(converts() ? kBlock * problem.d_v : 0) {}

  // Rows r0, r0 + 1, ... of the group of heads that share a key/value head, at most R of them,
  // counted head by head. finish(rows) is called when the strip may add to shared results.
  template <class Turn>
  void attend(Index batch, Index kv_head, Index r0, std::atomic<uint8_t>* finite, Turn turn) {
    enter(batch, kv_head, r0);
    // Blocks lie on one grid for all strips, so that a row's sums are taken in the same order
    // whatever its neighbours see; hidden keys at their ends add zeros, and are left out.
    for (Index block = mask_.first() / kBlock; block * kBlock < mask_.last(); block++) {
      const Index j0 = std::max(block * kBlock, mask_.first());
      const Index j1 = std::min((block + 1) * kBlock, mask_.last());
      const Sight sight = mask_.sight(j0, j1);
      if (sight != Sight::none) attend_block(j0, j1, sight, finite);
    }
    finish(turn);
  }

 private:
  bool converts() const {
    return problem_.query.dtype != (sizeof(T) == 8 ? Dtype::f64 : Dtype::f32);
  }

  Index key_matrix() const { return rows_.batch * problem_.kv_heads + kv_head_; }
  Index matrix(const Rows::Run& run) const { return rows_.batch * problem_.heads + run.head; }

  void enter(Index batch, Index kv_head, Index r0) {
    const Index group = problem_.group(), L = problem_.L;
    kv_head_ = kv_head;
    rows_.batch = batch;
    rows_.rows = std::min(R, group * L - r0);
    rows_.runs.clear();
    for (Index lane = 0; lane < rows_.rows;) {
      const Index row = r0 + lane, i = row % L, count = std::min(L - i, rows_.rows - lane);
      rows_.runs.push_back({kv_head * group + row / L, i, lane, count});
      lane += count;
    }
    load_queries();
    mask_.enter(rows_);
    observation_.enter();
    std::fill(context_.begin(), context_.end(), T(0));
    std::fill_n(sums_.best, R, -kInf<T>);
    std::fill_n(sums_.sum, R, T(0));
    std::fill_n(sums_.moment, R, T(0));
  }

  // Rows of numbers are padded to whole vectors in the stage, where they are turned.
  static Index padded(Index n) { return (n + W - 1) / W * W; }

  // f(lane in [0, W), matrix, i) for the lanes with a query among W lanes from `first` on.
  template <class F>
  void each_row(Index first, F f) const {
    for (const Rows::Run& run : rows_.runs) {
      const Index from = std::max(run.lane, first), to = std::min(run.lane + run.count, first + W);
      for (Index lane = from; lane < to; lane++)
        f(lane - first, matrix(run), run.i + lane - run.lane);
    }
  }

  // Queries turned, (d_k, lanes), and multiplied by the scale once instead of every score.
  void load_queries() {
    const Index d_k = problem_.d_k, stride = padded(d_k);
    const T scale = T(problem_.scale);
    for (Index first = 0; first < R; first += W) {
      std::fill(stage_.begin(), stage_.end(), T(0));
      each_row(first, [&](Index lane, Index matrix, Index i) {
        read_row(problem_.query, matrix, i, d_k, &stage_[lane * stride]);
      });
      for (Index d0 = 0; d0 < d_k; d0 += W) {
        Vec<T> square[W];
        for (Index n = 0; n < W; n++) square[n] = load(&stage_[n * stride + d0]) * scale;
        transpose<T>(square);
        for (Index n = 0; n < std::min(W, d_k - d0); n++)
          store(&queries_[(d0 + n) * R + first], square[n]);
      }
    }
  }

  void attend_block(Index j0, Index j1, Sight sight, std::atomic<uint8_t>* finite) {
    const Index keys = j1 - j0;
    Vec<T> maximum[NV];
    for (int v = 0; v < NV; v++) maximum[v] = load(sums_.best + v * W);
    {
      const Block<T> key(problem_.key, key_matrix(), j0, j1, problem_.d_k, room_.data());
      product<T, NV>(key.data, keys, key.row, key.column, queries_.data(), problem_.d_k,
                     [&](Index j, const Vec<T>(&score)[NV]) {
                       for (int v = 0; v < NV; v++) {
                         store(&tile_[j * R + v * W], score[v]);
                         maximum[v] = greater<T>(score[v], maximum[v]);
                       }
                     });
    }
    if (sight == Sight::some || problem_.softcap || problem_.bias.kind != Bias::none)
      adjust(j0, j1, sight, maximum);
    T now[R];
    for (int v = 0; v < NV; v++) store(now + v * W, maximum[v]);
    observation_.scores(tile_.data(), j0, keys, sums_.best, now);
    Vec<T> decay[NV];
    exchange_maximum(maximum, decay);
    weigh(j0, j1);
    if (problem_.d_v) blend(j0, j1, decay, finite);
  }

  // Softcap, bias and mask, in this order; maximum is taken anew.
  void adjust(Index j0, Index j1, Sight sight, Vec<T> (&maximum)[NV]) {
    const Index keys = j1 - j0;
    if (problem_.softcap) {
      const T cap = T(problem_.softcap), inverse = T(1 / problem_.softcap);
      for (Index n = 0; n < keys * R; n += W)
        store<T>(&tile_[n], tanh<T>(load(&tile_[n]) * inverse) * cap);
    }
    if (problem_.bias.kind != Bias::none) add_bias(j0, j1);
    if (sight == Sight::some) {
      mask_.write(j0, j1, visible_.data());
      const Vec<T> hidden = splat(-kInf<T>);
      for (Index n = 0; n < keys * R; n += W)
        store<T>(&tile_[n], load(&visible_[n]) ? load(&tile_[n]) : hidden);
    }
    for (int v = 0; v < NV; v++) {
      maximum[v] = load(sums_.best + v * W);
      for (Index j = 0; j < keys; j++)
        maximum[v] = greater<T>(load(&tile_[j * R + v * W]), maximum[v]);
    }
  }

  // A bias of -inf masks, also a score of NaN or +inf, which a sum would turn into NaN.
  static void add(T& score, T bias) { score = bias == -kInf<T> ? bias : score + bias; }

  void add_bias(Index j0, Index j1) {
    const Tensor& bias = problem_.bias.array;
    for (const Rows::Run& run : rows_.runs) {
      const Index i = problem_.row + run.i;
      if (problem_.bias.kind == Bias::by_distance) {
        const T* row = reinterpret_cast<const T*>(bias.at(run.head, 0, i + problem_.S - 1));
        for (Index j = j0; j < j1; j++)
          for (Index n = 0; n < run.count; n++) add(tile_[(j - j0) * R + run.lane + n], row[n - j]);
        continue;
      }
      for (Index n = 0; n < run.count; n++)
        with_type(bias.dtype, [&](auto type) {
          const auto* row = reinterpret_cast<const decltype(type)*>(bias.at(matrix(run), i + n, 0));
          for (Index j = j0; j < j1; j++)
            add(tile_[(j - j0) * R + run.lane + n], widen<T>(row[j * bias.column]));
        });
    }
  }

  // Old sums are multiplied with decay = exp(old maximum - new maximum). Rows that have seen
  // nothing have maximum -inf and are taken relative to 0, so that no inf - inf arises.
  void exchange_maximum(const Vec<T> (&maximum)[NV], Vec<T> (&decay)[NV]) {
    for (int v = 0; v < NV; v++) {
      const Vec<T> before = load(sums_.best + v * W);
      const Vec<T> now = maximum[v] == -kInf<T> ? Vec<T>{} : maximum[v];
      const Vec<T> change = before == -kInf<T> ? Vec<T>{} : before - now;
      decay[v] = change == T(0) ? splat(T(1)) : exp<T>(change);
      const Vec<T> sum = load(sums_.sum + v * W), moment = load(sums_.moment + v * W);
      store<T>(sums_.moment + v * W, decay[v] * (moment + change * sum));
      store<T>(sums_.sum + v * W, decay[v] * sum);
      store<T>(sums_.best + v * W, maximum[v]);
      store<T>(sums_.maximum + v * W, now);
    }
  }

  void weigh(Index j0, Index j1) {
    const bool moment = problem_.results.entropy != nullptr;
    if (observation_.keeps_mass())
      moment ? weigh_block<true, true>(j0, j1) : weigh_block<false, true>(j0, j1);
    else
      moment ? weigh_block<true, false>(j0, j1) : weigh_block<false, false>(j0, j1);
  }

  // Scores become exp(score - maximum), and are summed: over the block, and over each segment where
  // masses are kept. The block's sum never depends on the segments: the context keeps its bits
  // whatever is observed.
  template <bool kMoment, bool kMass>
  void weigh_block(Index j0, Index j1) {
    const Index block = j0 / kBlock;
    Vec<T> maximum[NV], sum[NV] = {}, moment[NV] = {};
    for (int v = 0; v < NV; v++) maximum[v] = load(sums_.maximum + v * W);
    const Index* bounds = kMass ? observation_.bounds(block) : nullptr;
    T* mass = kMass ? observation_.mass(block, sums_.best) : nullptr;
    const Index segments = kMass ? observation_.segments(block) : 1;
    for (Index n = 0; n < segments; n++) {
      Vec<T> part[NV] = {};
      const Index from = kMass ? std::max(bounds[n], j0) : j0;
      const Index to = kMass ? std::min(bounds[n + 1], j1) : j1;
      for (Index j = from; j < to; j++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
          T* at = &tile_[(j - j0) * R + v * W];
          const Vec<T> x = load(at) - maximum[v];
          const Vec<T> weight = exp<T>(x);
          store(at, weight);
          sum[v] += weight;
          // A masked score is -inf and weighs 0; their product is to be 0 and not NaN.
          if (kMoment) moment[v] += weight * (x == -kInf<T> ? Vec<T>{} : x);
          if (kMass) part[v] += weight;
        }
      if (kMass)
        for (int v = 0; v < NV; v++) store(mass + n * R + v * W, part[v]);
    }
    for (int v = 0; v < NV; v++) {
      store<T>(sums_.sum + v * W, load(sums_.sum + v * W) + sum[v]);
      if (kMoment) store<T>(sums_.moment + v * W, load(sums_.moment + v * W) + moment[v]);
    }
  }

  // context = context · decay + values · weights. The block is summed on its own first, so that
  // rounding grows with the number of blocks and not of keys.
  void blend(Index j0, Index j1, const Vec<T> (&decay)[NV], std::atomic<uint8_t>* finite) {
    const Index keys = j1 - j0, d_v = problem_.d_v;
    const Block<T> value(problem_.value, key_matrix(), j0, j1, d_v, room_.data());
    const auto add = [&](Index c, const Vec<T>(&sum)[NV]) {
      for (int v = 0; v < NV; v++) {
        T* at = &context_[c * R + v * W];
        store<T>(at, load(at) * decay[v] + sum[v]);
      }
    };
    if (is_finite(j0 / kBlock, finite))
      product<T, NV>(value.data, d_v, value.column, value.row, tile_.data(), keys, add);
    else
      blend_carefully(value, keys, add);
  }

  // Whether a whole block of values is finite, found out once by whichever strip comes first.
  bool is_finite(Index block, std::atomic<uint8_t>* known) {
    uint8_t state = known[block].load(std::memory_order_relaxed);
    if (!state) {
      const Index j0 = block * kBlock, j1 = std::min(j0 + kBlock, problem_.S);
      const Block<T> values(problem_.value, key_matrix(), j0, j1, problem_.d_v, probe_.data());
      state = values.finite(j1 - j0, problem_.d_v) ? 1 : 2;
      known[block].store(state, std::memory_order_relaxed);
    }
    return state == 1;
  }

  // With NaN or inf among the values, a key that weighs nothing must add nothing: 0 · inf is NaN.
  template <class Add>
  void blend_carefully(const Block<T>& value, Index keys, Add add) {
    for (Index c = 0; c < problem_.d_v; c++) {
      Vec<T> sum[NV] = {};
      for (Index j = 0; j < keys; j++)
        for (int v = 0; v < NV; v++) {
          const Vec<T> weight = load(&tile_[j * R + v * W]);
          const Vec<T> part = weight * value.data[j * value.row + c * value.column];
          sum[v] += weight == T(0) ? Vec<T>{} : part;
        }
      add(c, sum);
    }
  }

  template <class Turn>
  void finish(Turn turn) {
    T scale[R];
    for (Index lane = 0; lane < R; lane++) {
      sums_.seen[lane] = sums_.sum[lane] != T(0) && lane < rows_.rows;
      if (sums_.best[lane] == -kInf<T>) sums_.maximum[lane] = -kInf<T>;
    }
    T keep[R];
    add_sinks(keep);
    for (Index lane = 0; lane < R; lane++)
      scale[lane] = sums_.seen[lane] ? T(1) / sums_.sum[lane] : T(0);
    write_context(scale, keep);
    observation_.write_rows(rows_, sums_);
    observation_.sum_rows(rows_, sums_.maximum, scale);
    turn(rows_, sums_.seen, [&] { observation_.write_shared(); });
  }

  // The sink joins the sums as one more score. What was summed so far is multiplied with keep.
  void add_sinks(T* keep) {
    std::fill_n(keep, R, T(1));
    if (problem_.sinks.empty()) return;
    for (const Rows::Run& run : rows_.runs)
      for (Index lane = run.lane; lane < run.lane + run.count; lane++) {
        const T sink = T(problem_.sinks[run.head]);
        if (sink == -kInf<T>) continue;
        const T before = sums_.maximum[lane], now = before > sink ? before : sink;
        keep[lane] = before == -kInf<T> ? T(0) : std::exp(before - now);
        const T shift = before == -kInf<T> ? T(0) : before - now, own = std::exp(sink - now);
        sums_.moment[lane] = keep[lane] * (sums_.moment[lane] + shift * sums_.sum[lane]) +
                             own * (own == T(0) ? T(0) : sink - now);
        sums_.sum[lane] = keep[lane] * sums_.sum[lane] + own;
        sums_.maximum[lane] = now;
      }
  }

  void write_context(const T* scale, const T* keep) {
    const Index d_v = problem_.d_v, stride = padded(d_v);
    for (Index first = 0; first < R && d_v; first += W) {
      const Vec<T> share = load(scale + first) * load(keep + first);
      const auto unseen = load(scale + first) == T(0);
      for (Index c0 = 0; c0 < d_v; c0 += W) {
        Vec<T> square[W];
        for (Index n = 0; n < W; n++) {
          const Vec<T> sums = load(&context_[std::min(c0 + n, d_v - 1) * R + first]);
          square[n] = unseen ? Vec<T>{} : sums * share;
        }
        transpose<T>(square);
        for (Index n = 0; n < W; n++) store(&stage_[n * stride + c0], square[n]);
      }
      each_row(first, [&](Index lane, Index matrix, Index i) {
        write_row(problem_.context, matrix, i, d_v, &stage_[lane * stride]);
      });
    }
  }

  const Problem& problem_;
  Rows rows_;
  Index kv_head_ = 0;
  StripMask<T> mask_;
  StripObservation<T, NV> observation_;
  RowSums<T, R> sums_;
  std::vector<T> queries_, tile_;
  std::vector<Int<T>> visible_;
  std::vector<T> context_, stage_, room_, probe_;
};
