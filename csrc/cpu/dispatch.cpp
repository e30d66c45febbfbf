// Picks the widest instruction set that this library was compiled for and this processor has.
#include "passes.h"
#include "winograd.h"

#define CCN_DECLARE(isa)              \
  namespace ccn::cpu::isa {           \
  extern const Passes<float> kFloat;  \
  extern const Passes<double> kDouble; \
  extern const Direct<float> kDirectFloat;   \
  extern const Direct<double> kDirectDouble; \
  extern const Direct<float> kDepthwiseFloat;   \
  extern const Direct<double> kDepthwiseDouble; \
  extern const Winograd<float> kWinogradFloat;   \
  extern const Winograd<double> kWinogradDouble; \
  extern const AtOnce<float> kAtOnceFloat;      \
  extern const AtOnce<double> kAtOnceDouble;    \
  }

#define CCN_CHOICE(isa)                                                                                   \
  {                                                                                                      \
    #isa, &isa::kFloat, &isa::kDouble, &isa::kDirectFloat, &isa::kDirectDouble, &isa::kDepthwiseFloat, \
        &isa::kDepthwiseDouble, &isa::kWinogradFloat, &isa::kWinogradDouble, &isa::kAtOnceFloat,         \
        &isa::kAtOnceDouble                                                                              \
  }

CCN_DECLARE(baseline)
#ifdef CCN_X86
CCN_DECLARE(avx2)
CCN_DECLARE(avx512)
#endif

namespace ccn::cpu {
namespace {

struct Choice {
  const char* name;
  const Passes<float>* for_float;
  const Passes<double>* for_double;
  const Direct<float>* direct_float;
  const Direct<double>* direct_double;
  const Direct<float>* depthwise_float;
  const Direct<double>* depthwise_double;
  const Winograd<float>* winograd_float;
  const Winograd<double>* winograd_double;
  const AtOnce<float>* at_once_float;
  const AtOnce<double>* at_once_double;
};

Choice choose() {
#ifdef CCN_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return CCN_CHOICE(avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return CCN_CHOICE(avx2);
#endif
  return CCN_CHOICE(baseline);
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

template <>
const Passes<float>& passes<float>() { return *choice().for_float; }

template <>
const Passes<double>& passes<double>() { return *choice().for_double; }

template <>
const Direct<float>& dense_loops<float>() { return *choice().direct_float; }

template <>
const Direct<double>& dense_loops<double>() { return *choice().direct_double; }

template <>
const Direct<float>& depthwise_loops<float>() { return *choice().depthwise_float; }

template <>
const Direct<double>& depthwise_loops<double>() { return *choice().depthwise_double; }

template <>
const Winograd<float>& winograd_loops<float>() { return *choice().winograd_float; }

template <>
const Winograd<double>& winograd_loops<double>() { return *choice().winograd_double; }

template <>
const AtOnce<float>& at_once<float>() { return *choice().at_once_float; }

template <>
const AtOnce<double>& at_once<double>() { return *choice().at_once_double; }

const char* instruction_set() { return choice().name; }

}  // namespace ccn::cpu
