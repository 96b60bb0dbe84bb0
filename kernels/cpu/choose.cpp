// ddfm_choose: ddfm_fast.target.choose for one pair of lumas on a CPU, float32.
//
// Stages follow each other, and all threads work on the blocks of a stage: Gaussian pyramids and
// second moments, local statistics, conflict and pick, sky, salience and the base's weight, maps
// carried to the other levels, the base, and from there the result level by level. A thread that
// finds no block left waits until the others have finished theirs; a thread that never joins is not
// waited for. Blocks have a fixed size, so nothing depends on the number of threads.
// closed.py lays out the planes; target/choose.py and terms.py have the equations.

#include <sched.h>

#include "levels.h"

constexpr int LEVELS = 6, MOMENTS = 5, GRAYS = 256;
constexpr float CENTER = 0.5f, CORRELATION_FLOOR = 0.01f, CONFLICT_SLOPE = 1.5f;
constexpr float SKY_LUMA = 0.65f, SKY_SLOPE = 20, SKY_STD = 0.015f, LEAST_EXPONENT = -50;
constexpr float COLD_LUMA = 0.2f, COLD_SKY = 0.6f, PICK_SLOPE = 12, GUIDE_EPS = 0.01f;
constexpr float SHARE_FLOOR = 1e-8f, LEAST_DEVIATION = 1e-4f;

extern "C" {

// Planes of levels 0 to 5; level k is [ceil(height / 2^k), ceil(width / 2^k)].
struct Choose {
    float *ir[LEVELS], *vis[LEVELS];                    // of level 0 read only
    float *conflict[LEVELS], *pick[LEVELS], *sky[LEVELS];  // from level 1
    float *weight[LEVELS];                              // of the base, from level 2
    float *result[LEVELS];
    float *square;            // of the visible plane minus CENTER, at level 1
    float *moments[MOMENTS];  // i, v, i i, v v, i v minus CENTER, at level 2
    float *parts[2];          // conflict times the variances, at level 2
    float *wide[2], *cold;    // the parts at level 3, and how cold a sky is there
    float *guide, *raw, *slope, *offset;  // of the guided filter, at level 2
    Team team;
    int64_t height, width, depth;
    double share, gain, coring, sky_coring, sky_share, sky_base, conflict_share, salient, bright;
    double steepness, contrast, most_contrast, margin;
};
}

struct State {
    const Choose &call;
    Size sizes[LEVELS];
    bool disputed, skies, weighted;
    std::atomic<int64_t> counts[2][GRAYS]{};
    std::atomic<bool> failed{false};
    std::atomic<int64_t> next[32]{}, done[32]{};

    explicit State(const Choose &c) : call(c) {
        sizes[0] = {c.height, c.width};
        for (int k = 1; k < LEVELS; k++) sizes[k] = sizes[k - 1].halved();
        disputed = c.conflict_share != 0;
        skies = c.sky_share != 0 || c.sky_coring != 0 || c.sky_base != 0;
        weighted = c.salient != 0 || c.bright != 0;
    }
};

// ------------------------------------------------------------------ rows

// Filters x, x - CENTER or products of these across five rows, 16 times too large.
enum Of { ITSELF, CENTERED, PRODUCT };
template <Of OF>
static void across(const float *const *a, const float *const *b, int64_t width,
                   float *__restrict out) {
    const float *__restrict a0 = a[0], *__restrict a1 = a[1], *__restrict a2 = a[2];
    const float *__restrict a3 = a[3], *__restrict a4 = a[4];
    const float *__restrict b0 = b[0], *__restrict b1 = b[1], *__restrict b2 = b[2];
    const float *__restrict b3 = b[3], *__restrict b4 = b[4];
    const auto value = [](float x, float y) {
        return OF == ITSELF ? x : OF == CENTERED ? x - CENTER : (x - CENTER) * (y - CENTER);
    };
    for (int64_t x = 0; x < width; x++)
        out[x] = (value(a0[x], b0[x]) + value(a4[x], b4[x])) +
                 4 * (value(a1[x], b1[x]) + value(a3[x], b3[x])) + 6 * value(a2[x], b2[x]);
}

// Filters along a row with margins, and keeps every second value; `odd` and `even` are scratch.
static void along(float *__restrict row, int64_t width, float *__restrict even,
                  float *__restrict odd, float *__restrict out) {
    for (int64_t k = 1; k <= 2; k++) {
        row[-k] = row[mirrored(-k, width)];
        row[width - 1 + k] = row[mirrored(width - 1 + k, width)];
    }
    const int64_t count = half(width);
    for (int64_t x = 0; x < count + 2; x++) even[x] = row[2 * x - 2], odd[x] = row[2 * x - 1];
    for (int64_t x = 0; x < count; x++)
        out[x] = ((even[x] + even[x + 2]) + 4 * (odd[x] + odd[x + 1]) + 6 * even[x + 1]) *
                 (1 / 256.0f);
}

struct Halving {
    const float *a, *b;  // the same plane if there is only one
    float *out;
    Of of;
};

// Halves planes of a size: computes rows [first, end) of the results.
static bool halve(const Halving *planes, int count, Size size, int64_t first, int64_t end) {
    const int64_t pitch = pitch_of(size.width + 4);
    float *rows = scratch.floats(3 * pitch);
    if (!rows) return false;
    float *sum = rows + MARGIN, *even = sum + pitch, *odd = even + pitch;
    for (int64_t y = first; y < end; y++)
        for (int p = 0; p < count; p++) {
            const Halving &plane = planes[p];
            const float *a[TAPS], *b[TAPS];
            for (int64_t k = 0; k < TAPS; k++) {
                const int64_t at = mirrored(2 * y - 2 + k, size.height) * size.width;
                a[k] = plane.a + at, b[k] = plane.b + at;
            }
            if (plane.of == ITSELF) across<ITSELF>(a, b, size.width, sum);
            if (plane.of == CENTERED) across<CENTERED>(a, b, size.width, sum);
            if (plane.of == PRODUCT) across<PRODUCT>(a, b, size.width, sum);
            along(sum, size.width, even, odd, plane.out + y * half(size.width));
        }
    return true;
}

// ------------------------------------------------------------------ stages

static bool first_level(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const Halving planes[] = {{c.ir[0], c.ir[0], c.ir[1], ITSELF},
                              {c.vis[0], c.vis[0], c.vis[1], ITSELF},
                              {c.vis[0], c.vis[0], c.square, PRODUCT}};
    return halve(planes, s.skies ? 3 : 2, s.sizes[0], first, end);
}

static bool second_level(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const float *i = c.ir[1], *v = c.vis[1];
    const Halving planes[] = {
        {i, i, c.ir[2], ITSELF},          {v, v, c.vis[2], ITSELF},
        {i, i, c.moments[0], CENTERED},   {v, v, c.moments[1], CENTERED},
        {i, i, c.moments[2], PRODUCT},    {v, v, c.moments[3], PRODUCT},
        {i, v, c.moments[4], PRODUCT}};
    return halve(planes, s.disputed ? 7 : 2, s.sizes[1], first, end);
}

static bool sky_level(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const int64_t width = s.sizes[1].width;
    const Smoothing planes[] = {{c.vis[1], nullptr, CENTER}, {c.square, nullptr, 0}};
    return smooth_all<2>(planes, s.sizes[1], first, end, [&](int64_t y, float *const *found) {
        const float *mean = found[0], *square = found[1];
        for (int64_t x = 0; x < width; x += VL) {
            const vec m = load(mean + x), variance = most(load(square + x) - m * m, vec{});
            const vec power = most(variance * (-1 / (SKY_STD * SKY_STD)), same(LEAST_EXPONENT));
            const vec bright = (m - (SKY_LUMA - CENTER)) * SKY_SLOPE;
            const vec value = exp2_of(power, LOG2E) /
                (1.0f + exp2_of(least(most(bright, same(-87.0f)), same(87.0f)), -LOG2E));
            if (width - x >= VL)
                store(c.sky[1] + y * width + x, value);
            else
                store_some(c.sky[1] + y * width + x, value, (int)(width - x));
        }
    });
}

// Computes a row's conflict, and its products with both variances, from local means and moments.
static void conflict_row(const Choose &c, int64_t at, int64_t width, float *const *m) {
    const float *__restrict mi = m[0], *__restrict mv = m[1], *__restrict ii = m[2];
    const float *__restrict vv = m[3], *__restrict iv = m[4];
    float *__restrict out = c.conflict[2] + at;
    float *__restrict of_i = c.parts[0] + at, *__restrict of_v = c.parts[1] + at;
    const float share = (float)c.conflict_share, floor = CORRELATION_FLOOR * CORRELATION_FLOOR;
    for (int64_t x = 0; x < width; x++) {
        float a = ii[x] - mi[x] * mi[x], b = vv[x] - mv[x] * mv[x];
        a = a < 0 ? 0 : a, b = b < 0 ? 0 : b;
        const float together = iv[x] - mi[x] * mv[x];
        float value = together / std::sqrt((a + floor) * (b + floor)) * -CONFLICT_SLOPE;
        value = value < 0 ? 0 : value > 1 ? 1 : value;
        of_i[x] = value * a, of_v[x] = value * b;
        out[x] = value * share;
    }
}

static bool conflict_level(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    Smoothing planes[MOMENTS];
    for (int k = 0; k < MOMENTS; k++) planes[k] = {c.moments[k], nullptr, 0};
    const int64_t width = s.sizes[2].width;
    return smooth_all<MOMENTS>(planes, s.sizes[2], first, end, [&](int64_t y, float *const *m) {
        conflict_row(c, y * width, width, m);
    });
}

static int64_t gray_of(float x) {
    const float gray = std::nearbyint(x * 255);
    return gray > 0 ? gray < 255 ? (int64_t)gray : 255 : 0;
}

static bool count_level(State &s, int64_t first, int64_t end) {
    const int64_t width = s.sizes[2].width;
    for (int source = 0; source < 2; source++) {
        int32_t counts[GRAYS] = {};
        const float *plane = source ? s.call.vis[2] : s.call.ir[2];
        for (int64_t i = first * width; i < end * width; i++) counts[gray_of(plane[i])]++;
        for (int gray = 0; gray < GRAYS; gray++)
            if (counts[gray]) s.counts[source][gray] += counts[gray];
    }
    return true;
}

// Computes the salience of each gray; the sums are exact.
static void salience(const std::atomic<int64_t> *counts, float *out) {
    int64_t pixels = 0, weight = 0, below = 0, weight_below = 0;
    for (int64_t gray = 0; gray < GRAYS; gray++) pixels += counts[gray], weight += counts[gray] * gray;
    int64_t sums[GRAYS], low = INT64_MAX, high = 0;
    for (int64_t gray = 0; gray < GRAYS; gray++) {
        below += counts[gray], weight_below += counts[gray] * gray;
        sums[gray] = (2 * below - pixels) * gray + (weight - 2 * weight_below);
        if (!counts[gray]) continue;
        low = sums[gray] < low ? sums[gray] : low, high = sums[gray] > high ? sums[gray] : high;
    }
    const float span = (float)(high - low > 1 ? high - low : 1);
    for (int gray = 0; gray < GRAYS; gray++) out[gray] = (float)(sums[gray] - low) / span;
}

static bool raw_weight(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const int64_t width = s.sizes[2].width;
    float of_i[GRAYS], of_v[GRAYS];
    salience(s.counts[0], of_i), salience(s.counts[1], of_v);
    float *row = scratch.floats(pitch_of(width));
    if (!row) return false;
    memset(row, 0, 4 * pitch_of(width));
    const float salient = (float)(c.salient / 2), bright = (float)c.bright;
    for (int64_t y = first; y < end; y++) {
        const float *__restrict i = c.ir[2] + y * width, *__restrict v = c.vis[2] + y * width;
        float *__restrict guide = c.guide + y * width, *__restrict raw = c.raw + y * width;
        for (int64_t x = 0; x < width; x++) row[x] = (i[x] - v[x]) * (float)c.steepness;
        sigmoid_row(row, width);
        for (int64_t x = 0; x < width; x++) {
            guide[x] = (i[x] + v[x]) * 0.5f;
            raw[x] = (of_i[gray_of(i[x])] - of_v[gray_of(v[x])]) * salient + 0.5f +
                     bright * (row[x] - 0.5f);
        }
    }
    return true;
}

static bool fit_weight(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const int64_t width = s.sizes[2].width;
    const Smoothing planes[] = {{c.guide, nullptr, 0}, {c.raw, nullptr, 0},
                                {c.guide, c.raw, 0}, {c.guide, c.guide, 0}};
    return smooth_all<4>(planes, s.sizes[2], first, end, [&](int64_t y, float *const *m) {
        const float *__restrict g = m[0], *__restrict w = m[1];
        const float *__restrict gw = m[2], *__restrict gg = m[3];
        float *__restrict slope = c.slope + y * width, *__restrict offset = c.offset + y * width;
        for (int64_t x = 0; x < width; x++) {
            const float fit = (gw[x] - g[x] * w[x]) / (gg[x] - g[x] * g[x] + GUIDE_EPS);
            slope[x] = fit, offset[x] = w[x] - fit * g[x];
        }
    });
}

static bool smooth_weight(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const int64_t width = s.sizes[2].width;
    const Smoothing planes[] = {{c.slope, nullptr, 0}, {c.offset, nullptr, 0}};
    return smooth_all<2>(planes, s.sizes[2], first, end, [&](int64_t y, float *const *m) {
        const float *__restrict slope = m[0], *__restrict offset = m[1];
        const float *__restrict guide = c.guide + y * width;
        float *__restrict out = c.weight[2] + y * width;
        for (int64_t x = 0; x < width; x++) {
            const float w = slope[x] * guide[x] + offset[x];
            out[x] = w < 0 ? 0 : w > 1 ? 1 : w;
        }
    });
}

static bool third_level(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const Halving planes[] = {{c.parts[0], c.parts[0], c.wide[0], ITSELF},
                              {c.parts[1], c.parts[1], c.wide[1], ITSELF},
                              {c.moments[0], c.moments[0], c.cold, ITSELF},
                              {c.moments[1], c.moments[1], c.pick[3], ITSELF}};
    if (!halve(planes, 4, s.sizes[2], first, end)) return false;
    for (int64_t i = first * s.sizes[3].width; i < end * s.sizes[3].width; i++)
        c.cold[i] = sigmoid((c.pick[3][i] - (SKY_LUMA - CENTER)) * SKY_SLOPE) *
                    sigmoid((c.cold[i] - (COLD_LUMA - CENTER)) * -SKY_SLOPE);
    return true;
}

static bool pick_level(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const int64_t width = s.sizes[3].width;
    const Smoothing planes[] = {{c.wide[0], nullptr, 0}, {c.wide[1], nullptr, 0}};
    return smooth_all<2>(planes, s.sizes[3], first, end, [&](int64_t y, float *const *m) {
        const float *cold = c.cold + y * width;
        float *out = c.pick[3] + y * width;
        for (int64_t x = 0; x < width; x++) {
            const float share = (m[0][x] + SHARE_FLOOR) / (m[0][x] + m[1][x] + 2 * SHARE_FLOOR);
            out[x] = sigmoid((share - 0.5f) * PICK_SLOPE) * (1 - COLD_SKY * cold[x]);
        }
    });
}

// Carries a map to the levels from `from` + 1 to the coarsest.
static bool carry_down(State &s, float *const *planes, int from) {
    for (int k = from; k < s.call.depth; k++) {
        const Halving halving{planes[k], planes[k], planes[k + 1], ITSELF};
        if (!halve(&halving, 1, s.sizes[k], 0, s.sizes[k + 1].height)) return false;
    }
    return true;
}

static bool carry_up(State &s, float *const *planes, int to, int64_t first, int64_t end) {
    const Size size = s.sizes[to], small = s.sizes[to + 1];
    const int64_t pitch = pitch_of(size.width);
    float *rows = scratch.floats(2 * pitch);
    if (!rows) return false;
    for (int64_t y = first; y < end; y++) {
        double_row(planes[to + 1], y, small.height, small.width, rows + MARGIN, rows + pitch);
        memcpy(planes[to] + y * size.width, rows + pitch, 4 * size.width);
    }
    return true;
}

static bool ir_chain(State &s, int64_t, int64_t) { return carry_down(s, s.call.ir, 2); }
static bool vis_chain(State &s, int64_t, int64_t) { return carry_down(s, s.call.vis, 2); }
static bool sky_chain(State &s, int64_t, int64_t) { return carry_down(s, s.call.sky, 1); }
static bool pick_chain(State &s, int64_t, int64_t) { return carry_down(s, s.call.pick, 3); }
static bool weight_chain(State &s, int64_t, int64_t) { return carry_down(s, s.call.weight, 2); }
static bool conflict_chain(State &s, int64_t, int64_t) { return carry_down(s, s.call.conflict, 2); }
static bool conflict_up(State &s, int64_t first, int64_t end) {
    return carry_up(s, s.call.conflict, 1, first, end);
}
static bool pick_to_second(State &s, int64_t first, int64_t end) {
    return carry_up(s, s.call.pick, 2, first, end);
}
static bool pick_to_first(State &s, int64_t first, int64_t end) {
    return carry_up(s, s.call.pick, 1, first, end);
}

// Computes the mean and the standard deviation.
static void spread(const float *x, int64_t count, double *mean, double *deviation) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i];
    *mean = sum / (double)count;
    for (int64_t i = 0; i < count; i++) squares += (x[i] - *mean) * (x[i] - *mean);
    *deviation = std::sqrt(squares / (double)count);
}

// Computes the coarsest level of the result.
static bool base(State &s, int64_t, int64_t) {
    const Choose &c = s.call;
    const int64_t last = c.depth, count = s.sizes[last].height * s.sizes[last].width;
    const float *a = c.ir[last], *b = c.vis[last];
    float *out = c.result[last];
    for (int64_t i = 0; i < count; i++) {
        float w = s.weighted ? c.weight[last][i] : 0.5f;
        if (s.disputed) w += c.conflict[last][i] * (c.pick[last][i] - w);
        if (s.skies) w *= 1 - (float)c.sky_base * c.sky[last][i];
        out[i] = b[i] + w * (a[i] - b[i]);
    }
    if (c.contrast == 0) return true;
    double mean, own, of_a, of_b, ignored;
    spread(out, count, &mean, &own), spread(a, count, &ignored, &of_a);
    spread(b, count, &ignored, &of_b);
    own = own < LEAST_DEVIATION ? LEAST_DEVIATION : own;
    double factor = std::sqrt((of_a * of_a + of_b * of_b) / 2) * c.contrast / own;
    factor = factor < 1 ? 1 : factor > c.most_contrast ? c.most_contrast : factor;
    for (int64_t i = 0; i < count; i++)
        out[i] = (float)((out[i] - mean) * factor + mean);
    return true;
}

template <int K>
static bool result_level(State &s, int64_t first, int64_t end) {
    const Choose &c = s.call;
    const int at = K ? K : 1;  // the maps' level
    Level level{};
    level.sources[0] = c.ir[K], level.sources[1] = c.vis[K];
    level.coarse[0] = c.ir[K + 1], level.coarse[1] = c.vis[K + 1], level.result = c.result[K + 1];
    if (s.disputed) level.conflict = c.conflict[at], level.pick = c.pick[at];
    if (s.skies) level.sky = c.sky[at];
    level.out = c.result[K], level.height = s.sizes[K].height, level.width = s.sizes[K].width;
    level.halved = !K, level.share = c.share, level.gain = c.gain, level.coring = c.coring;
    level.sky_coring = c.sky_coring, level.sky_share = c.sky_share;
    level.margin = K ? 0 : c.margin;
    return fuse_rows(level, first, end);
}

// ------------------------------------------------------------------ the plan

struct Job {
    bool (*part)(State &, int64_t first, int64_t end);
    int level;    // whose rows are its blocks; -1: one block
    bool wanted;
};

constexpr int JOBS = 6;
struct Stage {
    Job jobs[JOBS];
};

static int64_t blocks_of(const State &s, const Job &job) {
    if (!job.part || !job.wanted) return 0;
    return job.level < 0 ? 1 : (s.sizes[job.level].height + ROWS - 1) / ROWS;
}

static void run_stage(State &s, const Stage &stage, int number) {
    int64_t all = 0;
    for (const Job &job : stage.jobs) all += blocks_of(s, job);
    for (int64_t block; (block = s.next[number].fetch_add(1)) < all;) {
        for (const Job &job : stage.jobs) {
            const int64_t blocks = blocks_of(s, job);
            if (block >= blocks) {
                block -= blocks;
                continue;
            }
            const int64_t rows = job.level < 0 ? 1 : s.sizes[job.level].height;
            const int64_t first = block * ROWS, end = first + ROWS < rows ? first + ROWS : rows;
            if (!s.failed && !job.part(s, first, end)) s.failed = true;
            break;
        }
        s.done[number].fetch_add(1);
    }
    for (int tries = 0; s.done[number].load() < all; tries++)
        if (tries > 2000) sched_yield();  // the other thread may be waiting for this processor
}

static void run_all(void *argument) {
    State &s = *(State *)argument;
    const bool d = s.disputed, k = s.skies, w = s.weighted;
    const int depth = (int)s.call.depth;
    const Stage stages[] = {
        {{{first_level, 1, true}}},
        {{{second_level, 2, true}, {sky_level, 1, k}}},
        {{{conflict_level, 2, d}, {count_level, 2, w}, {ir_chain, -1, true}, {vis_chain, -1, true},
          {sky_chain, -1, k}}},
        {{{third_level, 3, d}, {raw_weight, 2, w}, {conflict_up, 1, d}, {conflict_chain, -1, d}}},
        {{{pick_level, 3, d}, {fit_weight, 2, w}}},
        {{{smooth_weight, 2, w}, {pick_to_second, 2, d}, {pick_chain, -1, d}}},
        {{{pick_to_first, 1, d}, {weight_chain, -1, w}}},
        {{{base, -1, true}}},
        {{{result_level<4>, 4, depth > 4}}},
        {{{result_level<3>, 3, depth > 3}}},
        {{{result_level<2>, 2, depth > 2}}},
        {{{result_level<1>, 1, true}}},
        {{{result_level<0>, 0, true}}},
    };
    int number = 0;
    for (const Stage &stage : stages) run_stage(s, stage, number++);
}

extern "C" {

int64_t ddfm_choose_bytes() { return sizeof(Choose); }

// Returns 0, or 1 if there was no memory.
int ddfm_choose(const Choose *choose, int64_t threads) {
    State state(*choose);
    if (choose->team && threads > 1 && choose->height * choose->width >= MANY_PIXELS / 2)
        choose->team(run_all, &state, (unsigned)threads, 0);
    else
        run_all(&state);
    return state.failed;
}
}
