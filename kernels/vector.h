// Vectors of the compiler, as wide as REGARD_VECTOR_BYTES, and the few functions that the kernels
// need of them. Included once by each isa_*.cc, inside its own namespace.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(REGARD_VECTOR_BYTES)));
  typedef T unaligned __attribute__((vector_size(REGARD_VECTOR_BYTES), aligned(sizeof(T))));
};

template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
using Int = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
constexpr Index kWidth = REGARD_VECTOR_BYTES / sizeof(T);

// n numbers, and as many more as fill the last vector.
template <class T>
constexpr Index whole(Index n) {
  return (n + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
}

template <class T>
constexpr T kInf = std::numeric_limits<T>::infinity();

template <class T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(p);
}

template <class T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VectorOf<T>::unaligned*>(p) = v;
}

// Numbers that begin at a cache line, so that none of their vectors lies across two.
template <class T>
struct Aligned {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};
  Aligned() = default;
  template <class U>
  explicit Aligned(const Aligned<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  bool operator==(const Aligned&) const { return true; }
};

template <class T>
using Room = std::vector<T, Aligned<T>>;

// 16-bit integers as 32-bit ones. An ISA's own way is told by its file where GCC does not find it.
typedef uint32_t Wide __attribute__((vector_size(REGARD_VECTOR_BYTES)));

inline Wide load_wide(const uint16_t* p) {
#ifdef REGARD_LOAD_WIDE
  return reinterpret_cast<Wide>(REGARD_LOAD_WIDE(p));
#else
  typedef uint16_t Narrow __attribute__((vector_size(REGARD_VECTOR_BYTES / 2)));
  Narrow narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  return __builtin_convertvector(narrow, Wide);
#endif
}

template <class T>
inline Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0 is exact for every x, and compilers make a broadcast of it
}

// The greater and the lesser: b where either is NaN. In `greater` a row's NaN loses, and reaches it
// through exp. GCC makes two instructions of a choice between floats; an ISA's file tells the one.
template <class T>
inline Vec<T> greater(Vec<T> a, Vec<T> b) {
#ifdef REGARD_GREATER
  if constexpr (sizeof(T) == 4) return REGARD_GREATER(a, b);
#endif
  return a > b ? a : b;
}

template <class T>
inline Vec<T> lesser(Vec<T> a, Vec<T> b) {
#ifdef REGARD_LESSER
  if constexpr (sizeof(T) == 4) return REGARD_LESSER(a, b);
#endif
  return a < b ? a : b;
}

template <class V>
inline bool any(V mask) {
  typedef long long Words __attribute__((vector_size(REGARD_VECTOR_BYTES)));
  Words words = reinterpret_cast<Words>(mask);
#if REGARD_VECTOR_BYTES == 64
  typedef long long Half __attribute__((vector_size(32)));
  Half half = __builtin_shufflevector(words, words, 0, 1, 2, 3) |
              __builtin_shufflevector(words, words, 4, 5, 6, 7);
  return (half[0] | half[1] | half[2] | half[3]) != 0;
#elif REGARD_VECTOR_BYTES == 32
  return (words[0] | words[1] | words[2] | words[3]) != 0;
#else
  return (words[0] | words[1]) != 0;
#endif
}

template <class T, auto lane, size_t... I>
inline Vec<T> shuffled(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, lane(int(I))...);
}

// Of every two rows that stand `apart`, the first becomes `low` and the second `high` of them.
template <class T, int apart, auto low, auto high>
inline void exchange(Vec<T> (&rows)[kWidth<T>]) {
  constexpr std::make_index_sequence<kWidth<T>> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<T>; i++) {
    if (i & apart) continue;
    const Vec<T> a = rows[i], b = rows[i + apart];
    rows[i] = shuffled<T, low>(a, b, lanes);
    rows[i + apart] = shuffled<T, high>(a, b, lanes);
  }
}

// Lanes `apart` of the first row change places with those of the second before them.
template <class T, int apart>
inline void exchange_runs(Vec<T> (&rows)[kWidth<T>]) {
  constexpr auto low = [](int l) { return l & apart ? l - apart + int(kWidth<T>) : l; };
  constexpr auto high = [](int l) { return l & apart ? l + int(kWidth<T>) : l + apart; };
  exchange<T, apart, low, high>(rows);
}

// A square of numbers, turned: first within 16 bytes, where every instruction set takes the lanes
// of two vectors in turn at once; then runs of 16 bytes change places.
template <class T>
inline void transpose(Vec<T> (&rows)[kWidth<T>]) {
  constexpr int W = kWidth<T>, kRun = 16 / sizeof(T);
  constexpr auto low = [](int l) { return l / kRun * kRun + l % kRun / 2 + l % 2 * W; };
  constexpr auto high = [](int l) {
    return (l / kRun * 2 + 1) * kRun / 2 + l % kRun / 2 + l % 2 * W;
  };
  if constexpr (kRun == 4) exchange<T, 2, low, high>(rows);
  exchange<T, 1, low, high>(rows);
  if constexpr (W >= 2 * kRun) exchange_runs<T, kRun>(rows);
  if constexpr (W >= 4 * kRun) exchange_runs<T, 2 * kRun>(rows);
}

// The sum of each vector's lanes, as the lanes of one.
template <class T>
inline Vec<T> sum_each(Vec<T> (&rows)[kWidth<T>]) {
  transpose<T>(rows);
#pragma GCC unroll 4
  for (Index half = kWidth<T> / 2; half; half /= 2)
    for (Index n = 0; n < half; n++) rows[n] += rows[n + half];
  return rows[0];
}

// Coefficients of 2^r on [-1/2, 1/2] with the least relative error (our own Remez fit): 1.9e-9 for
// six, far below float's rounding; 3.1e-18 for eleven. The first rounds to 1, so exp(0) is 1.
template <class T>
constexpr auto kExp2 = [] {
  if constexpr (sizeof(T) == 4) {
    return std::array<T, 7>{1.0f,
                            0.69314720573719575134f,
                            0.24022646890645520696f,
                            0.05550328777105324799f,
                            0.0096184889563311816196f,
                            0.0013399931177239737967f,
                            0.00015345812161311629759f};
  } else {
    return std::array<T, 12>{1.0,
                             0.69314718055994533046,
                             0.24022650695910156204,
                             0.055504108664819921605,
                             0.0096181291075883352443,
                             0.0013333558146789921722,
                             0.00015403530462494532062,
                             0.000015252733489988525649,
                             1.321543308967639918e-6,
                             1.0178198021671930844e-7,
                             7.0741056135081427963e-9,
                             4.4352827069572771511e-10};
  }
}();

// exp for x <= 88 (709 in double). Below the least normal number the result is 0: denormal
// weights would slow every product that follows and carry nothing. NaN stays NaN.
template <class T>
inline Vec<T> exp(Vec<T> x) {
  constexpr bool single = sizeof(T) == 4;
  constexpr T log2e = T(1.44269504088896340736);
  constexpr T rest = single ? T(1.92596299113e-8) : T(2.03552737409e-17);  // of log2(e)
  constexpr T least = single ? T(-87.3) : T(-708.3);
  constexpr int mantissa = single ? 23 : 52;
  // Adding 1.5 x 2^mantissa rounds to an integer and leaves it in the low bits.
  constexpr T magic = T(3) * T(Int<T>(1) << (mantissa - 1));
  Vec<T> shifted = x * log2e + magic;
  Vec<T> n = shifted - magic;
  Vec<T> r = (x * log2e - n) + x * rest;
  constexpr auto& c = kExp2<T>;
  Vec<T> p = splat(c[c.size() - 1]);
  for (int i = int(c.size()) - 2; i >= 0; i--) p = p * r + c[i];
  typedef Vec<std::make_unsigned_t<Int<T>>> Bits;  // which may wrap, as they do far below `least`
  Bits power = (reinterpret_cast<Bits>(shifted) << mantissa) + reinterpret_cast<Bits>(splat(T(1)));
  // A product, not a sum of bits: it keeps NaN whatever its payload.
  return x < least ? Vec<T>{} : p * reinterpret_cast<Vec<T>>(power);
}

// Coefficients of Q in (e^2h - 1) / 2 = h + h² Q(h) on |h| <= ln(2) / 4, our own fit: relative
// error 1.3e-8 and 3.9e-17.
template <class T>
constexpr auto kTanh = [] {
  if constexpr (sizeof(T) == 4) {
    return std::array<T, 5>{0.99999996313646379402f, 0.66666174975571238225f,
                            0.33333759457767901231f, 0.13386406372795069354f,
                            0.044424079863948693656f};
  } else {
    return std::array<T, 10>{1.0000000000000002044,     0.66666666666666669811,
                             0.33333333333299302298,    0.13333333333328098932,
                             0.044444444535083894085,   0.012698412712354314802,
                             0.0031745947258821600168,  0.00070546607257592485816,
                             0.00014141482485284049791, 0.000025702794747402566735};
  }
}();

// tanh(x) = m / (m + 1) with m = (e^2x - 1) / 2, which keeps its digits near 0, and which neither
// sign nor size needs a case of its own for. With x = n ln(2) / 2 + h, m = 2^n (e^2h - 1) / 2 +
// (2^n - 1) / 2. All floats were tried: the error is below 2e-7 relative (2.6 units in the last
// place), also without fused multiply-adds, and no result is beyond 1. Half as many operations as
// exp and a polynomial near 0 took; a quotient of polynomials takes fewer, but errs by 5 units and
// beyond 1.
template <class T>
inline Vec<T> tanh(Vec<T> x) {
  constexpr bool single = sizeof(T) == 4;
  constexpr T far = single ? T(10) : T(20);  // from where on it is 1
  constexpr T inverse = T(2.88539008177792681472),
              step = T(0.34657359027997265471);  // of ln(2) / 2
  constexpr int mantissa = single ? 23 : 52;
  constexpr T magic = T(3) * T(Int<T>(1) << (mantissa - 1));  // as in exp
  x = greater<T>(splat(-far), lesser<T>(splat(far), x));      // in this order NaN stays
  const Vec<T> shifted = x * inverse + magic;
  const Vec<T> h = x - (shifted - magic) * step;
  constexpr auto& c = kTanh<T>;
  Vec<T> q = splat(c[c.size() - 1]);
  for (int i = int(c.size()) - 2; i >= 0; i--) q = q * h + c[i];
  typedef Vec<std::make_unsigned_t<Int<T>>> Bits;
  const Bits power =
      (reinterpret_cast<Bits>(shifted) << mantissa) + reinterpret_cast<Bits>(splat(T(1)));
  const Vec<T> scale = reinterpret_cast<Vec<T>>(power);
  const Vec<T> m = scale * (h * h * q + h) + (scale * T(0.5) - T(0.5));
  return m / (m + T(1));
}
