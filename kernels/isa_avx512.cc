// 32 registers of 16 floats: 6 keys x 4 vectors of queries leave 8 for the operands.
#define REGARD_VECTOR_BYTES 64
#define REGARD_VECTORS 4
#define REGARD_ISA avx512
// Masked forms: of the plain ones GCC 12 warns in its own header.
#define REGARD_LOAD_16(p) 0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
#define REGARD_LOAD_WIDE(p) _mm512_maskz_cvtepu16_epi32(REGARD_LOAD_16(p))
#define REGARD_LOAD_HALF(p) _mm512_maskz_cvtph_ps(REGARD_LOAD_16(p))
#define REGARD_GREATER(a, b) _mm512_maskz_max_ps(0xffff, a, b)
#define REGARD_LESSER(a, b) _mm512_maskz_min_ps(0xffff, a, b)
#include <immintrin.h>

#include "kernels.h"

namespace regard {

const Isa isa_avx512{"avx512",
                     [] {
                       return __builtin_cpu_supports("avx512f") &&
                              __builtin_cpu_supports("avx512bw") &&
                              __builtin_cpu_supports("avx512dq") &&
                              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma") &&
                              __builtin_cpu_supports("f16c");
                     },
                     avx512::forward, avx512::backward, avx512::decodes};

}  // namespace regard
