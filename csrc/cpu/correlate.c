/* SPDX-License-Identifier: MIT
 *
 * A tile of output pixels is one task. Its input pixels are copied once into a panel of
 * words with the zeros of the padding (a few hundred KB, so that it stays in the
 * second-level cache); the register tiles then read the panel in place for every tap,
 * so nothing is gathered tap by tap. Where the kernel is 1 x 1 without padding and the
 * products can read the image as it is, even the panel is left out.
 */
#include "cpu/winograd.h"

#include <string.h>

enum {
    PANEL_FLOATS = 48 * 1024,      /* wanted; more only if one row tile needs it */
    LANE_PANEL_FLOATS = 32 * 1024, /* by lane there is less to do with each */
    ENOUGH_TASKS = 16,
    MAX_TILE = 16 * 32, /* tile_rows * 2 * lanes of the largest kernel set */
};

/* The sizes of tiles and panel. All are at least 1. */
typedef struct tiling {
    int32_t tiles_h, tiles_w;   /* per image */
    int32_t span_h, span_w;     /* panel pixels for the largest tile */
    int32_t gather_h, gather_w; /* pixels of `in` from one panel pixel to the next */
    bool direct;
} tiling;

typedef struct run {
    const cpu_correlation *c;
    const cpu_kernels *kernels;
    void (*product)(const cpu_product *product);
    tiling tiles;
    float *panels;
    int64_t panel_floats;
} run;

/* What one task works on. */
typedef struct tile {
    int32_t n, group, t0, t1, u0, u1;
    int32_t first_block, end_block; /* of the group's output channels */
    int32_t words;                  /* of a panel pixel */
    cpu_lane_block lanes;           /* if by lane */
    const char *base; /* of input channel 0 for output (t0, u0) and the first tap */
    int64_t row_step, column_step; /* from output to output, in words */
    cpu_product product; /* loops and steps, the same for all register tiles */
} tile;

/* How many panels of the same pixels: one a group, or by lane one a block. */
static int32_t panel_count(const cpu_correlation *c)
{
    return c->lane_outputs > 0 ? cpu_block_count(c->out_count) : c->groups;
}

/* Words of a pixel in the widest of them. */
static int32_t panel_words(const cpu_correlation *c)
{
    const int64_t columns =
        cpu_min(cpu_block_columns(), cpu_padded_count(c->out_count));
    return c->lane_outputs > 0 ? c->in_count * (int32_t)columns : cpu_word_count(c);
}

/* Panel pixels for `count` outputs; a single tap needs only the pixels it reads. */
static int32_t span(const cpu_axis *axis, int32_t count)
{
    if (axis->tap_count == 1) {
        return count;
    }
    return (count - 1) * axis->in_step + (axis->tap_count - 1) * axis->tap_step + 1;
}

static int32_t largest_part(int32_t count, int32_t parts)
{
    return (count + parts - 1) / parts;
}

static bool inside(const cpu_axis *axis, int32_t size)
{
    return axis->tap_count == 1 && axis->tap_first >= 0 &&
           axis->tap_first + (axis->out_count - 1) * axis->in_step < size;
}

/* Into how many tiles a side is cut: until a tile's span is at most `most`, and, as
 * long as tiles have more than `least` outputs, until there are `wanted` of them. */
static int32_t split(const cpu_axis *axis, int64_t most, int32_t least, int32_t wanted)
{
    int32_t parts = 1;
    while (parts < axis->out_count) {
        int32_t part = largest_part(axis->out_count, parts);
        if (span(axis, part) <= most && (parts >= wanted || part <= least)) {
            break;
        }
        parts++;
    }
    return parts;
}

/* Floats, or pairs none of which is cut in two. */
static bool readable(const cpu_correlation *c)
{
    return c->pairs ? c->in_count % 2 == 0 && c->in.pitch % 2 == 0
                    : c->in.dtype == YM_F32;
}

static tiling tiling_of(const cpu_correlation *c)
{
    const int32_t rows = cpu_kernels_best()->tile_rows;
    const int32_t taps = c->h.tap_count * c->w.tap_count;
    tiling t = {.tiles_h = 1, .tiles_w = 1};
    t.direct = c->lane_outputs == 0 && readable(c) && inside(&c->h, c->in.h) &&
               inside(&c->w, c->in.w);
    t.gather_h = c->h.tap_count == 1 ? c->h.in_step : 1;
    t.gather_w = c->w.tap_count == 1 ? c->w.in_step : 1;
    if (taps == 0) {
        return t;
    }
    const int64_t most = (c->lane_outputs > 0 ? LANE_PANEL_FLOATS : PANEL_FLOATS) /
                         panel_words(c);
    const int32_t images = c->in.n * panel_count(c);
    const int32_t fewest = c->h.out_count == 1 ? ENOUGH_TASKS : 1;
    t.tiles_w = split(&c->w, most / span(&c->h, 1), 2 * rows, fewest / images);
    t.span_w = span(&c->w, largest_part(c->w.out_count, t.tiles_w));
    t.tiles_h = split(&c->h, most / t.span_w, 4, ENOUGH_TASKS / (images * t.tiles_w));
    t.span_h = span(&c->h, largest_part(c->h.out_count, t.tiles_h));
    return t;
}

int64_t cpu_correlate_panel_floats(const cpu_correlation *c)
{
    if (c->winograd) {
        return cpu_winograd_panel_floats(c);
    }
    const tiling t = tiling_of(c);
    const int64_t panel = (int64_t)t.span_h * t.span_w * panel_words(c);
    return t.direct ? 0 : cpu_round_up(panel, 16);
}

int32_t cpu_correlate_tasks(const cpu_correlation *c)
{
    if (c->winograd) {
        return cpu_winograd_tasks(c);
    }
    const tiling t = tiling_of(c);
    return c->in.n * panel_count(c) * t.tiles_h * t.tiles_w;
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

/* One panel row: zeros, the pixels inside the image, zeros. */
static void gather_row(const run *r, const tile *at, int32_t in_h, int32_t width,
                       float *to)
{
    const cpu_correlation *c = r->c;
    const int32_t first = c->w.in_step * at->u0 + c->w.tap_first;
    const cpu_image_row row = {at->n, in_h, first, width, r->tiles.gather_w};
    if (c->lane_outputs > 0) {
        cpu_load_lane_row(&c->in, &at->lanes, &row, to);
        return;
    }
    const cpu_inside inside = cpu_inside_of(&c->in, &row);
    to = cpu_zeros_around(&row, &inside, at->words, to);
    gather_pixels(c, inside.pixel * c->in.pitch + at->group * c->in_count, inside.count,
                  row.step, to);
}

static void use_panel(const run *r, tile *at)
{
    const cpu_correlation *c = r->c;
    const tiling *t = &r->tiles;
    const int32_t height = span(&c->h, at->t1 - at->t0);
    const int32_t width = span(&c->w, at->u1 - at->u0);
    const int32_t words = at->words, per_input = words / cpu_word_count(c);
    const int64_t row = (int64_t)width * words;
    float *panel = r->panels + ym_pool_slot() * r->panel_floats;
    for (int32_t i = 0; i < height; i++) {
        int32_t in_h = c->h.in_step * at->t0 + c->h.tap_first + i * t->gather_h;
        gather_row(r, at, in_h, width, panel + i * row);
    }
    at->base = (const char *)panel;
    at->row_step = c->h.in_step / t->gather_h * row;
    at->column_step = (int64_t)c->w.in_step / t->gather_w * words;
    at->product.loop[0] = (cpu_loop){c->h.tap_count, c->h.tap_step * row, 0};
    at->product.loop[1] = (cpu_loop){c->w.tap_count, (int64_t)c->w.tap_step * words, 0};
    at->product.loop[2] = (cpu_loop){cpu_word_count(c), per_input, 0};
    if (c->w.tap_step == 1) { /* taps of a row are neighbours: one long loop */
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
    const tiling *t = &r->tiles;
    const int32_t tiles = t->tiles_h * t->tiles_w, panels = panel_count(c);
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
    at->product = (cpu_product){.chain = 0};
}

static void correlate_task(void *argument, int32_t index)
{
    const run *r = argument;
    const cpu_correlation *c = r->c;
    const tiling *t = &r->tiles;
    tile at;
    tile_of(r, index, &at);
    if (t->direct) {
        use_image(r, &at);
    } else if (c->h.tap_count > 0 && c->w.tap_count > 0) {
        use_panel(r, &at);
    }
    at.product.a_row = at.column_step;
    const int64_t per_tap = at.product.loop[2].count;
    for (int32_t block = at.first_block; block < at.end_block; block++) {
        const int64_t width =
            cpu_padded_count(cpu_columns_of_block(c->out_count, block));
        at.product.b = cpu_packed_block(c, at.group, block);
        at.product.bias = c->bias == NULL
                              ? NULL
                              : c->bias + at.group * cpu_padded_count(c->out_count) +
                                    block * cpu_block_columns();
        at.product.loop[2].b_step = width;
        at.product.loop[1].b_step = width * per_tap;
        at.product.loop[0].b_step = width * per_tap * at.product.loop[1].count;
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
    if (tiling_of(&c).direct) {
        join_rows(&c);
    }
    const cpu_kernels *kernels = cpu_kernels_best();
    run r = {&c,
             kernels,
             c.lane_outputs > 0 ? kernels->product_lanes
             : c.pairs          ? kernels->product_pairs
                                : kernels->product,
             tiling_of(&c),
             panels,
             panel_floats};
    ym_pool_run_on(threads, correlate_task, &r, cpu_correlate_tasks(&c));
}
