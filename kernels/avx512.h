// The vectors of AVX-512, for the files that are compiled for it.
#pragma once

#define REGARD_VECTOR_BYTES 64
// Masked forms: of the plain ones GCC 12 warns in its own header.
#define REGARD_LOAD_16(p) 0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
#define REGARD_LOAD_WIDE(p) _mm512_maskz_cvtepu16_epi32(REGARD_LOAD_16(p))
#define REGARD_LOAD_HALF(p) _mm512_maskz_cvtph_ps(REGARD_LOAD_16(p))
#define REGARD_GREATER(a, b) _mm512_maskz_max_ps(0xffff, a, b)
#define REGARD_LESSER(a, b) _mm512_maskz_min_ps(0xffff, a, b)
#include <immintrin.h>
