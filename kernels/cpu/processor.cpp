// Whether this processor has the instructions that the compiler was allowed to use.
//
// Without this a library for another processor ends the process at its first such instruction.

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

extern "C" {

// The name of an instruction set that this library needs and the processor lacks; null if it has all.
const char *ddfm_lacks() {
#if defined(__x86_64__)
    __builtin_cpu_init();
#define NEEDS(name) \
    if (!__builtin_cpu_supports(name)) return name
#if defined(__AVX__)
    NEEDS("avx");
#endif
#if defined(__AVX2__)
    NEEDS("avx2");
#endif
#if defined(__FMA__)
    NEEDS("fma");
#endif
#if defined(__FMA4__)
    NEEDS("fma4");
#endif
#if defined(__XOP__)
    NEEDS("xop");
#endif
#if defined(__BMI__)
    NEEDS("bmi");
#endif
#if defined(__BMI2__)
    NEEDS("bmi2");
#endif
#if defined(__AVX512F__)
    NEEDS("avx512f");
#endif
#if defined(__AVX512BW__)
    NEEDS("avx512bw");
#endif
#if defined(__AVX512DQ__)
    NEEDS("avx512dq");
#endif
#if defined(__AVX512VL__)
    NEEDS("avx512vl");
#endif
#if defined(__AVX512VBMI__)
    NEEDS("avx512vbmi");
#endif
#if defined(__AVX512VBMI2__)
    NEEDS("avx512vbmi2");
#endif
#if defined(__AVX512VNNI__)
    NEEDS("avx512vnni");
#endif
#if defined(__AVX512BF16__)
    NEEDS("avx512bf16");
#endif
#elif defined(__aarch64__) && defined(__linux__)
#define NEEDS(which, bit, name) \
    if (!(getauxval(which) & (bit))) return name
#if defined(__ARM_FEATURE_ATOMICS)
    NEEDS(AT_HWCAP, HWCAP_ATOMICS, "atomics");
#endif
#if defined(__ARM_FEATURE_QRDMX)
    NEEDS(AT_HWCAP, HWCAP_ASIMDRDM, "asimdrdm");
#endif
#if defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
    NEEDS(AT_HWCAP, HWCAP_ASIMDHP, "asimdhp");
#endif
#if defined(__ARM_FEATURE_DOTPROD)
    NEEDS(AT_HWCAP, HWCAP_ASIMDDP, "asimddp");
#endif
#if defined(__ARM_FEATURE_SVE)
    NEEDS(AT_HWCAP, HWCAP_SVE, "sve");
#endif
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(HWCAP2_BF16)
    NEEDS(AT_HWCAP2, HWCAP2_BF16, "bf16");
#endif
#endif
    return nullptr;
}
}
