#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace regard {
namespace {

const Isa* const all[] = {
#if defined(__x86_64__)
    &isa_amx,      &isa_avx512,   &isa_avx2,
#endif
    &isa_baseline, &isa_imitated,
};

const Isa& choose() {
  const char* forced = std::getenv("REGARD_ISA");
  for (const Isa* isa : all)
    if ((!forced || !*forced || forced == std::string(isa->name)) && isa->supported()) return *isa;
  std::string known;
  for (const std::string& name : supported_isas()) known += (known.empty() ? "" : ", ") + name;
  throw std::invalid_argument("REGARD_ISA: got \"" + std::string(forced) +
                              "\"; this machine runs " + known);
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa* isa : all)
    if (isa->supported()) names.push_back(isa->name);
  return names;
}

const Isa& isa() {
  static const Isa& chosen = choose();
  return chosen;
}

}  // namespace regard
