// The product that everything rests on. Queries stay in the lanes of vectors, so keys (for the
// scores) and values (for the context) are each read where they lie, a number at a time, and
// multiplied with a whole vector: nothing is packed and any strides do. A reduction over keys is
// then an ordinary vector operation, which is what makes statistics cheap.
// Included inside each ISA's namespace.

// M x (NV vectors) of sum over n of a[m, n] · b[n, lanes]. With 6 x 4 vectors every b loaded is
// used 6 times and every a 4 times: 10 loads for 24 multiply-adds, below what the load ports give.
template <class T, int NV, int M, class Done>
inline void product_rows(const T* a, Index across, Index along, const T* b, Index n, Done done) {
  constexpr Index W = kWidth<T>;
  Vec<T> sums[M][NV] = {};
  const T* row[M];
  for (int m = 0; m < M; m++) row[m] = a + m * across;
  for (Index k = 0; k < n; k++, b += NV * W) {
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

// The same for any number of rows of a, six at a time; done(row, vectors) takes each.
template <class T, int NV, class Done>
inline void product(const T* a, Index rows, Index across, Index along, const T* b, Index n,
                    Done done) {
  Index r = 0;
  const auto at = [&](int m, const Vec<T>(&sums)[NV]) { done(r + m, sums); };
  for (; r + 6 <= rows; r += 6) product_rows<T, NV, 6>(a + r * across, across, along, b, n, at);
  a += r * across;
  switch (rows - r) {
    case 5: return product_rows<T, NV, 5>(a, across, along, b, n, at);
    case 4: return product_rows<T, NV, 4>(a, across, along, b, n, at);
    case 3: return product_rows<T, NV, 3>(a, across, along, b, n, at);
    case 2: return product_rows<T, NV, 2>(a, across, along, b, n, at);
    case 1: return product_rows<T, NV, 1>(a, across, along, b, n, at);
  }
}

// Numbers in memory, in the type they have there.
template <class T>
inline T read(const char* p, Dtype dtype) {
  switch (dtype) {
    case Dtype::f64: return T(*reinterpret_cast<const double*>(p));
    case Dtype::f32: return T(*reinterpret_cast<const float*>(p));
    case Dtype::f16: return T(*reinterpret_cast<const _Float16*>(p));
    case Dtype::bf16: break;
  }
  uint32_t bits = uint32_t(*reinterpret_cast<const uint16_t*>(p)) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return T(x);
}

template <class T>
inline void write(char* p, Dtype dtype, T x) {
  switch (dtype) {
    case Dtype::f64: *reinterpret_cast<double*>(p) = double(x); return;
    case Dtype::f32: *reinterpret_cast<float*>(p) = float(x); return;
    case Dtype::f16: *reinterpret_cast<_Float16*>(p) = _Float16(x); return;
    case Dtype::bf16: break;
  }
  const float single = float(x);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  // Rounded to nearest, ties to even; NaN keeps its quiet bit instead of rounding to infinity.
  bits = x != x ? bits | 0x400000 : bits + 0x7fff + ((bits >> 16) & 1);
  *reinterpret_cast<uint16_t*>(p) = uint16_t(bits >> 16);
}

// A block of rows of a matrix as T: in place when it holds T, else converted into `room`.
template <class T>
struct Block {
  const T* data;
  Index row, column;

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
    const Index step = tensor.column * size_of(tensor.dtype);
    for (Index i = i0; i < i1; i++) {
      const char* from = tensor.at(matrix, i, 0);
      for (Index c = 0; c < columns; c++)
        room[(i - i0) * columns + c] = read<T>(from + c * step, tensor.dtype);
    }
  }

  bool finite(Index rows, Index columns) const {
    T sum = 0;  // x · 0 is NaN for NaN and for both infinities
    for (Index i = 0; i < rows; i++)
      for (Index c = 0; c < columns; c++) sum += data[i * row + c * column] * T(0);
    return sum == T(0);
  }
};
