// The product that everything rests on. Queries stay in the lanes of vectors, so keys (for the
// scores) and values (for the context) are each read where they lie, a number at a time, and
// multiplied with a whole vector: nothing is packed and any strides do. A reduction over keys is
// then an ordinary vector operation, which is what makes statistics cheap.
// Included inside each ISA's namespace.

// M x (NV vectors) of sum over n of a[m, n] · b[n, lanes]. With 6 x 4 vectors every b loaded is
// used 6 times and every a 4 times: 10 loads for 24 multiply-adds, below what the load ports give.
template <class T, int NV, int M, class Done>
inline void product_rows(const T* a, Index across, Index along, const T* b, Index step, Index n,
                         Done done) {
  constexpr Index W = kWidth<T>;
  Vec<T> sums[M][NV] = {};
  const T* row[M];
  for (int m = 0; m < M; m++) row[m] = a + m * across;
  for (Index k = 0; k < n; k++, b += step) {
    Vec<T> lanes[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; v++) lanes[v] = load(b + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vec<T> x = splat(row[m][k * along]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; v++) sums[m][v] += x * lanes[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) done(m, sums[m]);
}

// The same for any number of rows of a, six at a time; done(row, vectors) takes each. Rows of b are
// `step` apart.
template <class T, int NV, class Done>
inline void product(const T* a, Index rows, Index across, Index along, const T* b, Index step,
                    Index n, Done done) {
  Index r = 0;
  const auto at = [&](int m, const Vec<T>(&sums)[NV]) { done(r + m, sums); };
  for (; r + 6 <= rows; r += 6)
    product_rows<T, NV, 6>(a + r * across, across, along, b, step, n, at);
  a += r * across;
  switch (rows - r) {
    case 5:
      return product_rows<T, NV, 5>(a, across, along, b, step, n, at);
    case 4:
      return product_rows<T, NV, 4>(a, across, along, b, step, n, at);
    case 3:
      return product_rows<T, NV, 3>(a, across, along, b, step, n, at);
    case 2:
      return product_rows<T, NV, 2>(a, across, along, b, step, n, at);
    case 1:
      return product_rows<T, NV, 1>(a, across, along, b, step, n, at);
  }
}

// Numbers in memory, as f(a value of their type): one branch for a whole row.
template <class F>
inline void with_type(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f64:
      return f(double());
    case Dtype::f32:
      return f(float());
    case Dtype::f16:
      return f(Half());
    case Dtype::bf16:
      return f(uint16_t());  // the bits; no other type here is an integer
  }
}

template <class T, class Stored>
inline T widen(Stored x) {
  if constexpr (!std::is_same_v<Stored, uint16_t>) return T(x);
  const uint32_t bits = uint32_t(x) << 16;
  float single;
  std::memcpy(&single, &bits, 4);
  return T(single);
}

template <class Stored, class T>
inline Stored narrow(T x) {
  if constexpr (!std::is_same_v<Stored, uint16_t>) return Stored(x);
  const float single = float(x);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  // Rounded to nearest, ties to even; NaN keeps a quiet bit instead of rounding to infinity.
  bits = x != x ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
  return uint16_t(bits >> 16);
}

// One row of a matrix, from and to memory. A step of 1 is common and is what vectors can follow.
template <class T>
inline void read_row(const Tensor& tensor, Index matrix, Index i, Index columns, T* to) {
  with_type(tensor.dtype, [&](auto type) {
    const auto* from = reinterpret_cast<const decltype(type)*>(tensor.at(matrix, i, 0));
    if (tensor.column == 1)
      for (Index c = 0; c < columns; c++) to[c] = widen<T>(from[c]);
    else
      for (Index c = 0; c < columns; c++) to[c] = widen<T>(from[c * tensor.column]);
  });
}

template <class T>
inline void write_row(const Tensor& tensor, Index matrix, Index i, Index columns, const T* from) {
  with_type(tensor.dtype, [&](auto type) {
    using Stored = decltype(type);
    auto* to = reinterpret_cast<Stored*>(const_cast<char*>(tensor.at(matrix, i, 0)));
    for (Index c = 0; c < columns; c++) to[c * tensor.column] = narrow<Stored>(from[c]);
  });
}

// A block of rows of a matrix as T: in place when it holds T, else converted into `room`.
template <class T>
struct Block {
  const T* data;
  Index row, column;

  Block(const T* data, Index row, Index column) : data(data), row(row), column(column) {}

  Block(const Tensor& tensor, Index matrix, Index i0, Index i1, Index columns, T* room) {
    if (tensor.dtype == (sizeof(T) == 8 ? Dtype::f64 : Dtype::f32)) {
      data = reinterpret_cast<const T*>(tensor.at(matrix, i0, 0));
      row = tensor.row;
      column = tensor.column;
      return;
    }
    data = room;
    row = columns;
    column = 1;
    for (Index i = i0; i < i1; i++) read_row(tensor, matrix, i, columns, room + (i - i0) * columns);
  }

  bool finite(Index rows, Index columns) const {
    Vec<T> zero = {};  // x · 0 is NaN for NaN and for both infinities
    for (Index i = 0; i < rows; i++) {
      Index c = 0;
      if (column == 1)
        for (; c + kWidth<T> <= columns; c += kWidth<T>) zero += load(data + i * row + c) * T(0);
      for (; c < columns; c++) zero[0] += data[i * row + c * column] * T(0);
    }
    return !any(zero != zero);
  }
};

// Per column of a block of rows, the sum over rows of weight · number, as product() gives it; but a
// weight of 0 adds nothing, whatever the number: for blocks that hold NaN or inf.
template <class T, int NV, class Add>
inline void blend_carefully(const Block<T>& block, Index columns, const T* weights, Index rows,
                            Add add) {
  constexpr Index W = kWidth<T>;
  for (Index c = 0; c < columns; c++) {
    Vec<T> sums[NV] = {};
    for (Index j = 0; j < rows; j++)
      for (int v = 0; v < NV; v++) {
        const Vec<T> weight = load(weights + (j * NV + v) * W);
        const Vec<T> part = weight * block.data[j * block.row + c * block.column];
        sums[v] += weight == T(0) ? Vec<T>{} : part;
      }
    add(c, sums);
  }
}

// For a few queries (decoding), lanes of queries would stay empty. Here numbers of one key lie in
// the lanes instead, which needs rows of whole vectors; the results lie as the wide products leave
// them, so that all that follows is the same.
template <class T>
constexpr Index kFewRows = kWidth<T> / 4;

// tile[key][row] = key · query for keys of a block and a few rows of queries (rows, columns); the
// other of W lanes are 0. W keys at a time are multiplied, turned and added up, and turned again.
template <class T>
inline void few_scores(const Block<T>& key, Index keys, const T* queries, Index rows, Index columns,
                       T* tile) {
  constexpr Index W = kWidth<T>;
  for (Index j0 = 0; j0 < keys; j0 += W) {
    const Index count = std::min(W, keys - j0);
    Vec<T> scores[W] = {};
    for (Index r = 0; r < rows; r++) {
      Vec<T> sums[W];
      for (Index n = 0; n < W; n++) {
        const T* row = key.data + (j0 + std::min(n, count - 1)) * key.row;
        sums[n] = Vec<T>{};
        for (Index d = 0; d < columns; d += W)
          sums[n] += load(row + d) * load(queries + r * columns + d);
      }
      transpose<T>(sums);
      for (Index half = W / 2; half; half /= 2)
        for (Index n = 0; n < half; n++) sums[n] += sums[n + half];
      scores[r] = sums[0];
    }
    transpose<T>(scores);
    for (Index n = 0; n < count; n++) store(tile + (j0 + n) * W, scores[n]);
  }
}

// done(row, column, vector of W columns): the sum over keys of weight · value, for a few rows.
// Returns whether all sums are finite: if so, all values were.
template <class T, class Done>
inline bool few_contexts(const Block<T>& value, Index keys, const T* weights, Index rows,
                         Index columns, Done done) {
  constexpr Index W = kWidth<T>, kAtOnce = 4;
  Vec<T> zero = {};
  for (Index r = 0; r < rows; r++)
    for (Index c0 = 0; c0 < columns; c0 += kAtOnce * W) {
      const Index vectors = std::min(kAtOnce, (columns - c0) / W);
      Vec<T> sums[kAtOnce] = {};
      for (Index j = 0; j < keys; j++) {
        const Vec<T> weight = splat(weights[j * W + r]);
        const T* row = value.data + j * value.row + c0;
        if (vectors == kAtOnce) {
#pragma GCC unroll 4
          for (Index v = 0; v < kAtOnce; v++) sums[v] += weight * load(row + v * W);
        } else {
          for (Index v = 0; v < vectors; v++) sums[v] += weight * load(row + v * W);
        }
      }
      for (Index v = 0; v < vectors; v++) {
        done(r, c0 + v * W, sums[v]);
        zero += sums[v] * T(0);
      }
    }
  return !any(zero != zero);
}
