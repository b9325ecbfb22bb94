// One set of kernels per instruction set; the best that the machine runs is chosen once.
#pragma once

#include <string>
#include <vector>

#include "problem.h"

namespace regard {

struct Isa {
  const char* name;
  bool (*supported)();
  void (*forward)(const Problem&);
  void (*backward)(const Problem&, const Gradients&);
  bool (*decodes)(const Extent&, bool in_double);
};

extern const Isa isa_baseline;
#if defined(__x86_64__)
extern const Isa isa_avx2;
extern const Isa isa_avx512;
extern const Isa isa_amx;
#endif
extern const Isa isa_imitated;  // for tests

std::vector<std::string> supported_isas();  // best first

// The one in use: REGARD_ISA names it, else the best. Throws std::invalid_argument when REGARD_ISA
// names one that this machine does not run.
const Isa& isa();

}  // namespace regard
