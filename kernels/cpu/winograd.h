// Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016): a faster version of direct().

#pragma once

#include "layer.h"

// Winograd: tiles of TILE x TILE outputs from WIDE x WIDE inputs, at POINTS points.
constexpr int TILE = 4, WIDE = 6, POINTS = 36;
// These points are exact in binary, as are their products below. With the usual 1 and 2, the result
// of 64 channels is three times less exact, and seven times at worst.
constexpr float A = 0.75f, B = 1.5f;
// The order in which points are rounded to bfloat, and the share of the error of the point before
// it that each takes over. These make the error of outputs least (winograd.py computes it); the
// smallest shares are left out.
constexpr int ORDER[] = {1, 3, 5, 4, 2, 0};
constexpr float PASSED[] = {0.0f, 0.4f, -1.0f, 0.0f, 1.056f, 0.667f};
// Number of channels that are read and transformed together.
constexpr int SLAB = 32;
// Added to a stride, so that rows far apart do not share a set of the cache.
constexpr int SKEW = 16;

// Sets rows [at, at + M) of `to` [.., NR] to rows of a [.., depth] times b [depth, NR].
template <int M, class T>
static void product(int at, int depth, const T *a, const T *b, float *to) {
    vec acc[M][2] = {};
    const T *rows[M];
    for (int j = 0; j < M; j++) rows[j] = a + (int64_t)(at + j) * depth;
    multiply<M>(depth, rows, b, acc);
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) {
        store(to + (at + j) * NR, acc[j][0]);
        store(to + (at + j) * NR + VL, acc[j][1]);
    }
}

// B^T d for six vectors `pitch` apart: the points are 0, A, -A, B, -B and infinity.
static inline void to_points(const float *d, int64_t pitch, vec *v) {
    const vec d0 = load(d), d1 = load(d + pitch), d2 = load(d + 2 * pitch);
    const vec d3 = load(d + 3 * pitch), d4 = load(d + 4 * pitch), d5 = load(d + 5 * pitch);
    const vec a = d4 - (B * B) * d2, b = d3 - (B * B) * d1;
    const vec c = d4 - (A * A) * d2, e = d3 - (A * A) * d1;
    v[0] = (A * A * B * B) * d0 - (A * A + B * B) * d2 + d4;
    v[1] = a + A * b;
    v[2] = a - A * b;
    v[3] = c + B * e;
    v[4] = c - B * e;
    v[5] = (A * A * B * B) * d1 - (A * A + B * B) * d3 + d5;
}

// A^T m for six vectors `pitch` apart.
static inline void from_points(const float *m, int64_t pitch, vec *y) {
    const vec m0 = load(m), m1 = load(m + pitch), m2 = load(m + 2 * pitch);
    const vec m3 = load(m + 3 * pitch), m4 = load(m + 4 * pitch), m5 = load(m + 5 * pitch);
    const vec s = m1 + m2, d = m1 - m2, t = m3 + m4, e = m3 - m4;
    y[0] = m0 + s + t;
    y[1] = A * d + B * e;
    y[2] = (A * A) * s + (B * B) * t;
    y[3] = (A * A * A) * d + (B * B * B) * e + m5;
}

// Stores one row of a tile's points as floats, unchanged.
static inline void put_points(float *to, int64_t plane, const vec *v, vec *, float) {
#pragma GCC unroll 6
    for (int j = 0; j < WIDE; j++) store(to + j * plane, v[j]);
}

// Does the same in bfloat, and makes up for what rounding took from the point and the row before;
// `left` is what it took from a row. Errors are those of rounding half up, and differ from those of
// store() only at ties.
static inline void put_points(bfloat *to, int64_t plane, const vec *v, vec *left, float share) {
    vec off = {};
#pragma GCC unroll 6
    for (int k = 0; k < WIDE; k++) {
        const int j = ORDER[k];
        vec wanted = v[j];
        if (share != 0) wanted += share * left[j];
        if (PASSED[k] != 0) wanted += PASSED[k] * off;
        store(to + j * plane, wanted);
        const vec before = off;
        off = (vec)(((uvec)wanted + 0x8000) & 0xffff0000u) - wanted;
        left[j] = PASSED[k] != 0 ? off + PASSED[k] * before : off;
    }
}

// Transforms one row of tiles, for one vector of channels.
template <class T>
static void transform_row(const float *window, int columns, int across, int depth, float *half,
                          T *to, int64_t plane) {
    vec v[WIDE];
    for (int x = 0; x < columns; x++) {
        to_points(window + x * SLAB, columns * SLAB, v);
#pragma GCC unroll 6
        for (int i = 0; i < WIDE; i++) store(half + (x * WIDE + i) * VL, v[i]);
    }
    for (int tile = 0; tile < across; tile++, to += depth) {
        vec left[WIDE] = {};
#pragma GCC unroll 6
        for (int k = 0; k < WIDE; k++) {
            const int i = ORDER[k];
            to_points(half + (tile * TILE * WIDE + i) * VL, WIDE * VL, v);
            put_points(to + i * WIDE * plane, plane, v, left, PASSED[k]);
        }
    }
}

// Tiles' inputs at all points: points[point][tile][channel]. Neighbors share columns.
template <class T>
static void transform_inputs(const Layer &layer, const Block &block, const float *scales, int down,
                             int across, float *window, float *half, T *points, int64_t plane) {
    const int rows = down * TILE + 2, columns = across * TILE + 2, depth = depth_of(layer.channels);
    for (int part = 0, base = 0; part < 2; base += (int)layer.channels[part++]) {
        for (int first = 0; first < layer.channels[part]; first += SLAB) {
            read<T>(layer, scales, part, block.image, first, SLAB, block.y - 1, block.x - 1, rows,
                 columns, window, SLAB);
            for (int row = 0; row < down; row++) {
                T *to = points + (int64_t)row * across * depth + base + first;
                for (int c = 0; c < SLAB; c += VL)
                    transform_row(window + row * TILE * columns * SLAB + c, columns, across, depth,
                                  half, to + c, plane);
            }
        }
    }
}

template <class T>
static void transform_outputs(const Block &block, int across, int tiles, const float *points,
                              int64_t plane, Writer<T> &writer) {
    for (int tile = 0; tile < tiles; tile++, points += NR) {
        const int top = tile / across * TILE, left = tile % across * TILE;
        const int rows = block.rows - top < TILE ? block.rows - top : TILE;
        const int columns = block.columns - left < TILE ? block.columns - left : TILE;
        for (int i = 0; i < 2; i++) {
            alignas(64) float half[TILE * WIDE * VL];
            vec y[TILE];
            for (int x = 0; x < WIDE; x++) {
                from_points(points + i * VL + x * plane, WIDE * plane, y);
#pragma GCC unroll 4
                for (int j = 0; j < TILE; j++) store(half + (j * WIDE + x) * VL, y[j]);
            }
            const bool whole = columns == TILE && writer.width(i) == VL;
            for (int j = 0; j < rows; j++) {
                from_points(half + j * WIDE * VL, VL, y);
                if (whole)
                    writer.template put_whole<TILE>(top + j, left, i, y, 1);
                else
                    writer.put(top + j, left, i, y, 1, columns);
            }
        }
    }
}

// Computes output channels [first, last), in groups of NR, of one block by Winograd's filtering.
template <class T>
static bool winograd(const Layer &layer, const Block &block, const float *scales, int first,
                     int last) {
    const int down = (block.rows + TILE - 1) / TILE, across = (block.columns + TILE - 1) / TILE;
    const int tiles = down * across, depth = depth_of(layer.channels);
    const bool tiled = Tiles<T>::fit(depth);
    const int64_t skew = tiled ? SKEW * 4 / (int)sizeof(T) : SKEW;  // tiles read whole cache lines
    const int64_t in_plane = (int64_t)tiles * depth + skew, out_plane = (int64_t)tiles * NR + SKEW;
    const int64_t window_size = (int64_t)(down * TILE + 2) * (across * TILE + 2) * SLAB;
    const int64_t skip_size = (int64_t)block.rows * block.columns * NR;
    const int64_t half_size = (int64_t)(across * TILE + 2) * WIDE * VL;
    const int64_t floats = window_size + half_size + skip_size + POINTS * out_plane;
    float *window = scratch.floats(floats + POINTS * in_plane * (int64_t)sizeof(T) / 4);
    if (!window) return false;
    float *half = window + window_size, *skip = half + half_size;
    float *out = skip + skip_size;
    T *in = (T *)(out + POINTS * out_plane);
    transform_inputs(layer, block, scales, down, across, window, half, in, in_plane);
    for (int group = first; group < last; group++) {
        const T *weight = (const T *)layer.weight + (int64_t)group * POINTS * depth * NR;
        Writer<T> writer(layer, block, group, skip_products<T>(layer, block, group, skip));
        writer.fetch_all();
        for (int p = 0; p < POINTS; p++) {
            const T *a = in + p * in_plane, *b = weight + (int64_t)p * depth * NR;
            float *to = out + p * out_plane;
            const Run<T> run{a, depth, depth};
            if (tiled)
                Tiles<T>::products(tiles, &run, 1, b, to);
            else
                IN_ROWS(tiles, product, depth, a, b, to);
        }
        transform_outputs(block, across, tiles, out, out_plane, writer);
        writer.finish();
    }
    return true;
}
