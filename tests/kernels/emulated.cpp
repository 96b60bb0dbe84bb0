// Runs the CPU kernels for a processor that is not this one: a server for tests/tools/emulated.py.
//
// A request on standard input is a function's name in 32 bytes and then either two numbers, for a
// function that returns one, or a struct whose first fields are pointers, and all memory that they
// point into. Memory gets a place here of the same alignment, with guards around it; what it holds
// afterwards goes back on standard output.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" {
int64_t ddfm_group(), ddfm_pairs(), ddfm_tiles();
int64_t ddfm_layer_bytes(), ddfm_attention_bytes();
int64_t ddfm_choose_bytes(), ddfm_carry_bytes();
int64_t ddfm_read_bytes(), ddfm_order_bytes(), ddfm_give_bytes();
int64_t ddfm_gather_bytes(), ddfm_spread_bytes();
int64_t ddfm_attention_floats(int64_t tokens, int64_t width);
int ddfm_layer(const void *, int64_t), ddfm_attention(const void *, int64_t);
int ddfm_choose(const void *, int64_t), ddfm_carry(const void *, int64_t);
int ddfm_read(const void *, int64_t), ddfm_order(const void *, int64_t);
int ddfm_give(const void *, int64_t);
int ddfm_gather(const void *, int64_t), ddfm_spread(const void *, int64_t);
}

typedef int64_t (*Number)();
typedef int (*Function)(const void *, int64_t);

static const struct { const char *name; Number number; Function function; } TABLE[] = {
    {"ddfm_group", ddfm_group, nullptr},
    {"ddfm_pairs", ddfm_pairs, nullptr},
    {"ddfm_tiles", ddfm_tiles, nullptr},
    {"ddfm_layer_bytes", ddfm_layer_bytes, nullptr},
    {"ddfm_attention_bytes", ddfm_attention_bytes, nullptr},
    {"ddfm_choose_bytes", ddfm_choose_bytes, nullptr},
    {"ddfm_carry_bytes", ddfm_carry_bytes, nullptr},
    {"ddfm_read_bytes", ddfm_read_bytes, nullptr},
    {"ddfm_order_bytes", ddfm_order_bytes, nullptr},
    {"ddfm_give_bytes", ddfm_give_bytes, nullptr},
    {"ddfm_gather_bytes", ddfm_gather_bytes, nullptr},
    {"ddfm_spread_bytes", ddfm_spread_bytes, nullptr},
    {"ddfm_layer", nullptr, ddfm_layer},
    {"ddfm_attention", nullptr, ddfm_attention},
    {"ddfm_choose", nullptr, ddfm_choose},
    {"ddfm_carry", nullptr, ddfm_carry},
    {"ddfm_read", nullptr, ddfm_read},
    {"ddfm_order", nullptr, ddfm_order},
    {"ddfm_give", nullptr, ddfm_give},
    {"ddfm_gather", nullptr, ddfm_gather},
    {"ddfm_spread", nullptr, ddfm_spread},
};

constexpr size_t GUARD = 256, ALIGNMENT = 64;
constexpr int DAMAGED = 2, NOT_FOUND = 3;
constexpr unsigned char MARK = 0xa5;

static void take(void *to, size_t size) {
    if (size && fread(to, size, 1, stdin) != 1) exit(0);  // the other side has ended
}

static int64_t take_number() {
    int64_t number;
    take(&number, sizeof number);
    return number;
}

static void give(const void *from, size_t size) {
    if (size) fwrite(from, size, 1, stdout);
}

static void give_number(int64_t number) { give(&number, sizeof number); }

struct Region {
    uint64_t there;  // its address in the other process
    size_t size;
    unsigned char *memory, *here;

    void read() {
        there = (uint64_t)take_number(), size = (size_t)take_number();
        void *found = nullptr;
        if (posix_memalign(&found, ALIGNMENT, size + 2 * GUARD + ALIGNMENT)) exit(1);
        memory = (unsigned char *)found, here = memory + GUARD + there % ALIGNMENT;
        memset(memory, MARK, size + 2 * GUARD + ALIGNMENT);
        take(here, size);
    }

    bool damaged() const {
        for (const unsigned char *p = memory; p < here; p++)
            if (*p != MARK) return true;
        for (const unsigned char *p = here + size; p < here + size + GUARD; p++)
            if (*p != MARK) return true;
        return false;
    }
};

static int call(Function function) {
    const int64_t threads = take_number(), pointers = take_number(), size = take_number();
    std::vector<uint64_t> fields((size_t)(size + 7) / 8);
    take(fields.data(), (size_t)size);
    std::vector<Region> regions((size_t)take_number());
    for (Region &region : regions) region.read();
    int result = 0;
    for (int64_t i = 0; i < pointers; i++) {
        bool found = !fields[i];
        for (const Region &region : regions)
            if (!found && fields[i] - region.there < region.size) {
                fields[i] = (uint64_t)(region.here + (fields[i] - region.there));
                found = true;
            }
        if (!found) result = NOT_FOUND;
    }
    if (!result) result = function(fields.data(), threads);
    for (const Region &region : regions)
        if (region.damaged()) result = DAMAGED;
    give_number(result);
    for (const Region &region : regions) give(region.here, region.size), free(region.memory);
    return result;
}

int main() {
    for (;;) {
        char name[33] = {};
        take(name, 32);
        if (!strcmp(name, "ddfm_attention_floats")) {
            const int64_t tokens = take_number(), width = take_number();
            give_number(ddfm_attention_floats(tokens, width));
        }
        for (const auto &row : TABLE) {
            if (strcmp(name, row.name)) continue;
            if (row.number) give_number(row.number());
            if (row.function) call(row.function);
        }
        fflush(stdout);
    }
}
