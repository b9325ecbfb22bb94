// The scores of one strip of queries, block by block of keys: what the forward and the backward
// pass have in common. Every query of the strip has a lane of its own. Included inside each ISA's
// namespace.

// Keys in a block. The weights of a block for 64 queries in float are 32 KiB, the queries at d_k 64
// another 16: they stay in L2 at the worst, and a vector of them is loaded once for 24
// multiply-adds. 64 to 256 keys were measured alike; more costs causal masks, fewer the exchange of
// maxima.
constexpr Index kBlock = 128;

// A bias of -inf masks, also a score of NaN or +inf, which a sum would turn into NaN.
template <class T>
inline void add_masking(T& score, T bias) {
  score = bias == -kInf<T> ? bias : score + bias;
}

// Adds the bias of one query to its scores of keys [j0, j1), `step` apart.
template <class T>
inline void add_bias_row(const Problem& problem, Index matrix, Index head, Index i, Index j0,
                         Index j1, T* scores, Index step) {
  const Tensor& bias = problem.bias.array;
  i += problem.row;
  if (problem.bias.kind == Bias::by_distance) {
    const T* row = reinterpret_cast<const T*>(bias.at(head, 0, i + problem.S - 1));
    for (Index j = j0; j < j1; j++) add_masking(scores[(j - j0) * step], row[-j]);
    return;
  }
  with_type(bias.dtype, [&](auto type) {
    const auto* row = reinterpret_cast<const decltype(type)*>(bias.at(matrix, i, 0));
    for (Index j = j0; j < j1; j++)
      add_masking(scores[(j - j0) * step], widen<T>(row[j * bias.column]));
  });
}

// What a strip needs only while it is at work on a block, or on its rows: those that take turns
// share it, so that it stays near: in L1 under AVX2, where each takes 8 KiB.
template <class T, Index R>
struct Workspace {
  Room<T> tile, dropped;  // scores, then weights; what dropout leaves of them, for gradients
  Room<T> products;       // by tiles, for gradients
  Room<Tile> pairs;       // what is in `tile`, as a right factor
  Room<Int<T>> visible;
  Room<T> slope;  // the softcap's derivative, for gradients
  Room<T> stage;  // rows on their way to or from memory; the first is of zeros

  Workspace(const Problem& problem, bool with_gradients, bool by_tiles)
      : tile(kBlock * R),
        dropped(with_gradients && problem.dropout > 0 ? kBlock * R : 0),
        products(with_gradients && by_tiles ? kBlock * R : 0),
        pairs(by_tiles
                  ? Tile::sides(R) * Tile::depths(kBlock) * Rows16::parts_of(problem.query.dtype)
                  : 0),
        visible(problem.mask.empty() ? 0 : kBlock * R),
        slope(with_gradients && problem.softcap ? kBlock * R : 0),
        stage((kWidth<T> + 1) * whole<T>(std::max(problem.d_k, problem.d_v))) {}
};

template <class T, int NV, bool kTiles>
class Scores {
 public:
  static constexpr Index W = kWidth<T>, R = NV * W;
  static constexpr Index kGrid = kTiles ? Tile::kDepth : 1;  // of keys

  // with_gradients: `additive` gathers those of its queries and vectors.
  Scores(const Problem& problem, Blocks<T>& keys, Workspace<T, R>& space,
         bool with_gradients = false)
      : problem_(problem),
        keys_(keys),
        mask_(problem, R, kBlock),
        additive_(problem, with_gradients),
        queries_(additive_.active() || kTiles ? 0 : problem.d_k * R),
        query_rows_(kTiles ? R : 0, problem.d_k, problem.query.dtype),
        query_tiles_(kTiles ? Tile::sides(R) * query_rows_.width() / Tile::kDepth : 0),
        space_(space) {}

  // Rows r0, r0 + 1, ... of the group of heads that share a key/value head, at most R or `most` of
  // them, counted head by head.
  void enter(Index batch, Index kv_head, Index r0, Index most = R) {
    const Index group = problem_.group(), L = problem_.L;
    kv_head_ = kv_head;
    rows_.batch = batch;
    rows_.rows = std::min({R, most, group * L - r0});
    rows_.runs.clear();
    for (Index lane = 0; lane < rows_.rows;) {
      const Index row = r0 + lane, i = row % L, count = std::min(L - i, rows_.rows - lane);
      rows_.runs.push_back({kv_head * group + row / L, i, lane, count});
      lane += count;
    }
    if constexpr (kTiles)
      query_factor_ = pack_across(problem_.query, query_rows_, query_tiles_);
    else if (additive_.active())
      additive_.enter(rows_);
    else  // multiplied by the scale once instead of every score
      turn(problem_.query, problem_.d_k, T(problem_.scale), queries_.data());
    mask_.enter(rows_);
  }

  // The blocks of keys of which the strip may see some.
  Index first_block() const { return mask_.first() / kBlock; }
  Index last_block() const { return (mask_.last() + kBlock - 1) / kBlock; }

  // f(j0, j1, sight), if the strip sees any key of a block. Blocks lie on one grid for all strips,
  // so that a row's sums are taken in the same order whatever its neighbours see; hidden keys at
  // their ends would add zeros, and are left out, as far as no tile is cut.
  template <class F>
  void visit(Index block, F f) {
    const Index j0 = std::max(block * kBlock, mask_.first() / kGrid * kGrid);
    const Index end = (mask_.last() + kGrid - 1) / kGrid * kGrid;
    const Index j1 = std::min({(block + 1) * kBlock, end, problem_.S});
    if (j0 >= j1) return;
    const Sight sight = mask_.sight(j0, j1);
    if (sight != Sight::none) f(j0, j1, sight);
  }

  // The tile becomes the scores of keys [j0, j1), (keys, lanes), -inf where hidden; maximum is
  // raised to the greatest of them.
  void compute(Index j0, Index j1, Sight sight, Vec<T> (&maximum)[NV]) {
    const bool changed = problem_.softcap || problem_.bias.kind != Bias::none;
    Index from = j0, to = changed || sight == Sight::some ? j1 : j0;  // to be adjusted
    if (sight == Sight::some && !changed) mask_.trim(from, to);
    if constexpr (kTiles) {
      multiply_by_tiles(j0, j1, from - j0, to - j0, maximum);
    } else if (additive_.active()) {
      additive_.compute(keys_.from(key_matrix(), j0), j1 - j0, tile());
      raise(0, from - j0, maximum);
      raise(to - j0, j1 - j0, maximum);
    } else {
      multiply(j0, j1, from - j0, to - j0, maximum);
    }
    if (from < to) adjust(from, to, j0, sight, maximum);
  }

  AdditiveScores<T, R>& additive() { return additive_; }
  T* tile() { return space_.tile.data(); }
  const T* slope() const { return space_.slope.empty() ? nullptr : space_.slope.data(); }
  const Rows& rows() const { return rows_; }
  Index key_matrix() const { return rows_.batch * problem_.kv_heads + kv_head_; }
  Index matrix(const Rows::Run& run) const { return rows_.batch * problem_.heads + run.head; }

  // The strip's rows of a tensor, and these as the columns of a right factor.
  tiles::Factor pack_across(const Tensor& tensor, Rows16& rows, Room<Tile>& out) const {
    for (const Rows::Run& run : rows_.runs)
      for (Index n = 0; n < run.count; n++) rows.set(run.lane + n, tensor, matrix(run), run.i + n);
    const Index depths = rows.width() / Tile::kDepth;
    if (Tile::sides(rows_.rows) < NV) std::fill(out.begin() + depths, out.end(), Tile{});
    pack<false, true>(rows, rows_.rows, out.data(), depths);
    return {out.data(), depths, rows.second() / Tile::kDepth};
  }
  const Rows16& query_rows() const { return query_rows_; }

  // The tile as a right factor.
  tiles::Factor pack_tile(Index keys) {
    constexpr Index kDepths = Tile::depths(kBlock);
    const Index parts = Rows16::parts_of(problem_.query.dtype);
    pack_lanes<R>(tile(), keys, space_.pairs.data(), kDepths, parts);
    return {space_.pairs.data(), kDepths, parts == 2 ? Tile::sides(R) * kDepths : 0};
  }

  // The strip's rows of a tensor, times a factor, turned: (columns, lanes); 0 in lanes without one.
  void turn(const Tensor& tensor, Index columns, T factor, T* out) {
    for (Index first = 0; first < R; first += W) {
      std::fill_n(space_.stage.data(), whole<T>(columns), T(0));
      const T* row[W];
      std::fill_n(row, W, space_.stage.data());
      each_row(first, [&](Index lane, Index matrix, Index i) {
        if (in_place(tensor, columns)) {
          row[lane] = reinterpret_cast<const T*>(tensor.at(matrix, i, 0));
        } else {
          row[lane] = staged(lane, columns);
          read_row(tensor, matrix, i, columns, staged(lane, columns));
        }
      });
      for (Index c0 = 0; c0 < columns; c0 += W) {
        Vec<T> square[W];
        for (Index n = 0; n < W; n++) square[n] = load(row[n] + c0) * factor;
        transpose<T>(square);
        for (Index n = 0; n < std::min(W, columns - c0); n++)
          store(&out[(c0 + n) * R + first], square[n]);
      }
    }
  }

  // The other way: rows of a tensor from (columns, lanes), each times its lane's factor. Lanes
  // whose factor is 0 give 0, whatever they hold.
  void turn_back(const T* from, const T* factor, Index columns, const Tensor& tensor) {
    const bool direct = in_place(tensor, columns);
    for (Index first = 0; first < R && columns; first += W) {
      const Vec<T> share = load(factor + first);
      T* row[W];
      for (Index n = 0; n < W; n++) row[n] = staged(n, columns);
      if (direct)
        each_row(first, [&](Index lane, Index matrix, Index i) {
          row[lane] = reinterpret_cast<T*>(const_cast<char*>(tensor.at(matrix, i, 0)));
        });
      for (Index c0 = 0; c0 < columns; c0 += W) {
        Vec<T> square[W];
        for (Index n = 0; n < W; n++) {
          const Vec<T> sums = load(&from[std::min(c0 + n, columns - 1) * R + first]);
          square[n] = share == T(0) ? Vec<T>{} : sums * share;
        }
        transpose<T>(square);
        for (Index n = 0; n < W; n++) store(row[n] + c0, square[n]);
      }
      if (!direct)
        each_row(first, [&](Index lane, Index matrix, Index i) {
          write_row(tensor, matrix, i, columns, row[lane]);
        });
    }
  }

 private:
  // The products with keys [from, to), counted from j0, are not yet scores, and do not raise the
  // maximum.
  void multiply(Index j0, Index j1, Index from, Index to, Vec<T> (&maximum)[NV]) {
    const Block<T> key = keys_.from(key_matrix(), j0);
    product<T, NV>(key.data, j1 - j0, key.row, key.column, queries_.data(), R, problem_.d_k,
                   [&](Index j, const Vec<T>(&score)[NV]) {
                     const bool done = j < from || j >= to;
                     for (int v = 0; v < NV; v++) {
                       store(tile() + j * R + v * W, score[v]);
                       if (done) maximum[v] = greater<T>(score[v], maximum[v]);
                     }
                   });
  }

  // Times the scale afterwards, which not every bfloat16 can be multiplied with exactly: products
  // beyond float's range are infinite, whatever it is.
  void multiply_by_tiles(Index j0, Index j1, Index from, Index to, Vec<T> (&maximum)[NV]) {
    multiply_tiles(keys_.left(key_matrix(), j0), Tile::sides(j1 - j0), query_factor_, NV,
                   Tile::depths(problem_.d_k), tile(), R);
    const T scale = T(problem_.scale);
    for (Index j = 0; j < j1 - j0; j++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) {
        const Vec<T> score = load(tile() + j * R + v * W) * scale;
        store<T>(tile() + j * R + v * W, score);
        if (j < from || j >= to) maximum[v] = greater<T>(score, maximum[v]);
      }
  }

  void raise(Index from, Index to, Vec<T> (&maximum)[NV]) {
    for (int v = 0; v < NV; v++)
      for (Index j = from; j < to; j++)
        maximum[v] = greater<T>(load(tile() + j * R + v * W), maximum[v]);
  }

  // Rows that are not whole vectors of T in memory are turned in the stage, where they are padded.
  // Its first row, of zeros when rows are read, stands for every lane without a query.
  T* staged(Index lane, Index columns) {
    return space_.stage.data() + (lane + 1) * whole<T>(columns);
  }
  static bool in_place(const Tensor& tensor, Index columns) {
    return tensor.dtype == (sizeof(T) == 8 ? Dtype::f64 : Dtype::f32) && tensor.column == 1 &&
           columns % W == 0;
  }

  // f(lane in [0, W), matrix, i) for the lanes with a query among W lanes from `first` on.
  template <class F>
  void each_row(Index first, F f) const {
    for (const Rows::Run& run : rows_.runs) {
      const Index from = std::max(run.lane, first), to = std::min(run.lane + run.count, first + W);
      for (Index lane = from; lane < to; lane++)
        f(lane - first, matrix(run), run.i + lane - run.lane);
    }
  }

  // Softcap, bias and mask, in this order, of keys [j0, j1), whose rows in the tile are counted
  // from key `first` on: j0 itself, unless only the mask is to be applied.
  void adjust(Index j0, Index j1, Index first, Sight sight, Vec<T> (&maximum)[NV]) {
    const Index count = (j1 - j0) * R;
    T* scores = tile() + (j0 - first) * R;
    if (problem_.softcap) {
      const T cap = T(problem_.softcap), inverse = T(1 / problem_.softcap);
      for (Index n = 0; n < count; n += W) {
        const Vec<T> share = tanh<T>(load(scores + n) * inverse);
        store<T>(scores + n, share * cap);
        if (slope()) store<T>(&space_.slope[n], T(1) - share * share);
      }
    }
    if (problem_.bias.kind != Bias::none) add_bias(j0, j1, scores);
    if (sight == Sight::some) {
      mask_.write(j0, j1, space_.visible.data());
      const Vec<T> hidden = splat(-kInf<T>);
      for (Index n = 0; n < count; n += W)
        store<T>(scores + n, load(&space_.visible[n]) ? load(scores + n) : hidden);
    }
    raise(j0 - first, j1 - first, maximum);
  }

  void add_bias(Index j0, Index j1, T* scores) {
    const Tensor& bias = problem_.bias.array;
    for (const Rows::Run& run : rows_.runs) {
      if (problem_.bias.kind == Bias::by_distance) {  // neighbours in the lanes are so in memory
        const T* row =
            reinterpret_cast<const T*>(bias.at(run.head, 0, problem_.row + run.i + problem_.S - 1));
        for (Index j = j0; j < j1; j++)
          for (Index n = 0; n < run.count; n++)
            add_masking(scores[(j - j0) * R + run.lane + n], row[n - j]);
        continue;
      }
      for (Index n = 0; n < run.count; n++)
        add_bias_row(problem_, matrix(run), run.head, run.i + n, j0, j1, scores + run.lane + n, R);
    }
  }

  const Problem& problem_;
  Blocks<T>& keys_;
  Rows rows_;
  Index kv_head_ = 0;
  StripMask<T> mask_;
  AdditiveScores<T, R> additive_;
  Room<T> queries_;  // turned
  Rows16 query_rows_;
  Room<Tile> query_tiles_;
  tiles::Factor query_factor_{};  // which these are
  Workspace<T, R>& space_;
};
