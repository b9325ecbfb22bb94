// What the cores can do at best: products on registers alone, and reading memory. Compiled for the
// machine at hand by benchmarks/roofline.py, which makes one call per thread.

#include <stddef.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

typedef float vector __attribute__((vector_size(WIDTH)));
typedef long long words __attribute__((vector_size(WIDTH)));

// A product takes 4 or 5 cycles and two begin in each: 10 chains keep both units busy, and 12 sums
// with their factors still fit into 16 registers.
enum { CHAINS = 12 };

// Multiplies and adds in every lane; returns the floating point operations done.
double products(long rounds) {
    vector sums[CHAINS] = {{0}}, x = {0}, y = {0};
    for (size_t lane = 0; lane < WIDTH / sizeof(float); lane++) x[lane] = y[lane] = 1e-6f;
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int chain = 0; chain < CHAINS; chain++) sums[chain] += x * y;
#if defined(__x86_64__)
        __asm__ volatile("" : "+x"(x), "+x"(y));  // or x * y is computed once, before the loop
#else
        __asm__ volatile("" : "+w"(x), "+w"(y));
#endif
    }
    for (int chain = 1; chain < CHAINS; chain++) sums[0] += sums[chain];
    volatile float kept = sums[0][0];  // or the sums are not needed at all
    (void)kept;
    return 2.0 * rounds * CHAINS * (WIDTH / sizeof(float));
}

// Reads `bytes`, a multiple of 256 on an address that is one too, `rounds` times over.
long long reading(const char* data, size_t bytes, long rounds) {
    words a = {0}, b = {0}, c = {0}, d = {0};
    for (long round = 0; round < rounds; round++) {
        for (const char* at = data; at < data + bytes; at += 4 * WIDTH) {
            a ^= *(const words*)at;
            b ^= *(const words*)(at + WIDTH);
            c ^= *(const words*)(at + 2 * WIDTH);
            d ^= *(const words*)(at + 3 * WIDTH);
        }
        __asm__ volatile("" : : : "memory");  // or a second round is known to undo the first
    }
    a ^= b ^ c ^ d;
    return a[0] ^ a[1];
}
