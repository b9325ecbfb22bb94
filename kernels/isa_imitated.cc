// The kernels for AMX without it: what tiles do is written out, in vectors as wide as theirs, which
// the compiler takes apart. Slow; made to test on any machine what only some can run, and in use
// only where REGARD_ISA asks for it. What tiles have no part in is done as by the baseline.
#define REGARD_VECTOR_BYTES 64
#define REGARD_VECTORS 2  // of queries: two tiles
#define REGARD_ISA imitated
#include "kernels.h"

namespace regard {

const Isa isa_imitated{
    "imitated",
    [] {
      const char* asked = std::getenv("REGARD_ISA");
      return asked && !std::strcmp(asked, "imitated");
    },
    [](const Problem& problem) { imitated::forward_by_tiles(problem, isa_baseline); },
    [](const Problem& problem, const Gradients& gradients) {
      imitated::backward_by_tiles(problem, gradients, isa_baseline);
    },
    [](const Extent& extent, bool in_double) { return isa_baseline.decodes(extent, in_double); }};

}  // namespace regard
