// What no processor with AMX does: each function asks for one such thing.

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace {

// As ldtilecfg reads it; tiles 0 and 1 fit each other as sums and inputs, 2 as weights.
struct alignas(64) Shapes {
    uint8_t bytes[64] = {};

    Shapes() {
        bytes[0] = 1;
        for (int tile = 0; tile < 3; tile++) set(tile, tile == 2 ? 16 : 9, 64);
    }

    void set(int tile, int rows, int row_bytes) {
        bytes[48 + tile] = (uint8_t)rows;
        bytes[16 + 2 * tile] = (uint8_t)row_bytes;
    }

    void use() const {
        asm volatile("" : : "r"(this) : "memory");
        _tile_loadconfig(this);
    }
};

void changed(int at, int value) {
    Shapes shapes;
    shapes.bytes[at] = (uint8_t)value;
    shapes.use();
}

void multiplied(int tile, int rows, int row_bytes) {
    Shapes shapes;
    shapes.set(tile, rows, row_bytes);
    shapes.use();
    _tile_dpbf16ps(0, 1, 2);
}

void zeroed() { _tile_zero(5); }

}  // namespace

extern "C" {

void fault_nothing() { multiplied(1, 9, 64); }
void fault_palette() { changed(0, 2); }
void fault_reserved() { changed(5, 1); }
void fault_rows() { changed(48, 17); }
void fault_bytes() { changed(16, 68); }
void fault_ninth() { changed(56, 1); }
void fault_no_columns() { changed(51, 4); }
void fault_released() { zeroed(); }
void fault_absent() {
    Shapes().use();
    zeroed();
}
void fault_twice() {
    Shapes().use();
    asm volatile(".byte 0xc4, 0xe2, 0x72, 0x5c, 0xc1");  // of tiles 0, 1 and 1: no assembler makes it
}
void fault_pair() { multiplied(1, 9, 62); }
void fault_other_rows() { multiplied(1, 8, 64); }
void fault_other_columns() { multiplied(0, 9, 32); }
void fault_depth() { multiplied(2, 15, 64); }
void fault_end() { _tile_release(); }
}
