// A level of the fused pyramid from the coarser one, and smoothing, for choose.cpp.
//
// fuse_rows: from a level of the sources' Gaussian pyramids, the next coarser one, the coarser
// result and the maps of the data terms to the result at the level: bands, their local energies by
// the binomial filter over a ring of rows, share, coring, sky, conflict, gain, sum and clamp.

#pragma once

#include "rows.h"

constexpr float SMALL = 1e-12f;
// Rows that the filter reads, and that it reads when applied twice.
constexpr int TAPS = 5, WIDE_TAPS = 9;

struct Level {
    const float *sources[2], *coarse[2];  // [height, width] and half of it, rounded up
    const float *result;                  // of the coarser level
    const float *conflict, *pick, *sky;   // of the level, or of the coarser one: halved; or null
    float *out;
    Team team;
    int64_t height, width, halved;
    double share, gain, coring, sky_coring, sky_share;
    double margin;  // a result is at most this times the brighter source, and 1; 0: no limit
};

static int64_t half(int64_t size) { return (size + 1) / 2; }

static int64_t mirrored(int64_t at, int64_t size) {
    while (at < 0 || at >= size) at = at < 0 ? -at : 2 * (size - 1) - at;
    return at;
}

// Row y of a plane [half(height), width] that is doubled; `between` is scratch with a margin.
static void double_row(const float *__restrict plane, int64_t y, int64_t rows, int64_t width,
                       float *__restrict between, float *__restrict out) {
    const int64_t k = y / 2;
    const float *here = plane + k * width, *after = k + 1 < rows ? here + width : here;
    if (y % 2) {
        for (int64_t x = 0; x < width; x++) between[x] = (here[x] + after[x]) * 0.5f;
    } else {
        const float *before = k ? here - width : here + width;
        for (int64_t x = 0; x < width; x++)
            between[x] = (before[x] + after[x]) * 0.125f + here[x] * 0.75f;
    }
    between[-1] = between[1];
    between[width] = between[width - 1];
    for (int64_t x = 0; x < width; x++) {
        out[2 * x] = (between[x - 1] + between[x + 1]) * 0.125f + between[x] * 0.75f;
        out[2 * x + 1] = (between[x] + between[x + 1]) * 0.5f;
    }
}

// Computes a row of a band, and its squares filtered along the row, 16 times too large.
static void band_row(const float *__restrict source, const float *__restrict coarse, int64_t width,
                     float *__restrict squares, float *__restrict band, float *__restrict sums) {
    for (int64_t x = 0; x < width; x++) {
        const float here = source[x] - coarse[x];
        band[x] = here;
        squares[x] = here * here;
    }
    squares[-1] = squares[1], squares[-2] = squares[2];
    squares[width] = squares[width - 2], squares[width + 1] = squares[width - 3];
    for (int64_t x = 0; x < width; x++)
        sums[x] = (squares[x - 2] + squares[x + 2]) + 4 * (squares[x - 1] + squares[x + 1]) +
                  6 * squares[x];
}

// Computes the local energy: the filter across the rows.
static void energy_row(const float *__restrict a, const float *__restrict b,
                       const float *__restrict c, const float *__restrict d,
                       const float *__restrict e, int64_t width, float *__restrict out) {
    for (int64_t x = 0; x < width; x++)
        out[x] = ((a[x] + e[x]) + 4 * (b[x] + d[x]) + 6 * c[x]) * (1 / 256.0f);
}

struct Row {
    const float *bands[2], *energies[2], *conflict, *pick, *sky;
};

// out += the fused band; the first source's coring is stronger in sky.
template <bool DISPUTED, bool BRIGHT>
static void fuse_row(const Row &row, const Level &level, float *__restrict out) {
    const float *__restrict a = row.bands[0], *__restrict b = row.bands[1];
    const float *__restrict energy_a = row.energies[0], *__restrict energy_b = row.energies[1];
    const float *__restrict conflict = row.conflict, *__restrict pick = row.pick;
    const float *__restrict sky = row.sky;
    const float share = (float)level.share, gain = (float)level.gain;
    const float coring = (float)(level.coring / 255), sky_coring = (float)(level.sky_coring / 255);
    const float sky_share = (float)level.sky_share;
    const float core_b = (float)(level.coring / 255 * (level.coring / 255) + 1e-12);
    for (int64_t x = 0; x < level.width; x++) {
        const float of_a = energy_a[x], of_b = energy_b[x];
        const float square = of_a * of_a + SMALL;
        float s = (square / (of_b * of_b + square + SMALL) - 0.5f) * share + 0.5f;
        float core_a = core_b;
        if (BRIGHT) {
            const float root = coring + sky_coring * sky[x];
            s *= 1 - sky_share * sky[x];
            core_a = root * root + SMALL;
        }
        if (DISPUTED)
            s += conflict[x] * (pick[x] - s);
        const float cored_a = a[x] * of_a / (of_a + core_a);
        const float cored_b = b[x] * of_b / (of_b + core_b);
        out[x] += (cored_b + (cored_a - cored_b) * s) * gain;
    }
}

static void clamp_row(const float *__restrict a, const float *__restrict b, int64_t width,
                      float margin, float *__restrict out) {
    for (int64_t x = 0; x < width; x++) {
        const float brighter = (a[x] < b[x] ? b[x] : a[x]) * margin;
        const float most = brighter < 1 ? brighter : 1, value = out[x];
        const float below = most < value ? most : value;
        out[x] = below < 0 ? 0 : below;
    }
}

// A thread's rows, each with margins.
struct Rows {
    float *memory;
    int64_t pitch;
    float *at(int64_t row) const { return memory + row * pitch + MARGIN; }
    float *ring(int kind, int64_t y) const { return at(kind * TAPS + (y + TAPS) % TAPS); }
};
enum Kind { BAND_A, BAND_B, SUMS_A, SUMS_B, KINDS };
enum Single { BETWEEN = KINDS * TAPS, COARSE, SQUARES, ENERGY_A, ENERGY_B, CONFLICT, PICK, SKY,
              TOGETHER, ALL_ROWS };

// Returns a row of a map of the level.
static const float *map_row(const Level &level, const float *map, int64_t y, const Rows &rows,
                            Single where) {
    if (!map || !level.halved) return map ? map + y * level.width : nullptr;
    const int64_t height = half(level.height), width = half(level.width);
    double_row(map, y, height, width, rows.at(BETWEEN), rows.at(where));
    return rows.at(where);
}

static void result_row(const Level &level, int64_t y, const Rows &rows) {
    Row row;
    for (int source = 0; source < 2; source++) {
        float *energy = rows.at(ENERGY_A + source);
        const int sums = SUMS_A + source;
        energy_row(rows.ring(sums, y - 2), rows.ring(sums, y - 1), rows.ring(sums, y),
                   rows.ring(sums, y + 1), rows.ring(sums, y + 2), level.width, energy);
        row.bands[source] = rows.ring(BAND_A + source, y), row.energies[source] = energy;
    }
    row.conflict = map_row(level, level.conflict, y, rows, CONFLICT);
    row.pick = map_row(level, level.pick, y, rows, PICK);
    row.sky = map_row(level, level.sky, y, rows, SKY);
    float *together = rows.at(TOGETHER);
    double_row(level.result, y, half(level.height), half(level.width), rows.at(BETWEEN), together);
    const bool disputed = row.conflict && row.pick;
    if (disputed && row.sky) fuse_row<true, true>(row, level, together);
    if (disputed && !row.sky) fuse_row<true, false>(row, level, together);
    if (!disputed && row.sky) fuse_row<false, true>(row, level, together);
    if (!disputed && !row.sky) fuse_row<false, false>(row, level, together);
    const int64_t at = y * level.width;
    if (level.margin > 0)
        clamp_row(level.sources[0] + at, level.sources[1] + at, level.width, (float)level.margin,
                  together);
    memcpy(level.out + at, together, 4 * level.width);
}

// Computes rows [first, end) of the result.
static bool fuse_rows(const Level &level, int64_t first, int64_t end) {
    const int64_t pitch = pitch_of(level.width);
    const Rows rows{scratch.floats(ALL_ROWS * pitch), pitch};
    if (!rows.memory) return false;
    for (int64_t y = first - 2; y < end + 2; y++) {
        const int64_t from = mirrored(y, level.height);
        for (int source = 0; source < 2; source++) {
            double_row(level.coarse[source], from, half(level.height), half(level.width),
                       rows.at(BETWEEN), rows.at(COARSE));
            band_row(level.sources[source] + from * level.width, rows.at(COARSE), level.width,
                     rows.at(SQUARES), rows.ring(BAND_A + source, y),
                     rows.ring(SUMS_A + source, y));
        }
        if (y >= first + 2) result_row(level, y - 2, rows);
    }
    return true;
}

// Smooths a row twice along itself, 256 times too large; `padded` is scratch with a margin.
static void smooth_along(const float *__restrict row, int64_t width, float *__restrict padded,
                         float *__restrict out) {
    memcpy(padded, row, 4 * width);
    for (int64_t k = 1; k < WIDE_TAPS / 2 + 1; k++) {
        padded[-k] = row[mirrored(-k, width)];
        padded[width - 1 + k] = row[mirrored(width - 1 + k, width)];
    }
    for (int64_t x = 0; x < width; x++)
        out[x] = (padded[x - 4] + padded[x + 4]) + 8 * (padded[x - 3] + padded[x + 3]) +
                 28 * (padded[x - 2] + padded[x + 2]) + 56 * (padded[x - 1] + padded[x + 1]) +
                 70 * padded[x];
}

// Smooths twice across rows, and scales to the right size.
static void smooth_across(const float *const *rows, int64_t width, float *__restrict out) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3], *e = rows[4];
    const float *f = rows[5], *g = rows[6], *h = rows[7], *i = rows[8];
    for (int64_t x = 0; x < width; x++)
        out[x] = ((a[x] + i[x]) + 8 * (b[x] + h[x]) + 28 * (c[x] + g[x]) + 56 * (d[x] + f[x]) +
                  70 * e[x]) * (1 / 65536.0f);
}

struct Size {
    int64_t height, width;
    Size halved() const { return {half(height), half(width)}; }
};

static float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

// Applies it to each value of a row; a vector may reach past its end.
static void sigmoid_row(float *row, int64_t width) {
    for (int64_t x = 0; x < width; x += VL) {
        const vec value = least(most(load(row + x), same(-87.0f)), same(87.0f));
        store(row + x, 1.0f / (1.0f + exp2_of(value, -LOG2E)));
    }
}

// Planes that are smoothed twice, row by row: a ring of rows already smoothed along.
struct Smoothing {
    const float *a, *b;  // a, or a times b
    float shift;         // subtracted from both
};

template <int COUNT, class Use>
static bool smooth_all(const Smoothing *planes, Size size, int64_t first, int64_t end,
                       const Use &use) {
    const int64_t pitch = pitch_of(size.width), reach = WIDE_TAPS / 2, width = size.width;
    const Rows rows{scratch.floats((COUNT * (WIDE_TAPS + 1) + 2) * pitch), pitch};
    if (!rows.memory) return false;
    float *padded = rows.at(COUNT * (WIDE_TAPS + 1)), *made = rows.at(COUNT * (WIDE_TAPS + 1) + 1);
    float *found[COUNT];
    for (int p = 0; p < COUNT; p++) found[p] = rows.at(COUNT * WIDE_TAPS + p);
    for (int64_t y = first - reach; y < end + reach; y++) {
        const int64_t at = mirrored(y, size.height) * width, middle = y - reach;
        for (int p = 0; p < COUNT; p++) {
            const float *__restrict a = planes[p].a + at, *__restrict b = planes[p].b;
            const float shift = planes[p].shift;
            if (b)
                for (int64_t x = 0; x < width; x++) made[x] = (a[x] - shift) * (b[at + x] - shift);
            else
                for (int64_t x = 0; x < width; x++) made[x] = a[x] - shift;
            smooth_along(made, width, padded, rows.at(p * WIDE_TAPS + (y + WIDE_TAPS) % WIDE_TAPS));
            if (middle < first) continue;
            const float *seen[WIDE_TAPS];
            for (int64_t k = 0; k < WIDE_TAPS; k++)
                seen[k] = rows.at(p * WIDE_TAPS + (y + 1 + k) % WIDE_TAPS);
            smooth_across(seen, width, found[p]);
        }
        if (middle >= first) use(middle, found);
    }
    return true;
}
