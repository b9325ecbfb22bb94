// All kernels, compiled once for the instruction set of the isa_*.cc that includes this. The
// standard headers come first, outside of the ISA's namespace.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "problem.h"
#include "schedule.h"

// Each file is written over those before it.
// clang-format off
namespace regard::REGARD_ISA {
#include "vector.h"
#include "mask.h"
#include "dropout.h"
#include "numbers.h"
#include "tile.h"
#include "operands.h"
#include "blocks.h"
#include "product.h"
#include "additive.h"
#include "observation.h"
#include "scores.h"
#include "strip.h"
#include "decode.h"
#include "forward.h"
#include "joint_gradients.h"
#include "joint_tiles.h"
#include "backward.h"
#include "bias_gradient.h"
}  // namespace regard::REGARD_ISA
// clang-format on
