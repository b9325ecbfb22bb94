// Which weights dropout leaves: a function of the seed, the matrix, the query and the key alone, so
// that the backward pass finds them again and nothing is stored. regard._dropout has the same in
// Python. Included inside each ISA's namespace.

// A bijection of 32 bits in which every bit depends on every other (the finaliser of MurmurHash3).
inline uint32_t mixed(uint32_t x) {
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

template <class T, int NV>
class Dropout {
 public:
  static constexpr Index W = kWidth<T>, R = NV * W;

  explicit Dropout(const Problem& problem)
      : problem_(problem),
        least_(Bit(std::min(problem.dropout * 4294967296.0, 4294967295.0))),
        scale_(T(1 / (1 - problem.dropout))) {}

  bool active() const { return problem_.dropout > 0; }
  T scale() const { return scale_; }

  // Each row has a key of 64 bits of its own.
  void enter(const Rows& rows) {
    if (!active()) return;
    const uint32_t low = mixed(uint32_t(problem_.seed)),
                   high = mixed(uint32_t(problem_.seed >> 32));
    for (const Rows::Run& run : rows.runs) {
      const uint32_t matrix = uint32_t(rows.batch * problem_.heads + run.head);
      const uint32_t a = mixed(low ^ matrix), b = mixed(high ^ matrix);
      for (Index n = 0; n < run.count; n++) {
        const uint32_t i = uint32_t(problem_.row + run.i + n);
        first_[run.lane + n] = mixed(a ^ i);
        second_[run.lane + n] = mixed(b ^ i);
      }
    }
  }

  // f(place in the tile, factors: 0 or 1 / (1 - chance)) for every vector of a block of keys.
  template <class F>
  void each(Index j0, Index j1, F f) const {
    for (Index j = j0; j < j1; j++) {
      const Bit step = uint32_t(j) * 0x9e3779b9u;
      for (Index lane = 0; lane < R; lane += W) {
        Bits x = (load_bits(first_ + lane) + step) & kAll;
        x = ((x ^ x >> 16) * Bit(0x85ebca6bu)) & kAll;
        x ^= load_bits(second_ + lane);
        x = ((x ^ x >> 13) * Bit(0xc2b2ae35u)) & kAll;
        x ^= x >> 16;
        f((j - j0) * R + lane, x >= least_ ? splat(scale_) : Vec<T>{});
      }
    }
  }

 private:
  using Bit = std::make_unsigned_t<Int<T>>;
  typedef Bit Bits __attribute__((vector_size(REGARD_VECTOR_BYTES)));
  static constexpr Bit kAll = 0xffffffffu;  // lanes of 64 bits hold 32, too

  static Bits load_bits(const Bit* p) {
    Bits bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
  }

  const Problem& problem_;
  Bit least_;
  T scale_;
  Bit first_[R] = {}, second_[R] = {};
};
