/* SPDX-License-Identifier: MIT
 *
 * The weight gradient of many small groups, lane by lane: dw(r, s, i, lane) is a sum
 * over pixels of x's input i of that lane times dy's lane.
 *
 * As in conv_weight.c, the rows of dy (over all images) are cut into ranges by the
 * sizes alone. A task owns one range and one block of lanes. It visits the range a few
 * rows and columns at a time, whose x and dy it lays out in panels, x with the zeros of
 * the padding, so that all taps of a kernel's row are one register tile.
 */
#include "cpu/by_lane.h"
#include "cpu/scratch.h"

#include <string.h>

enum {
    MAX_SPLITS = 16,
    SPLIT_PIXELS = 512,       /* of dy at least: adding a range up has its cost, too */
    VISIT_COLUMNS = 80,       /* of dy at most */
    VISIT_FLOATS = 32 * 1024, /* of x wanted; more only if one row of dy needs it */
};

typedef struct layout {
    int32_t in_count, out_count;      /* channels of one group */
    int32_t blocks, splits, rows;     /* rows of dy over all images */
    int32_t column_parts, visit_rows; /* of a visit */
    int64_t partial, x_panel, panel;  /* floats */
} layout;

typedef struct run {
    const ym_conv *conv;
    const ym_tensor *x, *dy;
    const ym_weight *dw;
    layout size;
    float *partials, *panels;
    bool accumulate;
} run;

/* What one task sums. */
typedef struct share {
    cpu_lane_block x, dy;
    bool dy_in_place; /* whole vectors of float */
    float *sums;      /* (r, s, input, lane) */
} share;

/* Rows [first, first + rows) and columns [left, left + columns) of dy of image n. */
typedef struct visit {
    int32_t n, first, rows, left, columns;
} visit;

/* Pixels of a side of x that `count` of dy meet. */
static int64_t reach(int64_t count, int32_t stride, int32_t taps, int32_t dilation)
{
    return (count - 1) * stride + (taps - 1) * (int64_t)dilation + 1;
}

static layout layout_of(const ym_conv *conv, const ym_tensor *dy)
{
    layout l = {.in_count = conv->c / conv->groups,
                .out_count = conv->k / conv->groups};
    l.blocks = cpu_block_count(conv->k);
    l.rows = dy->n * dy->h;
    l.partial =
        cpu_round_up(cpu_padded_count(conv->k) * l.in_count * conv->r * conv->s, 16);
    l.splits =
        (int32_t)cpu_min(ym_pixels(dy) / SPLIT_PIXELS, cpu_min(MAX_SPLITS, l.rows));
    l.splits = (int32_t)cpu_max(1, l.splits);
    l.column_parts = (dy->w + VISIT_COLUMNS - 1) / VISIT_COLUMNS;
    const int64_t columns = (dy->w + l.column_parts - 1) / l.column_parts;
    const int64_t width = cpu_min(cpu_block_columns(), cpu_padded_count(conv->k));
    const int64_t row = reach(columns, conv->stride_w, conv->s, conv->dilation_w) *
                        l.in_count * width;
    int64_t rows = dy->h;
    while (rows > 1 && row * reach(rows, conv->stride_h, conv->r, conv->dilation_h) >
                           VISIT_FLOATS) {
        rows--;
    }
    l.visit_rows = (int32_t)rows;
    l.x_panel = row * reach(rows, conv->stride_h, conv->r, conv->dilation_h);
    l.panel = cpu_round_up(l.x_panel + rows * columns * width, 16);
    return l;
}

static cpu_scratch scratch_of(const layout *l)
{
    return (cpu_scratch){l->splits * l->partial, l->panel, l->splits * l->blocks};
}

size_t cpu_lane_weight_scratch_bytes(const ym_conv *conv, const ym_tensor *dy)
{
    const layout l = layout_of(conv, dy);
    return cpu_scratch_bytes(scratch_of(&l));
}

/* Sums of one block: (r, s, input, lane). */
static float *partial_of(const run *r, int32_t split, int32_t block)
{
    const int64_t rows = (int64_t)r->size.in_count * r->conv->r * r->conv->s;
    return r->partials + split * r->size.partial + rows * block * cpu_block_columns();
}

static void load_panels(const run *r, const share *own, const visit *v, float *x,
                        float *dy)
{
    const ym_conv *conv = r->conv;
    const int32_t height =
        (int32_t)reach(v->rows, conv->stride_h, conv->r, conv->dilation_h);
    cpu_image_row row = {.n = v->n, .step = 1};
    row.first = v->left * conv->stride_w - conv->pad_w;
    row.count = (int32_t)reach(v->columns, conv->stride_w, conv->s, conv->dilation_w);
    for (int32_t i = 0; i < height; i++) {
        row.h = v->first * conv->stride_h - conv->pad_h + i;
        cpu_load_lane_row(r->x, &own->x, &row, x);
        x += (int64_t)row.count * own->x.in_count * own->x.width;
    }
    row.first = v->left;
    row.count = v->columns;
    for (int32_t i = 0; !own->dy_in_place && i < v->rows;
         i++, dy += row.count * own->dy.width) {
        row.h = v->first + i;
        cpu_load_lane_row(r->dy, &own->dy, &row, dy);
    }
}

/* Adds a visit to the sums: one register tile for each row of the kernel and input. */
static void add_visit(const run *r, const share *own, const visit *v)
{
    const ym_conv *conv = r->conv;
    const cpu_kernels *kernels = cpu_kernels_best();
    float *x = r->panels + ym_pool_slot() * r->size.panel, *dy = x + r->size.x_panel;
    load_panels(r, own, v, x, dy);
    const int64_t width = own->x.width, words = own->x.in_count * width;
    const int64_t row = words *
                        reach(v->columns, conv->stride_w, conv->s, conv->dilation_w);
    cpu_product product = {
        .b = dy,
        .a_row = conv->dilation_w * words,
        .c_row = words,
        .loop = {{1, 0, 0},
                 {v->rows, conv->stride_h * row, v->columns * width},
                 {v->columns, conv->stride_w * words, width}},
        .vectors = width > kernels->lanes ? 2 : 1,
        .accumulate = true,
    };
    if (own->dy_in_place) {
        const int64_t pixel = ym_pixel_index(r->dy, v->n, v->first, v->left);
        product.b = (const float *)r->dy->data + pixel * r->dy->pitch + own->dy.first;
        product.loop[1].b_step = r->dy->w * r->dy->pitch;
        product.loop[2].b_step = r->dy->pitch;
    }
    const int32_t parts = (conv->s + kernels->tile_rows - 1) / kernels->tile_rows;
    for (int32_t i = 0; i < conv->r * parts; i++) {
        const int32_t tap = i / parts, part = i % parts;
        const int64_t s = cpu_part(conv->s, parts, part);
        product.rows = (int32_t)(cpu_part(conv->s, parts, part + 1) - s);
        for (int32_t input = 0; input < own->x.in_count; input++) {
            product.a = x + tap * conv->dilation_h * row + s * product.a_row +
                        input * width;
            product.c = own->sums + (tap * conv->s + s) * words + input * width;
            kernels->product_lanes(&product);
        }
    }
}

static void weight_task(void *argument, int32_t index)
{
    const run *r = argument;
    const layout *l = &r->size;
    const int32_t block = index % l->blocks, split = index / l->blocks;
    const int32_t channel = block * cpu_block_columns(), height = r->dy->h;
    const int32_t columns = cpu_columns_of_block(r->conv->k, block);
    share own = {.sums = partial_of(r, split, block)};
    cpu_lane_block_of(l->in_count, l->out_count, channel, columns, &own.x);
    cpu_lane_block_of(1, 1, channel, columns, &own.dy);
    own.dy_in_place = r->dy->dtype == YM_F32 && columns == own.dy.width;
    memset(own.sums, 0,
           (size_t)l->in_count * own.x.width * r->conv->r * r->conv->s * sizeof(float));
    const int64_t end = cpu_part(l->rows, l->splits, split + 1);
    visit v;
    for (int64_t row = cpu_part(l->rows, l->splits, split); row < end; row += v.rows) {
        v.n = (int32_t)(row / height);
        v.first = (int32_t)(row % height);
        v.rows = (int32_t)cpu_min(l->visit_rows, cpu_min(height - v.first, end - row));
        for (int32_t part = 0; part < l->column_parts; part++) {
            v.left = (int32_t)cpu_part(r->dy->w, l->column_parts, part);
            v.columns = (int32_t)cpu_part(r->dy->w, l->column_parts, part + 1) - v.left;
            add_visit(r, &own, &v);
        }
    }
}

/* dw of one block: the ranges' sums in order, to wherever the caller's strides say. */
static void reduce_task(void *argument, int32_t block)
{
    const run *r = argument;
    const ym_conv *conv = r->conv;
    const ym_weight *dw = r->dw;
    const int32_t columns = cpu_columns_of_block(conv->k, block);
    const int32_t width = (int32_t)cpu_padded_count(columns);
    for (int32_t row = 0; row < conv->r * conv->s * r->size.in_count; row++) {
        const int32_t c = row % r->size.in_count, tap = row / r->size.in_count;
        float *to = dw->data + block * cpu_block_columns() * dw->stride_k +
                    c * dw->stride_c + tap / conv->s * dw->stride_r +
                    tap % conv->s * dw->stride_s;
        float sum[CPU_LANE_COLUMNS] = {0};
        for (int32_t split = 0; split < r->size.splits; split++) {
            cpu_kernels_best()->add(
                width, partial_of(r, split, block) + (int64_t)row * width, sum);
        }
        for (int32_t j = 0; j < columns; j++) {
            float *element = to + j * dw->stride_k;
            *element = r->accumulate ? *element + sum[j] : sum[j];
        }
    }
}

ym_status cpu_lane_backward_weight(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *x, const ym_tensor *dy,
                                   ym_weight *dw, bool accumulate)
{
    run r = {conv, x, dy, dw, layout_of(conv, dy), context->scratch, NULL, accumulate};
    const cpu_scratch scratch = scratch_of(&r.size);
    int32_t threads = 1;
    YM_TRY(cpu_scratch_threads(context, scratch, "weight gradient", &threads));
    r.panels = r.partials + scratch.shared;
    ym_pool_run_on(threads, weight_task, &r, scratch.tasks);
    ym_pool_run(reduce_task, &r, r.size.blocks);
    return YM_OK;
}
