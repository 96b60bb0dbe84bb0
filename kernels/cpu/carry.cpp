// ddfm_carry: reuses the previous frame's sources in a frame, where both show the same.
//
// One pass over the rows computes the change from the previous frame, as it stands and moved along
// the flow; its mean over 3x3 pixels; the trust in the better of the two; and the mix. Moving is
// bicubic: with vector loads where the flow maps neighbors to neighbors, else pixel by pixel.
// carry.py fills the struct; video/trust.py has the equations.

#include "rows.h"

constexpr float GRAY_LEVELS = 255, CUBIC = -0.75f;
constexpr int SEEN = 3, SOURCES = 2, CUBIC_TAPS = 4;

extern "C" {

struct Carry {
    const float *now[SOURCES], *kept[SOURCES];  // [height, width] in [0, 1]
    const float *flow;                          // [height, width, 2], (dx, dy) in pixels; or null
    float *out[SOURCES];
    Team team;
    int64_t height, width;
    double trust, margin;  // gray levels: where trust is 1/e, and by how much moving must be better
};
}

// A thread's rows, each with margins: rings of SEEN rows, then single ones.
enum CarryKind { STILL, GONE, MOVED_A, MOVED_B, CARRY_KINDS };
enum CarrySingle { CHANGE = CARRY_KINDS * SEEN, FLOW_X, FLOW_Y, CARRY_ROWS };

struct CarryRows {
    float *memory;
    int64_t pitch;
    float *at(int64_t row) const { return memory + row * pitch + MARGIN; }
    float *ring(int kind, int64_t y) const { return at(kind * SEEN + (y + SEEN) % SEEN); }
};

static inline vec lanes() {
    vec numbers;
    for (int k = 0; k < VL; k++) numbers[k] = (float)k;
    return numbers;
}

// Rounds down to whole numbers.
static inline ivec floor_of(vec x) {
    const ivec near = __builtin_convertvector(x, ivec);
    return near + (x < __builtin_convertvector(near, vec));  // true is -1
}

// Computes the weights of the four places around x + t, the first of which is x - 1.
template <class T>
static inline void cubic_weights(T t, T *w) {
    const T far = t + 1.0f, rest = 1.0f - t, other = 2.0f - t;
    w[0] = ((far * CUBIC - 5 * CUBIC) * far + 8 * CUBIC) * far - 4 * CUBIC;
    w[1] = ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1.0f;
    w[2] = ((CUBIC + 2) * rest - (CUBIC + 3)) * rest * rest + 1.0f;
    w[3] = ((other * CUBIC - 5 * CUBIC) * other + 8 * CUBIC) * other - 4 * CUBIC;
}

static int64_t inside(int64_t at, int64_t size) { return at < 0 ? 0 : at < size ? at : size - 1; }

// Reads one pixel of a plane, with repeated edges, at column x and row y plus fractions.
static float moved_pixel(const Carry &carry, const float *plane, int64_t x, int64_t y, float tx,
                         float ty) {
    float wx[CUBIC_TAPS], wy[CUBIC_TAPS], sum = 0;
    cubic_weights(tx, wx), cubic_weights(ty, wy);
    int64_t columns[CUBIC_TAPS];
    for (int i = 0; i < CUBIC_TAPS; i++) columns[i] = inside(x - 1 + i, carry.width);
    for (int j = 0; j < CUBIC_TAPS; j++) {
        const float *row = plane + inside(y - 1 + j, carry.height) * carry.width;
        float along = 0;
        for (int i = 0; i < CUBIC_TAPS; i++) along += wx[i] * row[columns[i]];
        sum += wy[j] * along;
    }
    return sum;
}

// Reads VL pixels that lie in a row, the first at column x and row y.
static vec moved_row(const float *plane, int64_t width, int64_t x, int64_t y, const vec *wx,
                     const vec *wy) {
    const float *from = plane + (y - 1) * width + x - 1;
    vec sum{};
    for (int j = 0; j < CUBIC_TAPS; j++, from += width) {
        vec along = wx[0] * load(from);
        for (int i = 1; i < CUBIC_TAPS; i++) along += wx[i] * load(from + i);
        sum += wy[j] * along;
    }
    return sum;
}

static bool all_zero(ivec x) {
    uint64_t parts[VL / 2], found = 0;
    memcpy(parts, &x, sizeof parts);
    for (uint64_t part : parts) found |= part;
    return !found;
}

// Clamps a position to where all of its taps are the same edge pixel; NaN becomes the first
// position.
static vec bounded(vec x, int64_t size) {
    const vec low = same(-4.0f), high = same((float)(size + 4));
    x = x > low ? x : low;
    return x < high ? x : high;
}

// Moves row y of the previous frame along the flow.
static void move(const Carry &carry, int64_t y, const float *__restrict dx,
                 const float *__restrict dy, float *const *out) {
    const int64_t height = carry.height, width = carry.width;
    for (int64_t x = 0; x < width; x += VL) {
        const int64_t count = width - x < VL ? width - x : VL;
        const vec at_x = bounded(load(dx + x) + (lanes() + (float)x), width);
        const vec at_y = bounded(load(dy + x) + (float)y, height);
        const ivec ix = floor_of(at_x), iy = floor_of(at_y);
        const vec tx = at_x - __builtin_convertvector(ix, vec);
        const vec ty = at_y - __builtin_convertvector(iy, vec);
        const ivec ahead = ix - __builtin_convertvector(lanes(), ivec);
        const int64_t from_x = ix[0], from_y = iy[0];
        const bool together = all_zero((ahead - ahead[0]) | (iy - iy[0]));
        if (together && count == VL && from_x > 0 && from_x + VL + 1 < width && from_y > 0 &&
            from_y + 2 < height) {
            vec wx[CUBIC_TAPS], wy[CUBIC_TAPS];
            cubic_weights(tx, wx), cubic_weights(ty, wy);
            for (int s = 0; s < SOURCES; s++)
                store(out[s] + x, moved_row(carry.kept[s], width, from_x, from_y, wx, wy));
        } else {
            for (int k = 0; k < (int)count; k++)
                for (int s = 0; s < SOURCES; s++)
                    out[s][x + k] = moved_pixel(carry, carry.kept[s], ix[k], iy[k], tx[k], ty[k]);
        }
        for (int s = 0; s < SOURCES; s++)
            store(out[s] + x, least(most(load(out[s] + x), vec{}), same(1.0f)));
    }
}

// Sums, over three columns, the larger change of the two sources; nothing counts beyond the ends.
static void change_row(const Carry &carry, int64_t y, const float *__restrict a,
                       const float *__restrict b, float *__restrict change,
                       float *__restrict sums) {
    const int64_t at = y * carry.width;
    const float *__restrict c = carry.now[0] + at, *__restrict d = carry.now[1] + at;
    for (int64_t x = 0; x < carry.width; x++) {
        const float one = std::fabs(c[x] - a[x]), other = std::fabs(d[x] - b[x]);
        change[x] = (one < other ? other : one) * GRAY_LEVELS;
    }
    change[-1] = change[carry.width] = 0;
    for (int64_t x = 0; x < carry.width; x++) sums[x] = change[x - 1] + change[x] + change[x + 1];
}

// Mixes a row; means are over the pixels inside the image.
static void mix_row(const Carry &carry, int64_t y, const CarryRows &rows) {
    const int64_t width = carry.width, at = y * width;
    const int64_t seen = 1 + (y > 0) + (y + 1 < carry.height);
    const float *still[SEEN], *gone[SEEN];
    for (int64_t k = 0; k < SEEN; k++) {
        const int64_t from = y - 1 + k;
        const bool here = from >= 0 && from < carry.height;  // else it counts as no change
        still[k] = rows.ring(STILL, here ? from : y), gone[k] = rows.ring(GONE, here ? from : y);
    }
    const float above = y > 0 ? 1.0f : 0.0f, below = y + 1 < carry.height ? 1.0f : 0.0f;
    const float factor = (float)(-1 / carry.trust), margin = (float)carry.margin;
    const vec inner = same(1.0f / (float)(3 * seen)), edge = same(1.0f / (float)(2 * seen));
    for (int64_t x = 0; x < width; x += VL) {
        vec share = inner;
        if (x == 0) share[0] = edge[0];
        if (width - 1 - x < VL) share[width - 1 - x] = edge[0];
        vec change = (load(still[0] + x) * above + load(still[1] + x) + load(still[2] + x) * below) *
                     share;
        ivec better{};
        if (carry.flow) {
            const vec other = (load(gone[0] + x) * above + load(gone[1] + x) +
                               load(gone[2] + x) * below) * share;
            better = other + margin < change;
            change = better ? other : change;
        }
        const vec power = most(change * factor, same(-87.0f));
        const vec trust = least(exp2_of(power, LOG2E), same(1.0f));
        const int64_t count = width - x;
        for (int s = 0; s < SOURCES; s++) {
            const vec now = load_up_to(carry.now[s] + at + x, count);
            const vec kept = load_up_to(carry.kept[s] + at + x, count);
            const vec from = better ? load(rows.ring(MOVED_A + s, y) + x) : kept;
            const vec way = from - now;
            const vec mixed = trust < 0.5f ? now + trust * way : from - way * (1.0f - trust);
            if (count >= VL)
                store(carry.out[s] + at + x, mixed);
            else
                store_some(carry.out[s] + at + x, mixed, (int)count);
        }
    }
}

static void see_row(const Carry &carry, int64_t y, const CarryRows &rows) {
    const int64_t at = y * carry.width;
    change_row(carry, y, carry.kept[0] + at, carry.kept[1] + at, rows.at(CHANGE),
               rows.ring(STILL, y));
    if (!carry.flow) return;
    float *__restrict dx = rows.at(FLOW_X), *__restrict dy = rows.at(FLOW_Y);
    const float *__restrict flow = carry.flow + 2 * at;
    for (int64_t x = 0; x < carry.width; x++) dx[x] = flow[2 * x], dy[x] = flow[2 * x + 1];
    float *const moved[] = {rows.ring(MOVED_A, y), rows.ring(MOVED_B, y)};
    move(carry, y, dx, dy, moved);
    change_row(carry, y, moved[0], moved[1], rows.at(CHANGE), rows.ring(GONE, y));
}

static bool carry_rows(const Carry &carry, int64_t first, int64_t end) {
    const int64_t pitch = pitch_of(carry.width);
    const CarryRows rows{scratch.floats(CARRY_ROWS * pitch), pitch};
    if (!rows.memory) return false;
    memset(rows.memory, 0, 4 * CARRY_ROWS * pitch);  // vectors reach past the last pixel
    for (int64_t y = first - 1; y <= end; y++) {
        if (y >= 0 && y < carry.height) see_row(carry, y, rows);
        if (y > first) mix_row(carry, y - 1, rows);
    }
    return true;
}

extern "C" {

int64_t ddfm_carry_bytes() { return sizeof(Carry); }

// Returns 0, or 1 if there was no memory.
int ddfm_carry(const Carry *carry, int64_t threads) {
    return run(*carry, carry_rows, carry->height, threads, carry->height * carry->width);
}
}
