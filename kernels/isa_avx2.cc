// 16 registers of 8 floats: 6 keys x 2 vectors of queries leave 4 for the operands.
#define REGARD_VECTOR_BYTES 32
#define REGARD_VECTORS 2
#define REGARD_ISA avx2
#define REGARD_LOAD_16(p) _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))
#define REGARD_LOAD_WIDE(p) _mm256_cvtepu16_epi32(REGARD_LOAD_16(p))
#define REGARD_LOAD_HALF(p) _mm256_cvtph_ps(REGARD_LOAD_16(p))
#define REGARD_GREATER(a, b) _mm256_max_ps(a, b)
#define REGARD_LESSER(a, b) _mm256_min_ps(a, b)
#include <immintrin.h>

#include "kernels.h"

namespace regard {

const Isa isa_avx2{"avx2",
                   [] {
                     return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                            __builtin_cpu_supports("f16c");
                   },
                   avx2::forward, avx2::backward, avx2::decodes};

}  // namespace regard
