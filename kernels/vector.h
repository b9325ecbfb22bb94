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

template <class T>
inline Vec<T> greater(Vec<T> a, Vec<T> b) {  // NaN in a loses: a row's NaN reaches it through exp
  return a > b ? a : b;
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

// tanh(x) = x P(x²) near 0, where 1 - 2 / (exp(2x) + 1) would cancel; our own fit, relative error
// 3.7e-9 and 9e-18.
template <class T>
constexpr auto kTanh = [] {
  if constexpr (sizeof(T) == 4) {
    return std::array<T, 6>{0.99999999629951559398f,  -0.33333263381325743556f,
                            0.13331185786474469771f,  -0.053725232938047608085f,
                            0.020603151031268530089f, -0.0056724257226189514418f};
  } else {
    return std::array<T, 12>{
        0.99999999999999999092,     -0.33333333333332655432,    0.13333333333249533417,
        -0.053968253927651328781,   0.021869487518275510937,    -0.0088632204370933022253,
        0.0035919856140213692376,   -0.0014549441566638318774,  0.000586276757255458552,
        -0.00022849655640580324039, 0.000077078648576869978032, -0.000016044759976931718885};
  }
}();

template <class T>
inline Vec<T> tanh(Vec<T> x) {
  Vec<T> magnitude = x < T(0) ? -x : x;
  Vec<T> square = x * x;
  constexpr auto& c = kTanh<T>;
  Vec<T> p = splat(c[c.size() - 1]);
  for (int i = int(c.size()) - 2; i >= 0; i--) p = p * square + c[i];
  Vec<T> doubled = magnitude * T(2);
  Vec<T> clamped = doubled > T(80) ? splat(T(80)) : doubled;  // exp may not overflow; tanh is 1
  Vec<T> far = T(1) - T(2) / (exp<T>(clamped) + T(1));
  far = x < T(0) ? -far : far;
  return magnitude < T(0.625) ? x * p : far;
}
