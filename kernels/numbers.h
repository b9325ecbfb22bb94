// Numbers in memory, of any dtype, and how they become the numbers that are computed with.
// Included inside each ISA's namespace.

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

// A whole vector, for the dtypes that are computed with T; widen, lane by lane, for all.
template <class T>
inline Vec<T> load_as(const T* p) {
  return load(p);
}

template <class T>
  requires(sizeof(T) == 4)
inline Vec<T> load_as(const uint16_t* p) {
  return reinterpret_cast<Vec<T>>(load_wide(p) << 16);
}

template <class T>
  requires(sizeof(T) == 4)
inline Vec<T> load_as(const Half* p) {
#ifdef REGARD_LOAD_HALF
  return REGARD_LOAD_HALF(p);
#else
  // The exponent moves from 5 to 8 bits and gets its new bias by a product, which is exact and
  // serves denormals too. All ones mean infinity or NaN and stay so.
  const Wide bits = load_wide(reinterpret_cast<const uint16_t*>(p));
  const Wide magnitude = (bits & 0x7fff) << 13, sign = (bits & 0x8000) << 16;
  const Wide finite = reinterpret_cast<Wide>(reinterpret_cast<Vec<T>>(magnitude) * T(0x1p112));
  return reinterpret_cast<Vec<T>>(sign |
                                  (magnitude < 0x0f800000 ? finite : magnitude | 0x7f800000));
#endif
}

// One row of a matrix, from and to memory. A step of 1 is common and is what vectors can follow.
template <class T>
inline void read_row(const Tensor& tensor, Index matrix, Index i, Index columns, T* to) {
  with_type(tensor.dtype, [&](auto type) {
    const auto* from = reinterpret_cast<const decltype(type)*>(tensor.at(matrix, i, 0));
    Index c = 0;
    if constexpr (requires { load_as<T>(from); })
      if (tensor.column == 1)
        for (; c + kWidth<T> <= columns; c += kWidth<T>) store<T>(to + c, load_as<T>(from + c));
    for (; c < columns; c++) to[c] = widen<T>(from[c * tensor.column]);
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

// Some rows of a matrix, as T.
template <class T>
struct Block {
  const T* data;
  Index row, column;

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
