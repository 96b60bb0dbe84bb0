// Carries out the instructions of AMX on a processor without them.
//
// Each of them ends in SIGILL there; the handler decodes it, does what Intel's manual says
// (Software Developer's Manual, volume 2, "TDPBF16PS", "LDTILECFG", "TILELOADD", ...) on tiles that
// each thread has here, and goes on behind it. So compiled code runs as it is. What a processor
// would refuse is noted and skipped: tiles_fault() returns the first such thing.

#include <atomic>
#include <cfloat>
#include <cstdint>
#include <cstring>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

namespace {

constexpr int TILES = 8, ROWS = 16, BYTES = 64;

struct State {
    bool configured = false;
    uint8_t rows[TILES];
    uint16_t bytes[TILES];
    alignas(64) uint8_t data[TILES][ROWS][BYTES];
};

thread_local State state;
std::atomic<const char *> fault{nullptr};
std::atomic<int64_t> products{0}, configured{0};
std::atomic<bool> wrong{false};
struct sigaction before;

bool refuse(const char *why) {
    const char *none = nullptr;
    fault.compare_exchange_strong(none, why);
    return false;
}

bool usable(int tile) {
    if (!state.configured) return refuse("no tiles are configured");
    return tile < TILES && state.rows[tile] ? true : refuse("a tile that is not configured");
}

void release() {
    if (state.configured) configured--;
    state.configured = false;
}

void configure(const uint8_t *from) {
    uint16_t bytes[16];
    memcpy(bytes, from + 16, sizeof bytes);
    const uint8_t *rows = from + 48;
    if (from[0] == 0) return release();
    if (from[0] != 1) return (void)refuse("a palette that there is not");
    for (int i = 2; i < 16; i++)
        if (from[i]) return (void)refuse("a reserved byte that is not zero");
    for (int i = 0; i < 16; i++) {
        if (i >= TILES && (rows[i] || bytes[i])) return (void)refuse("a ninth tile");
        if (rows[i] > ROWS || bytes[i] > BYTES) return (void)refuse("a tile that is too large");
        if (!rows[i] != !bytes[i]) return (void)refuse("rows without columns, or the reverse");
    }
    if (!state.configured) configured++;
    state.configured = true;
    memcpy(state.rows, rows, TILES);
    memcpy(state.bytes, bytes, sizeof state.bytes);
    memset(state.data, 0, sizeof state.data);
}

void zero(int tile) {
    if (usable(tile)) memset(state.data[tile], 0, sizeof state.data[tile]);
}

void load(int tile, const uint8_t *from, int64_t stride) {
    if (!usable(tile)) return;
    memset(state.data[tile], 0, sizeof state.data[tile]);
    for (int i = 0; i < state.rows[tile]; i++)
        memcpy(state.data[tile][i], from + i * stride, state.bytes[tile]);
}

void save(int tile, uint8_t *to, int64_t stride) {
    if (!usable(tile)) return;
    for (int i = 0; i < state.rows[tile]; i++)
        memcpy(to + i * stride, state.data[tile][i], state.bytes[tile]);
}

// Denormal numbers are zero, coming in and going out.
inline float flushed(float x) { return __builtin_fabsf(x) < FLT_MIN ? x * 0.0f : x; }

inline float low(uint32_t pair) {
    pair <<= 16;
    float x;
    memcpy(&x, &pair, 4);
    return flushed(x);
}

inline float high(uint32_t pair) { return low(pair >> 16); }

bool shapes_fit(int c, int a, int b) {
    if (!usable(a) || !usable(b) || !usable(c)) return false;
    if (a == b || a == c || b == c) return refuse("a tile that has two parts in a product");
    if ((state.bytes[a] | state.bytes[b] | state.bytes[c]) % 4) return refuse("half a pair");
    if (state.rows[c] != state.rows[a]) return refuse("sums with other rows than the inputs");
    if (state.bytes[c] != state.bytes[b]) return refuse("sums with other columns than the weights");
    return state.bytes[a] / 4 == state.rows[b] ? true : refuse("depths that differ");
}

// A product of two bfloats is exact in float, so that multiplying and adding is rounding once.
void multiply(int c, int a, int b) {
    if (!shapes_fit(c, a, b)) return;
    products++;
    const int columns = state.bytes[c] / 4, depth = state.bytes[a] / 4;
    for (int m = 0; m < state.rows[c]; m++) {
        float even[BYTES / 4] = {}, odd[BYTES / 4] = {}, sums[BYTES / 4];
        for (int k = 0; k < depth; k++) {
            uint32_t pair, weights[BYTES / 4];
            memcpy(&pair, state.data[a][m] + 4 * k, 4);
            memcpy(weights, state.data[b][k], sizeof weights);
            for (int n = 0; n < columns; n++) {
                even[n] = flushed(even[n] + low(pair) * low(weights[n]));
                odd[n] = flushed(odd[n] + high(pair) * high(weights[n]));
            }
        }
        memcpy(sums, state.data[c][m], sizeof sums);
        for (int n = 0; n < columns; n++)
            sums[n] = flushed(flushed(sums[n]) + flushed(even[n] + odd[n]));
        if (wrong && m == 2) sums[1] += 1;
        memcpy(state.data[c][m], sums, sizeof sums);
    }
}

// Of the registers by their numbers in instructions.
constexpr int PLACES[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                            REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// An instruction in a VEX prefix of three bytes: C4 RXB.mmmmm W.vvvv.L.pp opcode ModRM.
struct Instruction {
    const uint8_t *code;
    const greg_t *registers;
    int prefix, opcode, mod, reg, rm, vector, length;
    int64_t address = 0, stride = 0;  // of memory
    bool known;

    Instruction(const uint8_t *code, const greg_t *registers) : code(code), registers(registers) {
        known = code[0] == 0xc4 && (code[1] & 0x1f) == 2 && !(code[2] & 0x84);
        if (!known) return;
        prefix = code[2] & 3, opcode = code[3], vector = ~code[2] >> 3 & 15;
        mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7, length = 5;
        if (mod != 3) find_address();
    }

    int64_t value(int number) const { return registers[PLACES[number]]; }
    int extended(int number, int bit) const { return number | (code[1] >> bit & 1 ? 0 : 8); }

    void find_address() {
        int base = rm, wide = mod == 1 ? 1 : mod == 2 ? 4 : 0;
        bool absolute = false;
        if (rm == 4) {
            const uint8_t sib = code[length++];
            const int index = extended(sib >> 3 & 7, 6);
            if (index != 4) stride = value(index) * (1 << (sib >> 6));
            base = sib & 7;
            absolute = base == 5 && mod == 0;
        }
        const bool relative = rm == 5 && mod == 0;
        if (absolute || relative) wide = 4;
        if (!absolute && !relative) address = value(extended(base, 5));
        int32_t offset = 0;
        if (wide == 1) offset = (int8_t)code[length];
        if (wide == 4) memcpy(&offset, code + length, 4);
        length += wide;
        address += offset;
        if (relative) address += (int64_t)(code + length);
    }

    // Returns whether this was one of AMX.
    bool run() const {
        enum { NONE, P66, PF3, PF2 };
        uint8_t *memory = (uint8_t *)address;
        if (!known) return false;
        if (opcode == 0x49 && prefix == NONE && mod == 3 && code[4] == 0xc0) release();
        else if (opcode == 0x49 && prefix == NONE && mod != 3 && reg == 0) configure(memory + stride);
        else if (opcode == 0x49 && prefix == PF2 && mod == 3 && rm == 0) zero(reg);
        else if (opcode == 0x4b && prefix == PF2 && mod != 3 && rm == 4) load(reg, memory, stride);
        else if (opcode == 0x4b && prefix == PF3 && mod != 3 && rm == 4) save(reg, memory, stride);
        else if (opcode == 0x5c && prefix == PF3 && mod == 3) multiply(reg, rm, vector);
        else return false;
        return true;
    }
};

void handle(int, siginfo_t *, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const Instruction found((const uint8_t *)registers[REG_RIP], registers);
    if (found.run())
        registers[REG_RIP] += found.length;
    else
        sigaction(SIGILL, &before, nullptr);  // and meet it again
}

struct Thread {
    void *(*function)(void *);
    void *argument;
};

void *start(void *argument) {
    const Thread thread = *(Thread *)argument;
    delete (Thread *)argument;
    sigset_t ours;
    sigemptyset(&ours), sigaddset(&ours, SIGILL);
    pthread_sigmask(SIG_UNBLOCK, &ours, nullptr);
    return thread.function(thread.argument);
}

}  // namespace

extern "C" {

// Like pthread_create, but the thread lets SIGILL in, which those of team.cpp keep out.
int tiles_start(pthread_t *made, const pthread_attr_t *how, void *(*function)(void *), void *argument) {
    return pthread_create(made, how, start, new Thread{function, argument});
}

void tiles_begin() {
    struct sigaction action = {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before);
    fault = nullptr, products = 0, wrong = false;
}

void tiles_end() { sigaction(SIGILL, &before, nullptr); }

// What a processor would not have done, or null.
const char *tiles_fault() { return fault; }

// Products of tiles since tiles_begin(), and threads that hold tiles now.
int64_t tiles_products() { return products; }
int64_t tiles_held() { return configured; }

// From now on one number of each product is wrong, if asked for.
void tiles_err(int yes) { wrong = yes; }
}
