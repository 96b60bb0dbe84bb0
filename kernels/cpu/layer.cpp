// A faster version of the layers of ddfm_fast.priors.ops.PlainOps on a CPU, in float32 and bfloat16.
//
// A layer of the network is norm, SiLU, resampling, convolution, bias, residual, and the sums that
// the next norm needs. Here all of it happens while a block of pixels is in the cache: what comes
// in is normalized as it is read, what goes out is summed as it is written (layer.h). 3x3
// convolutions are by Winograd's minimal filtering (winograd.h), others directly; products are by a
// register-tiled kernel over packed weights (vectors.h), or by AMX (tiles.h).
//
// Activations are [n, h, w, c] without gaps. Nothing here allocates but scratch memory, which
// each thread keeps. Blocks, and the order of sums, do not depend on the number of threads.
// layer.py fills struct Layer and checks shapes; build.py compiles.

#include "winograd.h"

// Writes the outputs that belong to M sums of products, in row y from x on.
template <int M, class T>
__attribute__((always_inline)) static inline void put_some(int x, int y, const vec (*sums)[2],
                                                           Writer<T> &writer) {
    if (writer.count == NR) {
        writer.template put_whole<M>(y, x, 0, &sums[0][0], 2);
        writer.template put_whole<M>(y, x, 1, &sums[0][1], 2);
    } else {
        writer.put(y, x, 0, &sums[0][0], 2, M);
        writer.put(y, x, 1, &sums[0][1], 2, M);
    }
}

// Computes M outputs in row y of a block, from x on. The window's pixels have no gaps, so each row
// of the kernel is one product.
template <int M, class T>
static void direct_some(int x, int y, const Layer &layer, const T *window, int columns,
                        const T *weight, Writer<T> &writer) {
    const int side = (int)layer.side, stride = (int)layer.stride, depth = depth_of(layer.channels);
    const T *a[M];
    for (int j = 0; j < M; j++)
        a[j] = window + (int64_t)(y * stride * columns + (x + j) * stride) * depth;
    vec acc[M][2] = {};
    for (int row = 0; row < side; row++) {
        multiply<M>(side * depth, a, weight + row * padded(side * depth, weight) * NR, acc);
        for (int j = 0; j < M; j++) a[j] += columns * depth;
    }
    put_some<M>(x, y, acc, writer);
}

template <int M, class T>
static void put_of_row(int x, int y, const vec (*row)[2], Writer<T> &writer) {
    put_some<M>(x, y, row + x, writer);
}

// Computes row y of a block by tiles; `sums` has room for its sums of products.
template <class T>
static void direct_row(int y, const Layer &layer, const Block &block, const T *window, int columns,
                       const T *weight, vec (*sums)[2], Writer<T> &writer) {
    const int side = (int)layer.side, stride = (int)layer.stride, depth = depth_of(layer.channels);
    Run<T> runs[3];
    for (int row = 0; row < side; row++) {
        const T *a = window + (int64_t)(y * stride + row) * columns * depth;
        runs[row] = {a, (int64_t)stride * depth, side * depth};
    }
    Tiles<T>::products(block.columns, runs, side, weight, (float *)sums);
    IN_ROWS(block.columns, put_of_row, y, sums, writer);
}

// Does the same as winograd(), directly by the definition, for kernels of side 1 or 3 and any
// stride.
template <class T>
static bool direct(const Layer &layer, const Block &block, const float *scales, int first,
                   int last) {
    const int side = (int)layer.side, stride = (int)layer.stride, depth = depth_of(layer.channels);
    const int rows = (block.rows - 1) * stride + side, columns = (block.columns - 1) * stride + side;
    const int outputs = block.rows * block.columns;
    const size_t sums_size = (size_t)block.columns * NR;
    float *sums = scratch.floats((size_t)rows * columns * depth + sums_size + (size_t)outputs * NR);
    if (!sums) return false;
    float *skip = sums + sums_size;
    T *window = (T *)(skip + (size_t)outputs * NR);
    for (int part = 0, base = 0; part < 2; base += (int)layer.channels[part++]) {
        const int count = (int)layer.channels[part];
        if (count)
            read<T>(layer, scales, part, block.image, 0, count, block.y * stride - side / 2,
                 block.x * stride - side / 2, rows, columns, window + base, depth);
    }
    for (int group = first; group < last; group++) {
        const int64_t size = side * padded(side * depth, window) * NR;
        const T *weight = (const T *)layer.weight + group * size;
        Writer<T> writer(layer, block, group, skip_products<T>(layer, block, group, skip));
        for (int y = 0; y < block.rows; y++) {
            if (Tiles<T>::fit(side * depth))
                direct_row(y, layer, block, window, columns, weight, (vec(*)[2])sums, writer);
            else
                IN_ROWS(block.columns, direct_some, y, layer, window, columns, weight, writer);
        }
        writer.finish();
    }
    return true;
}

// scale * x + shift = (x - mean) / sqrt(variance + epsilon) * weight + bias: for each image the
// scales of all channels and then the shifts. All in float64; `total` has room for 2 * channels.
static void find_scales(const Layer &layer, double *total, float *scales) {
    const int all = depth_of(layer.channels), size = all / (int)layer.groups;
    for (int64_t image = 0; image < layer.n; image++, scales += 2 * all) {
        memset(total, 0, 16 * all);
        for (int part = 0, base = 0; part < 2; base += (int)layer.channels[part++]) {
            const int64_t channels = layer.channels[part], rows = 2 * layer.part_blocks[part];
            const float *from = layer.part_sums[part] + image * rows * channels;
            for (int64_t row = 0; row < rows; row++, from += channels)
                for (int64_t c = 0; c < channels; c++) total[row % 2 * all + base + c] += from[c];
        }
        for (int start = 0; start < all; start += size) {
            double sum = 0, square = 0;
            for (int c = start; c < start + size; c++) sum += total[c], square += total[all + c];
            const double count = (double)layer.source_h * layer.source_w * size;
            const double mean = sum / count, variance = square / count - mean * mean;
            // rounding may make it negative; NaN must remain NaN
            const double inverse = 1 / sqrt((variance < 0 ? 0 : variance) + layer.epsilon);
            for (int c = start; c < start + size; c++) {
                scales[c] = (float)(layer.norm_weight[c] * inverse);
                scales[all + c] = (float)(layer.norm_bias[c] - mean * inverse * layer.norm_weight[c]);
            }
        }
    }
}

// Work is handed out one block at a time or, if blocks are few, one block's share of channels.
struct Job {
    const Layer &layer;
    const float *scales;
    int64_t blocks, groups, shares;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};

    void run(int64_t task) {
        const int64_t share = task % shares, number = task / shares;
        const int64_t across = (layer.out_w + layer.block_w - 1) / layer.block_w;
        Block block;
        block.image = number / blocks, block.index = number % blocks;
        block.y = block.index / across * layer.block_h;
        block.x = block.index % across * layer.block_w;
        const int64_t below = layer.out_h - block.y, beside = layer.out_w - block.x;
        block.rows = (int)(below < layer.block_h ? below : layer.block_h);
        block.columns = (int)(beside < layer.block_w ? beside : layer.block_w);
        const int first = (int)(groups * share / shares), last = (int)(groups * (share + 1) / shares);
        const bool done = layer.low ? compute<bfloat>(block, first, last)
                                    : compute<float>(block, first, last);
        if (!done) failed = true;
    }

    template <class T>
    bool compute(const Block &block, int first, int last) const {
        return layer.winograd ? winograd<T>(layer, block, scales, first, last)
                              : direct<T>(layer, block, scales, first, last);
    }
};

static void work(void *argument) {
    Job &job = *(Job *)argument;
    const int64_t tasks = job.layer.n * job.blocks * job.shares;
    for (int64_t task; (task = job.next.fetch_add(1)) < tasks;) job.run(task);
    Tiles<bfloat>::release();
}

extern "C" {

int64_t ddfm_group() { return NR; }
int64_t ddfm_pairs() { return PAIRS; }
// Whether products in bfloat16 are by AMX: 0, or 1, or -1 if they are wrong.
int64_t ddfm_tiles() { return Tiles<bfloat>::check(); }
int64_t ddfm_layer_bytes() { return sizeof(Layer); }

// Returns 0, or 1 if there was no memory.
int ddfm_layer(const Layer *layer, int64_t threads) {
    static thread_local Scratch norms;
    const int all = depth_of(layer->channels);
    float *scales = nullptr;
    if (layer->norm_weight) {
        double *total = (double *)norms.floats(4 * all + layer->n * 2 * all);
        if (!total) return 1;
        scales = (float *)(total + 2 * all);
        find_scales(*layer, total, scales);
    }
    Job job{*layer, scales, blocks_of(*layer), (layer->out_channels + NR - 1) / NR, 1};
    if (!layer->team) threads = 1;
    if (layer->n * job.blocks < 2 * threads) job.shares = job.groups < threads ? job.groups : threads;
    if (threads > 1 && layer->n * job.blocks * job.shares > 1)
        layer->team(work, &job, (unsigned)threads, 0);
    else
        work(&job);
    return job.failed;
}
}
