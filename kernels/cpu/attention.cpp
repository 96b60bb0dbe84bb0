// A faster version of F.scaled_dot_product_attention on a CPU, in float32, without a score matrix.
//
// softmax(q k^T / sqrt(width)) v for blocks of queries, over the keys in blocks, with the running
// maximum and sum of Milakov and Gimelshein 2018, as in FlashAttention (Dao et al. 2022). Keys are
// packed as columns and values as rows of the register-tiled product. The order of sums does not
// depend on the number of threads. attention.py fills struct Attention and checks shapes.

#include "vectors.h"

// Queries that are processed together, a multiple of MR; keys in a block, a multiple of NR.
constexpr int QUERIES = 24, KEYS = 256;
// Groups of NR keys that one task packs.
constexpr int PACKED = 16;

extern "C" {

struct Attention {
    const float *q, *k, *v;  // [n, tokens, heads, width] by the strides below
    float *packed;           // scratch: n * heads * ddfm_attention_floats(tokens, width)
    float *out;              // [n, tokens, heads, width] without gaps
    Team team;
    int64_t n, tokens, heads, width, image_stride, token_stride, head_stride;
};
}

static int64_t groups_of(int64_t count) { return (count + NR - 1) / NR; }

static int64_t packed_floats(int64_t tokens, int64_t width) {
    return groups_of(tokens) * NR * (width + groups_of(width) * NR);
}

struct Task {
    const Attention &attention;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
};

static const float *at(const Attention &a, const float *tensor, int64_t image, int64_t head,
                       int64_t token) {
    return tensor + image * a.image_stride + head * a.head_stride + token * a.token_stride;
}

// Packs keys [groups, width, NR], then values [groups of width, keys, NR]; zeros for missing keys.
static void pack(const Attention &a, int64_t image, int64_t head, int64_t first, int64_t last) {
    const int64_t groups = groups_of(a.tokens), wide = groups_of(a.width);
    float *keys = a.packed + (image * a.heads + head) * packed_floats(a.tokens, a.width);
    float *values = keys + groups * NR * a.width;
    for (int64_t token = first * NR; token < last * NR; token++) {
        float *column = keys + token / NR * NR * a.width + token % NR, *row = values + token * NR;
        if (token >= a.tokens) {
            for (int64_t c = 0; c < a.width; c++) column[c * NR] = 0;
            for (int64_t i = 0; i < wide; i++) memset(row + i * groups * NR * NR, 0, 4 * NR);
            continue;
        }
        const float *k = at(a, a.k, image, head, token), *v = at(a, a.v, image, head, token);
        for (int64_t c = 0; c < a.width; c++) column[c * NR] = k[c];
        for (int64_t c = 0; c < a.width; c += VL)
            store(row + c / NR * groups * NR * NR + c % NR, load_up_to(v + c, a.width - c));
    }
}

static void pack_all(void *argument) {
    Task &task = *(Task *)argument;
    const Attention &a = task.attention;
    const int64_t groups = groups_of(a.tokens), parts = (groups + PACKED - 1) / PACKED;
    for (int64_t i; (i = task.next.fetch_add(1)) < a.n * a.heads * parts;) {
        const int64_t first = i % parts * PACKED, end = first + PACKED, pair = i / parts;
        pack(a, pair / a.heads, pair % a.heads, first, end < groups ? end : groups);
    }
}

// Sets scores[at + j] to rows [at, at + M) of q times NR keys.
template <int M>
static void scores_of(int at, int width, const float *q, const float *keys, float *scores) {
    vec acc[M][2] = {};
    const float *rows[M];
    for (int j = 0; j < M; j++) rows[j] = q + (at + j) * width;
    multiply<M>(width, rows, keys, acc);
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) {
        store(scores + (at + j) * KEYS, acc[j][0]);
        store(scores + (at + j) * KEYS + VL, acc[j][1]);
    }
}

// Sets sums[at + j] to sums * factor plus rows [at, at + M) of the weights times NR channels of
// values.
template <int M>
static void weigh(int at, int keys, const float *weights, const float *values, const float *factor,
                  float *sums, int64_t pitch) {
    vec acc[M][2];
    const float *rows[M];
    for (int j = 0; j < M; j++) {
        const float *sum = sums + (at + j) * pitch;
        acc[j][0] = load(sum) * factor[at + j];
        acc[j][1] = load(sum + VL) * factor[at + j];
        rows[j] = weights + (at + j) * KEYS;
    }
    multiply<M>(keys, rows, values, acc);
#pragma GCC unroll 8
    for (int j = 0; j < M; j++) {
        store(sums + (at + j) * pitch, acc[j][0]);
        store(sums + (at + j) * pitch + VL, acc[j][1]);
    }
}

static float across(vec v, bool sum) {
    float found = v[0];
    for (int i = 1; i < VL; i++) found = sum ? found + v[i] : found < v[i] ? v[i] : found;
    return found;
}

// Replaces a row of scores by exp(score - maximum); `factor` rescales what was summed before.
static void soften(float *row, int keys, float &maximum, float &total, float &factor) {
    vec most_yet = load(row);
    for (int i = VL; i < keys; i += VL) most_yet = most(most_yet, load(row + i));
    const float before = maximum, here = across(most_yet, false);
    maximum = here > before ? here : before;
    vec sum = {};
    for (int i = 0; i < keys; i += VL) {
        const vec e = exp2_of(most(load(row + i) - maximum, same(-87.0f)), LOG2E);
        store(row + i, e);
        sum += e;
    }
    factor = expf(before - maximum);
    total = total * factor + across(sum, true);
}

// Computes queries [first, first + count) of one head.
static bool attend(const Attention &a, int64_t image, int64_t head, int64_t first, int count) {
    const int width = (int)a.width;
    const int64_t groups = groups_of(a.tokens), wide = groups_of(a.width), pitch = wide * NR;
    const float *keys = a.packed + (image * a.heads + head) * packed_floats(a.tokens, a.width);
    const float *values = keys + groups * NR * width;
    float *q = scratch.floats(QUERIES * (width + pitch + KEYS));
    if (!q) return false;
    float *sums = q + QUERIES * width, *scores = sums + QUERIES * pitch;
    float maximum[QUERIES], total[QUERIES] = {}, factor[QUERIES];
    const float scale = 1 / sqrtf((float)width);
    for (int j = 0; j < count; j++) {
        const float *from = at(a, a.q, image, head, first + j);
        for (int c = 0; c < width; c++) q[j * width + c] = from[c] * scale;
        maximum[j] = -INFINITY;
    }
    memset(sums, 0, 4 * count * pitch);
    for (int64_t start = 0; start < groups * NR; start += KEYS) {
        const int64_t left = groups * NR - start;
        const int here = (int)(left < KEYS ? left : KEYS);
        for (int key = 0; key < here; key += NR)
            IN_ROWS(count, scores_of, width, q, keys + (start + key) * width, scores + key);
        for (int j = 0; j < count; j++) {
            for (int64_t none = a.tokens - start; none < here; none++) scores[j * KEYS + none] = -INFINITY;
            soften(scores + j * KEYS, here, maximum[j], total[j], factor[j]);
        }
        for (int64_t group = 0; group < wide; group++)
            IN_ROWS(count, weigh, here, scores, values + (group * groups * NR + start) * NR, factor,
                    sums + group * NR, pitch);
    }
    for (int j = 0; j < count; j++) {
        float *to = a.out + ((image * a.tokens + first + j) * a.heads + head) * width;
        for (int c = 0; c < width; c++) to[c] = sums[j * pitch + c] / total[j];
    }
    return true;
}

static void attend_all(void *argument) {
    Task &task = *(Task *)argument;
    const Attention &a = task.attention;
    const int64_t parts = (a.tokens + QUERIES - 1) / QUERIES;
    for (int64_t i; (i = task.next.fetch_add(1)) < a.n * a.heads * parts;) {
        const int64_t first = i % parts * QUERIES, left = a.tokens - first, pair = i / parts;
        const int count = (int)(left < QUERIES ? left : QUERIES);
        if (!attend(a, pair / a.heads, pair % a.heads, first, count)) task.failed = true;
    }
}

extern "C" {

int64_t ddfm_attention_bytes() { return sizeof(Attention); }
int64_t ddfm_attention_floats(int64_t tokens, int64_t width) { return packed_floats(tokens, width); }

// Returns 0, or 1 if there was no memory.
int ddfm_attention(const Attention *attention, int64_t threads) {
    Task packing{*attention}, attending{*attention};
    if (attention->team && threads > 1) {
        attention->team(pack_all, &packing, (unsigned)threads, 0);
        attention->team(attend_all, &attending, (unsigned)threads, 0);
    } else {
        pack_all(&packing);
        attend_all(&attending);
    }
    return attending.failed;
}
}
