// Products in bfloat16 by AMX, whose instructions multiply tiles of 16 rows of 64 bytes.
//
// Compiled only with DDFM_AMX, since it has never run on a processor that has AMX: it was tested
// with each of its instructions carried out by a program (tests/kernels/tiles.cpp). Weights, inputs
// and outputs lie as multiply() has them; depths that are no multiple of a tile's are left to it.
//
// Results differ from its in the order of sums alone: tdpbf16ps adds the 16 even and the 16 odd
// products of a step up from zero, and then both sums to what is there; vdpbf16ps adds one product
// after another. Both round to the nearest and take denormal numbers for zero.

#pragma once

#include "bfloat.h"

#if defined(DDFM_AMX) && defined(__AMX_TILE__) && defined(__AMX_BF16__) && VL == 16
#define TILES 1
#include <immintrin.h>
#else
#define TILES 0
#endif

// `depth` numbers in each of many rows, which are `pitch` numbers apart.
template <class T>
struct Run {
    const T *a;
    int64_t pitch;
    int depth;
};

// Stands in where there are no tiles.
template <class T>
struct Tiles {
    static bool fit(int64_t) { return false; }
    static void products(int, const Run<T> *, int, const T *, float *) {}
    static void release() {}
    static int check() { return 0; }
};

#if TILES

// Rows of a tile, also outputs; and the depth of one.
constexpr int TILE_ROWS = 16, STEP = 32;

// What ldtilecfg reads.
struct alignas(64) TileShapes {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];  // in a row of each tile
    uint8_t rows[16];
};

// Rows of `a` for which the tiles of this thread are configured; 0: they are not.
static thread_local int tiled_rows = 0;

template <>
struct Tiles<bfloat> {
    // Tiles 0 and 1 are sums of the upper rows, 2 and 3 of the lower ones; 4 and 5 are their
    // inputs, 6 and 7 weights.

    static bool fit(int64_t depth) { return depth % STEP == 0; }

    // GCC 12 does not know that tile instructions read memory, nor how much ldtilecfg reads.
    static inline void written(const void *memory) { asm volatile("" : : "r"(memory) : "memory"); }

    static void configure(int rows) {
        if (rows == tiled_rows) return;
        const int upper = rows < TILE_ROWS ? rows : TILE_ROWS, lower = rows - upper;
        const int of_tile[8] = {upper, upper, lower, lower, upper, lower, STEP / 2, STEP / 2};
        TileShapes shapes = {};
        shapes.palette = 1;
        for (int i = 0; i < 8; i++) {
            shapes.rows[i] = (uint8_t)of_tile[i];
            shapes.bytes[i] = of_tile[i] ? 64 : 0;
        }
        written(&shapes);
        _tile_loadconfig(&shapes);
        tiled_rows = rows;
    }

    // Adds to the sums of up to 16 rows, or of more with BOTH.
    template <bool BOTH>
    static inline void add(const bfloat *a, int64_t pitch, int depth, const bfloat *b) {
        for (int k = 0; k < depth; k += STEP, a += STEP, b += STEP * NR) {
            _tile_loadd(6, b, 4 * NR);
            _tile_loadd(7, b + NR, 4 * NR);
            _tile_loadd(4, a, 2 * pitch);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            if (BOTH) {
                _tile_loadd(5, a + TILE_ROWS * pitch, 2 * pitch);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }

    // Computes rows [first, first + rows) of products(), at most 32 of them.
    template <bool BOTH>
    static void some(int first, int rows, const Run<bfloat> *runs, int count, const bfloat *b,
                     float *to) {
        configure(rows);
        written(to);
        _tile_zero(0);
        _tile_zero(1);
        if (BOTH) {
            _tile_zero(2);
            _tile_zero(3);
        }
        for (int i = 0; i < count; i++) {
            const Run<bfloat> &run = runs[i];
            add<BOTH>(run.a + first * run.pitch, run.pitch, run.depth, b);
            b += (int64_t)run.depth * NR;
        }
        to += (int64_t)first * NR;
        _tile_stored(0, to, 4 * NR);
        _tile_stored(1, to + TILE_ROWS, 4 * NR);
        if (BOTH) {
            _tile_stored(2, to + TILE_ROWS * NR, 4 * NR);
            _tile_stored(3, to + TILE_ROWS * NR + TILE_ROWS, 4 * NR);
        }
    }

    // Sets `rows` rows of `to` [.., NR] to the sum of all runs times their weights, which follow
    // each other in b [depth / 2, NR, 2]. All depths fit().
    static void products(int rows, const Run<bfloat> *runs, int count, const bfloat *b, float *to) {
        int first = 0;
        for (; first + TILE_ROWS < rows; first += 2 * TILE_ROWS) {
            const int left = rows - first;
            some<true>(first, left < 2 * TILE_ROWS ? left : 2 * TILE_ROWS, runs, count, b, to);
        }
        if (first < rows) some<false>(first, rows - first, runs, count, b, to);
    }

    // Ends what products() began: other code of this thread uses tiles as well.
    static void release() {
        if (!tiled_rows) return;
        _tile_release();
        tiled_rows = 0;
    }

    // Returns 1 if products are those of multiply(), else -1. They are of small integers, whose
    // sums are exact in any order.
    static int check() {
        constexpr int ROWS = 21, DEPTH = 3 * STEP;
        bfloat a[ROWS * DEPTH], b[DEPTH * NR];
        alignas(64) float got[ROWS * NR], wanted[NR];
        fill(a, ROWS * DEPTH, 7);
        fill(b, DEPTH * NR, 5);
        const Run<bfloat> runs[] = {{a, DEPTH, STEP}, {a + STEP, DEPTH, 2 * STEP}};
        products(ROWS, runs, 2, b, got);
        release();
        bool same = true;
        for (int i = 0; i < ROWS; i++) {
            vec acc[1][2] = {};
            const bfloat *row = a + i * DEPTH;
            multiply<1>(DEPTH, &row, b, acc);
            store(wanted, acc[0][0]);
            store(wanted + VL, acc[0][1]);
            for (int j = 0; j < NR; j++) same &= got[i * NR + j] == wanted[j];
        }
        return same ? 1 : -1;
    }

    static void fill(bfloat *to, int count, int factor) {
        for (int i = 0; i < count; i++) {
            const float value = (float)(i * factor % 17 - 8);
            uint32_t bits;
            memcpy(&bits, &value, 4);
            to[i].bits = (uint16_t)(bits >> 16);
        }
    }
};

#endif
