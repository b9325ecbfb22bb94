// 16 registers of 8 floats: 6 keys x 2 vectors of queries leave 4 for the operands.
#define REGARD_VECTOR_BYTES 32
#define REGARD_VECTORS 2
#define REGARD_ISA avx2
#include "kernels.h"

namespace regard {

const Isa isa_avx2{"avx2",
                   [] {
                     return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                            __builtin_cpu_supports("f16c");
                   },
                   avx2::forward, avx2::backward};

}  // namespace regard
