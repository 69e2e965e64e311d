/* SPDX-License-Identifier: MIT
 *
 * The weights of a correlation, in the order in which its products read them.
 */
#include "cpu/correlate.h"
#include "cpu/winograd.h"
#include "math/bf16.h"

#include <string.h>

int64_t cpu_packed_floats(const cpu_correlation *c, int32_t taps)
{
    return c->groups * cpu_padded_count(c->out_count) * cpu_word_count(c) *
           (c->winograd ? CPU_WINOGRAD_POINTS : taps);
}

float *cpu_packed_block(const cpu_correlation *c, int32_t group, int32_t block)
{
    const int64_t taps = c->winograd ? CPU_WINOGRAD_POINTS
                                     : (int64_t)c->h.tap_count * c->w.tap_count;
    const int64_t rows = taps * cpu_word_count(c);
    return c->weights + rows * (group * cpu_padded_count(c->out_count) +
                                block * cpu_block_columns());
}

typedef struct pack_job {
    const cpu_correlation *c;
    const cpu_weight_view *view;
} pack_job;

/* From the weight of the first output channel to those of `columns` from `first` on. */
static void find_columns(const pack_job *job, int32_t first, int32_t columns,
                         int64_t *offset)
{
    const cpu_weight_view *view = job->view;
    const int32_t outputs = job->c->lane_outputs;
    for (int32_t j = 0; j < columns; j++) {
        const int32_t column = first + j;
        offset[j] = outputs == 0 ? column * view->out_step
                                 : column / outputs * view->group_step +
                                       column % outputs * view->out_step;
    }
}

static void pack_pairs(const pack_job *job, int32_t columns, const float *from,
                       uint32_t *to, int64_t width)
{
    const int64_t in_step = job->view->in_step, out_step = job->view->out_step;
    for (int32_t i = 0; i < job->c->in_count; i += 2) {
        const float *row = from + i * in_step;
        const bool last = i + 1 == job->c->in_count;
        for (int32_t j = 0; j < columns; j++) {
            const float *at = row + j * out_step;
            const uint32_t second = last ? 0 : ym_f32_to_bf16(at[in_step]);
            to[j] = ym_f32_to_bf16(*at) | second << 16;
        }
        memset(to + columns, 0, (size_t)(width - columns) * sizeof *to);
        to += width;
    }
}

/* `from` is of the first output channel of all. */
static void pack_tap(const pack_job *job, const int64_t *offset, int32_t columns,
                     const float *from, float *to, int64_t width)
{
    if (job->c->pairs) {
        pack_pairs(job, columns, from + offset[0], (uint32_t *)(void *)to, width);
        return;
    }
    for (int32_t i = 0; i < job->c->in_count; i++) {
        const float *row = from + i * job->view->in_step;
        for (int32_t j = 0; j < columns; j++) {
            to[j] = row[offset[j]];
        }
        memset(to + columns, 0, (size_t)(width - columns) * sizeof *to);
        to += width;
    }
}

static void pack_task(void *argument, int32_t index)
{
    const pack_job *job = argument;
    const cpu_correlation *c = job->c;
    const cpu_weight_view *view = job->view;
    const int32_t group = index / cpu_block_count(c->out_count),
                  block = index % cpu_block_count(c->out_count);
    const int32_t columns = cpu_columns_of_block(c->out_count, block);
    const int64_t width = cpu_padded_count(columns);
    int64_t offset[CPU_LANE_COLUMNS];
    find_columns(job, block * cpu_block_columns(), columns, offset);
    float *to = cpu_packed_block(c, group, block);
    for (int32_t a = 0; a < c->h.tap_count; a++) {
        for (int32_t b = 0; b < c->w.tap_count; b++) {
            const float *from =
                view->data + group * view->group_step +
                (c->h.weight_first + a * c->h.weight_step) * view->r_step +
                (c->w.weight_first + b * c->w.weight_step) * view->s_step;
            pack_tap(job, offset, columns, from, to, width);
            to += cpu_word_count(c) * width;
        }
    }
}

void cpu_pack(const cpu_correlation *c, const cpu_weight_view *view)
{
    pack_job job = {c, view};
    if (c->winograd) {
        cpu_winograd_pack(c, view);
    } else if (c->h.tap_count > 0 && c->w.tap_count > 0) {
        ym_pool_run(pack_task, &job, c->groups * cpu_block_count(c->out_count));
    }
}
