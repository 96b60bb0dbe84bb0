// Vectors of the processor's width, and the product that all of this code is built on.

#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifndef VL  // floats in a vector register
#if defined(__AVX512F__)
#define VL 16
#elif defined(__AVX__)
#define VL 8
#else
#define VL 4
#endif
#endif

typedef float vec __attribute__((vector_size(4 * VL)));
typedef float loose __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * VL)));

// Products are computed for MR pixels times NR channels at once: 12 accumulators.
constexpr int MR = 6, NR = 2 * VL;

// Runs a function on several threads: ddfm_team of team.cpp.
extern "C" typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned);

static inline vec load(const float *p) { return *(const loose *)p; }
static inline void store(float *p, vec v) { *(loose *)p = v; }
static inline vec same(float x) { return vec{} + x; }

// Loads fewer floats than a vector has; by halves, since a copy of variable length is slow to
// start.
static inline void copy_some(float *to, const float *from, int count) {
    for (int part = VL; part; part /= 2) {
        if (count & part) {
            memcpy(to, from, 4 * part);
            to += part, from += part;
        }
    }
}

// Loads up to VL floats, and zeros for the rest.
static inline vec load_some(const float *p, int count) {
    alignas(64) float v[VL] = {};
    copy_some(v, p, count);
    return load(v);
}

static inline vec load_up_to(const float *p, int64_t count) {
    return count >= VL ? load(p) : load_some(p, (int)count);
}

static inline void store_some(float *p, vec value, int count) {
    alignas(64) float v[VL];
    store(v, value);
    copy_some(p, v, count);
}

// 2^f for |f| <= 1/2, by the polynomial of degree 5 with the least maximum relative error, 7.5e-8.
constexpr float EXP2[] = {1.00000007f,   0.693146967f,   0.240221197f,
                          0.0555071327f, 0.00967554133f, 0.00132764718f};

static inline vec least(vec a, vec b) { return a > b ? b : a; }
static inline vec most(vec a, vec b) { return a < b ? b : a; }

// 2^(x * factor), for products in [-126, 127]; NaN stays.
static inline vec exp2_of(vec x, float factor) {
    // the result is 2^k 2^f with an integer k, to which adding 1.5 * 2^23 rounds the product
    const float magic = 12582912.0f;
    const vec shifted = x * factor + magic, k = shifted - magic, f = x * factor - k;
    vec p = f * EXP2[5] + EXP2[4];
    p = p * f + EXP2[3];
    p = p * f + EXP2[2];
    p = p * f + EXP2[1];
    p = p * f + EXP2[0];
    return p * (vec)(((ivec)shifted << 23) + 0x3f800000);  // k is in the lowest bits
}

constexpr float LOG2E = 1.44269504088896341f;

// x / (1 + exp(-x)), to 2 ulp while |x| < 10; NaN stays.
static inline vec silu(vec x) {
    return x / (1.0f + exp2_of(most(least(x, same(87.0f)), same(-87.0f)), -LOG2E));
}

// Memory that a thread keeps from call to call.
struct Scratch {
    float *memory = nullptr;
    size_t size = 0;
    ~Scratch() { free(memory); }
    float *floats(size_t count) {
        if (count > size) {
            free(memory);
            void *found = nullptr;
            if (posix_memalign(&found, 64, 4 * count)) found = nullptr;
            memory = (float *)found;
            size = memory ? count : 0;
        }
        return memory;
    }
};
static thread_local Scratch scratch;

// acc[j] += a[j][0..depth) times depth rows of NR weights.
template <int M>
__attribute__((always_inline)) static inline void multiply(int depth, const float *const *a,
                                                           const float *b, vec (*acc)[2]) {
    for (int k = 0; k < depth; k++) {
        const vec b0 = load(b + k * NR), b1 = load(b + k * NR + VL);
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) {
            const float x = a[j][k];
            acc[j][0] += x * b0;
            acc[j][1] += x * b1;
        }
    }
}

// Runs `call<M>(first, ...)` over `count` rows, MR at a time and then the rest.
#define IN_ROWS(count, call, ...)                                    \
    do {                                                             \
        int row_ = 0;                                                \
        for (; row_ + MR <= (count); row_ += MR) call<MR>(row_, __VA_ARGS__); \
        switch ((count) - row_) {                                    \
            case 5: call<5>(row_, __VA_ARGS__); break;               \
            case 4: call<4>(row_, __VA_ARGS__); break;               \
            case 3: call<3>(row_, __VA_ARGS__); break;               \
            case 2: call<2>(row_, __VA_ARGS__); break;               \
            case 1: call<1>(row_, __VA_ARGS__); break;               \
        }                                                            \
    } while (0)
