// The prior's layers on a CPU, in float32: one pass over memory for each convolution.
//
// A layer of the network is norm, SiLU, resampling, convolution, bias, residual, and the sums that
// the next norm needs. Here all of it happens while a block of pixels is in the cache: what comes
// in is normalised as it is read, what goes out is summed as it is written. 3x3 convolutions are
// done by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 2016), or directly where an
// image is small; products are by a register-tiled kernel over packed weights.
//
// Activations are [n, h, w, c] without gaps. Nothing here allocates but scratch memory, which
// each thread keeps. Blocks, and the order of sums, do not depend on the number of threads.
// Compiled at first use by kernels/cpu.py, which mirrors struct Layer and checks shapes.

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

typedef void (*Team)(void (*)(void *), void *, unsigned, unsigned);  // as GOMP_parallel

enum Resample { NONE, UP, DOWN };

struct Layer {
    const float *part[2];      // inputs side by side: [n, source_h, source_w, channels[i]]
    const float *scale;        // [n, all channels], or null: input = SiLU(input * scale + shift)
    const float *shift;
    const float *weight;       // as kernels/cpu.py packs it
    const float *bias;         // [out_channels], or null
    const float *residual;     // as out, or half its size with residual_up; or null; may be out
    float *out;                // [n, out_h, out_w, out_channels]
    float *sums;               // [n, blocks, 2, out_channels]: of outputs and squares; or null
    Team team;                 // runs a function on several threads, or null
    int64_t n, source_h, source_w, h, w, out_h, out_w;  // h, w: after resampling
    int64_t channels[2], out_channels;
    int64_t side, stride, winograd, silu, resample, residual_up, block_h, block_w, threads;
};
}

static inline vec load(const float *p) { return *(const loose *)p; }
static inline void store(float *p, vec v) { *(loose *)p = v; }
static inline vec same(float x) { return vec{} + x; }

// Up to VL floats, the rest zero.
static inline vec load_some(const float *p, int count) {
    vec v = {};
    memcpy(&v, p, 4 * count);
    return v;
}

// x / (1 + exp(-x)), to 2 ulp; NaN stays.
static inline vec silu(vec x) {
    vec y = -x;
    y = y > same(88.0f) ? same(88.0f) : y;
    y = y < same(-87.0f) ? same(-87.0f) : y;
    // exp(y) = 2^k exp(r), |r| <= ln 2 / 2; adding and taking away 1.5 * 2^23 rounds
    const float magic = 12582912.0f;
    vec shifted = y * 1.44269504088896341f + magic;
    vec k = shifted - magic;
    vec r = y - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    ivec power = ((ivec)shifted << 23) + 0x3f800000;  // the integer k is in the lowest bits
    return x / (1.0f + p * (vec)power);
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

// What reading an input does to it; channel by channel of one image.
struct Reader {
    const Layer &layer;
    int64_t image;

    // count channels from first on, of source pixel (y, x), to dst.
    template <bool AFFINE, bool SILU>
    inline void pixel(const float *src, const float *scale, const float *shift, int count,
                      float *dst, float factor, bool add) const {
        for (int c = 0; c < count; c += VL) {
            bool whole = c + VL <= count;
            vec v = whole ? load(src + c) : load_some(src + c, count - c);
            if (AFFINE) {
                v = whole ? v * load(scale + c) + load(shift + c)
                          : v * load_some(scale + c, count - c) + load_some(shift + c, count - c);
            }
            if (SILU) v = silu(v);
            v = v * factor;
            if (whole) {
                store(dst + c, add ? load(dst + c) + v : v);
            } else {
                for (int i = c; i < count; i++) dst[i] = add ? dst[i] + v[i - c] : v[i - c];
            }
        }
    }

    // Pixels [y0, y0 + rows) x [x0, x0 + columns) after resampling, zero outside the image, to
    // dst[row][column], pixels `pitch` floats apart; `count` channels from `first` of a part.
    template <bool AFFINE, bool SILU>
    void window(int part, int first, int count, int64_t y0, int64_t x0, int rows, int columns,
                float *dst, int pitch) const {
        const int64_t channels = layer.channels[part], width = layer.source_w;
        const float *src = layer.part[part] + image * layer.source_h * width * channels + first;
        const int64_t all = layer.channels[0] + layer.channels[1];
        const int64_t at = image * all + (part ? layer.channels[0] : 0) + first;
        const float *scale = AFFINE ? layer.scale + at : nullptr;
        const float *shift = AFFINE ? layer.shift + at : nullptr;
        for (int row = 0; row < rows; row++) {
            for (int column = 0; column < columns; column++) {
                const int64_t y = y0 + row, x = x0 + column;
                float *to = dst + ((int64_t)row * columns + column) * pitch;
                if (y < 0 || y >= layer.h || x < 0 || x >= layer.w) {
                    memset(to, 0, 4 * count);
                } else if (layer.resample == DOWN) {
                    for (int i = 0; i < 4; i++) {
                        const float *from = src + ((2 * y + i / 2) * width + 2 * x + i % 2) * channels;
                        pixel<AFFINE, SILU>(from, scale, shift, count, to, 0.25f, i > 0);
                    }
                } else {
                    const int half = layer.resample == UP;
                    const float *from = src + ((y >> half) * width + (x >> half)) * channels;
                    pixel<AFFINE, SILU>(from, scale, shift, count, to, 1.0f, false);
                }
            }
        }
    }

    void read(int part, int first, int count, int64_t y0, int64_t x0, int rows, int columns,
              float *dst, int pitch) const {
        if (!layer.scale) {
            window<false, false>(part, first, count, y0, x0, rows, columns, dst, pitch);
        } else if (layer.silu) {
            window<true, true>(part, first, count, y0, x0, rows, columns, dst, pitch);
        } else {
            window<true, false>(part, first, count, y0, x0, rows, columns, dst, pitch);
        }
    }
};

// What becomes of outputs of channels [first, first + NR): bias, residual, sums.
struct Writer {
    const Layer &layer;
    int64_t image;
    int first, count;
    vec bias[2], sum[2], square[2];

    Writer(const Layer &layer, int64_t image, int first) : layer(layer), image(image), first(first) {
        const int left = (int)layer.out_channels - first;
        count = left < NR ? left : NR;
        for (int i = 0; i < 2; i++) {
            const int here = width(i);
            bias[i] = layer.bias && here > 0 ? load_some(layer.bias + first + i * VL, here) : vec{};
            sum[i] = square[i] = vec{};
        }
    }

    int width(int i) const {
        const int left = count - i * VL;
        return left < VL ? left : VL;
    }

    inline void put(int64_t y, int64_t x, int i, vec value) {
        const int here = width(i);
        if (here <= 0) return;
        const int64_t channels = layer.out_channels, offset = first + i * VL;
        const int64_t at = ((image * layer.out_h + y) * layer.out_w + x) * channels + offset;
        const float *from = layer.residual ? layer.residual + at : nullptr;
        if (from && layer.residual_up) {
            const int64_t row = image * (layer.out_h / 2) + y / 2;
            from = layer.residual + (row * (layer.out_w / 2) + x / 2) * channels + offset;
        }
        value += bias[i];
        if (here == VL) {
            if (from) value += load(from);
            store(layer.out + at, value);
        } else {
            if (from) value += load_some(from, here);
            memcpy(layer.out + at, &value, 4 * here);
        }
        sum[i] += value;
        square[i] += value * value;
    }

    void finish(int64_t block, int64_t blocks) {
        if (!layer.sums) return;
        float *to = layer.sums + (image * blocks + block) * 2 * layer.out_channels + first;
        for (int i = 0; i < 2; i++) {
            const int here = width(i);
            if (here <= 0) continue;
            memcpy(to + i * VL, &sum[i], 4 * here);
            memcpy(to + layer.out_channels + i * VL, &square[i], 4 * here);
        }
    }
};

// acc[j] += a[j][0..depth) times depth rows of NR weights.
template <int M>
__attribute__((always_inline)) static inline void multiply(int depth, const float *const *a, const float *b, vec (*acc)[2]) {
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

// to[j] = a[j] times the matrix b [depth][NR], for M rows that are `pitch` apart.
template <int M>
static void product(int depth, const float *a, int64_t pitch, const float *b, float *to) {
    vec acc[M][2] = {};
    const float *rows[M];
    for (int j = 0; j < M; j++) rows[j] = a + j * pitch;
    multiply<M>(depth, rows, b, acc);
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) {
        store(to + j * NR, acc[j][0]);
        store(to + j * NR + VL, acc[j][1]);
    }
}

static void products(int rows, int depth, const float *a, const float *b, float *to) {
    int j = 0;
    for (; j + MR <= rows; j += MR) product<MR>(depth, a + (int64_t)j * depth, depth, b, to + j * NR);
    a += (int64_t)j * depth, to += j * NR;
    switch (rows - j) {
        case 5: product<5>(depth, a, depth, b, to); break;
        case 4: product<4>(depth, a, depth, b, to); break;
        case 3: product<3>(depth, a, depth, b, to); break;
        case 2: product<2>(depth, a, depth, b, to); break;
        case 1: product<1>(depth, a, depth, b, to); break;
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

struct Block {
    int64_t image, index, y, x;
    int rows, columns;  // of outputs
};

// Tiles' inputs at all points: points[point][tile][channel].
static void transform_inputs(const Layer &layer, const Block &block, int down, int across,
                             float *window, float *points, int64_t plane) {
    const Reader reader{layer, block.image};
    const int depth = (int)(layer.channels[0] + layer.channels[1]);
    const int rows = down * TILE + 2, columns = across * TILE + 2;
    int base = 0;
    for (int part = 0; part < 2; part++) {
        for (int first = 0; first < layer.channels[part]; first += SLAB) {
            reader.read(part, first, SLAB, block.y - 1, block.x - 1, rows, columns, window, SLAB);
            for (int tile = 0; tile < down * across; tile++) {
                const float *corner =
                    window + ((tile / across) * TILE * columns + (tile % across) * TILE) * SLAB;
                float *to = points + (int64_t)tile * depth + base + first;
                for (int c = 0; c < SLAB; c += VL) {
                    alignas(64) float half[WIDE * WIDE * VL];
                    vec v[WIDE];
                    for (int x = 0; x < WIDE; x++) {
                        to_points(corner + x * SLAB + c, columns * SLAB, v);
                        for (int i = 0; i < WIDE; i++) store(half + (i * WIDE + x) * VL, v[i]);
                    }
                    for (int i = 0; i < WIDE; i++) {
                        to_points(half + i * WIDE * VL, VL, v);
                        for (int j = 0; j < WIDE; j++) store(to + (i * WIDE + j) * plane + c, v[j]);
                    }
                }
            }
        }
        base += (int)layer.channels[part];
    }
}

static void transform_outputs(const Block &block, int across, int tiles, const float *points,
                              int64_t plane, Writer &writer) {
    for (int tile = 0; tile < tiles; tile++) {
        const int top = tile / across * TILE, left = tile % across * TILE;
        for (int i = 0; i < 2; i++) {
            const float *from = points + (int64_t)tile * NR + i * VL;
            alignas(64) float half[TILE * WIDE * VL];
            vec y[TILE];
            for (int x = 0; x < WIDE; x++) {
                from_points(from + x * plane, WIDE * plane, y);
                for (int j = 0; j < TILE; j++) store(half + (j * WIDE + x) * VL, y[j]);
            }
            for (int j = 0; j < TILE && top + j < block.rows; j++) {
                from_points(half + j * WIDE * VL, VL, y);
                for (int x = 0; x < TILE && left + x < block.columns; x++)
                    writer.put(block.y + top + j, block.x + left + x, i, y[x]);
            }
        }
    }
}

static int64_t blocks_of(const Layer &layer) {
    return ((layer.out_h + layer.block_h - 1) / layer.block_h) *
           ((layer.out_w + layer.block_w - 1) / layer.block_w);
}

// Output channels [first_group, last_group) in groups of NR, of one block, by Winograd.
static bool winograd(const Layer &layer, const Block &block, int first_group, int last_group) {
    const int down = (block.rows + TILE - 1) / TILE, across = (block.columns + TILE - 1) / TILE;
    const int tiles = down * across, depth = (int)(layer.channels[0] + layer.channels[1]);
    const int64_t in_plane = (int64_t)tiles * depth + SKEW, out_plane = (int64_t)tiles * NR + SKEW;
    const int64_t window_size = (int64_t)(down * TILE + 2) * (across * TILE + 2) * SLAB;
    float *memory = scratch.floats(window_size + POINTS * (in_plane + out_plane));
    if (!memory) return false;
    float *in = memory + window_size, *out = in + POINTS * in_plane;
    transform_inputs(layer, block, down, across, memory, in, in_plane);
    for (int group = first_group; group < last_group; group++) {
        const float *weight = layer.weight + (int64_t)group * POINTS * depth * NR;
        for (int p = 0; p < POINTS; p++)
            products(tiles, depth, in + p * in_plane, weight + (int64_t)p * depth * NR,
                     out + p * out_plane);
        Writer writer(layer, block.image, group * NR);
        transform_outputs(block, across, tiles, out, out_plane, writer);
        writer.finish(block.index, blocks_of(layer));
    }
    return true;
}

// M outputs in a row of pixels of a block from output `at` on.
template <int M>
static void direct_some(const Layer &layer, const Block &block, int at, const float *window,
                        int columns, int pitch, const float *weight, Writer &writer) {
    const int side = (int)layer.side, stride = (int)layer.stride;
    const float *corner[M], *a[M];
    for (int j = 0; j < M; j++) {
        const int y = (at + j) / block.columns, x = (at + j) % block.columns;
        corner[j] = window + (int64_t)(y * stride * columns + x * stride) * pitch;
    }
    vec acc[M][2] = {};
    const int depth = (int)(layer.channels[0] + layer.channels[1]);
    for (int tap = 0; tap < side * side; tap++) {
        const int64_t offset = (int64_t)(tap / side * columns + tap % side) * pitch;
        for (int j = 0; j < M; j++) a[j] = corner[j] + offset;
        multiply<M>(depth, a, weight + (int64_t)tap * depth * NR, acc);
    }
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) {
        const int64_t y = block.y + (at + j) / block.columns, x = block.x + (at + j) % block.columns;
        writer.put(y, x, 0, acc[j][0]);
        writer.put(y, x, 1, acc[j][1]);
    }
}

// The same as winograd(), for kernels of side 1 or 3 and any stride, by their definition.
static bool direct(const Layer &layer, const Block &block, int first_group, int last_group) {
    const int side = (int)layer.side, stride = (int)layer.stride, outputs = block.rows * block.columns;
    const int depth = (int)(layer.channels[0] + layer.channels[1]);
    const int rows = (block.rows - 1) * stride + side, columns = (block.columns - 1) * stride + side;
    float *window = scratch.floats((size_t)rows * columns * depth);
    if (!window) return false;
    const Reader reader{layer, block.image};
    for (int part = 0; part < 2; part++) {
        if (layer.channels[part])
            reader.read(part, 0, (int)layer.channels[part], block.y * stride - side / 2,
                        block.x * stride - side / 2, rows, columns,
                        window + (part ? layer.channels[0] : 0), depth);
    }
    for (int group = first_group; group < last_group; group++) {
        const float *weight = layer.weight + (int64_t)group * side * side * depth * NR;
        Writer writer(layer, block.image, group * NR);
        int at = 0;
        for (; at + MR <= outputs; at += MR)
            direct_some<MR>(layer, block, at, window, columns, depth, weight, writer);
        switch (outputs - at) {
            case 5: direct_some<5>(layer, block, at, window, columns, depth, weight, writer); break;
            case 4: direct_some<4>(layer, block, at, window, columns, depth, weight, writer); break;
            case 3: direct_some<3>(layer, block, at, window, columns, depth, weight, writer); break;
            case 2: direct_some<2>(layer, block, at, window, columns, depth, weight, writer); break;
            case 1: direct_some<1>(layer, block, at, window, columns, depth, weight, writer); break;
        }
        writer.finish(block.index, blocks_of(layer));
    }
    return true;
}

// Work is handed out one block (or, of few blocks, one block's share of channels) at a time.
struct Job {
    const Layer &layer;
    int64_t blocks, groups, shares;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    void run(int64_t task) {
        const int64_t share = task % shares, number = task / shares;
        const int64_t across = (layer.out_w + layer.block_w - 1) / layer.block_w;
        Block block;
        block.image = number / blocks, block.index = number % blocks;
        block.y = block.index / across * layer.block_h, block.x = block.index % across * layer.block_w;
        block.rows = (int)(layer.out_h - block.y < layer.block_h ? layer.out_h - block.y : layer.block_h);
        block.columns = (int)(layer.out_w - block.x < layer.block_w ? layer.out_w - block.x : layer.block_w);
        const int first = (int)(groups * share / shares), last = (int)(groups * (share + 1) / shares);
        const bool done = layer.winograd ? winograd(layer, block, first, last)
                                         : direct(layer, block, first, last);
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

// 0, or 1 where there was no memory.
int ddfm_layer(const Layer *layer) {
    Job job{*layer, blocks_of(*layer), (layer->out_channels + NR - 1) / NR, 1};
    const int64_t threads = layer->team ? layer->threads : 1;
    if (layer->n * job.blocks < 2 * threads) job.shares = job.groups < threads ? job.groups : threads;
    if (threads > 1 && layer->n * job.blocks * job.shares > 1)
        layer->team(work, &job, (unsigned)threads, 0);
    else
        work(&job);
    return job.failed;
}

// scale, shift [n, channels] of a group norm, from its inputs' sums [n, blocks[i], 2, channels[i]]:
// scale * x + shift = (x - mean) / sqrt(variance + epsilon) * weight + bias. 0, or 1: no memory.
int ddfm_affine(const float *sums0, const float *sums1, int64_t blocks0, int64_t blocks1,
                int64_t channels0, int64_t channels1, int64_t n, int64_t pixels, int64_t groups,
                double epsilon, const float *weight, const float *bias, float *scale,
                float *shift) {
    const float *sums[2] = {sums0, sums1};
    const int64_t blocks[2] = {blocks0, blocks1}, channels[2] = {channels0, channels1};
    const int64_t all = channels0 + channels1, size = all / groups;
    double *total = (double *)scratch.floats(4 * all);
    if (!total) return 1;
    for (int64_t image = 0; image < n; image++, scale += all, shift += all) {
        memset(total, 0, 16 * all);
        for (int part = 0, base = 0; part < 2; base += (int)channels[part++]) {
            const float *from = sums[part] + image * blocks[part] * 2 * channels[part];
            for (int64_t block = 0; block < blocks[part]; block++)
                for (int i = 0; i < 2; i++, from += channels[part])
                    for (int64_t c = 0; c < channels[part]; c++) total[i * all + base + c] += from[c];
        }
        for (int64_t group = 0; group < groups; group++) {
            double sum = 0, square = 0;
            for (int64_t c = group * size; c < (group + 1) * size; c++)
                sum += total[c], square += total[all + c];
            const double count = (double)pixels * size, mean = sum / count;
            const double variance = square / count - mean * mean;
            // not "> 0 ? variance : 0": NaN has to stay
            const double inverse = 1 / sqrt((variance < 0 ? 0 : variance) + epsilon);
            for (int64_t c = group * size; c < (group + 1) * size; c++) {
                scale[c] = (float)(weight[c] * inverse);
                shift[c] = (float)(bias[c] - mean * inverse * weight[c]);
            }
        }
    }
    return 0;
}
}
