/* SPDX-License-Identifier: MIT
 *
 * Gradient of weights that outnumber the pixels. Sums that wait in memory for the next
 * visit would be read and written more often than multiplied. Here one visit is all
 * there is: x is packed once, for all tasks, and a task sums a share of the weights in
 * the cache and writes them where they belong.
 */
#include "cpu/many_weights.h"
#include "cpu/scratch.h"
#include "cpu/weight_panels.h"

#include <string.h>

enum {
    MOST_PIXELS = 2048, /* of dy: a block of columns stays in the second-level cache */
    ENOUGH_TASKS = 8,
    SHARE_FLOATS = 160 * 1024, /* so that sums stay in the second-level cache */
};

typedef struct layout {
    int32_t c_count, k_count; /* channels of one group */
    int32_t images;           /* of one panel: 1, or 2 as pairs of bf16 */
    int32_t panels;           /* of a group of x, and of a block of dy */
    int32_t blocks, parts;    /* of columns and of input channels, per group */
    int32_t shares;           /* of the parts: a task has one, of one block */
    int64_t x_panel, dy_panel;
    int64_t sums; /* floats of a share */
} layout;

typedef struct run {
    const ym_conv *conv;
    const ym_tensor *x, *dy;
    const ym_weight *dw;
    const cpu_kernels *kernels;
    void (*product)(const cpu_product *product);
    layout size;
    float *x_panels;    /* (group, panel, part, row, column, channel of the part) */
    float *task_panels; /* a thread's: dy of a block, and sums */
    bool accumulate;
} run;

bool cpu_many_weights(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy)
{
    const int64_t taps = (int64_t)conv->r * conv->s;
    return !cpu_joins_taps(conv) && ym_pixels(x) <= conv->k / conv->groups * taps &&
           ym_pixels(dy) <= MOST_PIXELS;
}

static layout layout_of(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy)
{
    layout l = {.c_count = conv->c / conv->groups, .k_count = conv->k / conv->groups};
    l.images = cpu_panel_images(x, dy);
    l.panels = (dy->n + l.images - 1) / l.images;
    l.blocks = cpu_block_count(l.k_count);
    l.parts = cpu_part_count(l.c_count);
    const int32_t tasks = conv->groups * l.blocks;
    const int64_t sums = (int64_t)conv->r * conv->s * l.c_count * cpu_block_columns();
    l.shares =
        (int32_t)cpu_max((ENOUGH_TASKS + tasks - 1) / tasks, sums / SHARE_FLOATS);
    l.shares = (int32_t)cpu_min(l.parts, cpu_max(1, l.shares));
    l.x_panel = (int64_t)x->h * x->w * l.c_count;
    l.dy_panel = (int64_t)dy->h * dy->w * cpu_block_columns();
    const int64_t most_parts = (l.parts + l.shares - 1) / l.shares;
    l.sums = most_parts * cpu_part_size(l.c_count, 0) * conv->r * conv->s *
             cpu_block_columns();
    return l;
}

static int64_t task_floats(const layout *l)
{
    return cpu_round_up(l->panels * l->dy_panel + l->sums, 16);
}

static cpu_scratch scratch_of(const ym_conv *conv, const layout *l)
{
    return (cpu_scratch){cpu_round_up(conv->groups * l->panels * l->x_panel, 16),
                         task_floats(l), conv->groups * l->blocks * l->shares};
}

size_t cpu_many_weights_scratch_bytes(const ym_conv *conv, const ym_tensor *x,
                                      const ym_tensor *dy)
{
    const layout l = layout_of(conv, x, dy);
    return cpu_scratch_bytes(scratch_of(conv, &l));
}

/* What one task makes. */
typedef struct share {
    int32_t group;
    cpu_weight_patch patch;
} share;

static void pack_task(void *argument, int32_t index)
{
    const run *r = argument;
    const layout *l = &r->size;
    const int32_t part = index % l->parts, panel = index / l->parts;
    const int32_t group = panel / l->panels, n = panel % l->panels * l->images;
    const cpu_rows rows = {r->x,         n, 0, r->x->h, group * l->c_count, l->c_count,
                           l->images > 1};
    const int64_t pixels = (int64_t)r->x->h * r->x->w;
    cpu_pack_part(&rows, part,
                  r->x_panels + panel * l->x_panel +
                      cpu_part_first(l->c_count, part) * pixels);
}

/* A part of a share, into its sums: (tap, channel of the share, column). */
static void sum_part(const run *r, const share *own, int32_t part, float *dy,
                     cpu_product *product, float *sums)
{
    const layout *l = &r->size;
    const int32_t c = cpu_part_first(l->c_count, part);
    const cpu_visit visit = {.end = r->dy->h,
                             .high = r->x->h,
                             .x = r->x_panels + own->group * l->panels * l->x_panel,
                             .dy = dy};
    product->rows = cpu_part_size(l->c_count, part);
    for (int32_t i = 0; i < r->conv->r * r->conv->s; i++) {
        const int32_t tap[2] = {i / r->conv->s, i % r->conv->s};
        product->c = sums + ((int64_t)i * own->patch.count + c - own->patch.c) *
                                product->c_row;
        if (cpu_meet(r->conv, r->x, r->dy, &visit, tap, c, product)) {
            r->product(product);
        } else {
            memset(product->c, 0,
                   (size_t)(product->rows * product->c_row) * sizeof *product->c);
        }
    }
}

static void weight_task(void *argument, int32_t index)
{
    const run *r = argument;
    const layout *l = &r->size;
    const int32_t part_share = index % l->shares, block = index / l->shares % l->blocks;
    const int32_t first = (int32_t)cpu_part(l->parts, l->shares, part_share);
    const int32_t end = (int32_t)cpu_part(l->parts, l->shares, part_share + 1);
    share own = {.group = index / l->shares / l->blocks,
                 .patch.c = cpu_part_first(l->c_count, first)};
    own.patch.count = cpu_part_first(l->c_count, end) - own.patch.c;
    own.patch.k = own.group * l->k_count + block * cpu_block_columns();
    own.patch.columns = cpu_columns_of_block(l->k_count, block);
    cpu_product product = {.a_row = 1,
                           .c_row = cpu_padded_count(own.patch.columns),
                           .vectors = own.patch.columns > r->kernels->lanes ? 2 : 1};
    float *dy = r->task_panels + ym_pool_slot() * task_floats(l);
    float *sums = dy + l->panels * l->dy_panel;
    const int64_t panel = (int64_t)r->dy->h * r->dy->w * product.c_row;
    for (int32_t i = 0; i < l->panels; i++) {
        const cpu_rows rows = {r->dy,        i * l->images, 0,
                               r->dy->h,     own.patch.k,   own.patch.columns,
                               l->images > 1};
        cpu_pack_columns(&rows, dy + i * panel);
    }
    product.loop[0] = (cpu_loop){l->panels, l->x_panel, panel};
    for (int32_t part = first; part < end; part++) {
        sum_part(r, &own, part, dy, &product, sums);
    }
    cpu_store_weights(r->conv, r->dw, &own.patch, sums, r->accumulate);
}

ym_status cpu_many_weights_backward_weight(ym_context *context, const ym_conv *conv,
                                           const ym_tensor *x, const ym_tensor *dy,
                                           ym_weight *dw, bool accumulate)
{
    run r = {.conv = conv, .x = x, .dy = dy, .dw = dw, .accumulate = accumulate};
    r.kernels = cpu_kernels_best();
    r.size = layout_of(conv, x, dy);
    const layout *l = &r.size;
    r.product = l->images > 1 ? r.kernels->product_pairs : r.kernels->product;
    const cpu_scratch scratch = scratch_of(conv, l);
    int32_t threads = 1;
    YM_TRY(cpu_scratch_threads(context, scratch, "weight gradient", &threads));
    r.x_panels = context->scratch;
    r.task_panels = r.x_panels + scratch.shared;
    ym_pool_run(pack_task, &r, conv->groups * l->panels * l->parts);
    ym_pool_run_on(threads, weight_task, &r, scratch.tasks);
    return YM_OK;
}
