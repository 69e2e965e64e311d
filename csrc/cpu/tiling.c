/* SPDX-License-Identifier: MIT */
#include "cpu/tiling.h"

enum {
    PANEL_FLOATS = 48 * 1024,      /* wanted; more only if one row tile needs it */
    LANE_PANEL_FLOATS = 32 * 1024, /* by lane there is less to do with each */
    ENOUGH_TASKS = 16,
};

int32_t cpu_panel_count(const cpu_correlation *c)
{
    return c->lane_outputs > 0 ? cpu_block_count(c->out_count) : c->groups;
}

int32_t cpu_panel_words(const cpu_correlation *c)
{
    const int64_t columns =
        cpu_min(cpu_block_columns(), cpu_padded_count(c->out_count));
    return c->lane_outputs > 0 ? c->in_count * (int32_t)columns : cpu_word_count(c);
}

int32_t cpu_span(const cpu_axis *axis, bool apart, int32_t count)
{
    if (apart) {
        return axis->tap_count * count;
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
static int32_t split(const cpu_axis *axis, bool apart, int64_t most, int32_t least,
                     int32_t wanted)
{
    int32_t parts = 1;
    while (parts < axis->out_count) {
        int32_t part = largest_part(axis->out_count, parts);
        if (cpu_span(axis, apart, part) <= most && (parts >= wanted || part <= least)) {
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

static void cut(const cpu_correlation *c, cpu_tiling *t)
{
    const int32_t rows = cpu_kernels_best()->tile_rows;
    const int64_t wanted = (c->lane_outputs > 0 ? LANE_PANEL_FLOATS : PANEL_FLOATS) /
                           cpu_panel_words(c);
    const int32_t images = c->in.n * cpu_panel_count(c);
    const int32_t fewest = c->h.out_count == 1 ? ENOUGH_TASKS : 1;
    int64_t most = wanted / cpu_span(&c->h, t->apart_h, 1);
    if (t->apart_w && c->w.tap_count > 1) { /* a register tile's at least */
        most = cpu_max(most, cpu_span(&c->w, true, rows));
    }
    t->tiles_w = split(&c->w, t->apart_w, most, 2 * rows, fewest / images);
    t->span_w = cpu_span(&c->w, t->apart_w, largest_part(c->w.out_count, t->tiles_w));
    t->tiles_h = split(&c->h, t->apart_h, wanted / t->span_w, 4,
                       ENOUGH_TASKS / (images * t->tiles_w));
    t->span_h = cpu_span(&c->h, t->apart_h, largest_part(c->h.out_count, t->tiles_h));
}

/* Would as many outputs have no more panel pixels if each tap had its own? */
static bool sparse(const cpu_correlation *c, const cpu_tiling *t)
{
    const int64_t outputs = (int64_t)largest_part(c->h.out_count, t->tiles_h) *
                            largest_part(c->w.out_count, t->tiles_w);
    return (c->h.tap_step > 1 || c->w.tap_step > 1) &&
           (int64_t)t->span_h * t->span_w >= outputs * c->h.tap_count * c->w.tap_count;
}

cpu_tiling cpu_tiling_of(const cpu_correlation *c)
{
    cpu_tiling t = {.tiles_h = 1, .tiles_w = 1};
    t.direct = c->lane_outputs == 0 && readable(c) && inside(&c->h, c->in.h) &&
               inside(&c->w, c->in.w);
    t.apart_h = c->h.tap_count == 1;
    t.apart_w = c->w.tap_count == 1;
    if (c->h.tap_count == 0 || c->w.tap_count == 0) {
        return t;
    }
    cut(c, &t);
    if (sparse(c, &t)) {
        t.apart_h = t.apart_w = true;
        cut(c, &t);
    }
    return t;
}

cpu_taps cpu_taps_of(const cpu_axis *axis, bool apart, int32_t from, int32_t to,
                     int32_t size)
{
    cpu_taps taps = {0, axis->tap_count};
    const int32_t low = axis->in_step * from + axis->tap_first;
    const int32_t high = axis->in_step * (to - 1) + axis->tap_first;
    while (apart && taps.first < taps.end && high + taps.first * axis->tap_step < 0) {
        taps.first++;
    }
    while (apart && taps.first < taps.end &&
           low + (taps.end - 1) * axis->tap_step >= size) {
        taps.end--;
    }
    return taps;
}
