/* SPDX-License-Identifier: MIT
 *
 * Gradient of a convolution's weights.
 *
 * The rows of dy (over all images) are cut into `splits` ranges. A task owns one range
 * and a share of the output channels (where these are few, also of the kernel's rows)
 * and sums its own dw(r, s, c, k) in scratch; the ranges are then added in order. Their
 * number follows from the sizes alone, so the sum does not depend on the threads.
 *
 * A task visits its range a few rows at a time. x and dy of a visit are packed into
 * panels in the order in which the register tiles read them: of x the channels of one
 * tile side by side, of dy a block of 2 * lanes channels. (Read in place, pixels that
 * lie a power of two apart evict one another from the cache.) A tap leaves out the
 * pixels that fall in the padding. Where the rows of a dilated kernel meet rows of x
 * that lie apart, each has a task of its own, which packs none of those between.
 *
 * With few channels, those of the first layer, a tile has several taps of a kernel's
 * row instead, and x the zeros of its padding.
 *
 * Products of bf16 sum over two images at once: a word is the same element of both, so
 * that no tap, stride or row end ever cuts a pair.
 *
 * Few pixels are one visit, which needs no sums in scratch: many_weights.c.
 */
#include "cpu/by_lane.h"
#include "cpu/many_weights.h"
#include "cpu/scratch.h"
#include "cpu/weight_panels.h"

#include <string.h>

enum {
    PARTIAL_BYTES = 5 << 20, /* of all ranges together, if more than one */
    MAX_SPLITS = 16,
    ENOUGH_TASKS = 8,
    SPLIT_PIXELS = 512,       /* of dy at least: adding a range up has its cost, too */
    VISIT_PIXELS = 192,       /* of dy wanted for each visit of a register tile */
    VISIT_FLOATS = 64 * 1024, /* of x meanwhile */
};

typedef struct layout {
    int32_t c_count, k_count;         /* channels of one group */
    int32_t images;                   /* of one visit: 1, or 2 as pairs of bf16 */
    int32_t blocks;                   /* of columns, per group */
    int32_t splits;                   /* ranges of rows */
    int32_t shares;                   /* of the blocks of a group */
    int32_t row_shares;               /* of the kernel's rows: 1 or all */
    int32_t visit_rows;               /* of dy */
    int64_t partial;                  /* floats of dw, padded, all groups */
    int64_t x_panel, dy_panel, x_row; /* floats per thread */
} layout;

typedef struct run {
    const ym_conv *conv;
    const ym_tensor *x, *dy;
    const ym_weight *dw;
    const cpu_kernels *kernels;
    void (*product)(const cpu_product *product);
    layout size;
    float *partials, *panels;
    bool accumulate;
} run;

/* What one task sums. */
typedef struct share {
    int32_t split, group;
    int32_t first_block, end_block;
    int32_t first_row, end_row; /* of the kernel */
} share;

/* Rows of x that `count` rows of dy meet by `taps` rows of the kernel. */
static int64_t reach(const ym_conv *conv, const ym_tensor *x, int32_t taps,
                     int64_t count)
{
    const int64_t rows = (count - 1) * conv->stride_h + 1 +
                         (taps - 1) * (int64_t)conv->dilation_h;
    return cpu_min(rows, x->h);
}

/* Of a row of x in the panel. */
static int64_t row_floats(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy)
{
    const int64_t width = cpu_joins_taps(conv) ? cpu_joined_width(conv, dy) : x->w;
    return width * (conv->c / conv->groups);
}

/* Rows of dy for each visit of a task that has `taps` rows of the kernel. */
static int64_t visit_rows(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy,
                          int32_t taps)
{
    const int64_t row = row_floats(conv, x, dy);
    int64_t rows = cpu_max(1, cpu_min(VISIT_PIXELS / dy->w, dy->h));
    while (rows > 1 && reach(conv, x, taps, rows) * row > VISIT_FLOATS) {
        rows--;
    }
    return rows;
}

/* Do the rows of the kernel lie so far apart that a visit's meet other rows of x? */
static bool rows_apart(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy)
{
    return conv->dilation_h > visit_rows(conv, x, dy, conv->r) * conv->stride_h;
}

static void choose_panels(layout *l, const ym_conv *conv, const ym_tensor *x,
                          const ym_tensor *dy)
{
    const int64_t row = row_floats(conv, x, dy);
    const int32_t taps = conv->r / l->row_shares;
    l->visit_rows = (int32_t)visit_rows(conv, x, dy, taps);
    l->x_panel = cpu_round_up(reach(conv, x, taps, l->visit_rows) * row, 16);
    const bool buffer = x->dtype != YM_F32 && l->images == 1 && !cpu_joins_taps(conv);
    l->x_row = buffer ? cpu_round_up(row, 16) : 0;
    l->dy_panel = (int64_t)l->visit_rows * dy->w * cpu_block_columns();
}

/* Rows of dy over all images or pairs of them. */
static int64_t image_rows(const layout *l, const ym_tensor *dy)
{
    return (int64_t)(dy->n + l->images - 1) / l->images * dy->h;
}

static layout layout_of(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy)
{
    layout l = {.c_count = conv->c / conv->groups, .k_count = conv->k / conv->groups};
    l.images = cpu_panel_images(x, dy);
    const int64_t rows = image_rows(&l, dy);
    l.blocks = cpu_block_count(l.k_count);
    l.partial = conv->groups * cpu_padded_count(l.k_count) * l.c_count * conv->r *
                conv->s;
    l.partial = cpu_round_up(l.partial, 16);
    l.splits = (int32_t)(PARTIAL_BYTES / (l.partial * (int64_t)sizeof(float)));
    l.splits = (int32_t)cpu_min(l.splits, ym_pixels(dy) / SPLIT_PIXELS);
    l.splits = (int32_t)cpu_max(1, cpu_min(cpu_min(l.splits, MAX_SPLITS), rows));
    const int32_t tasks = conv->groups * l.splits;
    l.shares = (int32_t)cpu_min(l.blocks, (ENOUGH_TASKS + tasks - 1) / tasks);
    const bool few = tasks * l.shares < ENOUGH_TASKS;
    l.row_shares = few || rows_apart(conv, x, dy) ? conv->r : 1;
    choose_panels(&l, conv, x, dy);
    return l;
}

static bool by_lane(const ym_conv *conv)
{
    return cpu_fits_lanes(conv->groups, conv->c / conv->groups, conv->k / conv->groups);
}

static int64_t panel_floats(const layout *l)
{
    return l->x_panel + l->dy_panel + l->x_row;
}

static cpu_scratch scratch_of(const ym_conv *conv, const layout *l)
{
    return (cpu_scratch){l->splits * l->partial, panel_floats(l),
                         conv->groups * l->splits * l->row_shares * l->shares};
}

size_t cpu_conv_weight_scratch_bytes(const ym_conv *conv, const ym_tensor *x,
                                     const ym_tensor *dy)
{
    if (by_lane(conv)) {
        return cpu_lane_weight_scratch_bytes(conv, dy);
    }
    if (cpu_many_weights(conv, x, dy)) {
        return cpu_many_weights_scratch_bytes(conv, x, dy);
    }
    const layout l = layout_of(conv, x, dy);
    return cpu_scratch_bytes(scratch_of(conv, &l));
}

/* Sums of one block of columns: (r, s, c, padded columns). */
static float *partial_of(const run *r, int32_t split, int32_t group, int32_t block)
{
    const layout *l = &r->size;
    const int64_t rows = (int64_t)l->c_count * r->conv->r * r->conv->s;
    return r->partials + split * l->partial +
           rows * (group * cpu_padded_count(l->k_count) +
                   (int64_t)block * cpu_block_columns());
}

/* The same of joined taps: the sums of a kernel's row are one matrix. */
static void add_joined(const run *r, const share *own, const cpu_visit *v, float *sums,
                       cpu_product *product)
{
    const int32_t count = r->conv->s * r->size.c_count, parts = cpu_part_count(count);
    for (int32_t row = own->first_row; row < own->end_row; row++) {
        if (!cpu_meet_row(r->conv, r->x, r->dy, v, row, product)) {
            continue;
        }
        const float *x = product->a;
        for (int32_t part = 0; part < parts; part++) {
            const int32_t first = cpu_part_first(count, part);
            product->rows = cpu_part_size(count, part);
            product->a = x + first;
            product->c = sums + ((int64_t)row * count + first) * product->c_row;
            r->product(product);
        }
    }
}

/* Adds a visit to the sums of one block of columns: dy's panel is made for it, and a
 * part of x's panel serves all taps while it is in the cache. */
static void add_block(const run *r, const share *own, int32_t block, const cpu_visit *v)
{
    const layout *l = &r->size;
    const int32_t columns = cpu_columns_of_block(l->k_count, block),
                  parts = cpu_part_count(l->c_count);
    float *sums = partial_of(r, own->split, own->group, block);
    cpu_product product = {
        .a_row = 1,
        .c_row = cpu_padded_count(columns),
        .loop[0].count = 1,
        .vectors = columns > r->kernels->lanes ? 2 : 1,
        .accumulate = true,
    };
    const int32_t channel = own->group * l->k_count + block * cpu_block_columns();
    const cpu_rows dy = {r->dy,   v->n,    v->first,     v->end,
                         channel, columns, l->images > 1};
    cpu_pack_columns(&dy, v->dy);
    if (cpu_joins_taps(r->conv)) {
        add_joined(r, own, v, sums, &product);
        return;
    }
    for (int32_t part = 0, c = 0; part < parts; part++, c += product.rows) {
        product.rows = cpu_part_size(l->c_count, part);
        for (int32_t i = own->first_row * r->conv->s; i < own->end_row * r->conv->s;
             i++) {
            const int32_t tap[2] = {i / r->conv->s, i % r->conv->s};
            product.c = sums + ((int64_t)i * l->c_count + c) * product.c_row;
            if (cpu_meet(r->conv, r->x, r->dy, v, tap, c, &product)) {
                r->product(&product);
            }
        }
    }
}

/* Adds rows [first, end) of image n. */
static void add_rows(const run *r, const share *own, int32_t n, int32_t first,
                     int32_t end)
{
    const ym_conv *conv = r->conv;
    const layout *l = &r->size;
    float *panels = r->panels + ym_pool_slot() * panel_floats(l);
    const int64_t top = own->first_row * conv->dilation_h - conv->pad_h;
    const int64_t bottom = (own->end_row - 1) * conv->dilation_h - conv->pad_h;
    const int64_t low = cpu_max(0, first * (int64_t)conv->stride_h + top);
    const int64_t high = (end - 1) * (int64_t)conv->stride_h + bottom + 1;
    const cpu_visit v = {n,
                         first,
                         end,
                         (int32_t)low,
                         (int32_t)cpu_min(high, r->x->h),
                         panels,
                         panels + l->x_panel};
    if (v.low >= v.high) {
        return; /* all in the padding */
    }
    const cpu_rows x = {
        r->x, v.n, v.low, v.high, own->group * l->c_count, l->c_count, l->images > 1};
    if (cpu_joins_taps(conv)) {
        cpu_pack_padded(&x, conv->pad_w, (int32_t)cpu_joined_width(conv, r->dy), v.x);
    } else {
        cpu_pack_parts(&x, v.dy + l->dy_panel, v.x);
    }
    for (int32_t block = own->first_block; block < own->end_block; block++) {
        add_block(r, own, block, &v);
    }
}

static void clear_sums(const run *r, const share *own)
{
    const int64_t taps = (int64_t)r->conv->s * r->size.c_count;
    for (int32_t block = own->first_block; block < own->end_block; block++) {
        const int64_t row =
            taps * cpu_padded_count(cpu_columns_of_block(r->size.k_count, block));
        memset(partial_of(r, own->split, own->group, block) + own->first_row * row, 0,
               (size_t)((own->end_row - own->first_row) * row) * sizeof(float));
    }
}

static void weight_task(void *argument, int32_t index)
{
    const run *r = argument;
    const layout *l = &r->size;
    const int32_t part = index % l->shares,
                  row_part = index / l->shares % l->row_shares;
    const int32_t rest = index / l->shares / l->row_shares;
    const share own = {
        .split = rest % l->splits,
        .group = rest / l->splits,
        .first_block = (int32_t)cpu_part(l->blocks, l->shares, part),
        .end_block = (int32_t)cpu_part(l->blocks, l->shares, part + 1),
        .first_row = (int32_t)cpu_part(r->conv->r, l->row_shares, row_part),
        .end_row = (int32_t)cpu_part(r->conv->r, l->row_shares, row_part + 1),
    };
    clear_sums(r, &own);
    const int32_t height = r->dy->h;
    const int64_t rows = image_rows(l, r->dy);
    const int64_t end = cpu_part(rows, l->splits, own.split + 1);
    for (int64_t row = cpu_part(rows, l->splits, own.split); row < end;) {
        const int32_t n = (int32_t)(row / height) * l->images;
        const int32_t first = (int32_t)(row % height);
        const int64_t count =
            cpu_min(l->visit_rows, cpu_min(height - first, end - row));
        add_rows(r, &own, n, first, (int32_t)(first + count));
        row += count;
    }
}

/* dw of one block: the ranges' sums in order, into the first of them, and from there to
 * wherever the caller's strides say. */
static void reduce_task(void *argument, int32_t index)
{
    const run *r = argument;
    const layout *l = &r->size;
    const int32_t group = index / l->blocks, block = index % l->blocks;
    const cpu_weight_patch patch = {
        .count = l->c_count,
        .k = group * l->k_count + block * cpu_block_columns(),
        .columns = cpu_columns_of_block(l->k_count, block),
    };
    const int64_t rows = (int64_t)r->conv->r * r->conv->s * l->c_count;
    float *sums = partial_of(r, 0, group, block);
    for (int32_t split = 1; split < l->splits; split++) {
        r->kernels->add((int32_t)(rows * cpu_padded_count(patch.columns)),
                        partial_of(r, split, group, block), sums);
    }
    cpu_store_weights(r->conv, r->dw, &patch, sums, r->accumulate);
}

ym_status cpu_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *x, const ym_tensor *dy,
                                   ym_weight *dw, bool accumulate_dw, float *dbias,
                                   bool accumulate_dbias)
{
    run r = {.conv = conv, .x = x, .dy = dy, .dw = dw};
    r.kernels = cpu_kernels_best();
    if (dw->data != NULL && by_lane(conv)) {
        YM_TRY(cpu_lane_backward_weight(context, conv, x, dy, dw, accumulate_dw));
    } else if (dw->data != NULL && cpu_many_weights(conv, x, dy)) {
        YM_TRY(
            cpu_many_weights_backward_weight(context, conv, x, dy, dw, accumulate_dw));
    } else if (dw->data != NULL) {
        r.size = layout_of(conv, x, dy);
        const layout *l = &r.size;
        r.product = l->images > 1 ? r.kernels->product_pairs : r.kernels->product;
        const cpu_scratch scratch = scratch_of(conv, l);
        int32_t threads = 1;
        YM_TRY(cpu_scratch_threads(context, scratch, "weight gradient", &threads));
        r.partials = context->scratch;
        r.panels = r.partials + scratch.shared;
        r.accumulate = accumulate_dw;
        ym_pool_run_on(threads, weight_task, &r, scratch.tasks);
        ym_pool_run(reduce_task, &r, conv->groups * l->blocks);
    }
    if (dbias != NULL) {
        cpu_conv_backward_bias(dy, dbias, accumulate_dbias);
    }
    return YM_OK;
}
