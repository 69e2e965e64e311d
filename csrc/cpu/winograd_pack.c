/* SPDX-License-Identifier: MIT
 *
 * Weights at the points of Winograd's transform: G g G^T of each 3 x 3 kernel, some
 * output channels at a time so that the compiler makes vectors of the sums.
 */
#include "cpu/winograd.h"

enum { TOGETHER = 16 };

typedef float values[TOGETHER]; /* of as many output channels */

/* G g of three values, in steps of `step`, to four. */
static void transform(const values *g, int32_t step, values *out, int32_t out_step)
{
    for (int32_t j = 0; j < TOGETHER; j++) {
        const float sum = 0.5f * (g[0][j] + g[2 * step][j]), half = 0.5f * g[step][j];
        out[0][j] = g[0][j];
        out[out_step][j] = sum + half;
        out[2 * out_step][j] = sum - half;
        out[3 * out_step][j] = g[2 * step][j];
    }
}

/* The kernels of `inputs` input channels and `outputs` output channels from `from` on.
 * An output channel at a time, and of that a tap: they are neighbours in memory, what
 * belongs to one input channel may lie so far apart that it evicts one another from the
 * cache. */
static void gather(const cpu_correlation *c, const float *from, int32_t inputs,
                   int32_t outputs, values g[TOGETHER][9])
{
    const cpu_axis *h = &c->h, *w = &c->w;
    for (int32_t j = 0; j < outputs; j++, from += c->view.out_step) {
        for (int32_t tap = 0; tap < 9; tap++) {
            const float *at =
                from + (h->weight_first + tap / 3 * h->weight_step) * c->view.r_step +
                (w->weight_first + tap % 3 * w->weight_step) * c->view.s_step;
            for (int32_t i = 0; i < inputs; i++) {
                g[i][tap][j] = at[i * c->view.in_step];
            }
        }
    }
}

/* One input channel: its points, each `step` from the one before. */
static void put_points(const values g[9], int32_t outputs, float *to, int64_t step)
{
    values half[12], points[CPU_WINOGRAD_POINTS];
    for (int32_t s = 0; s < 3; s++) {
        transform(g + s, 3, half + s, 3);
    }
    for (int32_t r = 0; r < 4; r++) {
        transform(half + 3 * r, 1, points + 4 * r, 1);
    }
    for (int32_t point = 0; point < CPU_WINOGRAD_POINTS; point++, to += step) {
        for (int32_t j = 0; j < outputs; j++) {
            to[j] = points[point][j];
        }
    }
}

void cpu_winograd_pack_block(const cpu_correlation *c, int32_t group, int32_t block,
                             float *to)
{
    const cpu_weight_view *view = &c->view;
    const int32_t columns = cpu_columns_of_block(c->out_count, block);
    const float *data = view->data + group * view->group_step +
                        (int64_t)block * cpu_block_columns() * view->out_step;
    const int64_t step = (int64_t)c->in_count * columns;
    values g[TOGETHER][9] = {{{0}}};
    for (int32_t i = 0; i < c->in_count; i += TOGETHER) {
        const int32_t inputs = (int32_t)cpu_min(TOGETHER, c->in_count - i);
        for (int32_t first = 0; first < columns; first += TOGETHER) {
            const int32_t outputs = (int32_t)cpu_min(TOGETHER, columns - first);
            gather(c, data + i * view->in_step + first * view->out_step, inputs,
                   outputs, g);
            for (int32_t k = 0; k < inputs; k++) {
                put_points(g[k], outputs, to + (i + k) * (int64_t)columns + first,
                           step);
            }
        }
    }
}

static void pack_task(void *argument, int32_t index)
{
    const cpu_correlation *c = argument;
    const int32_t blocks = cpu_block_count(c->out_count);
    const int32_t group = index / blocks, block = index % blocks;
    cpu_winograd_pack_block(c, group, block, cpu_packed_block(c, group, block));
}

void cpu_winograd_pack(const cpu_correlation *c)
{
    cpu_correlation job = *c;
    if (cpu_winograd_keeps_inputs(c)) {
        return;
    }
    ym_pool_run(pack_task, &job, c->groups * cpu_block_count(c->out_count));
}
