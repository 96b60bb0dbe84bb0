// The prior's layers on a CPU, in float32: one pass over memory for each convolution.
//
// A layer of the network is norm, SiLU, resampling, convolution, bias, residual, and the sums that
// the next norm needs. Here all of it happens while a block of pixels is in the cache: what comes
// in is normalised as it is read, what goes out is summed as it is written. 3x3 convolutions are
// done by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016), others directly; products
// are by a register-tiled kernel over packed weights.
//
// Activations are [n, h, w, c] without gaps. Nothing here allocates but scratch memory, which
// each thread keeps. Blocks, and the order of sums, do not depend on the number of threads.
// layers.py fills struct Layer and checks shapes; build.py compiles.

#include "vectors.h"

// Winograd: tiles of TILE x TILE outputs from WIDE x WIDE inputs, at POINTS points.
constexpr int TILE = 4, WIDE = 6, POINTS = 36;
// Points that are exact in binary, as are their products below. With the usual 1 and 2 the result
// of 64 channels is three times less exact, and seven times at its worst.
constexpr float A = 0.75f, B = 1.5f;
// Channels that are read and transformed together.
constexpr int SLAB = 32;
// Added to a stride, in floats, so that rows far apart do not share a set of the cache.
constexpr int SKEW = 16;

extern "C" {

enum Resample { NONE, UP, DOWN };

struct Layer {
    // Two inputs side by side, [n, source_h, source_w, channels[i]], the second perhaps without
    // channels; two of the skip, of the output's size; and the sums of the inputs' values and of
    // their squares, [n, blocks[i], 2, channels[i]], where there is a norm.
    const float *part[2], *skip[2], *part_sums[2];
    const float *norm_weight;  // [all channels], or null; with a norm input = SiLU(norm(input))
    const float *norm_bias;
    const float *weight;       // as layers.py packs it
    const float *skip_weight;  // of a 1x1 convolution of `skip` that is added, or null
    const float *bias;         // [out_channels], or null
    const float *residual;     // as out, or half its size with residual_up; or null
    float *out;                // [n, out_h, out_w, out_channels]
    float *sums;               // [n, blocks, 2, out_channels], or null
    Team team;                 // runs a function on several threads, or null
    int64_t part_blocks[2];
    // What comes before changes from call to call, what follows does not.
    double epsilon;
    int64_t channels[2], skip_channels[2];
    int64_t n, source_h, source_w, h, w, out_h, out_w, out_channels;  // h, w: after resampling
    int64_t side, stride, winograd, groups, silu, resample, residual_up, block_h, block_w;
};
}

struct Block {
    int64_t image, index, y, x;
    int rows, columns;  // of outputs
};

static int depth_of(const int64_t *channels) { return (int)(channels[0] + channels[1]); }

static int64_t blocks_of(const Layer &layer) {
    return ((layer.out_h + layer.block_h - 1) / layer.block_h) *
           ((layer.out_w + layer.block_w - 1) / layer.block_w);
}

// Reads an image as a convolution sees it: normalised, resampled, with zeros around it.
template <bool NORM, bool SILU>
struct Reader {
    const Layer &layer;
    const int64_t pitch_in;              // of the source's pixels
    const float *image, *scale, *shift;  // scale and shift of the first channel that is read
    const int count;                     // channels

    Reader(const Layer &layer, const float *scales, int part, int64_t n, int first, int count)
        : layer(layer), pitch_in(layer.channels[part]), count(count) {
        image = layer.part[part] + n * layer.source_h * layer.source_w * pitch_in + first;
        const int all = depth_of(layer.channels);
        scale = NORM ? scales + n * 2 * all + (part ? layer.channels[0] : 0) + first : nullptr;
        shift = NORM ? scale + all : nullptr;
    }

    inline vec value(const float *from, int c) const {
        vec v = load(from + c);
        if (NORM) v = v * load(scale + c) + load(shift + c);
        return SILU ? silu(v) : v;
    }

    inline vec some(const float *from, int c) const {
        vec v = load_some(from + c, count - c);
        if (NORM) v = v * load_some(scale + c, count - c) + load_some(shift + c, count - c);
        return SILU ? silu(v) : v;
    }

    inline const float *source(int64_t y, int64_t x) const {
        return image + (y * layer.source_w + x) * pitch_in;
    }

    inline void one(int64_t y, int64_t x, float *to) const {
        const float *from = source(y, x);
        int c = 0;
        for (; c + VL <= count; c += VL) store(to + c, value(from, c));
        if (c < count) store_some(to + c, some(from, c), count - c);
    }

    inline void mean(int64_t y, int64_t x, float *to) const {
        const float *a = source(2 * y, 2 * x), *b = source(2 * y + 1, 2 * x);
        const int64_t next = pitch_in;
        int c = 0;
        for (; c + VL <= count; c += VL)
            store(to + c, 0.25f * (value(a, c) + value(a + next, c) + value(b, c) +
                                   value(b + next, c)));
        if (c < count)
            store_some(to + c, 0.25f * (some(a, c) + some(a + next, c) + some(b, c) +
                                        some(b + next, c)), count - c);
    }

    // Pixels [y0, y0 + rows) x [x0, x0 + columns) to `to`, each `pitch` floats after the last.
    void window(int64_t y0, int64_t x0, int rows, int columns, float *to, int pitch) const {
        const int before = x0 < 0 ? (int)-x0 : 0;
        const int64_t left = layer.w - x0;
        const int end = left < columns ? (int)left : columns;
        for (int row = 0; row < rows; row++, to += columns * pitch) {
            const int64_t y = y0 + row;
            if (y < 0 || y >= layer.h) {
                for (int x = 0; x < columns; x++) memset(to + x * pitch, 0, 4 * count);
                continue;
            }
            for (int x = 0; x < before; x++) memset(to + x * pitch, 0, 4 * count);
            if (layer.resample == UP && row && y % 2 && y > 0) {
                // the row above is the same one of the source
                for (int x = before; x < end; x++)
                    memcpy(to + x * pitch, to + (x - columns) * pitch, 4 * count);
            } else {
                read_row(y, x0, before, end, to, pitch);
            }
            for (int x = end; x < columns; x++) memset(to + x * pitch, 0, 4 * count);
        }
    }

    inline void read_row(int64_t y, int64_t x0, int begin, int end, float *to, int pitch) const {
        if (layer.resample == DOWN) {
            for (int x = begin; x < end; x++) mean(y, x0 + x, to + x * pitch);
        } else if (layer.resample == UP) {
            for (int x = begin; x < end; x++) {
                if (x > begin && (x0 + x) % 2)
                    memcpy(to + x * pitch, to + (x - 1) * pitch, 4 * count);
                else
                    one(y / 2, (x0 + x) / 2, to + x * pitch);
            }
        } else if (!NORM && pitch == pitch_in) {
            memcpy(to + begin * pitch, source(y, x0 + begin), (int64_t)4 * (end - begin) * pitch);
        } else {
            for (int x = begin; x < end; x++) one(y, x0 + x, to + x * pitch);
        }
    }
};

static void read(const Layer &layer, const float *scales, int part, int64_t n, int first, int count,
                 int64_t y, int64_t x, int rows, int columns, float *to, int pitch) {
    if (!scales)
        Reader<false, false>(layer, scales, part, n, first, count).window(y, x, rows, columns, to, pitch);
    else if (layer.silu)
        Reader<true, true>(layer, scales, part, n, first, count).window(y, x, rows, columns, to, pitch);
    else
        Reader<true, false>(layer, scales, part, n, first, count).window(y, x, rows, columns, to, pitch);
}

// What becomes of a block's outputs, of channels [first, first + NR): bias, residual, sums.
struct Writer {
    const Layer &layer;
    const Block &block;
    const int first, count;
    vec bias[2], sum[2], square[2];
    float *out;          // the block's first pixel
    const float *extra;  // what is added there, or null
    int64_t out_row, extra_row, extra_pitch;
    int up;

    // skip: [rows, columns, NR] of the block, or null
    Writer(const Layer &layer, const Block &block, int group, const float *skip)
        : layer(layer), block(block), first(group * NR),
          count((int)(layer.out_channels - group * NR < NR ? layer.out_channels - group * NR : NR)) {
        for (int i = 0; i < 2; i++) {
            bias[i] = layer.bias && width(i) > 0
                          ? load_some(layer.bias + first + i * VL, width(i)) : vec{};
            sum[i] = square[i] = vec{};
        }
        const int64_t channels = layer.out_channels;
        out_row = layer.out_w * channels;
        out = layer.out + (block.image * layer.out_h + block.y) * out_row + block.x * channels + first;
        extra = skip, extra_row = block.columns * NR, extra_pitch = NR, up = 0;
        if (!skip && layer.residual) {  // blocks begin at even pixels
            up = layer.residual_up != 0;
            extra_row = (layer.out_w >> up) * channels, extra_pitch = channels;
            extra = layer.residual + first + (block.x >> up) * channels +
                    (block.image * (layer.out_h >> up) + (block.y >> up)) * extra_row;
        }
    }

    inline int width(int i) const { return count - i * VL < VL ? count - i * VL : VL; }

    inline float *output(int y, int x, int i) const {
        return out + y * out_row + x * layer.out_channels + i * VL;
    }

    inline const float *addend(int y, int x, int i) const {
        return extra + (y >> up) * extra_row + (x >> up) * extra_pitch + i * VL;
    }

    // Vector i of `many` pixels of row y from x on: values[0], values[step], ...
    inline void put(int y, int x, int i, const vec *values, int step, int many) {
        const int here = width(i);
        if (here <= 0) return;
        for (int j = 0; j < many; j++) {
            vec v = values[j * step] + bias[i];
            if (extra) v += load_some(addend(y, x + j, i), here);
            store_some(output(y, x + j, i), v, here);
            sum[i] += v;
            square[i] += v * v;
        }
    }

    // The same of a whole vector of M pixels, without branches.
    template <int M>
    __attribute__((always_inline)) inline void put_whole(int y, int x, int i, const vec *values,
                                                         int step) {
        const int64_t pitch = layer.out_channels;
        float *to = output(y, x, i);
        vec v[M];
#pragma GCC unroll 8
        for (int j = 0; j < M; j++) v[j] = values[j * step] + bias[i];
        if (extra) {
            const float *from = addend(y, 0, i);
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

// Rows [at, at + M) of `to` [.., NR] = rows of a [.., depth] times b [depth, NR].
template <int M>
static void product(int at, int depth, const float *a, const float *b, float *to) {
    vec acc[M][2] = {};
    const float *rows[M];
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

// One row of tiles and one vector of channels of it.
static void transform_row(const float *window, int columns, int across, int depth, float *half,
                          float *to, int64_t plane) {
    vec v[WIDE];
    for (int x = 0; x < columns; x++) {
        to_points(window + x * SLAB, columns * SLAB, v);
#pragma GCC unroll 6
        for (int i = 0; i < WIDE; i++) store(half + (x * WIDE + i) * VL, v[i]);
    }
    for (int tile = 0; tile < across; tile++, to += depth) {
        for (int i = 0; i < WIDE; i++) {
            to_points(half + (tile * TILE * WIDE + i) * VL, WIDE * VL, v);
#pragma GCC unroll 6
            for (int j = 0; j < WIDE; j++) store(to + (i * WIDE + j) * plane, v[j]);
        }
    }
}

// Tiles' inputs at all points: points[point][tile][channel]. Neighbours share columns.
static void transform_inputs(const Layer &layer, const Block &block, const float *scales, int down,
                             int across, float *window, float *half, float *points,
                             int64_t plane) {
    const int rows = down * TILE + 2, columns = across * TILE + 2, depth = depth_of(layer.channels);
    for (int part = 0, base = 0; part < 2; base += (int)layer.channels[part++]) {
        for (int first = 0; first < layer.channels[part]; first += SLAB) {
            read(layer, scales, part, block.image, first, SLAB, block.y - 1, block.x - 1, rows,
                 columns, window, SLAB);
            for (int row = 0; row < down; row++) {
                float *to = points + (int64_t)row * across * depth + base + first;
                for (int c = 0; c < SLAB; c += VL)
                    transform_row(window + row * TILE * columns * SLAB + c, columns, across, depth,
                                  half, to + c, plane);
            }
        }
    }
}

static void transform_outputs(const Block &block, int across, int tiles, const float *points,
                              int64_t plane, Writer &writer) {
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
                    writer.put_whole<TILE>(top + j, left, i, y, 1);
                else
                    writer.put(top + j, left, i, y, 1, columns);
            }
        }
    }
}

// M outputs in row y of the 1x1 convolution of `skip`, from x on: to[y][x].
template <int M>
static void skip_some(int x, int y, const Layer &layer, const Block &block, const float *weight,
                      float *to) {
    vec acc[M][2] = {};
    const int64_t row = (block.image * layer.out_h + block.y + y) * layer.out_w + block.x;
    for (int part = 0; part < 2; part++) {
        const int64_t channels = layer.skip_channels[part];
        const float *a[M];
        for (int j = 0; j < M; j++) a[j] = layer.skip[part] + (row + x + j) * channels;
        multiply<M>((int)channels, a, weight, acc);
        weight += channels * NR;
    }
    to += (y * block.columns + x) * NR;
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) {
        store(to + j * NR, acc[j][0]);
        store(to + j * NR + VL, acc[j][1]);
    }
}

static const float *skip_products(const Layer &layer, const Block &block, int group, float *to) {
    if (!layer.skip_weight) return nullptr;
    const float *weight = layer.skip_weight + (int64_t)group * depth_of(layer.skip_channels) * NR;
    for (int y = 0; y < block.rows; y++)
        IN_ROWS(block.columns, skip_some, y, layer, block, weight, to);
    return to;
}

// Output channels [first, last) in groups of NR, of one block, by Winograd.
static bool winograd(const Layer &layer, const Block &block, const float *scales, int first,
                     int last) {
    const int down = (block.rows + TILE - 1) / TILE, across = (block.columns + TILE - 1) / TILE;
    const int tiles = down * across, depth = depth_of(layer.channels);
    const int64_t in_plane = (int64_t)tiles * depth + SKEW, out_plane = (int64_t)tiles * NR + SKEW;
    const int64_t window_size = (int64_t)(down * TILE + 2) * (across * TILE + 2) * SLAB;
    const int64_t skip_size = (int64_t)block.rows * block.columns * NR;
    const int64_t half_size = (int64_t)(across * TILE + 2) * WIDE * VL;
    float *window =
        scratch.floats(window_size + half_size + skip_size + POINTS * (in_plane + out_plane));
    if (!window) return false;
    float *half = window + window_size, *skip = half + half_size;
    float *in = skip + skip_size, *out = in + POINTS * in_plane;
    transform_inputs(layer, block, scales, down, across, window, half, in, in_plane);
    for (int group = first; group < last; group++) {
        const float *weight = layer.weight + (int64_t)group * POINTS * depth * NR;
        Writer writer(layer, block, group, skip_products(layer, block, group, skip));
        for (int p = 0; p < POINTS; p++) {
            IN_ROWS(tiles, product, depth, in + p * in_plane, weight + (int64_t)p * depth * NR,
                    out + p * out_plane);
        }
        transform_outputs(block, across, tiles, out, out_plane, writer);
        writer.finish();
    }
    return true;
}

// M outputs in row y of a block, from x on; the window's pixels have no gaps, so that a row of the
// kernel is one product.
template <int M>
static void direct_some(int x, int y, const Layer &layer, const float *window, int columns,
                        const float *weight, Writer &writer) {
    const int side = (int)layer.side, stride = (int)layer.stride, depth = depth_of(layer.channels);
    const float *a[M];
    for (int j = 0; j < M; j++)
        a[j] = window + (int64_t)(y * stride * columns + (x + j) * stride) * depth;
    vec acc[M][2] = {};
    for (int row = 0; row < side; row++) {
        multiply<M>(side * depth, a, weight + (int64_t)row * side * depth * NR, acc);
        for (int j = 0; j < M; j++) a[j] += columns * depth;
    }
    if (writer.count == NR) {
        writer.put_whole<M>(y, x, 0, &acc[0][0], 2);
        writer.put_whole<M>(y, x, 1, &acc[0][1], 2);
    } else {
        writer.put(y, x, 0, &acc[0][0], 2, M);
        writer.put(y, x, 1, &acc[0][1], 2, M);
    }
}

// The same as winograd(), for kernels of side 1 or 3 and any stride, by their definition.
static bool direct(const Layer &layer, const Block &block, const float *scales, int first,
                   int last) {
    const int side = (int)layer.side, stride = (int)layer.stride, depth = depth_of(layer.channels);
    const int rows = (block.rows - 1) * stride + side, columns = (block.columns - 1) * stride + side;
    const int outputs = block.rows * block.columns;
    float *window = scratch.floats((size_t)rows * columns * depth + (size_t)outputs * NR);
    if (!window) return false;
    float *skip = window + (size_t)rows * columns * depth;
    for (int part = 0, base = 0; part < 2; base += (int)layer.channels[part++]) {
        const int count = (int)layer.channels[part];
        if (count)
            read(layer, scales, part, block.image, 0, count, block.y * stride - side / 2,
                 block.x * stride - side / 2, rows, columns, window + base, depth);
    }
    for (int group = first; group < last; group++) {
        const float *weight = layer.weight + (int64_t)group * side * side * depth * NR;
        Writer writer(layer, block, group, skip_products(layer, block, group, skip));
        for (int y = 0; y < block.rows; y++)
            IN_ROWS(block.columns, direct_some, y, layer, window, columns, weight, writer);
        writer.finish();
    }
    return true;
}

// scale * x + shift = (x - mean) / sqrt(variance + epsilon) * weight + bias: for each image the
// scales of all channels and then the shifts. Everything in float64; `total` is for 2 * channels.
static void find_scales(const Layer &layer, double *total, float *scales) {
    const int all = depth_of(layer.channels), size = all / (int)layer.groups;
    for (int64_t image = 0; image < layer.n; image++, scales += 2 * all) {
        memset(total, 0, 16 * all);
        for (int part = 0, base = 0; part < 2; base += (int)layer.channels[part++]) {
            const int64_t channels = layer.channels[part], rows = 2 * layer.part_blocks[part];
            const float *from = layer.part_sums[part] + image * rows * channels;
            for (int64_t row = 0; row < rows; row++, from += channels)
                for (int64_t c = 0; c < channels; c++) total[row % 2 * all + base + c] += from[c];
        }
        for (int start = 0; start < all; start += size) {
            double sum = 0, square = 0;
            for (int c = start; c < start + size; c++) sum += total[c], square += total[all + c];
            const double count = (double)layer.source_h * layer.source_w * size;
            const double mean = sum / count, variance = square / count - mean * mean;
            // rounding may take it below zero; NaN has to stay
            const double inverse = 1 / sqrt((variance < 0 ? 0 : variance) + layer.epsilon);
            for (int c = start; c < start + size; c++) {
                scales[c] = (float)(layer.norm_weight[c] * inverse);
                scales[all + c] = (float)(layer.norm_bias[c] - mean * inverse * layer.norm_weight[c]);
            }
        }
    }
}

// Work is handed out one block (or, of few blocks, one block's share of channels) at a time.
struct Job {
    const Layer &layer;
    const float *scales;
    int64_t blocks, groups, shares;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    void run(int64_t task) {
        const int64_t share = task % shares, number = task / shares;
        const int64_t across = (layer.out_w + layer.block_w - 1) / layer.block_w;
        Block block;
        block.image = number / blocks, block.index = number % blocks;
        block.y = block.index / across * layer.block_h;
        block.x = block.index % across * layer.block_w;
        const int64_t below = layer.out_h - block.y, beside = layer.out_w - block.x;
        block.rows = (int)(below < layer.block_h ? below : layer.block_h);
        block.columns = (int)(beside < layer.block_w ? beside : layer.block_w);
        const int first = (int)(groups * share / shares), last = (int)(groups * (share + 1) / shares);
        const bool done = layer.winograd ? winograd(layer, block, scales, first, last)
                                         : direct(layer, block, scales, first, last);
        if (!done) failed = true;
    }
};

static void work(void *argument) {
    Job &job = *(Job *)argument;
    const int64_t tasks = job.layer.n * job.blocks * job.shares;
    for (int64_t task; (task = job.next.fetch_add(1)) < tasks;) job.run(task);
}

extern "C" {

int64_t ddfm_group() { return NR; }
int64_t ddfm_layer_bytes() { return sizeof(Layer); }

// 0, or 1 where there was no memory.
int ddfm_layer(const Layer *layer, int64_t threads) {
    static thread_local Scratch norms;
    const int all = depth_of(layer->channels);
    float *scales = nullptr;
    if (layer->norm_weight) {
        double *total = (double *)norms.floats(4 * all + layer->n * 2 * all);
        if (!total) return 1;
        scales = (float *)(total + 2 * all);
        find_scales(*layer, total, scales);
    }
    Job job{*layer, scales, blocks_of(*layer), (layer->out_channels + NR - 1) / NR, 1};
    if (!layer->team) threads = 1;
    if (layer->n * job.blocks < 2 * threads) job.shares = job.groups < threads ? job.groups : threads;
    if (threads > 1 && layer->n * job.blocks * job.shares > 1)
        layer->team(work, &job, (unsigned)threads, 0);
    else
        work(&job);
    return job.failed;
}
}
