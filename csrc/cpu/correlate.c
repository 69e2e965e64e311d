/* SPDX-License-Identifier: MIT
 *
 * A tile of output pixels is one task. Its input pixels are copied once into a panel of
 * words with the zeros of the padding (a few hundred KB, so that it stays in the
 * second-level cache); the register tiles then read the panel in place for every tap,
 * so nothing is gathered tap by tap. Only where the taps of a dilated kernel lie so far
 * apart that the pixels between them would take more room than one copy for each tap
 * are there such copies, but for taps that lie in the padding alone. Where the kernel
 * is 1 x 1 without padding and the products can read the image as it is, even the panel
 * is left out.
 */
#include "cpu/tiling.h"
#include "cpu/winograd.h"

#include <string.h>

enum { MAX_TILE = 16 * 32 }; /* tile_rows * 2 * lanes of the largest kernel set */

typedef struct run {
    const cpu_correlation *c;
    const cpu_kernels *kernels;
    void (*product)(const cpu_product *product);
    cpu_tiling tiles;
    float *panels;
    int64_t panel_floats;
} run;

/* What one task works on. */
typedef struct tile {
    int32_t n, group, t0, t1, u0, u1;
    int32_t first_block, end_block; /* of the group's output channels */
    int32_t words;                  /* of a panel pixel */
    cpu_lane_block lanes;           /* if by lane */
    int32_t first_tap;              /* that is not left out */
    const char *base;               /* of its input channel 0 for output (t0, u0) */
    int64_t row_step, column_step;  /* from output to output, in words */
    cpu_product product; /* loops and steps, the same for all register tiles */
} tile;

int64_t cpu_correlate_panel_floats(const cpu_correlation *c)
{
    if (c->winograd) {
        return cpu_winograd_panel_floats(c);
    }
    const cpu_tiling t = cpu_tiling_of(c);
    const int64_t panel = (int64_t)t.span_h * t.span_w * cpu_panel_words(c);
    return t.direct ? 0 : cpu_round_up(panel, 16);
}

int32_t cpu_correlate_tasks(const cpu_correlation *c)
{
    if (c->winograd) {
        return cpu_winograd_tasks(c);
    }
    const cpu_tiling t = cpu_tiling_of(c);
    return c->in.n * cpu_panel_count(c) * t.tiles_h * t.tiles_w;
}

/* `pixels` pixels from element `index` of the image on, `step` apart, as words. */
static void gather_pixels(const cpu_correlation *c, int64_t index, int32_t pixels,
                          int32_t step, float *to)
{
    if (c->pairs) {
        cpu_kernels_best()->pair_channels(pixels, c->in_count,
                                          (const uint16_t *)c->in.data + index,
                                          c->in.pitch * step, (uint16_t *)(void *)to);
    } else {
        cpu_load(&c->in, index, pixels, c->in_count, step, to, c->in_count);
    }
}

/* A piece of a panel row: zeros, the pixels inside the image, zeros. */
static void gather_row(const run *r, const tile *at, const cpu_image_row *row,
                       float *to)
{
    const cpu_correlation *c = r->c;
    if (c->lane_outputs > 0) {
        cpu_load_lane_row(&c->in, &at->lanes, row, to);
        return;
    }
    const cpu_inside inside = cpu_inside_of(&c->in, row);
    to = cpu_zeros_around(row, &inside, at->words, to);
    gather_pixels(c, inside.pixel * c->in.pitch + at->group * c->in_count, inside.count,
                  row->step, to);
}

/* Rows of the panel: of the outputs' rows, or of those of each tap by itself. */
static void gather_panel(const run *r, const tile *at, const cpu_taps taps[2],
                         float *panel)
{
    const cpu_correlation *c = r->c;
    const cpu_tiling *t = &r->tiles;
    const int32_t rows = at->t1 - at->t0, pixels = at->u1 - at->u0;
    const int64_t width = cpu_span(&c->w, t->apart_w, pixels);
    const int32_t first = t->apart_h ? taps[0].first * rows : 0;
    const int32_t end = t->apart_h ? taps[0].end * rows : cpu_span(&c->h, false, rows);
    for (int32_t i = first; i < end; i++) {
        const int32_t h = t->apart_h ? c->h.in_step * (at->t0 + i % rows) +
                                           i / rows * c->h.tap_step
                                     : c->h.in_step * at->t0 + i;
        cpu_image_row row = {at->n, h + c->h.tap_first,
                             c->w.in_step * at->u0 + c->w.tap_first, (int32_t)width, 1};
        float *to = panel + i * width * at->words;
        if (!t->apart_w) {
            gather_row(r, at, &row, to);
            continue;
        }
        row.first += taps[1].first * c->w.tap_step;
        row.count = pixels;
        row.step = c->w.in_step;
        for (int32_t b = taps[1].first; b < taps[1].end; b++) {
            gather_row(r, at, &row, to + (int64_t)b * pixels * at->words);
            row.first += c->w.tap_step;
        }
    }
}

static void use_panel(const run *r, tile *at)
{
    const cpu_correlation *c = r->c;
    const cpu_tiling *t = &r->tiles;
    const int32_t rows = at->t1 - at->t0, pixels = at->u1 - at->u0;
    const int64_t words = at->words, per_input = words / cpu_word_count(c);
    const int64_t row = cpu_span(&c->w, t->apart_w, pixels) * words;
    const cpu_taps taps[2] = {cpu_taps_of(&c->h, t->apart_h, at->t0, at->t1, c->in.h),
                              cpu_taps_of(&c->w, t->apart_w, at->u0, at->u1, c->in.w)};
    float *panel = r->panels + ym_pool_slot() * r->panel_floats;
    gather_panel(r, at, taps, panel);
    const int64_t h_step = (t->apart_h ? rows : c->h.tap_step) * row;
    const int64_t w_step = (t->apart_w ? pixels : c->w.tap_step) * words;
    at->base = (const char *)(panel + taps[0].first * h_step + taps[1].first * w_step);
    at->first_tap = taps[0].first * c->w.tap_count + taps[1].first;
    at->row_step = t->apart_h ? row : c->h.in_step * row;
    at->column_step = t->apart_w ? words : c->w.in_step * words;
    at->product.loop[0] = (cpu_loop){taps[0].end - taps[0].first, h_step, 0};
    at->product.loop[1] = (cpu_loop){taps[1].end - taps[1].first, w_step, 0};
    at->product.loop[2] = (cpu_loop){cpu_word_count(c), per_input, 0};
    /* Where the taps of a row are neighbours, they and their words are one loop. */
    if (!t->apart_w && c->w.tap_step == 1) {
        at->product.loop[1].count = 1;
        at->product.loop[2].count *= c->w.tap_count;
    }
}

static void use_image(const run *r, tile *at)
{
    const cpu_correlation *c = r->c;
    const int64_t element_bytes = (int64_t)ym_dtype_bytes(c->in.dtype);
    const int64_t pitch = c->in.pitch * element_bytes / (int64_t)sizeof(float);
    const int64_t h = c->h.in_step * at->t0 + c->h.tap_first;
    const int64_t w = c->w.in_step * at->u0 + c->w.tap_first;
    at->base = (const char *)c->in.data +
               (((at->n * (int64_t)c->in.h + h) * c->in.w + w) * c->in.pitch +
                at->group * c->in_count) *
                   element_bytes;
    at->row_step = (int64_t)c->h.in_step * c->in.w * pitch;
    at->column_step = c->w.in_step * pitch;
    at->product.loop[0] = at->product.loop[1] = (cpu_loop){1, 0, 0};
    at->product.loop[2] = (cpu_loop){cpu_word_count(c), 1, 0};
}

/* A register tile whose columns do not fill vectors, or whose output is not float. */
static void store_by_buffer(const run *r, cpu_product *product, int32_t columns,
                            int64_t index)
{
    const cpu_correlation *c = r->c;
    float sum[MAX_TILE], old[MAX_TILE];
    const int32_t width = product->vectors * r->kernels->lanes;
    product->c = sum;
    product->c_row = width;
    product->accumulate = false;
    r->product(product);
    if (c->accumulate) {
        memset(old, 0, sizeof old);
        cpu_load(&c->out, index, product->rows, columns, c->w.out_step, old, width);
        r->kernels->add(product->rows * width, old, sum);
    }
    cpu_store(sum, width, product->rows, columns, &c->out, index, c->w.out_step);
}

/* Output row t of the tile, output channels of one block. */
static void correlate_row(const run *r, const tile *at, int32_t t, int32_t block)
{
    const cpu_correlation *c = r->c;
    const int32_t columns = cpu_columns_of_block(c->out_count, block);
    const int32_t first_column = at->group * c->out_count + block * cpu_block_columns();
    const int32_t count = at->u1 - at->u0;
    const int32_t parts = (count + r->kernels->tile_rows - 1) / r->kernels->tile_rows;
    const int64_t out_row = (int64_t)at->n * c->out.h + c->h.out_first +
                            t * c->h.out_step;
    cpu_product product = at->product;
    product.vectors = columns > r->kernels->lanes ? 2 : 1;
    for (int32_t part = 0; part < parts; part++) {
        const int64_t u = cpu_part(count, parts, part);
        const int64_t pixel = out_row * c->out.w + c->w.out_first +
                              (at->u0 + u) * c->w.out_step;
        const int64_t index = pixel * c->out.pitch + first_column;
        product.a = at->base + ((t - at->t0) * at->row_step + u * at->column_step) *
                                   (int64_t)sizeof(float);
        product.rows = (int32_t)(cpu_part(count, parts, part + 1) - u);
        if (c->out.dtype != YM_F32 || columns % r->kernels->lanes != 0) {
            store_by_buffer(r, &product, columns, index);
            continue;
        }
        product.c = (float *)c->out.data + index;
        product.c_row = c->w.out_step * c->out.pitch;
        product.accumulate = c->accumulate;
        r->product(&product);
    }
}

/* The panel has one block only. */
static void use_lanes(const cpu_correlation *c, int32_t block, tile *at)
{
    at->group = 0;
    at->first_block = block;
    at->end_block = block + 1;
    cpu_lane_block_of(c->in_count, c->lane_outputs, block * cpu_block_columns(),
                      cpu_columns_of_block(c->out_count, block), &at->lanes);
    at->words = c->in_count * at->lanes.width;
}

/* By lane the panels of a tile follow one another: they read parts of the same pixels,
 * of which the cache has the neighbours. */
static void tile_of(const run *r, int32_t index, tile *at)
{
    const cpu_correlation *c = r->c;
    const cpu_tiling *t = &r->tiles;
    const int32_t tiles = t->tiles_h * t->tiles_w, panels = cpu_panel_count(c);
    const bool lanes = c->lane_outputs > 0;
    const int32_t panel = lanes ? index % panels : index / tiles % panels;
    const int32_t part = lanes ? index / panels % tiles : index % tiles;
    const int32_t part_w = part % t->tiles_w, part_h = part / t->tiles_w;
    at->n = index / tiles / panels;
    at->group = panel;
    at->first_block = 0;
    at->end_block = cpu_block_count(c->out_count);
    at->words = cpu_word_count(c);
    at->t0 = (int32_t)cpu_part(c->h.out_count, t->tiles_h, part_h);
    at->t1 = (int32_t)cpu_part(c->h.out_count, t->tiles_h, part_h + 1);
    at->u0 = (int32_t)cpu_part(c->w.out_count, t->tiles_w, part_w);
    at->u1 = (int32_t)cpu_part(c->w.out_count, t->tiles_w, part_w + 1);
    if (lanes) {
        use_lanes(c, panel, at);
    }
    at->first_tap = 0;
    at->product = (cpu_product){.chain = 0};
}

static void correlate_task(void *argument, int32_t index)
{
    const run *r = argument;
    const cpu_correlation *c = r->c;
    const cpu_tiling *t = &r->tiles;
    tile at;
    tile_of(r, index, &at);
    if (t->direct) {
        use_image(r, &at);
    } else if (c->h.tap_count > 0 && c->w.tap_count > 0) {
        use_panel(r, &at);
    }
    at.product.a_row = at.column_step;
    const int64_t words = cpu_word_count(c);
    for (int32_t block = at.first_block; block < at.end_block; block++) {
        const int64_t width =
            cpu_padded_count(cpu_columns_of_block(c->out_count, block));
        at.product.b = cpu_packed_block(c, at.group, block) +
                       at.first_tap * words * width;
        at.product.bias = c->bias == NULL
                              ? NULL
                              : c->bias + at.group * cpu_padded_count(c->out_count) +
                                    block * cpu_block_columns();
        at.product.loop[2].b_step = width;
        at.product.loop[1].b_step = width * words;
        at.product.loop[0].b_step = width * words * c->w.tap_count;
        for (int32_t row = at.t0; row < at.t1; row++) {
            correlate_row(r, &at, row, block);
        }
    }
}

/* Images whose pixels are read and written one after the other are one long row. */
static void join_rows(cpu_correlation *c)
{
    const int64_t pixels = ym_pixels(&c->out);
    if (c->h.in_step != 1 || c->w.in_step != 1 || c->h.out_step != 1 ||
        c->w.out_step != 1 || c->in.h != c->out.h || c->in.w != c->out.w ||
        c->h.out_count != c->out.h || c->w.out_count != c->out.w ||
        pixels > INT32_MAX / 2) {
        return;
    }
    c->in.n = c->in.h = c->out.n = c->out.h = c->h.out_count = 1;
    c->in.w = c->out.w = c->w.out_count = (int32_t)pixels;
}

void cpu_correlate(const cpu_correlation *correlation, float *panels,
                   int64_t panel_floats, int32_t threads)
{
    cpu_correlation c = *correlation;
    if (c.winograd) {
        cpu_winograd(&c, panels, panel_floats, threads);
        return;
    }
    if (cpu_tiling_of(&c).direct) {
        join_rows(&c);
    }
    const cpu_kernels *kernels = cpu_kernels_best();
    run r = {&c,
             kernels,
             c.lane_outputs > 0 ? kernels->product_lanes
             : c.pairs          ? kernels->product_pairs
                                : kernels->product,
             cpu_tiling_of(&c),
             panels,
             panel_floats};
    ym_pool_run_on(threads, correlate_task, &r, cpu_correlate_tasks(&c));
}
