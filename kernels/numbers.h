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

// The keys or values of a problem, block by block: in place where they are T, else the last block
// that was asked for, converted once for all strips that take turns on it.
template <class T>
class Blocks {
 public:
  Blocks(const Tensor& tensor, Index rows, Index columns, Index size)
      : tensor_(tensor),
        rows_(rows),
        columns_(columns),
        size_(size),
        blocks_((rows + size - 1) / size),
        in_place_(tensor.dtype == (sizeof(T) == 8 ? Dtype::f64 : Dtype::f32)),
        room_(in_place_ ? 0 : size * columns),
        finite_(tensor.offsets.size() * blocks_) {}

  // Row i of a matrix, and those after it in its block.
  Block<T> from(Index matrix, Index i) {
    if (in_place_)
      return {reinterpret_cast<const T*>(tensor_.at(matrix, i, 0)), tensor_.row, tensor_.column};
    const Index first = enter(matrix, i);
    if (!converted_)
      for (Index n = first; n < std::min(first + size_, rows_); n++)
        read_row(tensor_, matrix, n, columns_, room_.data() + (n - first) * columns_);
    converted_ = true;
    return {room_.data() + (i - first) * columns_, columns_, 1};
  }

  // Whether the whole block of row i is finite: found once for all strips of a thread.
  bool finite(Index matrix, Index i) {
    uint8_t& known = finite_[matrix * blocks_ + i / size_];
    if (!known) {
      const Index first = i / size_ * size_;
      known = from(matrix, first).finite(std::min(size_, rows_ - first), columns_) ? 1 : 2;
    }
    return known == 1;
  }

 private:
  Index enter(Index matrix, Index i) {
    const Index first = i / size_ * size_;
    if (matrix != matrix_ || first != first_) {
      matrix_ = matrix;
      first_ = first;
      converted_ = false;
    }
    return first;
  }

  const Tensor& tensor_;
  Index rows_, columns_, size_, blocks_;
  bool in_place_;
  Room<T> room_;
  Index matrix_ = -1, first_ = -1;
  bool converted_ = false;
  std::vector<uint8_t> finite_;  // per matrix and block: 1 or 2 once it is known
};
