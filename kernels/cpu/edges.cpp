// The input of a network's first layer and the output of its last, each in one pass over memory:
// pixels to channels and back, with the channels last in memory, and the output's mix with x_t.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "bfloat.h"
#include "rows.h"

static inline float number(float x) { return x; }
static inline float number(bfloat x) {
    const uint32_t bits = (uint32_t)x.bits << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}
static inline void put(float *to, float x) { *to = x; }
static inline void put(bfloat *to, float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;  // NaN stays
    to->bits = (uint16_t)(bits >> 16);
}

// Images of n x channels x (height side) x (width side); height and width are those of the layers.
struct Edge {
    const void *from;
    const float *x, *of_x, *of_out;
    void *to;
    Team team;
    int64_t n, channels, height, width, side, low, factors;
};

// Rows [first, end) of all images' small rows: channel (c side + i) side + j is pixel (i, j) of c.
template <class T, int SIDE>
static void gather(const Edge &e, int64_t first, int64_t end) {
    const int64_t wide = e.width * SIDE, depth = e.channels * SIDE * SIDE;
    for (int64_t row = first; row < end; row++) {
        const int64_t image = row / e.height, y = row % e.height;
        T *to = (T *)e.to + row * e.width * depth;
        for (int64_t c = 0; c < e.channels; c++) {
            for (int64_t i = 0; i < SIDE; i++) {
                const float *from = (const float *)e.from +
                                    ((image * e.channels + c) * e.height * SIDE + y * SIDE + i) * wide;
                T *at = to + (c * SIDE + i) * SIDE;
                for (int64_t x = 0; x < e.width; x++)
                    for (int j = 0; j < SIDE; j++) put(at + x * depth + j, from[x * SIDE + j]);
            }
        }
    }
}

// a x + answer, rounded once, as PyTorch's addcmul does.
static inline float added(float a, float x, float answer) {
#ifdef __FP_FAST_FMAF
    return __builtin_fmaf(a, x, answer);
#else
    return (float)((double)a * x + answer);
#endif
}

// Channels back to pixels, times of_out, plus x times of_x.
template <class T, int SIDE>
static void spread(const Edge &e, int64_t first, int64_t end) {
    const int64_t wide = e.width * SIDE, depth = e.channels * SIDE * SIDE;
    for (int64_t row = first; row < end; row++) {
        const int64_t image = row / e.height, y = row % e.height, at = e.factors > 1 ? image : 0;
        const float a = e.of_x[at], b = e.of_out[at];
        const T *from = (const T *)e.from + row * e.width * depth;
        for (int64_t c = 0; c < e.channels; c++) {
            for (int64_t i = 0; i < SIDE; i++) {
                const int64_t place =
                    ((image * e.channels + c) * e.height * SIDE + y * SIDE + i) * wide;
                const float *x = e.x + place;
                float *to = (float *)e.to + place;
                const T *out = from + (c * SIDE + i) * SIDE;
                for (int64_t k = 0; k < e.width; k++) {
                    for (int j = 0; j < SIDE; j++)
                        to[k * SIDE + j] =
                            added(a, x[k * SIDE + j], b * number(out[k * depth + j]));
                }
            }
        }
    }
}

template <class T>
static bool gather_rows(const Edge &e, int64_t first, int64_t end) {
    if (e.side == 1) gather<T, 1>(e, first, end);
    else if (e.side == 2) gather<T, 2>(e, first, end);
    else gather<T, 4>(e, first, end);
    return true;
}

template <class T>
static bool spread_rows(const Edge &e, int64_t first, int64_t end) {
    if (e.side == 1) spread<T, 1>(e, first, end);
    else if (e.side == 2) spread<T, 2>(e, first, end);
    else spread<T, 4>(e, first, end);
    return true;
}

extern "C" {

int64_t ddfm_gather_bytes() { return sizeof(Edge); }
int64_t ddfm_spread_bytes() { return sizeof(Edge); }

int ddfm_gather(const Edge *edge, int64_t threads) {
    const Edge &e = *edge;
    const int64_t pixels = e.n * e.channels * e.height * e.width * e.side * e.side;
    return run(e, e.low ? gather_rows<bfloat> : gather_rows<float>, e.n * e.height, threads, pixels);
}

int ddfm_spread(const Edge *edge, int64_t threads) {
    const Edge &e = *edge;
    const int64_t pixels = e.n * e.channels * e.height * e.width * e.side * e.side;
    return run(e, e.low ? spread_rows<bfloat> : spread_rows<float>, e.n * e.height, threads, pixels);
}
}
