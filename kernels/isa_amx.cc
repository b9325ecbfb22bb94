// bfloat16 multiplied by the tiles of AMX; the rest is AVX-512's, in whose vectors the softmax is.
#define REGARD_VECTORS 2  // of queries: two tiles
#define REGARD_ISA amx
#define REGARD_AMX
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "avx512.h"
#include "kernels.h"

namespace regard {
namespace {

// Linux gives a process room for tiles once it has asked; of others we do not know.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kAsk = 0x1023, kTiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kAsk, kTiles) == 0;
  return granted;
#else
  return false;
#endif
}

}  // namespace

const Isa isa_amx{
    "amx",
    [] {
      return isa_avx512.supported() && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
             may_use_tiles();
    },
    [](const Problem& problem) { amx::forward_by_tiles(problem, isa_avx512); },
    [](const Problem& problem, const Gradients& gradients) {
      amx::backward_by_tiles(problem, gradients, isa_avx512);
    },
    [](const Extent& extent, bool in_double) { return isa_avx512.decodes(extent, in_double); }};

}  // namespace regard
