// The per-pixel work before and after the fusion of a picture, on a CPU, each step in one pass.
//
// ddfm_read: the integers of an image, gray or RGB, to its luma in [0, 1].
// ddfm_order: a plane's values at two ranks, one from each end, and the extremes of its sources;
// blocks keep the candidates, which are then sorted.
// ddfm_give: a fused luma, the limits of its stretch, and the RGB whose chroma it takes, to
// integers. pixels.py fills the structs and checks shapes; images/color.py and images/stretch.py
// have the equations.

#include <algorithm>

#include "rows.h"

constexpr float RED = 0.299f, BLUE = 0.114f, DARKEST = 1 / 255.0f, TINIEST = 1e-12f;
constexpr float FLAT_SPAN = 1e-6f;

extern "C" {

struct Read {
    const void *values;  // integers [height, width, channels], strides in elements
    float *luma;         // [height, width]
    Team team;
    int64_t height, width, channels, bytes, row, column, channel;
};

struct Order {
    const float *values, *first, *second;  // `count` floats each; the sources
    float *kept;                           // 2 * (rank + 1) for each block of `block` values
    float *ends;                           // least and greatest of the sources, for each block
    float *out;                            // low, high, least, most
    Team team;
    int64_t count, rank, block;
};

struct Give {
    const float *luma;   // [height, width]
    const void *colors;  // RGB, strides in elements; null for gray
    void *out;           // likewise
    Team team;
    int64_t height, width, stretches, dims;
    int64_t color_bytes, color_row, color_column, color_channel;  // 4 bytes: floats in [0, 1]
    int64_t out_bytes, out_row, out_column, out_channel, channels;
    double low, high;  // what becomes 0 and 1
};
}

template <class T>
constexpr float WHITE = sizeof(T) == 4 ? 1.0f : (float)((1ll << 8 * sizeof(T)) - 1);

// Splits a row into its three channels in [0, 1]; the column stride is 3 if interleaved, else 1.
template <class T>
static void split_row(const T *__restrict p, int64_t column, int64_t channel, int64_t width,
                      float *__restrict r, float *__restrict g, float *__restrict b) {
    if (column == 3) {
        for (int64_t x = 0; x < width; x++) {
            r[x] = (float)p[3 * x] / WHITE<T>;
            g[x] = (float)p[3 * x + 1] / WHITE<T>;
            b[x] = (float)p[3 * x + 2] / WHITE<T>;
        }
        return;
    }
    float *const planes[] = {r, g, b};
    for (int c = 0; c < 3; c++) {
        const T *__restrict from = p + c * channel;
        float *__restrict to = planes[c];
        for (int64_t x = 0; x < width; x++) to[x] = (float)from[x] / WHITE<T>;
    }
}

template <class T>
static bool read_rows_of(const Read &read, int64_t first, int64_t end) {
    const int64_t width = read.width, pitch = pitch_of(width);
    float *rows = scratch.floats(3 * pitch);
    if (!rows) return false;
    for (int64_t y = first; y < end; y++) {
        const T *__restrict p = (const T *)read.values + y * read.row;
        float *__restrict out = read.luma + y * width;
        if (read.channels == 1) {
            for (int64_t x = 0; x < width; x++) out[x] = (float)p[x] / WHITE<T>;
            continue;
        }
        float *__restrict r = rows, *__restrict g = rows + pitch, *__restrict b = g + pitch;
        split_row(p, read.column, read.channel, width, r, g, b);
        for (int64_t x = 0; x < width; x++)
            out[x] = g[x] + RED * (r[x] - g[x]) + BLUE * (b[x] - g[x]);
    }
    return true;
}

static bool read_rows(const Read &read, int64_t first, int64_t end) {
    return read.bytes == 1 ? read_rows_of<uint8_t>(read, first, end)
                           : read_rows_of<uint16_t>(read, first, end);
}

// The `most` least of the values that were offered, unordered; for the greatest, offer negatives.
struct Least {
    float *kept;  // room for twice as many
    int64_t most, count;
    float limit;  // values above it cannot be among them, once there are `most`

    void offer(float value) {
        kept[count++] = value;
        if (count == 2 * most) shrink();
    }
    void shrink() {
        if (count < most) return;
        std::nth_element(kept, kept + most - 1, kept + count);
        limit = kept[most - 1], count = most;
    }
};

// Returns whether any lane of a comparison is true.
static bool any(ivec mask) {
    uint64_t parts[VL / 2], found = 0;
    memcpy(parts, &mask, sizeof parts);
    for (uint64_t part : parts) found |= part;
    return found;
}

// Most values are far from the ends: one test of four vectors skips them.
static void least_of(const float *values, int64_t count, float sign, Least &least) {
    for (int64_t i = 0; i < count; i += 4 * VL) {
        const int64_t end = std::min(i + 4 * VL, count);
        if (least.count >= least.most && end - i == 4 * VL) {
            ivec below{};
            for (int k = 0; k < 4; k++) below |= load(values + i + k * VL) * sign < least.limit;
            if (!any(below)) continue;
        }
        for (int64_t k = i; k < end; k++)
            if (least.count < least.most || values[k] * sign < least.limit)
                least.offer(values[k] * sign);
    }
    least.shrink();
}

// Finds the least and the greatest value of two planes.
static void ends_of(const float *a, const float *b, int64_t count, float *ends) {
    vec low = same(INFINITY), high = same(-INFINITY);
    int64_t i = 0;
    for (; i + VL <= count; i += VL) {
        const vec x = load(a + i), y = load(b + i);
        low = least(low, least(x, y)), high = most(high, most(x, y));
    }
    ends[0] = INFINITY, ends[1] = -INFINITY;
    for (int k = 0; k < VL; k++)
        ends[0] = std::min(ends[0], low[k]), ends[1] = std::max(ends[1], high[k]);
    for (; i < count; i++) {
        ends[0] = std::min(ends[0], std::min(a[i], b[i]));
        ends[1] = std::max(ends[1], std::max(a[i], b[i]));
    }
}

// Processes one block of values.
static bool order_block(const Order &order, int64_t first, int64_t end) {
    const int64_t most = order.rank + 1, at = first / order.block;
    float *room = scratch.floats(2 * most);
    if (!room) return false;
    for (int side = 0; side < 2; side++) {
        Least least{room, most, 0, INFINITY};
        const float sign = side ? -1.0f : 1.0f;
        least_of(order.values + first, end - first, sign, least);
        float *kept = order.kept + (2 * at + side) * most;
        for (int64_t k = 0; k < most; k++) kept[k] = k < least.count ? room[k] : INFINITY;
    }
    ends_of(order.first + first, order.second + first, end - first, order.ends + 2 * at);
    return true;
}

static bool finish_order(const Order &order) {
    const int64_t most = order.rank + 1, blocks = (order.count + order.block - 1) / order.block;
    float *all = scratch.floats(blocks * most);
    if (!all) return false;
    for (int side = 0; side < 2; side++) {
        for (int64_t at = 0; at < blocks; at++)
            memcpy(all + at * most, order.kept + (2 * at + side) * most, 4 * most);
        std::nth_element(all, all + order.rank, all + blocks * most);
        order.out[side] = side ? -all[order.rank] : all[order.rank];
    }
    float low = INFINITY, high = -INFINITY;
    for (int64_t at = 0; at < blocks; at++) {
        low = std::min(low, order.ends[2 * at]);
        high = std::max(high, order.ends[2 * at + 1]);
    }
    order.out[2] = low, order.out[3] = high;
    return true;
}

static float clipped(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }

static void stretch_row(const Give &give, const float *__restrict luma, float *__restrict out) {
    const float low = (float)give.low, span = (float)give.high - low;
    if (!give.stretches || span <= FLAT_SPAN)
        for (int64_t x = 0; x < give.width; x++) out[x] = clipped(luma[x]);
    else
        for (int64_t x = 0; x < give.width; x++) out[x] = clipped((luma[x] - low) / span);
}

// Gives r, g, b the luma y and their own chroma, in place.
template <bool DIMS>
static void color_row(const float *__restrict y, int64_t width, float *__restrict r,
                      float *__restrict g, float *__restrict b) {
    for (int64_t x = 0; x < width; x++) {
        const float own = g[x] + RED * (r[x] - g[x]) + BLUE * (b[x] - g[x]);
        float red = r[x] - own, green = g[x] - own, blue = b[x] - own;
        if (DIMS) {
            const float ratio = y[x] / (own < DARKEST ? DARKEST : own);
            const float shade = ratio < 1 ? ratio : 1;
            red *= shade, green *= shade, blue *= shade;
        }
        float above = red < green ? green : red, below = red < green ? red : green;
        above = above < blue ? blue : above, below = blue < below ? -blue : -below;
        const float fit_above = (1 - y[x]) / (above < TINIEST ? TINIEST : above);
        const float fit_below = y[x] / (below < TINIEST ? TINIEST : below);
        float scale = fit_above < fit_below ? fit_above : fit_below;
        scale = scale < 1 ? scale : 1;
        r[x] = clipped(red * scale + y[x]);
        g[x] = clipped(green * scale + y[x]);
        b[x] = clipped(blue * scale + y[x]);
    }
}

// Rounds half up.
template <class O>
static O whole(float unit) { return (O)(int32_t)(unit * WHITE<O> + 0.5f); }

template <class O>
static void store_row(const Give &give, const float *__restrict r, const float *__restrict g,
                      const float *__restrict b, O *__restrict out) {
    if (give.channels == 1) {
        for (int64_t x = 0; x < give.width; x++) out[x] = whole<O>(r[x]);
    } else if (give.out_column == 3) {
        for (int64_t x = 0; x < give.width; x++) {
            out[3 * x] = whole<O>(r[x]);
            out[3 * x + 1] = whole<O>(g[x]);
            out[3 * x + 2] = whole<O>(b[x]);
        }
    } else {
        for (int64_t x = 0; x < give.width; x++) out[x] = whole<O>(r[x]);
        for (int64_t x = 0; x < give.width; x++) out[give.out_channel + x] = whole<O>(g[x]);
        for (int64_t x = 0; x < give.width; x++) out[2 * give.out_channel + x] = whole<O>(b[x]);
    }
}

template <class T>
static void colors_of(const Give &give, int64_t y, float *r, float *g, float *b) {
    split_row((const T *)give.colors + y * give.color_row, give.color_column, give.color_channel,
              give.width, r, g, b);
}

static bool give_rows(const Give &give, int64_t first, int64_t end) {
    const int64_t pitch = pitch_of(give.width);
    float *luma = scratch.floats(4 * pitch);
    if (!luma) return false;
    float *r = luma + pitch, *g = r + pitch, *b = g + pitch;
    for (int64_t y = first; y < end; y++) {
        stretch_row(give, give.luma + y * give.width, luma);
        if (give.colors) {
            if (give.color_bytes == 1) colors_of<uint8_t>(give, y, r, g, b);
            if (give.color_bytes == 2) colors_of<uint16_t>(give, y, r, g, b);
            if (give.color_bytes == 4) colors_of<float>(give, y, r, g, b);
            if (give.dims)
                color_row<true>(luma, give.width, r, g, b);
            else
                color_row<false>(luma, give.width, r, g, b);
        }
        const float *red = give.colors ? r : luma, *green = give.colors ? g : luma;
        const float *blue = give.colors ? b : luma;
        if (give.out_bytes == 1)
            store_row(give, red, green, blue, (uint8_t *)give.out + y * give.out_row);
        else
            store_row(give, red, green, blue, (uint16_t *)give.out + y * give.out_row);
    }
    return true;
}

extern "C" {

int64_t ddfm_read_bytes() { return sizeof(Read); }
int64_t ddfm_order_bytes() { return sizeof(Order); }
int64_t ddfm_give_bytes() { return sizeof(Give); }

// Returns 0, or 1 if there was no memory.
int ddfm_read(const Read *read, int64_t threads) {
    return run(*read, read_rows, read->height, threads, read->height * read->width);
}

int ddfm_order(const Order *order, int64_t threads) {
    if (run(*order, order_block, order->count, threads, order->count, order->block)) return 1;
    return !finish_order(*order);
}

int ddfm_give(const Give *give, int64_t threads) {
    return run(*give, give_rows, give->height, threads, give->height * give->width);
}
}
