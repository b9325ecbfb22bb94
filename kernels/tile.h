// Products of bfloat16 by tiles, as AMX has them: one instruction multiplies 16 rows of 32 numbers
// with 16 columns of 32, and adds to 16 x 16 sums in float. Where a machine has no AMX, the same is
// written out number by number, so that all that rests on it can be tested anywhere. Denormals
// count as zeros, and are results of none. Included inside each ISA's namespace.

// 1 KiB. As a left factor: 16 rows, 32 numbers of each. As a right one, each row holds two rows of
// the factor: of 16 columns the two numbers, column by column.
struct alignas(64) Tile {
  static constexpr Index kSide = 16, kDepth = 32;
  uint16_t numbers[kSide * kDepth];

  static constexpr Index sides(Index n) { return (n + kSide - 1) / kSide; }
  static constexpr Index depths(Index n) { return (n + kDepth - 1) / kDepth; }
};

namespace tiles {

#ifdef REGARD_AMX

// Eight tiles of 16 rows of 64 bytes.
struct alignas(64) Setup {
  uint8_t palette = 1, first_row = 0, reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr Setup kSetup;

inline void begin() { asm volatile("ldtilecfg %0" ::"m"(kSetup)); }
inline void end() { asm volatile("tilerelease" ::: "memory"); }

template <int t>
inline void clear() {
  asm volatile("tilezero %%tmm%c0" ::"i"(t));
}

// Rows are `step` bytes apart.
template <int t>
inline void fetch(const void* from, Index step) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(t) : "memory");
}

template <int t>
inline void keep(void* to, Index step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(t) : "memory");
}

template <int sums, int left, int right>
inline void add_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(left), "i"(right));
}

#else

inline void begin() {}
inline void end() {}

inline thread_local Tile registers[8];

template <int t>
inline void clear() {
  std::memset(&registers[t], 0, sizeof(Tile));
}

template <int t>
inline void fetch(const void* from, Index step) {
  for (Index row = 0; row < 16; row++)
    std::memcpy(&registers[t].numbers[row * 32], static_cast<const char*>(from) + row * step, 64);
}

template <int t>
inline void keep(void* to, Index step) {
  for (Index row = 0; row < 16; row++)
    std::memcpy(static_cast<char*>(to) + row * step, &registers[t].numbers[row * 32], 64);
}

inline float without_denormals(float x) {
  return std::abs(x) < std::numeric_limits<float>::min() ? 0.0f : x;
}

template <int sums, int left, int right>
inline void add_product() {
  float sum[16][16], b[32][16];
  std::memcpy(sum, &registers[sums], sizeof sum);
  for (Index k = 0; k < 32; k++)
    for (Index n = 0; n < 16; n++)
      b[k][n] =
          without_denormals(widen<float>(registers[right].numbers[k / 2 * 32 + n * 2 + k % 2]));
  for (Index m = 0; m < 16; m++)
    for (Index k = 0; k < 32; k++) {
      const float a = without_denormals(widen<float>(registers[left].numbers[m * 32 + k]));
      for (Index n = 0; n < 16; n++) sum[m][n] += a * b[k][n];
    }
  for (auto& row : sum)
    for (float& x : row) x = without_denormals(x);
  std::memcpy(&registers[sums], sum, sizeof sum);
}

#endif

// A thread may use tiles while one of these lives. They are released again, since a thread with
// tiles is slow to switch, and since others set them up their own way.
template <bool kUsed>
struct Scope {
  Scope() {
    if constexpr (kUsed) begin();
  }
  ~Scope() {
    if constexpr (kUsed) end();
  }
};

// f(0), f(1), ..., each number known to the compiler.
template <int n, class F>
inline void each(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, n>());
}

// Tiles of a factor: those of one run of 16 rows (or columns) are neighbours, and the next run's
// are `step` tiles on. Where its numbers come in two parts, the second ones are `second` tiles on.
struct Factor {
  const Tile* first;
  Index step, second = 0;

  const Tile* at(Index side, Index depth) const { return first + side * step + depth; }
};

// M x N squares of sums, M, N <= 2: each tile is loaded once for two products.
template <int M, int N>
inline void add_squares(Factor left, Factor right, Index depth, float* sums, Index step, bool add) {
  each<M>([=](auto m) {
    each<N>([=](auto n) {
      add ? fetch<m * 2 + n>(sums + m * 16 * step + n * 16, step * 4) : clear<m * 2 + n>();
    });
  });
  for (Index k = 0; k < depth; k++) {
    each<M>([=](auto m) { fetch<4 + m>(left.at(m, k), 64); });
    each<N>([=](auto n) { fetch<6 + n>(right.at(n, k), 64); });
    each<M>([=](auto m) { each<N>([=](auto n) { add_product<m * 2 + n, 4 + m, 6 + n>(); }); });
  }
  each<M>([=](auto m) {
    each<N>([=](auto n) { keep<m * 2 + n>(sums + m * 16 * step + n * 16, step * 4); });
  });
}

// The same for all runs of the left factor, where the right one has at most 2 x 2 tiles, which
// stay.
template <int N, int K>
inline void add_to_resident(Factor left, Index sides, Factor right, float* sums, Index step) {
  each<N>([=](auto n) { each<K>([=](auto k) { fetch<2 + n * 2 + k>(right.at(n, k), 64); }); });
  for (Index m = 0; m < sides; m++, sums += 16 * step) {
    each<N>([=](auto n) { clear<n>(); });
    each<K>([=](auto k) {
      fetch<6 + k>(left.at(m, k), 64);
      each<N>([=](auto n) { add_product<n, 6 + k, 2 + n * 2 + k>(); });
    });
    each<N>([=](auto n) { keep<n>(sums + n * 16, step * 4); });
  }
}

}  // namespace tiles

// sums (+)= left · right, in float, rows `step` numbers apart: 16 · `rows` rows, 16 · `columns`
// columns, over 32 · `depth` products each. Inside of a tiles::Scope.
inline void multiply_parts(tiles::Factor left, Index rows, tiles::Factor right, Index columns,
                           Index depth, float* sums, Index step, bool add = false) {
  using namespace tiles;
  if (!add && 0 < columns && columns <= 2 && 0 < depth && depth <= 2) {
    if (columns == 2)
      return depth == 2 ? add_to_resident<2, 2>(left, rows, right, sums, step)
                        : add_to_resident<2, 1>(left, rows, right, sums, step);
    return depth == 2 ? add_to_resident<1, 2>(left, rows, right, sums, step)
                      : add_to_resident<1, 1>(left, rows, right, sums, step);
  }
  for (Index m = 0; m < rows; m += 2)
    for (Index n = 0; n < columns; n += 2) {
      const Factor a{left.at(m, 0), left.step}, b{right.at(n, 0), right.step};
      float* at = sums + m * 16 * step + n * 16;
      if (rows - m > 1)
        columns - n > 1 ? add_squares<2, 2>(a, b, depth, at, step, add)
                        : add_squares<2, 1>(a, b, depth, at, step, add);
      else
        columns - n > 1 ? add_squares<1, 2>(a, b, depth, at, step, add)
                        : add_squares<1, 1>(a, b, depth, at, step, add);
    }
}

// The same of factors in one part or, both, in two: then without the product of the second ones,
// which is as small as what rounding left of them.
inline void multiply_tiles(tiles::Factor left, Index rows, tiles::Factor right, Index columns,
                           Index depth, float* sums, Index step, bool add = false) {
  multiply_parts(left, rows, right, columns, depth, sums, step, add);
  if (!left.second) return;
  const tiles::Factor left_rest{left.first + left.second, left.step};
  const tiles::Factor right_rest{right.first + right.second, right.step};
  multiply_parts(left_rest, rows, right, columns, depth, sums, step, true);
  multiply_parts(left, rows, right_rest, columns, depth, sums, step, true);
}
