/* SPDX-License-Identifier: MIT
 *
 * Both passes are bound by memory, so a span is worked through in blocks that stay in
 * the first-level cache, one plain loop per formula: the compiler makes vectors of
 * each, and every combination of options needs no code of its own. The same code is
 * compiled for three instruction sets and has the same bits in all.
 */
#include "cpu/sgd.h"

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "math/sgd.h"
#include "ops/sgd.h"

#include <string.h>

/* Small blocks and fetching ahead keep memory busy while a block is worked on: a
 * processor's own prefetching begins anew at each page of each of the four arrays. */
#define BLOCK 64
#define AHEAD 1024
#define LINE 16 /* elements that are fetched together */
#define LANES 4

/* GCC makes vectors at -O3 only. */
#if defined(__GNUC__) && !defined(__clang__)
#define VECTORISED __attribute__((always_inline, optimize("O3"))) inline
#define TARGET(set) __attribute__((target(set), optimize("O3")))
#else
#define VECTORISED __attribute__((always_inline)) inline
#define TARGET(set) __attribute__((target(set)))
#endif

typedef float lanes_f32 __attribute__((vector_size(LANES * sizeof(float))));
typedef double lanes_f64 __attribute__((vector_size(LANES * sizeof(double))));

typedef struct kernels {
    double (*sum_of_squares)(const float *g, int32_t count);
    void (*step)(const ym_sgd_job *job, const ym_sgd_span *span);
} kernels;

typedef struct pass {
    ym_sgd_job *job;
    const kernels *kernel;
} pass;

static VECTORISED void add_squares(const float *g, lanes_f64 *sum)
{
    lanes_f32 x;
    memcpy(&x, g, sizeof x);
    lanes_f64 wide = __builtin_convertvector(x, lanes_f64);
    *sum += wide * wide;
}

/* Lane i sums every 16th element from i on, whatever the width of the registers. */
static VECTORISED double sum_of_squares(const float *g, int32_t count)
{
    lanes_f64 sum[4] = {{0}, {0}, {0}, {0}};
    float tail[4 * LANES] = {0};
    int32_t whole = count - count % (4 * LANES);
    for (int32_t i = 0; i < whole; i += 4 * LANES) {
        if (i < whole - AHEAD) {
            __builtin_prefetch(g + i + AHEAD, 0, 3);
        }
        for (int j = 0; j < 4; j++) {
            add_squares(g + i + j * LANES, &sum[j]);
        }
    }
    memcpy(tail, g + whole, (size_t)(count - whole) * sizeof *g);
    for (int j = 0; j < 4; j++) {
        add_squares(tail + j * LANES, &sum[j]);
    }
    lanes_f64 all = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    return (all[0] + all[2]) + (all[1] + all[3]);
}

static VECTORISED void momentum_block(const ym_sgd_group *group, bool first_step, int n,
                                      float *restrict buffer, float *restrict g)
{
    if (first_step) {
        memcpy(buffer, g, (size_t)n * sizeof *g);
    } else {
        for (int i = 0; i < n; i++) {
            buffer[i] = ym_sgd_momentum(buffer[i], g[i], group->momentum,
                                        group->gradient_weight);
        }
    }
    if (!group->nesterov) {
        memcpy(g, buffer, (size_t)n * sizeof *g);
        return;
    }
    for (int i = 0; i < n; i++) {
        g[i] = ym_sgd_nesterov(g[i], buffer[i], group->momentum);
    }
}

/* The parameter's new value; g is the unscaled, clipped gradient and is overwritten. */
static VECTORISED void update_block(const ym_sgd_group *group, const ym_sgd_tensor *t,
                                    int64_t first, int n, float *restrict g)
{
    float *restrict p = t->param + first;
    if (group->maximize) {
        for (int i = 0; i < n; i++) {
            g[i] = -g[i];
        }
    }
    if (group->decays) {
        for (int i = 0; i < n; i++) {
            g[i] = ym_sgd_weight_decay(g[i], p[i], group->weight_decay);
        }
    }
    if (group->moves) {
        momentum_block(group, t->first_step, n, t->momentum + first, g);
    }
    for (int i = 0; i < n; i++) {
        p[i] = ym_sgd_descend(p[i], g[i], group->minus_lr);
    }
}

static VECTORISED void gradient_block(const ym_sgd_job *job, const ym_sgd_tensor *t,
                                      int64_t first, int n)
{
    float *restrict grad = t->grad + first;
    float g[BLOCK] __attribute__((aligned(64)));
    if (job->update || job->gradient == YM_SGD_GRADIENT_WRITE) {
        for (int i = 0; i < n; i++) {
            g[i] = ym_sgd_unscale(grad[i], job->inverse_scale, job->clip);
        }
    }
    if (job->gradient == YM_SGD_GRADIENT_WRITE) {
        memcpy(grad, g, (size_t)n * sizeof *g);
    } else if (job->gradient == YM_SGD_GRADIENT_ZERO) {
        memset(grad, 0, (size_t)n * sizeof *g);
    }
    if (job->update) {
        update_block(&job->group[t->group], t, first, n, g);
    }
}

static VECTORISED void average_block(const ym_sgd_job *job, const ym_sgd_tensor *t,
                                     int64_t first, int n)
{
    float *restrict ema = t->ema + first;
    const float *restrict p = t->param + first;
    for (int i = 0; i < n; i++) {
        ema[i] = ym_sgd_average(ema[i], p[i], job->ema_decay, job->ema_weight);
    }
}

static VECTORISED void fetch(const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i += LINE) {
        __builtin_prefetch(from + i, 1, 2);
    }
}

static VECTORISED void fetch_block(const ym_sgd_job *job, const ym_sgd_tensor *t,
                                   int64_t first, int64_t left)
{
    int64_t n = left < BLOCK ? left : BLOCK;
    fetch(t->param + first, n);
    if (t->grad != NULL) {
        fetch(t->grad + first, n);
    }
    if (t->momentum != NULL) {
        fetch(t->momentum + first, n);
    }
    if (t->ema != NULL && job->average) {
        fetch(t->ema + first, n);
    }
}

static VECTORISED void step_span(const ym_sgd_job *job, const ym_sgd_span *span)
{
    const ym_sgd_tensor *t = &job->tensor[span->tensor];
    int64_t end = span->first + span->count;
    for (int64_t first = span->first; first < end; first += BLOCK) {
        int n = (int)(end - first < BLOCK ? end - first : BLOCK);
        if (end - first > AHEAD) {
            fetch_block(job, t, first + AHEAD, end - first - AHEAD);
        }
        if (t->grad != NULL) {
            gradient_block(job, t, first, n);
        }
        if (t->ema != NULL && job->average) {
            average_block(job, t, first, n);
        }
    }
}

#define KERNELS(name, attribute)                                                      \
    attribute static double sum_of_squares_##name(const float *g, int32_t count)      \
    {                                                                                 \
        return sum_of_squares(g, count);                                              \
    }                                                                                 \
    attribute static void step_##name(const ym_sgd_job *job, const ym_sgd_span *span) \
    {                                                                                 \
        step_span(job, span);                                                         \
    }                                                                                 \
    static const kernels name##_kernels = {sum_of_squares_##name, step_##name};

KERNELS(plain, )
#ifdef YM_CPU_X86
KERNELS(avx2, TARGET("avx2,fma"))
KERNELS(avx512, TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))
#endif

static const kernels *best_kernels(void)
{
#ifdef YM_CPU_X86
    const cpu_isa isa = cpu_isa_allowed();
    if (isa >= CPU_ISA_AVX512) {
        return &avx512_kernels;
    }
    if (isa == CPU_ISA_AVX2) {
        return &avx2_kernels;
    }
#endif
    return &plain_kernels;
}

static void norm_task(void *argument, int32_t index)
{
    const pass *p = argument;
    ym_sgd_job *job = p->job;
    for (int32_t i = job->task_first[index]; i < job->task_first[index + 1]; i++) {
        const ym_sgd_span *span = &job->span[i];
        const float *g = job->tensor[span->tensor].grad;
        job->partial[i] =
            g == NULL ? 0 : p->kernel->sum_of_squares(g + span->first, span->count);
    }
}

static void step_task(void *argument, int32_t index)
{
    const pass *p = argument;
    for (int32_t i = p->job->task_first[index]; i < p->job->task_first[index + 1];
         i++) {
        p->kernel->step(p->job, &p->job->span[i]);
    }
}

ym_status cpu_sgd_norm(ym_context *context, struct ym_sgd_job *job)
{
    (void)context;
    pass p = {job, best_kernels()};
    ym_pool_run(norm_task, &p, job->task_count);
    job->sum_of_squares = ym_sgd_total(job);
    return YM_OK;
}

ym_status cpu_sgd_step(ym_context *context, struct ym_sgd_job *job)
{
    (void)context;
    pass p = {job, best_kernels()};
    ym_pool_run(step_task, &p, job->task_count);
    return YM_OK;
}
