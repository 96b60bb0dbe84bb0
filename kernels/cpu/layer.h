// What a layer reads and writes: struct Layer, and a block of its outputs while it is in the cache.
//
// Reader normalizes and resamples as it reads; Writer adds bias and residual, and sums, as it
// writes.

#pragma once

#include "tiles.h"

extern "C" {

enum Resample { NONE, UP, DOWN };

struct Layer {
    // Two inputs side by side, [n, source_h, source_w, channels[i]], of which the second may have
    // no channels; two inputs of the skip, of the output's size; and, if there is a norm, the sums
    // of the inputs' values and of their squares, [n, blocks[i], 2, channels[i]]. void stands for
    // bfloat or float, by `low`.
    const void *part[2], *skip[2];
    const float *part_sums[2];
    const float *norm_weight;  // [all channels], or null; with a norm input = SiLU(norm(input))
    const float *norm_bias;
    const void *weight;        // as layer.py packs it
    const void *skip_weight;   // of a 1x1 convolution of `skip` that is added, or null
    const float *bias;         // [out_channels], or null
    const void *residual;      // as out, or half its size with residual_up; or null
    void *out;                 // [n, out_h, out_w, out_channels]
    float *sums;               // [n, blocks, 2, out_channels], or null
    Team team;                 // runs a function on several threads, or null
    int64_t part_blocks[2];
    // The fields above change from call to call, those below do not.
    double epsilon;
    int64_t channels[2], skip_channels[2];
    int64_t n, source_h, source_w, h, w, out_h, out_w, out_channels;  // h, w: after resampling
    int64_t side, stride, winograd, groups, silu, resample, residual_up, block_h, block_w, low;
};
}

struct Block {
    int64_t image, index, y, x;
    int rows, columns;  // of outputs
};

// Prefetches `count` numbers that will soon be read or written: rows are too short for the
// processor to see what comes next.
template <class T>
static inline void fetch(const T *p, int count) {
    for (int i = 0; i < count; i += 64 / (int)sizeof(T)) __builtin_prefetch(p + i, 0, 2);
}

static int depth_of(const int64_t *channels) { return (int)(channels[0] + channels[1]); }

static int64_t blocks_of(const Layer &layer) {
    return ((layer.out_h + layer.block_h - 1) / layer.block_h) *
           ((layer.out_w + layer.block_w - 1) / layer.block_w);
}

// Reads an image of T as a convolution sees it, into W: normalized, resampled, with zeros around it.
template <class T, class W, bool NORM, bool SILU>
struct Reader {
    const Layer &layer;
    const int64_t pitch_in;              // of the source's pixels
    const T *image;
    const float *scale, *shift;          // of the first channel that is read
    const int count;                     // channels

    Reader(const Layer &layer, const float *scales, int part, int64_t n, int first, int count)
        : layer(layer), pitch_in(layer.channels[part]), count(count) {
        image = (const T *)layer.part[part] + n * layer.source_h * layer.source_w * pitch_in + first;
        const int all = depth_of(layer.channels);
        scale = NORM ? scales + n * 2 * all + (part ? layer.channels[0] : 0) + first : nullptr;
        shift = NORM ? scale + all : nullptr;
    }

    inline vec value(const T *from, int c) const {
        vec v = load(from + c);
        if (NORM) v = v * load(scale + c) + load(shift + c);
        return SILU ? silu(v) : v;
    }

    inline vec some(const T *from, int c) const {
        vec v = load_some(from + c, count - c);
        if (NORM) v = v * load_some(scale + c, count - c) + load_some(shift + c, count - c);
        return SILU ? silu(v) : v;
    }

    inline const T *source(int64_t y, int64_t x) const {
        return image + (y * layer.source_w + x) * pitch_in;
    }

    inline void one(int64_t y, int64_t x, W *to) const {
        const T *from = source(y, x);
        fetch(from + layer.source_w * pitch_in, count);
        int c = 0;
        for (; c + VL <= count; c += VL) store(to + c, value(from, c));
        if (c < count) store_some(to + c, some(from, c), count - c);
    }

    inline void mean(int64_t y, int64_t x, W *to) const {
        const T *a = source(2 * y, 2 * x), *b = source(2 * y + 1, 2 * x);
        const int64_t next = pitch_in;
        int c = 0;
        for (; c + VL <= count; c += VL)
            store(to + c, 0.25f * (value(a, c) + value(a + next, c) + value(b, c) +
                                   value(b + next, c)));
        if (c < count)
            store_some(to + c, 0.25f * (some(a, c) + some(a + next, c) + some(b, c) +
                                        some(b + next, c)), count - c);
    }

    // Reads pixels [y0, y0 + rows) x [x0, x0 + columns) into `to`, `pitch` numbers apart.
    void window(int64_t y0, int64_t x0, int rows, int columns, W *to, int pitch) const {
        const int before = x0 < 0 ? (int)-x0 : 0;
        const int64_t left = layer.w - x0;
        const int end = left < columns ? (int)left : columns;
        for (int row = 0; row < rows; row++, to += columns * pitch) {
            const int64_t y = y0 + row;
            if (y < 0 || y >= layer.h) {
                for (int x = 0; x < columns; x++) memset(to + x * pitch, 0, sizeof(W) * count);
                continue;
            }
            for (int x = 0; x < before; x++) memset(to + x * pitch, 0, sizeof(W) * count);
            if (layer.resample == UP && row && y % 2 && y > 0) {
                // the row above comes from the same row of the source
                for (int x = before; x < end; x++)
                    memcpy(to + x * pitch, to + (x - columns) * pitch, sizeof(W) * count);
            } else {
                read_row(y, x0, before, end, to, pitch);
            }
            for (int x = end; x < columns; x++) memset(to + x * pitch, 0, sizeof(W) * count);
        }
    }

    inline void read_row(int64_t y, int64_t x0, int begin, int end, W *to, int pitch) const {
        if (layer.resample == DOWN) {
            for (int x = begin; x < end; x++) mean(y, x0 + x, to + x * pitch);
        } else if (layer.resample == UP) {
            for (int x = begin; x < end; x++) {
                if (x > begin && (x0 + x) % 2)
                    memcpy(to + x * pitch, to + (x - 1) * pitch, sizeof(W) * count);
                else
                    one(y / 2, (x0 + x) / 2, to + x * pitch);
            }
        } else if (!NORM && sizeof(T) == sizeof(W) && pitch == pitch_in) {
            memcpy(to + begin * pitch, source(y, x0 + begin), sizeof(W) * (end - begin) * pitch);
        } else {
            for (int x = begin; x < end; x++) one(y, x0 + x, to + x * pitch);
        }
    }
};

template <class T, class W>
static void read(const Layer &layer, const float *scales, int part, int64_t n, int first, int count,
                 int64_t y, int64_t x, int rows, int columns, W *to, int pitch) {
    if (!scales)
        Reader<T, W, false, false>(layer, scales, part, n, first, count).window(y, x, rows, columns, to, pitch);
    else if (layer.silu)
        Reader<T, W, true, true>(layer, scales, part, n, first, count).window(y, x, rows, columns, to, pitch);
    else
        Reader<T, W, true, false>(layer, scales, part, n, first, count).window(y, x, rows, columns, to, pitch);
}

// Finishes a block's outputs of channels [first, first + NR): bias, residual, sums.
template <class T>
struct Writer {
    const Layer &layer;
    const Block &block;
    const int first, count;
    vec bias[2], sum[2], square[2];
    T *out;             // the block's first pixel
    const float *skip;  // what is added there, [rows, columns, NR], or null
    const T *extra;     // or this, or null
    int64_t out_row, extra_row, extra_pitch;
    int up;

    Writer(const Layer &layer, const Block &block, int group, const float *skip)
        : layer(layer), block(block), first(group * NR),
          count((int)(layer.out_channels - group * NR < NR ? layer.out_channels - group * NR : NR)),
          skip(skip) {
        for (int i = 0; i < 2; i++) {
            bias[i] = layer.bias && width(i) > 0
                          ? load_some(layer.bias + first + i * VL, width(i)) : vec{};
            sum[i] = square[i] = vec{};
        }
        const int64_t channels = layer.out_channels;
        out_row = layer.out_w * channels;
        out = (T *)layer.out + (block.image * layer.out_h + block.y) * out_row + block.x * channels +
              first;
        extra = nullptr, up = layer.residual_up != 0;
        extra_row = (layer.out_w >> up) * channels, extra_pitch = channels;
        if (!skip && layer.residual) {  // blocks begin at even pixels
            extra = (const T *)layer.residual + first + (block.x >> up) * channels +
                    (block.image * (layer.out_h >> up) + (block.y >> up)) * extra_row;
        }
    }

    void fetch_all() const {
        for (int y = 0; y < block.rows; y++) {
            for (int x = 0; x < block.columns; x++) fetch(output(y, x, 0), count);
            if (extra && !(y & up))
                for (int x = 0; x < block.columns; x += 1 + up) fetch(addend(y, x, 0), count);
        }
    }

    inline int width(int i) const { return count - i * VL < VL ? count - i * VL : VL; }

    inline T *output(int y, int x, int i) const {
        return out + y * out_row + x * layer.out_channels + i * VL;
    }

    inline const float *product(int y, int x, int i) const {
        return skip + (y * block.columns + x) * NR + i * VL;
    }

    inline const T *addend(int y, int x, int i) const {
        return extra + (y >> up) * extra_row + (x >> up) * extra_pitch + i * VL;
    }

    // Writes vector i of `many` pixels of row y from x on: values[0], values[step], ...
    inline void put(int y, int x, int i, const vec *values, int step, int many) {
        const int here = width(i);
        if (here <= 0) return;
        for (int j = 0; j < many; j++) {
            vec v = values[j * step] + bias[i];
            if (skip) v += load_some(product(y, x + j, i), here);
            if (extra) v += load_some(addend(y, x + j, i), here);
            store_some(output(y, x + j, i), v, here);
            sum[i] += v;
            square[i] += v * v;
        }
    }

    // Does the same for a whole vector of M pixels, without branches.
    template <int M>
    __attribute__((always_inline)) inline void put_whole(int y, int x, int i, const vec *values,
                                                         int step) {
        const int64_t pitch = layer.out_channels;
        T *to = output(y, x, i);
        vec v[M];
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) v[j] = values[j * step] + bias[i];
        if (skip) {
            const float *from = product(y, x, i);
#pragma GCC unroll 8
            for (int j = 0; j < M; j++) v[j] += load(from + j * NR);
        } else if (extra) {
            const T *from = addend(y, 0, i);
#pragma GCC unroll 8
            for (int j = 0; j < M; j++) v[j] += load(from + ((x + j) >> up) * extra_pitch);
        }
        vec s = v[0], q = v[0] * v[0];
        store(to, v[0]);
#pragma GCC unroll 8
        for (int j = 1; j < M; j++) {
            store(to + j * pitch, v[j]);
            s += v[j];
            q += v[j] * v[j];
        }
        sum[i] += s;
        square[i] += q;
    }

    void finish() {
        if (!layer.sums) return;
        const int64_t channels = layer.out_channels;
        float *to = layer.sums + (block.image * blocks_of(layer) + block.index) * 2 * channels + first;
        for (int i = 0; i < 2 && width(i) > 0; i++) {
            store_some(to + i * VL, sum[i], width(i));
            store_some(to + channels + i * VL, square[i], width(i));
        }
    }
};

// Computes M outputs in row y of the 1x1 convolution of `skip`, from x on: to[y][x].
template <int M, class T>
static void skip_some(int x, int y, const Layer &layer, const Block &block, const T *weight,
                      float *to) {
    vec acc[M][2] = {};
    const int64_t row = (block.image * layer.out_h + block.y + y) * layer.out_w + block.x;
    for (int part = 0; part < 2; part++) {
        const int64_t channels = layer.skip_channels[part];
        const T *a[M];
        for (int j = 0; j < M; j++) a[j] = (const T *)layer.skip[part] + (row + x + j) * channels;
        multiply<M>((int)channels, a, weight, acc);
        weight += padded(channels, weight) * NR;
    }
    to += (y * block.columns + x) * NR;
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) {
        store(to + j * NR, acc[j][0]);
        store(to + j * NR + VL, acc[j][1]);
    }
}

// Always inlined: GCC takes a function of nothing but prefetches for one without effects, and drops
// its calls.
template <class T>
__attribute__((always_inline)) static inline void fetch_skip(const Layer &layer, const Block &block,
                                                             int y) {
    const int64_t pixel = (block.image * layer.out_h + block.y + y) * layer.out_w + block.x;
    for (int part = 0; part < 2; part++) {
        const int64_t channels = layer.skip_channels[part];
        if (!channels) continue;
        fetch((const T *)layer.skip[part] + pixel * channels, (int)(block.columns * channels));
    }
}

// Does the same for all columns, by tiles.
template <class T>
static void skip_row(int y, const Layer &layer, const Block &block, const T *weight, float *to) {
    const int64_t row = (block.image * layer.out_h + block.y + y) * layer.out_w + block.x;
    Run<T> runs[2];
    for (int part = 0; part < 2; part++) {
        const int64_t channels = layer.skip_channels[part];
        runs[part] = {(const T *)layer.skip[part] + row * channels, channels, (int)channels};
    }
    Tiles<T>::products(block.columns, runs, 2, weight, to + y * block.columns * NR);
}

template <class T>
static const float *skip_products(const Layer &layer, const Block &block, int group, float *to) {
    if (!layer.skip_weight) return nullptr;
    const int64_t size = padded(depth_of(layer.skip_channels), (const T *)nullptr) * NR;
    const T *weight = (const T *)layer.skip_weight + group * size;
    const bool tiled = Tiles<T>::fit(layer.skip_channels[0]) && Tiles<T>::fit(layer.skip_channels[1]);
    for (int y = 0; y < block.rows; y++) {
        if (y + 1 < block.rows) fetch_skip<T>(layer, block, y + 1);
        if (tiled)
            skip_row(y, layer, block, weight, to);
        else
            IN_ROWS(block.columns, skip_some, y, layer, block, weight, to);
    }
    return to;
}
