// One strip of queries against all its keys: the streaming softmax (Milakov and Gimelshein 2018,
// Rabe and Staats 2021, Dao et al. 2022). Included inside each ISA's namespace.

template <class T, int NV, bool kByTiles>
class Strip {
 public:
  static constexpr Index W = kWidth<T>, R = NV * W;
  static constexpr bool kTiles = kByTiles, kGradients = false;

  Strip(const Problem& problem, const Cuts& cuts, Blocks<T>& keys, Blocks<T>& values,
        Workspace<T, R>& space)
      : problem_(problem),
        values_(values),
        scores_(problem, keys, space),
        dropout_(problem),
        observation_(problem, cuts, kBlock),
        context_((kTiles ? whole<T>(problem.d_v) : problem.d_v) * R) {}

  // The rows from r0 on, as Scores counts them.
  void enter(Index batch, Index kv_head, Index r0) {
    scores_.enter(batch, kv_head, r0);
    dropout_.enter(scores_.rows());
    observation_.enter();
    std::fill(context_.begin(), context_.end(), T(0));
    std::fill_n(sums_.best, R, -kInf<T>);
    std::fill_n(sums_.sum, R, T(0));
    std::fill_n(sums_.moment, R, T(0));
  }

  Scores<T, NV, kTiles>& scores() { return scores_; }

  void attend(Index j0, Index j1, Sight sight) {
    Vec<T> maximum[NV], decay[NV];
    T now[R];
    for (int v = 0; v < NV; v++) maximum[v] = load(sums_.best + v * W);
    scores_.compute(j0, j1, sight, maximum);
    for (int v = 0; v < NV; v++) store(now + v * W, maximum[v]);
    observation_.scores(scores_.tile(), j0, j1 - j0, sums_.best, now);
    exchange_maximum(maximum, decay);
    weigh(j0, j1);
    if (dropout_.active()) drop(j0, j1);
    if (problem_.d_v) blend(j0, j1, decay);
  }

  // turn(rows, seen, add) lets the strip add to shared results when it is its turn.
  template <class Turn>
  void finish(Turn turn) {
    const Rows& rows = scores_.rows();
    T scale[R], keep[R];
    for (Index lane = 0; lane < R; lane++) {
      sums_.seen[lane] = sums_.sum[lane] != T(0) && lane < rows.rows;
      if (sums_.best[lane] == -kInf<T>) sums_.maximum[lane] = -kInf<T>;
    }
    add_sinks(keep);
    for (Index lane = 0; lane < R; lane++) {
      scale[lane] = sums_.seen[lane] ? T(1) / sums_.sum[lane] : T(0);
      keep[lane] *= scale[lane];
    }
    if (problem_.d_v) scores_.turn_back(context_.data(), keep, problem_.d_v, problem_.context);
    observation_.write_rows(rows, sums_);
    observation_.sum_rows(rows, sums_.maximum, scale);
    turn(rows, sums_.seen, [&] { observation_.write_shared(); });
  }

 private:
  // Old sums are multiplied with decay = exp(old maximum - new maximum). Rows that have seen
  // nothing have maximum -inf and are taken relative to 0, so that no inf - inf arises.
  void exchange_maximum(const Vec<T> (&maximum)[NV], Vec<T> (&decay)[NV]) {
    for (int v = 0; v < NV; v++) {
      const Vec<T> before = load(sums_.best + v * W);
      const Vec<T> now = maximum[v] == -kInf<T> ? Vec<T>{} : maximum[v];
      const Vec<T> change = before == -kInf<T> ? Vec<T>{} : before - now;
      decay[v] = change == T(0) ? splat(T(1)) : exp<T>(change);
      const Vec<T> sum = load(sums_.sum + v * W), moment = load(sums_.moment + v * W);
      // Where nothing is left of the sums, the change may be so great that its product overflows.
      const Vec<T> shifted = decay[v] * (moment + change * sum);
      store<T>(sums_.moment + v * W, decay[v] == T(0) ? Vec<T>{} : shifted);
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
    T* tile = scores_.tile();
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
          T* at = &tile[(j - j0) * R + v * W];
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

  // After the sums: what is observed is meant before dropout.
  void drop(Index j0, Index j1) {
    T* tile = scores_.tile();
    dropout_.each(j0, j1,
                  [&](Index at, Vec<T> factor) { store<T>(tile + at, load(tile + at) * factor); });
  }

  // context = context · decay + values · weights. The block is summed on its own first, so that
  // rounding grows with the number of blocks and not of keys.
  void blend(Index j0, Index j1, const Vec<T> (&decay)[NV]) {
    const Index matrix = scores_.key_matrix(), d_v = problem_.d_v;
    if constexpr (kTiles)
      if (values_.finite_packed(matrix, j0)) return blend_by_tiles(j0, j1, decay);
    const Block<T> value = values_.from(matrix, j0);
    const auto add = [&](Index c, const Vec<T>(&sum)[NV]) {
      for (int v = 0; v < NV; v++) {
        T* at = &context_[c * R + v * W];
        store<T>(at, load(at) * decay[v] + sum[v]);
      }
    };
    if (!kTiles && values_.finite(matrix, j0))
      product<T, NV>(value.data, d_v, value.column, value.row, scores_.tile(), R, j1 - j0, add);
    else
      blend_carefully<T, NV>(value, d_v, scores_.tile(), j1 - j0, add);
  }

  // Tiles add to what is there: weights of bfloat16 err by more than sums in float.
  void blend_by_tiles(Index j0, Index j1, const Vec<T> (&decay)[NV]) {
    for (int v = 0; v < NV; v++)
      if (any(decay[v] != T(1)))
        for (Index c = 0; c < problem_.d_v; c++) {
          T* at = &context_[c * R + v * W];
          store<T>(at, load(at) * decay[v]);
        }
    multiply_tiles(values_.left_turned(scores_.key_matrix(), j0), Tile::sides(problem_.d_v),
                   scores_.pack_tile(j1 - j0), NV, Tile::depths(j1 - j0), context_.data(), R, true);
  }

  // The sink joins the sums as one more score. What was summed so far is multiplied with keep.
  void add_sinks(T* keep) {
    std::fill_n(keep, R, T(1));
    if (problem_.sinks.empty()) return;
    for (const Rows::Run& run : scores_.rows().runs)
      for (Index lane = run.lane; lane < run.lane + run.count; lane++) {
        const T sink = T(problem_.sinks[run.head]);
        if (sink == -kInf<T>) continue;
        const T before = sums_.maximum[lane], now = before > sink ? before : sink;
        keep[lane] = before == -kInf<T> ? T(0) : std::exp(before - now);
        const T shift = before == -kInf<T> ? T(0) : before - now, own = std::exp(sink - now);
        const T kept = keep[lane] * (sums_.moment[lane] + shift * sums_.sum[lane]);
        sums_.moment[lane] =
            (keep[lane] == T(0) ? T(0) : kept) + own * (own == T(0) ? T(0) : sink - now);
        sums_.sum[lane] = keep[lane] * sums_.sum[lane] + own;
        sums_.maximum[lane] = now;
      }
  }

  const Problem& problem_;
  Blocks<T>& values_;
  Scores<T, NV, kTiles> scores_;
  Dropout<T, NV> dropout_;
  StripObservation<T, NV> observation_;
  RowSums<T, R> sums_;
  Room<T> context_;
};

// Strips that take turns on a block of keys and values while it is near. With 16 rows on their own,
// as AVX2 has them, keys and values would come from L3 at 4 bytes a cycle, which is all that two
// busy cores get; and those in 16 bits would be converted for every strip.
template <class T, class S>
class Bundle {
 public:
  static constexpr Index kRows = 256;  // with half, a tenth slower at d 128 when others use L3

  template <class... Arguments>
  Bundle(const Problem& problem, Index count, const Arguments&... arguments)
      : keys_(problem.key, problem.S, problem.d_k, kBlock),
        values_(problem.value, problem.S, problem.d_v, kBlock),
        space_(problem, S::kGradients, S::kTiles) {
    for (Index n = 0; n < count; n++)
      strips_.push_back(std::make_unique<S>(problem, arguments..., keys_, values_, space_));
  }

  S& operator[](Index n) { return *strips_[n]; }

  // f(strip, j0, j1, sight) for the first `count` strips, which have been entered; after each block
  // that some may see, done(block).
  template <class F, class Done>
  void each_block(Index count, F f, Done done) {
    Index first = strips_[0]->scores().first_block(), last = strips_[0]->scores().last_block();
    for (Index n = 1; n < count; n++) {
      first = std::min(first, strips_[n]->scores().first_block());
      last = std::max(last, strips_[n]->scores().last_block());
    }
    const tiles::Scope<S::kTiles> scope;
    for (Index block = first; block < last; block++) {
      for (Index n = 0; n < count; n++)
        strips_[n]->scores().visit(
            block, [&](Index j0, Index j1, Sight sight) { f(*strips_[n], j0, j1, sight); });
      done(block);
    }
  }

  template <class F>
  void each_block(Index count, F f) {
    each_block(count, f, [](Index) {});
  }

  // How many strips: as many as `kRows` rows, if that leaves every thread some bundles.
  static Index size(Index strips) {
    // So that all threads run out of work at the same time; tiles have to be packed per bundle.
    constexpr Index kBundles = S::kTiles ? 4 : 16;
    return std::clamp<Index>(strips / (kBundles * threads()), 1, std::max<Index>(kRows / S::R, 1));
  }

 private:
  Blocks<T> keys_, values_;
  Workspace<T, S::R> space_;
  std::vector<std::unique_ptr<S>> strips_;
};
