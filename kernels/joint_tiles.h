// JointGradients by tiles: what the strips of a bundle give to the gradients of keys and values.
// A strip's weights are one tile deep, so those of all strips lie side by side as a left factor,
// and its rows, in pairs, as a right one. Included inside each ISA's namespace.

template <class T, int NV>
class JointTiles {
 public:
  static constexpr Index W = kWidth<T>, R = NV * W;

  JointTiles(const Problem& problem, Index strips)
      : problem_(problem),
        parts_(Rows16::parts_of(problem.query.dtype)),
        queries_(sides(problem.d_k) * parts_ * strips),
        contexts_(sides(problem.d_v) * parts_ * strips),
        weights_(Tile::sides(kBlock) * parts_ * strips),
        changes_(weights_.size()),
        sums_(Tile::kDepth * whole<T>(std::max(problem.d_k, problem.d_v))),
        strips_(strips),
        sights_(strips) {}

  // The rows of a strip, which stay until the bundle's work is done: queries, and the gradients of
  // contexts.
  void enter(Index strip, const Rows16& queries, const Rows16& contexts, Index count) {
    strips_[strip] = {&queries, &contexts, count, queries.finite(count) && contexts.finite(count)};
    pack<true, false>(queries, count, queries_.data() + strip, step());
    pack<true, false>(contexts, count, contexts_.data() + strip, step());
  }

  // What values were blended with, and the gradients of the scores, of keys [j0, j1) of a block.
  void weights(Index strip, Index j0, Index j1, const T* tile) {
    sights_.note(strip, j0, j1);
    put(strip, j0, j1, tile, weights_);
  }
  void changes(Index strip, Index j0, Index j1, const T* tile) {
    put(strip, j0, j1, tile, changes_);
  }

  // The strips have been at a block: what they give is added to its keys' and values' gradients,
  // (S, d_k) and (S, d_v), as many keys at a time as strips' sights differ by.
  void add(Index block, T* key, T* value) {
    const Index j0 = block * kBlock, j1 = std::min(j0 + kBlock, problem_.S);
    sights_.each_blind(j0, j1, [&](Index strip) {
      put(strip, j0, j0, nullptr, weights_);
      put(strip, j0, j0, nullptr, changes_);
    });
    for (Index j = j0; j < j1; j += Tile::kDepth)
      add_keys(j, std::min(j + Tile::kDepth, j1), key, value);
    sights_.forget();
  }

 private:
  struct Given {
    const Rows16 *queries = nullptr, *contexts = nullptr;
    Index count = 0;
    bool finite = true;
  };

  Index step() const { return Index(strips_.size()); }

  // Runs of 16 columns of one part, as Rows16 fills them up.
  static Index sides(Index columns) { return Tile::depths(columns) * 2; }
  Index second(Index sides) const { return parts_ == 2 ? sides * step() : 0; }

  // Over the strips from the first that sees any of the keys to the last.
  void add_keys(Index j0, Index j1, T* key, T* value) {
    const auto [begin, end] = sights_.of(j0, j1);
    if (begin == end) return;
    bool finite = true;
    for (Index strip = begin; strip < end; strip++) finite = finite && strips_[strip].finite;
    T *keys = key + j0 * problem_.d_k, *values = value + j0 * problem_.d_v;
    if (!finite) {
      add_carefully(weights_, &Given::contexts, T(1), begin, end, j0, j1, problem_.d_v, values);
      add_carefully(changes_, &Given::queries, T(problem_.scale), begin, end, j0, j1, problem_.d_k,
                    keys);
      return;
    }
    add_product(weights_, contexts_, T(1), begin, end, j0, j1, problem_.d_v, values);
    add_product(changes_, queries_, T(problem_.scale), begin, end, j0, j1, problem_.d_k, keys);
  }

  // A strip's tile into its place beside the others'; keys that it does not see get nothing of it.
  void put(Index strip, Index j0, Index j1, const T* tile, Room<Tile>& into) {
    const Index block = j0 / kBlock * kBlock;
    for (Index n = 0; n < kBlock; n++) {
      Vec<T> a = {}, b = {};
      if (j0 <= block + n && block + n < j1) {
        const T* at = tile + (block + n - j0) * R;
        a = load(at);
        if constexpr (NV == 2) b = load(at + W);
      }
      Tile* to = &into[n / Tile::kSide * step() + strip];
      store_row(*to, n % Tile::kSide, narrow_two(a, b));
      if (parts_ == 2)
        store_row(to[second(Tile::sides(kBlock))], n % Tile::kSide, narrow_two(rest(a), rest(b)));
    }
  }

  // out[key][column] += factor · the sum over strips and their lanes of tile[key][lane] ·
  // rows[lane][column].
  void add_product(const Room<Tile>& left, const Room<Tile>& right, T factor, Index begin,
                   Index end, Index j0, Index j1, Index columns, T* out) {
    const Index width = whole<T>(columns), side = j0 % kBlock / Tile::kSide;
    multiply_tiles({left.data() + side * step() + begin, step(), second(Tile::sides(kBlock))},
                   Tile::sides(j1 - j0), {right.data() + begin, step(), second(sides(columns))},
                   Tile::sides(columns), end - begin, sums_.data(), width);
    for (Index j = 0; j < j1 - j0; j++) {
      T *to = out + j * columns, *from = &sums_[j * width];
      Index c = 0;
      for (; c + W <= columns; c += W) store<T>(to + c, load(to + c) + load(from + c) * factor);
      for (; c < columns; c++) to[c] += from[c] * factor;
    }
  }

  // With NaN or inf in a query's row, a key that it does not see must get nothing of it.
  void add_carefully(const Room<Tile>& left, const Rows16* Given::* rows, T factor, Index begin,
                     Index end, Index j0, Index j1, Index columns, T* out) const {
    for (Index j = j0; j < j1; j++, out += columns)
      for (Index strip = begin; strip < end; strip++)
        for (Index lane = 0; lane < strips_[strip].count; lane++) {
          const T weight = number(left, j % kBlock, strip, lane);
          const Rows16& given = *(strips_[strip].*rows);
          if (weight != T(0))
            for (Index c = 0; c < columns; c++) out[c] += weight * (given.number(lane, c) * factor);
        }
  }

  T number(const Room<Tile>& left, Index key, Index strip, Index lane) const {
    const Tile* tile = &left[key / Tile::kSide * step() + strip];
    const Index at = key % Tile::kSide * Tile::kDepth + lane;
    const T first = widen<T>(tile->numbers[at]);
    return parts_ == 1 ? first : first + widen<T>(tile[second(Tile::sides(kBlock))].numbers[at]);
  }

  const Problem& problem_;
  Index parts_;
  Room<Tile> queries_, contexts_;  // right factors: lanes by columns
  Room<Tile> weights_, changes_;   // left ones: keys by lanes
  Room<T> sums_;
  std::vector<Given> strips_;
  Sights sights_;
};
