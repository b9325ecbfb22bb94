// What every x86-64 (SSE2) and aarch64 (NEON) has: 16 registers or more of 4 floats.
#define REGARD_VECTOR_BYTES 16
#define REGARD_VECTORS 2
#define REGARD_ISA baseline
#include "kernels.h"

namespace regard {

const Isa isa_baseline{"baseline", [] { return true; }, baseline::forward, baseline::backward,
                       baseline::decodes};

}  // namespace regard
