// What the strips of a bundle give to the gradients of keys and values, block by block. Their tiles
// are put side by side, and two products sum over the rows of all of them: over the 16 rows of one
// strip, as AVX2 has them, sums would be loaded, added to and stored eight times as often. Included
// inside each ISA's namespace.

// The keys of a block that each strip of a bundle saw.
class Sights {
 public:
  explicit Sights(Index strips) : spans_(strips) {}

  void note(Index strip, Index j0, Index j1) { spans_[strip] = {j0, j1}; }
  void forget() { std::fill(spans_.begin(), spans_.end(), Span{}); }

  // The strips from the first that saw any of keys [j0, j1) to the last, or two equal numbers.
  std::pair<Index, Index> of(Index j0, Index j1) const {
    Index begin = 0, end = Index(spans_.size());
    while (begin < end && !spans_[begin].meets(j0, j1)) begin++;
    while (begin < end && !spans_[end - 1].meets(j0, j1)) end--;
    return {begin, end};
  }

  // f(strip) for those between the first and the last of these that saw nothing of the block.
  template <class F>
  void each_blind(Index j0, Index j1, F f) const {
    const auto [begin, end] = of(j0, j1);
    for (Index strip = begin; strip < end; strip++)
      if (spans_[strip].stop == 0) f(strip);
  }

  // Whether each strip saw all of these keys or none.
  bool alike(Index j0, Index j1) const {
    return std::all_of(spans_.begin(), spans_.end(), [&](const Span& span) {
      return span.stop == 0 || (span.start == j0 && span.stop == j1);
    });
  }

 private:
  struct Span {
    Index start = 0, stop = 0;
    bool meets(Index j0, Index j1) const { return start < j1 && j0 < stop; }
  };
  std::vector<Span> spans_;
};

template <class T, int NV>
class JointGradients {
 public:
  static constexpr Index W = kWidth<T>, R = NV * W;

  JointGradients(const Problem& problem, Index strips)
      : problem_(problem),
        lanes_(strips * R),
        // Additive scores spread the gradients of keys themselves.
        k_columns_(problem.score.kind == Score::additive ? 0 : problem.d_k),
        k_stride_(whole<T>(k_columns_)),
        v_stride_(whole<T>(problem.d_v)),
        queries_(lanes_ * k_stride_),
        contexts_(lanes_ * v_stride_),
        weights_(kBlock * lanes_),
        changes_(k_columns_ ? kBlock * lanes_ : 0),
        rows_(strips),
        finite_(strips),
        sights_(strips) {}

  // What a row of a strip is multiplied with: its query times the scale, and the gradient of its
  // context, which is given.
  void enter(Index strip, Index lane, Index matrix, Index i, const T* of_context) {
    if (lane == 0) finite_[strip] = true;
    rows_[strip] = lane + 1;
    T* query = queries_.data() + (strip * R + lane) * k_stride_;
    read_row(problem_.query, matrix, i, k_columns_, query);
    for (Index d = 0; d < k_columns_; d++) query[d] *= T(problem_.scale);
    T* context = contexts_.data() + (strip * R + lane) * v_stride_;
    std::copy_n(of_context, problem_.d_v, context);
    finite_[strip] &= Block<T>{query, k_stride_, 1}.finite(1, k_columns_) &&
                      Block<T>{context, v_stride_, 1}.finite(1, problem_.d_v);
  }

  // What values were blended with, and the gradients of the scores, of keys [j0, j1) of a block.
  void weights(Index strip, Index j0, Index j1, const T* tile) {
    sights_.note(strip, j0, j1);
    put(strip, j0, j1, tile, weights_);
  }
  void changes(Index strip, Index j0, Index j1, const T* tile) {
    if (k_columns_) put(strip, j0, j1, tile, changes_);
  }

  // The strips have been at a block: what they give is added to its keys' and values' gradients,
  // (S, d_k) and (S, d_v). Where they see different keys of it, as under a causal mask, it is cut.
  void add(Index block, T* key, T* value) {
    const Index j0 = block * kBlock, j1 = std::min(j0 + kBlock, problem_.S);
    sights_.each_blind(j0, j1, [&](Index strip) {
      put(strip, j0, j0, nullptr, weights_);
      if (k_columns_) put(strip, j0, j0, nullptr, changes_);
    });
    const Index step = sights_.alike(j0, j1) ? kBlock : kCut;
    for (Index j = j0; j < j1; j += step) add_keys(j, std::min(j + step, j1), key, value);
    sights_.forget();
  }

 private:
  static constexpr Index kCut = 24;  // keys: some sixes, as the product takes them

  // Over the strips from the first that sees any of the keys to the last.
  void add_keys(Index j0, Index j1, T* key, T* value) {
    const auto [begin, end] = sights_.of(j0, j1);
    if (begin == end) return;
    bool finite = true;
    for (Index strip = begin; strip < end; strip++) finite = finite && finite_[strip];
    const Index lane = begin * R, lanes = (end - 1) * R + rows_[end - 1] - lane;
    const Index at = j0 % kBlock * lanes_ + lane;
    add_product(weights_.data() + at, j1 - j0, contexts_.data() + lane * v_stride_, v_stride_,
                lanes, problem_.d_v, finite, value + j0 * problem_.d_v);
    if (k_columns_)
      add_product(changes_.data() + at, j1 - j0, queries_.data() + lane * k_stride_, k_stride_,
                  lanes, k_columns_, finite, key + j0 * problem_.d_k);
  }

  // A strip's tile into its lanes of a block; keys that it does not see get nothing of it.
  void put(Index strip, Index j0, Index j1, const T* tile, Room<T>& into) {
    const Index block = j0 / kBlock * kBlock;
    T* at = into.data() + strip * R;
    for (Index j = block; j < block + kBlock; j++, at += lanes_)
      for (Index v = 0; v < R; v += W)
        store<T>(at + v, j0 <= j && j < j1 ? load(tile + (j - j0) * R + v) : Vec<T>{});
  }

  // out[key][column] += sum over lanes of tile[key][lane] · rows[lane][column].
  void add_product(const T* tile, Index keys, const T* rows, Index stride, Index lanes,
                   Index columns, bool finite, T* out) const {
    if (!finite) return add_carefully(tile, keys, rows, stride, lanes, columns, out);
    for (Index c0 = 0; c0 < columns; c0 += R) {
      const Index left = columns - c0;
      switch ((std::min(left, R) + W - 1) / W) {
        case 1:
          add_columns<1>(tile, keys, rows, stride, lanes, columns, c0, out);
          break;
        case 2:
          add_columns<2>(tile, keys, rows, stride, lanes, columns, c0, out);
          break;
        case 3:
          add_columns<3>(tile, keys, rows, stride, lanes, columns, c0, out);
          break;
        case 4:
          add_columns<4>(tile, keys, rows, stride, lanes, columns, c0, out);
          break;
      }
    }
  }

  // With NaN or inf in a query's row, a key that it does not see must get nothing of it.
  void add_carefully(const T* tile, Index keys, const T* rows, Index stride, Index lanes,
                     Index columns, T* out) const {
    for (Index j = 0; j < keys; j++)
      for (Index lane = 0; lane < lanes; lane++)
        if (const T weight = tile[j * lanes_ + lane]; weight != T(0))
          for (Index c = 0; c < columns; c++)
            out[j * columns + c] += weight * rows[lane * stride + c];
  }

  template <int N>
  void add_columns(const T* tile, Index keys, const T* rows, Index stride, Index lanes,
                   Index columns, Index c0, T* out) const {
    if constexpr (N <= NV)
      product<T, N>(tile, keys, lanes_, 1, rows + c0, stride, lanes,
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

  const Problem& problem_;
  Index lanes_, k_columns_, k_stride_, v_stride_;
  Room<T> queries_, contexts_;  // scaled; the gradients of the contexts
  Room<T> weights_, changes_;   // (kBlock, lanes)
  std::vector<Index> rows_;     // of each strip
  std::vector<uint8_t> finite_;
  Sights sights_;
};
