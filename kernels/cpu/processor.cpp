// Whether this processor has the instructions that the compiler was allowed to use.
//
// Without this a library for another processor ends the process at its first such instruction.

// It asks the processor itself: compilers' own tests need a library that not all of them bring.

#if defined(__x86_64__)
#include <cpuid.h>

enum Register { A, B, C, D };

static bool has(unsigned leaf, unsigned part, Register which, int bit) {
    unsigned found[4] = {};
    if (!__get_cpuid_count(leaf, part, &found[A], &found[B], &found[C], &found[D])) return false;
    return found[which] >> bit & 1;
}

// Whether the system keeps registers, by their bits in XCR0, when it switches threads.
static bool kept(unsigned bits) {
    if (!has(1, 0, C, 27)) return false;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & bits) == bits;
}

#if defined(DDFM_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

// Whether Linux lets this process and its children use the large registers of AMX: one has to ask.
static bool permitted() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#else
static bool permitted() { return false; }
#endif

#define NEEDS(name, leaf, part, which, bit) \
    if (!has(leaf, part, which, bit)) return name
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

extern "C" {

// The name of an instruction set that this library needs and the processor lacks; null if it has all.
const char *ddfm_lacks() {
#if defined(__x86_64__)
#if defined(__AVX__)
    NEEDS("avx", 1, 0, C, 28);
    if (!kept(0x6)) return "avx";
#endif
#if defined(__AVX2__)
    NEEDS("avx2", 7, 0, B, 5);
#endif
#if defined(__FMA__)
    NEEDS("fma", 1, 0, C, 12);
#endif
#if defined(__FMA4__)
    NEEDS("fma4", 0x80000001, 0, C, 16);
#endif
#if defined(__XOP__)
    NEEDS("xop", 0x80000001, 0, C, 11);
#endif
#if defined(__BMI__)
    NEEDS("bmi", 7, 0, B, 3);
#endif
#if defined(__BMI2__)
    NEEDS("bmi2", 7, 0, B, 8);
#endif
#if defined(__AVX512F__)
    NEEDS("avx512f", 7, 0, B, 16);
    if (!kept(0xe6)) return "avx512f";
#endif
#if defined(__AVX512BW__)
    NEEDS("avx512bw", 7, 0, B, 30);
#endif
#if defined(__AVX512DQ__)
    NEEDS("avx512dq", 7, 0, B, 17);
#endif
#if defined(__AVX512VL__)
    NEEDS("avx512vl", 7, 0, B, 31);
#endif
#if defined(__AVX512VBMI__)
    NEEDS("avx512vbmi", 7, 0, C, 1);
#endif
#if defined(__AVX512VBMI2__)
    NEEDS("avx512vbmi2", 7, 0, C, 6);
#endif
#if defined(__AVX512VNNI__)
    NEEDS("avx512vnni", 7, 0, C, 11);
#endif
#if defined(__AVX512BF16__)
    NEEDS("avx512bf16", 7, 1, A, 5);
#endif
#if defined(DDFM_AMX)  // compilers do not use it by themselves
    NEEDS("amx", 7, 0, D, 24);
    NEEDS("amx", 7, 0, D, 22);
    if (!kept(0x60000) || !permitted()) return "amx";
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
