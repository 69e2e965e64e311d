/* SPDX-License-Identifier: MIT
 *
 * Scratch of a pass that runs on the pool: floats that all threads share, then a panel
 * for each thread that has a task.
 */
#ifndef YM_CPU_SCRATCH_H
#define YM_CPU_SCRATCH_H

#include "cpu/cpu.h"
#include "cpu/pool.h"

typedef struct cpu_scratch {
    int64_t shared, panel; /* floats */
    int32_t tasks;
} cpu_scratch;

static inline size_t cpu_scratch_bytes(cpu_scratch s)
{
    const int64_t threads = cpu_min(ym_pool_threads(), s.tasks);
    return (size_t)(s.shared + threads * s.panel) * sizeof(float);
}

/* How many threads context's scratch has panels for: its plan may have been made for
 * fewer than run now. `pass` is for the error's text. */
static inline ym_status cpu_scratch_threads(ym_context *context, cpu_scratch s,
                                            const char *pass, int32_t *threads)
{
    const int64_t floats = (int64_t)(context->scratch_bytes / sizeof(float));
    const int64_t panels = s.panel == 0 ? ym_pool_threads()
                                        : (floats - s.shared) / s.panel;
    YM_CHECK(&context->error, floats >= s.shared && panels > 0, YM_ERR_ARGUMENT,
             "%s: %zu bytes of scratch are too few", pass, context->scratch_bytes);
    *threads = (int32_t)cpu_min(panels, ym_pool_threads());
    return YM_OK;
}

#endif
