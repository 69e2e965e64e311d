/* SPDX-License-Identifier: MIT
 *
 * Weights at the points of Winograd's transform: G g G^T of each 3 x 3 kernel, some
 * output channels at a time so that the compiler makes vectors of the sums.
 */
#include "cpu/winograd.h"

enum { TOGETHER = 16 };

typedef struct pack_job {
    const cpu_correlation *c;
    const cpu_weight_view *view;
} pack_job;

typedef float values[TOGETHER];

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

/* The kernels of input channel i and `count` output channels from `from` on. */
static void gather(const pack_job *job, const float *from, int32_t count, values g[9])
{
    const cpu_axis *h = &job->c->h, *w = &job->c->w;
    const cpu_weight_view *view = job->view;
    for (int32_t tap = 0; tap < 9; tap++) {
        const float *at = from +
                          (h->weight_first + tap / 3 * h->weight_step) * view->r_step +
                          (w->weight_first + tap % 3 * w->weight_step) * view->s_step;
        for (int32_t j = 0; j < count; j++) {
            g[tap][j] = at[j * view->out_step];
        }
    }
}

static void pack_task(void *argument, int32_t index)
{
    const pack_job *job = argument;
    const cpu_correlation *c = job->c;
    const int32_t blocks = cpu_block_count(c->out_count);
    const int32_t group = index / blocks, block = index % blocks;
    const int32_t columns = cpu_columns_of_block(c->out_count, block);
    const float *data = job->view->data + group * job->view->group_step +
                        (int64_t)block * cpu_block_columns() * job->view->out_step;
    float *to = cpu_packed_block(c, group, block);
    values g[9] = {{0}}, half[12], points[CPU_WINOGRAD_POINTS];
    for (int32_t i = 0; i < c->in_count; i++) {
        for (int32_t first = 0; first < columns; first += TOGETHER) {
            const int32_t count = (int32_t)cpu_min(TOGETHER, columns - first);
            gather(job, data + i * job->view->in_step + first * job->view->out_step,
                   count, g);
            for (int32_t s = 0; s < 3; s++) {
                transform(g + s, 3, half + s, 3);
            }
            for (int32_t r = 0; r < 4; r++) {
                transform(half + 3 * r, 1, points + 4 * r, 1);
            }
            for (int32_t point = 0; point < CPU_WINOGRAD_POINTS; point++) {
                float *at = to + ((int64_t)point * c->in_count + i) * columns + first;
                for (int32_t j = 0; j < count; j++) {
                    at[j] = points[point][j];
                }
            }
        }
    }
}

void cpu_winograd_pack(const cpu_correlation *c, const cpu_weight_view *view)
{
    pack_job job = {c, view};
    ym_pool_run(pack_task, &job, c->groups * cpu_block_count(c->out_count));
}
