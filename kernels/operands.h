// Rows of bfloat16, or of float32 in two parts, as the factors of products by tiles: the number
// rounded to bfloat16, and what that left of it, rounded likewise. Included inside each ISA's
// namespace.

// Two vectors as bfloat16, rounded to nearest: the numbers of `a`, then those of `b`.
inline Vec<uint16_t> narrow_two(Vec<float> a, Vec<float> b) {
  Vec<uint16_t> both;
#ifdef REGARD_AMX
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(a), "v"(b));
#else
  for (Index n = 0; n < kWidth<float>; n++) {
    both[n] = narrow<uint16_t>(a[n]);
    both[n + kWidth<float>] = narrow<uint16_t>(b[n]);
  }
#endif
  return both;
}

// Those of `a` and `b` in turn, as a right factor has the numbers of two rows.
inline Vec<uint16_t> narrow_pairs(Vec<float> a, Vec<float> b) {
  constexpr auto lane = [](int l) { return l / 2 + l % 2 * int(kWidth<float>); };
  const Vec<uint16_t> both = narrow_two(a, b);
  return shuffled<uint16_t, lane>(both, both, std::make_index_sequence<kWidth<uint16_t>>());
}

// One row of a tile.
template <class V>
inline void store_row(Tile& tile, Index row, V numbers) {
  static_assert(sizeof numbers == 64);
  std::memcpy(&tile.numbers[row * Tile::kDepth], &numbers, sizeof numbers);
}

// Rows of a tensor that can be read 32 numbers at a time: of bfloat16 where they are, if zeros need
// not follow them; else copied. Of float32 the numbers' second parts follow the first.
class Rows16 {
 public:
  Rows16(Index rows, Index columns, Dtype dtype)
      : columns_(columns),
        padded_(Tile::depths(columns) * Tile::kDepth),
        parts_(parts_of(dtype)),
        at_(rows) {}

  static Index parts_of(Dtype dtype) { return dtype == Dtype::f32 ? 2 : 1; }

  Index width() const { return padded_ * parts_; }
  Index second() const { return parts_ == 2 ? padded_ : 0; }  // where the second parts begin, or 0
  const uint16_t* operator[](Index row) const { return at_[row]; }

  float number(Index row, Index column) const {
    const uint16_t* from = at_[row] + column;
    return widen<float>(*from) + (second() ? widen<float>(from[second()]) : 0.0f);
  }

  void set(Index row, const Tensor& tensor, Index matrix, Index i) {
    const auto* from = reinterpret_cast<const uint16_t*>(tensor.at(matrix, i, 0));
    if (parts_ == 1 && tensor.column == 1 && columns_ == padded_) {
      at_[row] = from;
      return;
    }
    room_.resize(at_.size() * width());
    uint16_t* to = room_.data() + row * width();
    at_[row] = to;
    if (parts_ == 1) {
      for (Index c = 0; c < columns_; c++) to[c] = from[c * tensor.column];
    } else {
      const auto* numbers = reinterpret_cast<const float*>(from);
      for (Index c = 0; c < columns_; c++) {
        const float x = numbers[c * tensor.column];
        to[c] = narrow<uint16_t>(x);
        to[padded_ + c] = narrow<uint16_t>(x - widen<float>(to[c]));
      }
    }
  }

  // Whether the first `rows` hold neither NaN nor infinity, whose exponents are all ones.
  bool finite(Index rows) const {
    uint16_t greatest = 0;
    for (Index row = 0; row < rows; row++)
      for (Index c = 0; c < columns_; c++)
        greatest = std::max<uint16_t>(greatest, at_[row][c] & 0x7f80);
    return greatest < 0x7f80;
  }

 private:
  Index columns_, padded_, parts_;
  std::vector<const uint16_t*> at_;
  Room<uint16_t> room_;
};

// The first `count` rows as a factor at `out`, zeros after them. Either a tile's row holds 32
// numbers of one row: a left factor (turned: a right one, whose columns the rows are). Or it holds
// two rows' numbers in pairs: a right factor (turned: a left one, whose rows are the columns).
// `step` tiles from one run of 16 to the next.
template <bool kPairs, bool kTurned>
inline void pack(const Rows16& rows, Index count, Tile* out, Index step) {
  const Index sides = Tile::sides(kPairs ? rows.width() : count);
  const Index depths = Tile::depths(kPairs ? count : rows.width());
  for (Index side = 0; side < sides; side++)
    for (Index depth = 0; depth < depths; depth++) {
      Vec<float> square[kWidth<float>] = {};  // only bits, of two numbers each
      for (Index n = 0; n < Tile::kSide; n++) {
        if constexpr (kPairs) {
          const Index row = depth * Tile::kDepth + 2 * n, c = side * Tile::kSide;
          Wide pair = {};
          if (row < count) pair = load_wide(rows[row] + c);
          if (row + 1 < count) pair |= load_wide(rows[row + 1] + c) << 16;
          square[n] = reinterpret_cast<Vec<float>>(pair);
        } else {
          const Index row = side * Tile::kSide + n;
          if (row < count)
            std::memcpy(&square[n], rows[row] + depth * Tile::kDepth, sizeof square[n]);
        }
      }
      if constexpr (kTurned) transpose<float>(square);
      for (Index n = 0; n < Tile::kSide; n++) store_row(out[side * step + depth], n, square[n]);
    }
}

// What is left of numbers when they are rounded to bfloat16.
inline Vec<float> rest(Vec<float> x) {
  const Wide bits = reinterpret_cast<Wide>(x);
  const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
  return x - reinterpret_cast<Vec<float>>(rounded);
}

// Keys by lanes, rows of R numbers, as a right factor: `step` tiles from 16 lanes to the next, the
// numbers' second parts, if asked for, after all first ones.
template <Index R>
inline void pack_lanes(const float* tile, Index keys, Tile* out, Index step, Index parts) {
  for (Index key = 0; key < Tile::depths(keys) * Tile::kDepth; key += 2)
    for (Index v = 0; v < R / 16; v++) {
      const float* at = tile + key * R + v * 16;
      const Vec<float> a = key < keys ? load(at) : Vec<float>{};
      const Vec<float> b = key + 1 < keys ? load(at + R) : Vec<float>{};
      Tile* to = &out[v * step + key / Tile::kDepth];
      store_row(*to, key % Tile::kDepth / 2, narrow_pairs(a, b));
      if (parts == 2)
        store_row(to[R / 16 * step], key % Tile::kDepth / 2, narrow_pairs(rest(a), rest(b)));
    }
}
