// The most that one core multiplies and copies: what roofline.py divides by.

#include "bfloat.h"

constexpr int SUMS = 20;  // independent ones, so that none waits for the one before

extern "C" double products(float *to, int64_t low, int64_t count) {
    vec acc[SUMS], x = load(to), y = load(to + VL);
    const bfloat *pairs = (const bfloat *)(to + VL);
    for (int j = 0; j < SUMS; j++) acc[j] = load(to + j * VL);
    if (low)
        for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 20
            for (int j = 0; j < SUMS; j++) acc[j] = add_pairs(acc[j], 0x3f803f80, pairs);
    else
        for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 20
            for (int j = 0; j < SUMS; j++) acc[j] = acc[j] * x + y;
    for (int j = 0; j < SUMS; j++) store(to + j * VL, acc[j]);
    return 1.0 * SUMS * VL * count * (low ? 2 : 1);
}

extern "C" double copy(float *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i += VL) store(to + i, load(from + i));
    return 8.0 * count;
}
