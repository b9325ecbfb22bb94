// bfloat16 multiplied by the tiles of AMX; the rest is AVX-512's, in whose vectors the softmax is.
#define REGARD_VECTORS 2  // of queries: two tiles
#define REGARD_ISA amx
#define REGARD_AMX
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "avx512.h"
#include "kernels.h"

namespace regard {
namespace {

// Linux gives a process room for tiles once it has asked; of other systems we do not know.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kAsk = 0x1023, kTiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kAsk, kTiles) == 0;
  return granted;
#else
  return false;
#endif
}

// Not every compiler knows these by name.
bool has_tiles() {
  constexpr unsigned kTileAndBf16 = 1u << 24 | 1u << 22, kVectorsOfBf16 = 1u << 5;
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTileAndBf16) != kTileAndBf16) return false;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kVectorsOfBf16);
}

}  // namespace

const Isa isa_amx{
    "amx", [] { return isa_avx512.supported() && has_tiles() && may_use_tiles(); },
    [](const Problem& problem) { amx::forward_by_tiles(problem, isa_avx512); },
    [](const Problem& problem, const Gradients& gradients) {
      amx::backward_by_tiles(problem, gradients, isa_avx512);
    },
    [](const Extent& extent, bool in_double) { return isa_avx512.decodes(extent, in_double); }};

}  // namespace regard
