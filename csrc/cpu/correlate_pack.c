/* SPDX-License-Identifier: MIT
 *
 * The weights of a correlation, in the order in which its products read them.
 */
#include "cpu/correlate.h"
#include "cpu/winograd.h"
#include "math/bf16.h"

#include <string.h>

enum { TOGETHER = 16 }; /* input channels, an even number: a line of the cache */

int64_t cpu_packed_floats(const cpu_correlation *c, int32_t taps)
{
    return c->winograd
               ? cpu_winograd_weight_floats(c)
               : c->groups * cpu_padded_count(c->out_count) * cpu_word_count(c) * taps;
}

float *cpu_packed_block(const cpu_correlation *c, int32_t group, int32_t block)
{
    const int64_t taps = c->winograd ? CPU_WINOGRAD_POINTS
                                     : (int64_t)c->h.tap_count * c->w.tap_count;
    const int64_t rows = taps * cpu_word_count(c);
    return c->weights + rows * (group * cpu_padded_count(c->out_count) +
                                block * cpu_block_columns());
}

/* From the weight of the first output channel to those of `columns` from `first` on. */
static void find_columns(const cpu_correlation *c, int32_t first, int32_t columns,
                         int64_t *offset)
{
    const cpu_weight_view *view = &c->view;
    const int32_t outputs = c->lane_outputs;
    for (int32_t j = 0; j < columns; j++) {
        const int32_t column = first + j;
        offset[j] = outputs == 0 ? column * view->out_step
                                 : column / outputs * view->group_step +
                                       column % outputs * view->out_step;
    }
}

/* Weights of `count` input channels from `from` on, which is of the first output
 * channel of all. A column at a time: its weights are neighbours in memory, those of a
 * row may lie so far apart that they evict one another from the cache. */
static void pack_floats(const cpu_correlation *c, const int64_t *offset,
                        int32_t columns, const float *from, int32_t count, float *to,
                        int64_t width)
{
    const int64_t in_step = c->view.in_step;
    if (c->view.out_step == 1 && c->lane_outputs == 0) {
        for (int32_t i = 0; i < count; i++) {
            memcpy(to + i * width, from + i * in_step + offset[0],
                   (size_t)columns * sizeof *to);
        }
        return;
    }
    for (int32_t j = 0; j < columns; j++) {
        const float *at = from + offset[j];
        for (int32_t i = 0; i < count; i++) {
            to[i * width + j] = at[i * in_step];
        }
    }
}

/* The same of `count` input channels, an even number or up to the last, as pairs: first
 * as floats, so that a row of them is rounded by vectors. */
static void pack_pairs(const cpu_correlation *c, const int64_t *offset, int32_t columns,
                       const float *from, int32_t count, uint32_t *to, int64_t width)
{
    float rows[TOGETHER][CPU_LANE_COLUMNS];
    pack_floats(c, offset, columns, from, count, rows[0], CPU_LANE_COLUMNS);
    if (count % 2 != 0) {
        memset(rows[count], 0, sizeof rows[count]);
    }
    for (int32_t i = 0; i < count; i += 2, to += width) {
        for (int32_t j = 0; j < columns; j++) {
            to[j] = ym_f32_to_bf16(rows[i][j]) |
                    (uint32_t)ym_f32_to_bf16(rows[i + 1][j]) << 16;
        }
    }
}

/* A tap's words of some input channels. */
static void pack_tap(const cpu_correlation *c, const int64_t *offset, int32_t columns,
                     const float *from, int32_t count, float *to, int64_t width)
{
    const int32_t words = c->pairs ? (count + 1) / 2 : count;
    if (c->pairs) {
        pack_pairs(c, offset, columns, from, count, (uint32_t *)(void *)to, width);
    } else {
        pack_floats(c, offset, columns, from, count, to, width);
    }
    for (int32_t i = 0; columns < width && i < words; i++) {
        memset(to + i * width + columns, 0, (size_t)(width - columns) * sizeof *to);
    }
}

/* Some input channels of all taps at a time: taps are often neighbours in memory. */
static void pack_task(void *argument, int32_t index)
{
    const cpu_correlation *c = argument;
    const cpu_weight_view *view = &c->view;
    const int32_t group = index / cpu_block_count(c->out_count),
                  block = index % cpu_block_count(c->out_count);
    const int32_t columns = cpu_columns_of_block(c->out_count, block);
    const int64_t width = cpu_padded_count(columns);
    int64_t offset[CPU_LANE_COLUMNS];
    find_columns(c, block * cpu_block_columns(), columns, offset);
    const float *first = view->data + group * view->group_step +
                         c->h.weight_first * view->r_step +
                         c->w.weight_first * view->s_step;
    for (int32_t i = 0; i < c->in_count; i += TOGETHER) {
        const int32_t count = (int32_t)cpu_min(TOGETHER, c->in_count - i);
        float *to = cpu_packed_block(c, group, block) + (c->pairs ? i / 2 : i) * width;
        for (int32_t a = 0; a < c->h.tap_count; a++) {
            for (int32_t b = 0; b < c->w.tap_count; b++) {
                const float *from = first + i * view->in_step +
                                    a * c->h.weight_step * view->r_step +
                                    b * c->w.weight_step * view->s_step;
                pack_tap(c, offset, columns, from, count, to, width);
                to += cpu_word_count(c) * width;
            }
        }
    }
}

void cpu_pack(const cpu_correlation *c)
{
    if (c->winograd) {
        cpu_winograd_pack(c);
    } else if (c->h.tap_count > 0 && c->w.tap_count > 0) {
        cpu_correlation job = *c;
        ym_pool_run(pack_task, &job, c->groups * cpu_block_count(c->out_count));
    }
}
