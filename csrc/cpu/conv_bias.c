/* SPDX-License-Identifier: MIT
 *
 * Gradient of a convolution's bias.
 */
#include "cpu/cpu.h"

enum {
    CHANNELS = 64, /* of a task */
};

typedef struct run {
    const ym_tensor *dy;
    float *dbias;
    bool accumulate;
} run;

static void bias_task(void *argument, int32_t index)
{
    const run *r = argument;
    const int32_t first = index * CHANNELS;
    const int32_t count = (int32_t)cpu_min(CHANNELS, r->dy->c - first);
    const int64_t pixels = ym_pixels(r->dy);
    double total[CHANNELS] = {0};
    float row[CHANNELS];
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

void cpu_conv_backward_bias(const ym_tensor *dy, float *dbias, bool accumulate)
{
    run r = {dy, dbias, accumulate};
    ym_pool_run(bias_task, &r, (dy->c + CHANNELS - 1) / CHANNELS);
}
