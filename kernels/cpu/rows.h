// Rows of a result in blocks of a fixed size, so that nothing depends on the number of threads.

#pragma once

#include "vectors.h"

// Rows of a task, and pixels that are worth a second thread.
constexpr int64_t ROWS = 32, MANY_PIXELS = 1 << 17;
// Floats before a row, for its mirrored border.
constexpr int64_t MARGIN = 16;

// Computes rows [first, end) of a result; returns false if there is no memory.
template <class Call>
using Part = bool (*)(const Call &, int64_t first, int64_t end);

template <class Call>
struct RowTask {
    const Call &call;
    Part<Call> part;
    int64_t rows, block;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
};

template <class Call>
static void run_blocks(void *argument) {
    RowTask<Call> &task = *(RowTask<Call> *)argument;
    for (int64_t first; (first = task.block * task.next.fetch_add(1)) < task.rows;) {
        const int64_t end = first + task.block;
        if (!task.part(task.call, first, end < task.rows ? end : task.rows)) task.failed = true;
    }
}

// Computes the result's rows block by block; returns 0, or 1 if there was no memory.
template <class Call>
static int run(const Call &call, Part<Call> part, int64_t rows, int64_t threads, int64_t pixels,
               int64_t block = ROWS) {
    RowTask<Call> task{call, part, rows, block};
    if (call.team && threads > 1 && pixels >= MANY_PIXELS)
        call.team(run_blocks<Call>, &task, (unsigned)threads, 0);
    else
        run_blocks<Call>(&task);
    return task.failed;
}

static inline int64_t pitch_of(int64_t width) {
    return (width + MARGIN) / MARGIN * MARGIN + 2 * MARGIN;
}
