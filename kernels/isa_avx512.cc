// 32 registers of 16 floats: 6 keys x 4 vectors of queries leave 8 for the operands.
#define REGARD_VECTORS 4
#define REGARD_ISA avx512
#include "avx512.h"
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
