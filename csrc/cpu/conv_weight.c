/* SPDX-License-Identifier: MIT
 *
 * Gradient of a convolution's weights and bias.
 *
 * The rows of dy (over all images) are cut into `splits` ranges and the output channels
 * into blocks of 2 * lanes. A task owns one range, one block and one row r of the
 * kernel and sums its own dw(r, s, c, block) in scratch; the ranges are then added in
 * order. The number of ranges follows from the sizes alone, so the sum does not depend
 * on the threads. Float images are read in place: a tap simply leaves out the pixels
 * that fall in the padding.
 */
#include "cpu/cpu.h"

#include <string.h>

enum {
    PARTIAL_BYTES = 2 << 20, /* of all ranges together, if more than one */
    MAX_SPLITS = 16,
    SPLIT_PIXELS = 1024,      /* of dy at least: adding a range up has its cost, too */
    BLOCK_PIXELS = 64,        /* of dy at most for each visit of a register tile */
    BLOCK_FLOATS = 80 * 1024, /* of x meanwhile */
    MAX_COLUMNS = 2 * 16,
    BIAS_CHANNELS = 64,
};

typedef struct layout {
    int32_t c_count, k_count; /* channels of one group */
    int32_t blocks;           /* of columns, per group */
    int32_t splits;
    int32_t block_rows;        /* rows of dy per visit */
    int64_t partial;           /* floats of dw, padded, all groups */
    int64_t x_panel, dy_panel; /* floats per thread */
} layout;

typedef struct run {
    const ym_conv *conv;
    const ym_tensor *x, *dy;
    const ym_weight *dw;
    const cpu_kernels *kernels;
    layout size;
    float *partials, *panels;
    bool accumulate;
    float *dbias;
} run;

/* Floats of one group's channels; row `first` of the image at `data`. */
typedef struct rows_view {
    const float *data;
    int64_t pitch, row_pitch;
    int32_t first;
} rows_view;

static int32_t block_columns(void)
{
    return 2 * cpu_kernels_best()->lanes;
}

static int64_t padded(int32_t columns)
{
    return cpu_round_up(columns, cpu_kernels_best()->lanes);
}

/* Rows of dy that keep a register tile busy while the rows of x stay in the cache. */
static int32_t block_rows_of(const ym_conv *conv, const ym_tensor *x,
                             const ym_tensor *dy)
{
    const int64_t x_rows = BLOCK_FLOATS / ((int64_t)x->w * (conv->c / conv->groups));
    const int64_t fit = cpu_min(BLOCK_PIXELS / dy->w, x_rows / conv->stride_h);
    return (int32_t)cpu_max(1, cpu_min(fit, dy->h));
}

static layout layout_of(const ym_conv *conv, const ym_tensor *x, const ym_tensor *dy)
{
    layout l = {.c_count = conv->c / conv->groups, .k_count = conv->k / conv->groups};
    const int64_t rows = (int64_t)dy->n * dy->h;
    l.blocks = (l.k_count + block_columns() - 1) / block_columns();
    l.partial = conv->groups * padded(l.k_count) * l.c_count * conv->r * conv->s;
    l.partial = cpu_round_up(l.partial, 16);
    l.splits = (int32_t)(PARTIAL_BYTES / (l.partial * (int64_t)sizeof(float)));
    l.splits = (int32_t)cpu_min(l.splits, ym_pixels(dy) / SPLIT_PIXELS);
    l.splits = (int32_t)cpu_max(1, cpu_min(cpu_min(l.splits, MAX_SPLITS), rows));
    l.block_rows = block_rows_of(conv, x, dy);
    if (x->dtype != YM_F32) {
        int64_t reach = (int64_t)(l.block_rows - 1) * conv->stride_h + 1;
        l.x_panel = cpu_min(reach, x->h) * x->w * l.c_count;
        l.x_panel = cpu_round_up(l.x_panel, 16);
    }
    if (dy->dtype != YM_F32 || l.k_count % cpu_kernels_best()->lanes != 0) {
        l.dy_panel = (int64_t)l.block_rows * dy->w * block_columns();
    }
    return l;
}

size_t cpu_conv_weight_scratch_bytes(const ym_conv *conv, const ym_tensor *x,
                                     const ym_tensor *dy)
{
    const layout l = layout_of(conv, x, dy);
    return (size_t)(l.splits * l.partial +
                    ym_pool_threads() * (l.x_panel + l.dy_panel)) *
           sizeof(float);
}

static float *partial_of(const run *r, int32_t split, int32_t group, int32_t block)
{
    const layout *l = &r->size;
    const int64_t rows = (int64_t)l->c_count * r->conv->r * r->conv->s;
    return r->partials + split * l->partial +
           rows * (group * padded(l->k_count) + (int64_t)block * block_columns());
}

/* Rows [first, end) of image n as floats: in place if they are. */
static rows_view view_of(const ym_tensor *x, int32_t n, int32_t first, int32_t end,
                         int32_t channel, int32_t count, float *panel, int64_t width)
{
    const int64_t index = ((int64_t)n * x->h + first) * x->w * x->pitch + channel;
    if (panel == NULL) {
        return (rows_view){(const float *)x->data + index, x->pitch, x->pitch * x->w,
                           first};
    }
    const int64_t pixels = (int64_t)(end - first) * x->w;
    if (width > count) {
        memset(panel, 0, (size_t)(pixels * width) * sizeof *panel);
    }
    cpu_load(x, index, pixels, count, 1, panel, width);
    return (rows_view){panel, width, width * x->w, first};
}

/* The outputs of [first, end) whose tap falls inside the image. */
static void valid_range(int32_t offset, int32_t stride, int32_t size, int32_t *first,
                        int32_t *end)
{
    int32_t low = offset < 0 ? (-offset + stride - 1) / stride : 0;
    int32_t high = offset >= size ? 0 : (size - 1 - offset) / stride + 1;
    *first = (int32_t)cpu_max(*first, low);
    *end = (int32_t)cpu_max(*first, cpu_min(*end, high));
}

/* Adds rows [o0, o1) of one image to the partial sums of one tap. */
static void add_tap(const run *r, const rows_view *x, const rows_view *dy,
                    const int32_t tap[2], int32_t o1, cpu_product *product)
{
    const ym_conv *conv = r->conv;
    const int32_t h = tap[0] * conv->dilation_h - conv->pad_h;
    const int32_t w = tap[1] * conv->dilation_w - conv->pad_w;
    int32_t first_h = dy->first, end_h = o1, first_w = 0, end_w = r->dy->w;
    valid_range(h, conv->stride_h, r->x->h, &first_h, &end_h);
    valid_range(w, conv->stride_w, r->x->w, &first_w, &end_w);
    const bool any = end_h > first_h && end_w > first_w;
    const float *a = x->data, *b = dy->data;
    if (any) {
        a += (first_h * conv->stride_h + h - x->first) * x->row_pitch +
             (first_w * conv->stride_w + w) * x->pitch;
        b += (first_h - dy->first) * dy->row_pitch + first_w * dy->pitch;
    }
    product->loop[0] = (cpu_loop){any ? 1 : 0, 0, 0};
    product->loop[1] =
        (cpu_loop){end_h - first_h, conv->stride_h * x->row_pitch, dy->row_pitch};
    product->loop[2] =
        (cpu_loop){end_w - first_w, conv->stride_w * x->pitch, dy->pitch};
    product->b = b;
    const int32_t count = r->size.c_count;
    const int32_t parts = (count + r->kernels->tile_rows - 1) / r->kernels->tile_rows;
    for (int32_t part = 0; part < parts; part++) {
        const int64_t c = cpu_part(count, parts, part);
        product->a = a + c;
        product->rows = (int32_t)(cpu_part(count, parts, part + 1) - c);
        r->kernels->product(product);
        product->c += product->rows * product->c_row;
    }
}

/* What one task sums. */
typedef struct share {
    int32_t group, block, kernel_row;
} share;

/* Rows [first, end) of image n. */
static void add_rows(const run *r, const share *part, int32_t n, const int32_t rows[2],
                     cpu_product product)
{
    const ym_conv *conv = r->conv;
    const layout *l = &r->size;
    const int32_t first_column = part->block * block_columns();
    const int32_t columns =
        (int32_t)cpu_min(block_columns(), l->k_count - first_column);
    float *panels = r->panels + ym_pool_slot() * (l->x_panel + l->dy_panel);
    const bool buffered = r->dy->dtype != YM_F32 || columns % r->kernels->lanes != 0;
    const int32_t shift = part->kernel_row * conv->dilation_h - conv->pad_h;
    int32_t low = rows[0] * conv->stride_h + shift;
    int32_t high = (rows[1] - 1) * conv->stride_h + shift + 1;
    low = (int32_t)cpu_max(0, cpu_min(low, r->x->h - 1));
    high = (int32_t)cpu_max(low, cpu_min(high, r->x->h));
    const rows_view x = view_of(r->x, n, low, high, part->group * l->c_count,
                                l->c_count, l->x_panel > 0 ? panels : NULL, l->c_count);
    const rows_view dy =
        view_of(r->dy, n, rows[0], rows[1], part->group * l->k_count + first_column,
                columns, buffered ? panels + l->x_panel : NULL, padded(columns));
    product.a_row = 1;
    product.c_row = padded(columns);
    product.vectors = columns > r->kernels->lanes ? 2 : 1;
    product.c += (int64_t)part->kernel_row * conv->s * l->c_count * product.c_row;
    for (int32_t s = 0; s < conv->s; s++) {
        const int32_t tap[2] = {part->kernel_row, s};
        add_tap(r, &x, &dy, tap, rows[1], &product);
    }
}

static void weight_task(void *argument, int32_t index)
{
    const run *r = argument;
    const layout *l = &r->size;
    const int32_t split = index / l->blocks / r->conv->r % l->splits;
    const share part = {
        .group = index / l->blocks / r->conv->r / l->splits,
        .block = index % l->blocks,
        .kernel_row = index / l->blocks % r->conv->r,
    };
    const int32_t height = r->dy->h;
    const int64_t rows = (int64_t)r->dy->n * height;
    const int64_t end = cpu_part(rows, l->splits, split + 1);
    cpu_product product = {.c = partial_of(r, split, part.group, part.block)};
    for (int64_t row = cpu_part(rows, l->splits, split); row < end;) {
        const int32_t n = (int32_t)(row / height), first = (int32_t)(row % height);
        int64_t count = cpu_min(l->block_rows, cpu_min(height - first, end - row));
        const int32_t range[2] = {first, (int32_t)(first + count)};
        add_rows(r, &part, n, range, product);
        product.accumulate = true;
        row += count;
    }
}

/* dw of one block: the ranges' sums in order, to wherever the caller's strides say. */
static void reduce_task(void *argument, int32_t index)
{
    const run *r = argument;
    const layout *l = &r->size;
    const ym_weight *dw = r->dw;
    const int32_t group = index / l->blocks, block = index % l->blocks;
    const int32_t first_column = block * block_columns();
    const int32_t columns =
        (int32_t)cpu_min(block_columns(), l->k_count - first_column);
    const int64_t width = padded(columns);
    const int32_t rows = r->conv->r * r->conv->s * l->c_count;
    for (int32_t row = 0; row < rows; row++) {
        const int32_t c = row % l->c_count, tap = row / l->c_count;
        float *to = dw->data +
                    (int64_t)(group * l->k_count + first_column) * dw->stride_k +
                    c * dw->stride_c + tap / r->conv->s * dw->stride_r +
                    tap % r->conv->s * dw->stride_s;
        float sum[MAX_COLUMNS] = {0};
        for (int32_t split = 0; split < l->splits; split++) {
            r->kernels->add((int32_t)width,
                            partial_of(r, split, group, block) + row * width, sum);
        }
        for (int32_t j = 0; j < columns; j++) {
            float *element = to + j * dw->stride_k;
            *element = r->accumulate ? *element + sum[j] : sum[j];
        }
    }
}

static void bias_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int32_t first = index * BIAS_CHANNELS;
    const int32_t count = (int32_t)cpu_min(BIAS_CHANNELS, r->dy->c - first);
    const int64_t pixels = ym_pixels(r->dy);
    double total[BIAS_CHANNELS] = {0};
    float row[BIAS_CHANNELS];
    for (int64_t p = 0; p < pixels; p++) {
        cpu_load(r->dy, p * r->dy->pitch + first, 1, count, 1, row, count);
        for (int32_t k = 0; k < count; k++) {
            total[k] += row[k];
        }
    }
    for (int32_t k = 0; k < count; k++) {
        float *to = r->dbias + first + k;
        *to = (float)(r->accumulate ? *to + total[k] : total[k]);
    }
}

ym_status cpu_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                   const ym_tensor *x, const ym_tensor *dy,
                                   ym_weight *dw, bool accumulate_dw, float *dbias,
                                   bool accumulate_dbias)
{
    run r = {.conv = conv, .x = x, .dy = dy, .dw = dw, .dbias = dbias};
    r.kernels = cpu_kernels_best();
    if (dw->data != NULL) {
        r.size = layout_of(conv, x, dy);
        const layout *l = &r.size;
        const int64_t fixed = l->splits * l->partial, panel = l->x_panel + l->dy_panel;
        const int64_t floats = (int64_t)(context->scratch_bytes / sizeof(float));
        const int64_t panels = panel == 0 ? INT32_MAX : (floats - fixed) / panel;
        YM_CHECK(&context->error, floats >= fixed && panels > 0, YM_ERR_ARGUMENT,
                 "weight gradient: %zu bytes of scratch are too few",
                 context->scratch_bytes);
        r.partials = context->scratch;
        r.panels = r.partials + fixed;
        r.accumulate = accumulate_dw;
        ym_pool_run_on((int32_t)cpu_min(panels, INT32_MAX), weight_task, &r,
                       conv->groups * l->splits * conv->r * l->blocks);
        ym_pool_run(reduce_task, &r, conv->groups * l->blocks);
    }
    if (dbias != NULL) {
        r.accumulate = accumulate_dbias;
        ym_pool_run(bias_task, &r, (dy->c + BIAS_CHANNELS - 1) / BIAS_CHANNELS);
    }
    return YM_OK;
}
