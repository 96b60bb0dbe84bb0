// Activations and weights in bfloat16, the upper half of a float, and products of pairs of them.
//
// Everything else is in float: what is loaded is widened, what is stored is rounded to the nearest.
// A product of pairs adds two products to each float of a vector, by one instruction where the
// processor has it (AVX512_BF16, ARM's BF16), else by two in float.

#pragma once

#include "vectors.h"

#if defined(__AVX512BF16__) && VL == 16
#define PAIRS 1
#include <immintrin.h>
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && VL == 4
#define PAIRS 1
#include <arm_neon.h>
#else
#define PAIRS 0
#endif

struct bfloat {
    uint16_t bits;
};

typedef uint16_t halves __attribute__((vector_size(2 * VL)));
typedef uint32_t uvec __attribute__((vector_size(4 * VL)));

static inline vec load(const bfloat *p) {
    halves v;
    memcpy(&v, p, sizeof v);
    return (vec)(__builtin_convertvector(v, uvec) << 16);
}

static inline halves rounded(vec v) {
#if PAIRS
#if defined(__aarch64__)
    const bfloat16x4_t found = vcvt_bf16_f32((float32x4_t)v);
#else
    const __m256bh found = _mm512_cvtneps_pbh((__m512)v);
#endif
    halves result;
    memcpy(&result, &found, sizeof result);
    return result;
#else
    const uvec bits = (uvec)v, even = bits + 0x7fff + (bits >> 16 & 1);
    const uvec quiet = bits | 0x400000;  // NaN stays
    return __builtin_convertvector((v == v ? even : quiet) >> 16, halves);
#endif
}

static inline void store(bfloat *p, vec v) {
    const halves found = rounded(v);
    memcpy(p, &found, sizeof found);
}

static inline vec load_some(const bfloat *p, int count) {
    bfloat v[VL] = {};
    for (int i = 0; i < count; i++) v[i] = p[i];
    return load(v);
}

static inline void store_some(bfloat *p, vec value, int count) {
    bfloat v[VL];
    store(v, value);
    for (int i = 0; i < count; i++) p[i] = v[i];
}

// Returns acc plus a pair times VL pairs.
static inline vec add_pairs(vec acc, uint32_t pair, const bfloat *b) {
#if PAIRS && defined(__aarch64__)
    bfloat16x8_t weights;
    memcpy(&weights, b, sizeof weights);
    const bfloat16x8_t both = vreinterpretq_bf16_u32(vdupq_n_u32(pair));
    return (vec)vbfdotq_f32((float32x4_t)acc, both, weights);
#elif PAIRS
    __m512i weights;
    memcpy(&weights, b, sizeof weights);
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32((int)pair),
                                 (__m512bh)weights);
#else
    uvec weights;
    memcpy(&weights, b, sizeof weights);
    const uvec both = uvec{} + pair;
    acc += (vec)(both & 0xffff0000u) * (vec)(weights & 0xffff0000u);
    return acc + (vec)(both << 16) * (vec)(weights << 16);
#endif
}

// The same as for floats, but with weights in rows of NR pairs; in an odd depth, half of the last
// pair is empty.
template <int M>
__attribute__((always_inline)) static inline void multiply(int depth, const bfloat *const *a,
                                                           const bfloat *b, vec (*acc)[2]) {
    int k = 0;
    for (; k + 1 < depth; k += 2, b += 2 * NR) {
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) {
            uint32_t pair;
            memcpy(&pair, a[j] + k, 4);
            acc[j][0] = add_pairs(acc[j][0], pair, b);
            acc[j][1] = add_pairs(acc[j][1], pair, b + 2 * VL);
        }
    }
    for (int j = 0; k < depth && j < M; j++) {
        acc[j][0] = add_pairs(acc[j][0], a[j][k].bits, b);
        acc[j][1] = add_pairs(acc[j][1], a[j][k].bits, b + 2 * VL);
    }
}

// Returns how many floats or bfloats a row of `depth` weights takes, for one output channel.
static inline int64_t padded(int64_t depth, const float *) { return depth; }
static inline int64_t padded(int64_t depth, const bfloat *) { return depth + depth % 2; }
