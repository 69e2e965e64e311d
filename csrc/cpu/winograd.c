/* SPDX-License-Identifier: MIT
 *
 * A tile is 2 x 2 outputs, made of 4 x 4 inputs. A task takes a run of tiles, in the
 * order of rows and of images, so that small images fill it as large ones do: it
 * transforms their inputs to 16 points each, multiplies each point's (tile, channel)
 * matrix by that point's weights, and transforms the products back.
 *
 * Where weights outnumber the tiles, each of these tasks would read them all from
 * beyond the cache. Then the inputs are transformed first, and a task takes a block of
 * output channels: it packs their weights, into the cache, and meets all tiles with
 * them.
 */
#include "cpu/winograd.h"

#include <string.h>

enum {
    POINTS = CPU_WINOGRAD_POINTS,
    TASK_FLOATS =
        4096, /* of a point's matrix: all points stay in the second-level cache */
    MOST_TILES = 128, /* of a task */
    CHAIN = 32, /* words to a register: with it the error is that of the plain sum */
    MAX_CHANNELS = 4096,
    ENOUGH_BLOCKS = 8, /* to be tasks */
    BLOCK_TILES = 64,  /* of which a block's products stay in the cache */
};

typedef struct run {
    const cpu_correlation *c;
    const cpu_kernels *kernels;
    int32_t rows, columns; /* of tiles, per image */
    int32_t most_tiles;    /* of a task */
    int64_t count;         /* of tiles, with all images and groups */
    float *panels;
    int64_t panel_floats;
} run;

static bool plain_axis(const cpu_axis *axis, int32_t size)
{
    return axis->tap_count == 3 && axis->tap_step == 1 && axis->in_step == 1 &&
           axis->out_step == 1 && axis->out_first == 0 && axis->out_count == size;
}

static int32_t tiles_of(const cpu_axis *axis)
{
    return (axis->out_count + 1) / 2;
}

bool cpu_winograd_fits(const cpu_correlation *c)
{
    const int32_t lanes = cpu_kernels_best()->lanes;
    if (c->pairs || c->in.dtype != YM_F32 || c->out.dtype != YM_F32 ||
        !plain_axis(&c->h, c->out.h) || !plain_axis(&c->w, c->out.w) ||
        c->in_count % lanes != 0 || c->out_count % lanes != 0 ||
        c->in_count > MAX_CHANNELS || c->in_count < 16 || c->out_count < 16) {
        return false;
    }
    const int64_t tiles = (int64_t)tiles_of(&c->h) * tiles_of(&c->w);
    const int64_t outputs = (int64_t)c->h.out_count * c->w.out_count;
    return tiles * c->in.n >= 32 && tiles * POINTS * 10 <= outputs * 9 * 7;
}

static int32_t most_tiles(const cpu_correlation *c)
{
    const int64_t rows = cpu_kernels_best()->tile_rows;
    const int64_t tiles = cpu_min(TASK_FLOATS / c->in_count, MOST_TILES);
    return (int32_t)cpu_max(rows, tiles / rows * rows);
}

static int64_t tile_count(const cpu_correlation *c)
{
    return (int64_t)c->in.n * tiles_of(&c->h) * tiles_of(&c->w);
}

bool cpu_winograd_keeps_inputs(const cpu_correlation *c)
{
    return tile_count(c) <= c->out_count &&
           c->groups * cpu_block_count(c->out_count) >= ENOUGH_BLOCKS;
}

int64_t cpu_winograd_weight_floats(const cpu_correlation *c)
{
    const int64_t count = cpu_winograd_keeps_inputs(c) ? tile_count(c)
                                                       : cpu_padded_count(c->out_count);
    return c->groups * count * c->in_count * POINTS;
}

int64_t cpu_winograd_panel_floats(const cpu_correlation *c)
{
    const int64_t columns = cpu_block_columns();
    return POINTS * (cpu_winograd_keeps_inputs(c)
                         ? columns * (c->in_count + BLOCK_TILES)
                         : most_tiles(c) * (c->in_count + columns));
}

/* Runs of tiles, in all groups. */
static int32_t run_count(const cpu_correlation *c)
{
    const int64_t most = most_tiles(c);
    return (int32_t)((tile_count(c) + most - 1) / most * c->groups);
}

int32_t cpu_winograd_tasks(const cpu_correlation *c)
{
    return cpu_winograd_keeps_inputs(c) ? c->groups * cpu_block_count(c->out_count)
                                        : run_count(c);
}

/* Where the first pixel of a tile lies. */
typedef struct corner {
    int32_t n, h, w;
} corner;

static corner corner_of(const run *r, int64_t tile)
{
    const int64_t row = tile / r->columns;
    return (corner){(int32_t)(row / r->rows), (int32_t)(row % r->rows) * 2,
                    (int32_t)(tile % r->columns) * 2};
}

/* Points of tiles [first, first + count): (point, tile, channel), `step` from point to
 * point. */
static void transform_in(const run *r, int32_t group, int64_t first, int32_t count,
                         float *points, int64_t step)
{
    static const float zeros[MAX_CHANNELS];
    const cpu_correlation *c = r->c;
    const float *in = (const float *)c->in.data + group * c->in_count;
    for (int32_t t = 0; t < count; t++) {
        const corner at = corner_of(r, first + t);
        const float *pixel[16];
        for (int32_t k = 0; k < 16; k++) {
            const int32_t h = at.h + c->h.tap_first + k / 4;
            const int32_t w = at.w + c->w.tap_first + k % 4;
            const bool inside = h >= 0 && h < c->in.h && w >= 0 && w < c->in.w;
            const int64_t index = ((int64_t)at.n * c->in.h + h) * c->in.w + w;
            pixel[k] = inside ? in + index * c->in.pitch : zeros;
        }
        r->kernels->winograd_in(c->in_count, pixel, points + (int64_t)t * c->in_count,
                                step);
    }
}

/* The products of one block of output channels: (point, tile, channel of the block). */
static void multiply(const run *r, const float *weights, int32_t columns, int32_t count,
                     const float *points, int64_t step, float *products)
{
    const cpu_correlation *c = r->c;
    const int32_t most = r->kernels->tile_rows, parts = (count + most - 1) / most;
    cpu_product product = {
        .a_row = c->in_count,
        .c_row = columns,
        .loop = {{1, 0, 0}, {1, 0, 0}, {c->in_count, 1, columns}},
        .vectors = columns > r->kernels->lanes ? 2 : 1,
        .chain = CHAIN,
    };
    for (int32_t point = 0; point < POINTS; point++) {
        product.b = weights + (int64_t)point * c->in_count * columns;
        for (int32_t part = 0; part < parts; part++) {
            const int64_t t = cpu_part(count, parts, part);
            product.rows = (int32_t)(cpu_part(count, parts, part + 1) - t);
            product.a = points + point * step + t * c->in_count;
            product.c = products + ((int64_t)point * count + t) * columns;
            r->kernels->product(&product);
        }
    }
}

static void transform_out(const run *r, int32_t group, int32_t block, int64_t first,
                          int32_t count, const float *products)
{
    const cpu_correlation *c = r->c;
    const int32_t columns = cpu_columns_of_block(c->out_count, block);
    const int32_t channel = block * cpu_block_columns();
    float *out = (float *)c->out.data + group * c->out_count + channel;
    const float *bias =
        c->bias == NULL ? NULL
                        : c->bias + group * cpu_padded_count(c->out_count) + channel;
    for (int32_t t = 0; t < count; t++) {
        const corner at = corner_of(r, first + t);
        float *pixel[4];
        for (int32_t k = 0; k < 4; k++) {
            const int32_t h = at.h + k / 2, w = at.w + k % 2;
            const int64_t index = ((int64_t)at.n * c->out.h + h) * c->out.w + w;
            pixel[k] = h < c->out.h && w < c->out.w ? out + index * c->out.pitch : NULL;
        }
        r->kernels->winograd_out(columns, products + (int64_t)t * columns,
                                 (int64_t)count * columns, bias, c->accumulate, pixel);
    }
}

static void tiles_task(void *argument, int32_t index)
{
    const run *r = argument;
    const cpu_correlation *c = r->c;
    const int32_t group = index % c->groups;
    const int64_t first = (int64_t)(index / c->groups) * r->most_tiles;
    const int32_t count = (int32_t)cpu_min(r->most_tiles, r->count - first);
    const int64_t step = (int64_t)count * c->in_count;
    float *points = r->panels + ym_pool_slot() * r->panel_floats;
    float *products = points + POINTS * step;
    transform_in(r, group, first, count, points, step);
    for (int32_t block = 0; block < cpu_block_count(c->out_count); block++) {
        multiply(r, cpu_packed_block(c, group, block),
                 cpu_columns_of_block(c->out_count, block), count, points, step,
                 products);
        transform_out(r, group, block, first, count, products);
    }
}

/* The inputs of a group, at c->weights. */
static float *points_of(const run *r, int32_t group)
{
    return r->c->weights + group * POINTS * r->count * r->c->in_count;
}

static void inputs_task(void *argument, int32_t index)
{
    const run *r = argument;
    const cpu_correlation *c = r->c;
    const int32_t group = index % c->groups;
    const int64_t first = (int64_t)(index / c->groups) * r->most_tiles;
    transform_in(r, group, first, (int32_t)cpu_min(r->most_tiles, r->count - first),
                 points_of(r, group) + first * c->in_count, r->count * c->in_count);
}

static void block_task(void *argument, int32_t index)
{
    const run *r = argument;
    const cpu_correlation *c = r->c;
    const int32_t blocks = cpu_block_count(c->out_count);
    const int32_t group = index / blocks, block = index % blocks;
    const int32_t columns = cpu_columns_of_block(c->out_count, block);
    float *weights = r->panels + ym_pool_slot() * r->panel_floats;
    float *products = weights + POINTS * (int64_t)c->in_count * columns;
    cpu_winograd_pack_block(c, group, block, weights);
    for (int64_t first = 0; first < r->count; first += BLOCK_TILES) {
        const int32_t count = (int32_t)cpu_min(BLOCK_TILES, r->count - first);
        multiply(r, weights, columns, count, points_of(r, group) + first * c->in_count,
                 r->count * c->in_count, products);
        transform_out(r, group, block, first, count, products);
    }
}

void cpu_winograd(const cpu_correlation *c, float *panels, int64_t panel_floats,
                  int32_t threads)
{
    run r = {
        .c = c,
        .kernels = cpu_kernels_best(),
        .rows = tiles_of(&c->h),
        .columns = tiles_of(&c->w),
        .most_tiles = most_tiles(c),
        .panels = panels,
        .panel_floats = panel_floats,
    };
    r.count = tile_count(c);
    if (cpu_winograd_keeps_inputs(c)) {
        ym_pool_run(inputs_task, &r, run_count(c));
        ym_pool_run_on(threads, block_task, &r, cpu_winograd_tasks(c));
    } else {
        ym_pool_run_on(threads, tiles_task, &r, cpu_winograd_tasks(c));
    }
}
