/* SPDX-License-Identifier: MIT
 *
 * One optimizer step as two passes over memory: `sgd_norm` reads every gradient once,
 * as it is, multiplied by a loss scale or not (sum of squares, which is finite exactly
 * when every gradient is), `sgd_step` does the rest element by element: unscale, clip,
 * weight decay, momentum, Nesterov, parameter, moving average, gradient zeroed.
 * Everything is float32 and flat: the arrays of one tensor share one dense layout, so
 * element i of each belongs together.
 */
#ifndef YM_CORE_SGD_H
#define YM_CORE_SGD_H

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Elements that a thread works on at a time, and the unit of the sum of squares: the
 * partial sums, and so the norm's bits, do not depend on the number of threads. */
#define YM_SGD_SPAN 65536

typedef struct ym_sgd_tensor {
    float *param;
    float *grad;     /* NULL: not stepped, only averaged */
    float *momentum; /* NULL where the group's momentum is 0 or grad is NULL */
    float *ema;      /* NULL: not averaged */
    int64_t count;
    int32_t group;
    bool first_step; /* momentum becomes the gradient; its old content is not read */
} ym_sgd_tensor;

typedef struct ym_sgd_group {
    float weight_decay, momentum;
    float gradient_weight; /* 1 - dampening */
    float minus_lr;
    bool nesterov, maximize;
    bool decays, moves; /* weight_decay or momentum was not 0 before it was rounded */
} ym_sgd_group;

typedef enum ym_sgd_gradient {
    YM_SGD_GRADIENT_KEEP = 0,
    YM_SGD_GRADIENT_ZERO,
    YM_SGD_GRADIENT_WRITE, /* unscaled and clipped, as separate torch calls leave it */
} ym_sgd_gradient;

/* A part of one tensor. */
typedef struct ym_sgd_span {
    int32_t tensor;
    int32_t count;
    int64_t first;
} ym_sgd_span;

typedef struct ym_sgd_job {
    const ym_sgd_tensor *tensor;
    int32_t tensor_count;
    const ym_sgd_group *group;
    int32_t group_count;

    float inverse_scale; /* of the loss scale, 1: none */
    float clip;          /* coefficient, 1: none */
    bool update;         /* false: parameters and momentum stay (a skipped step) */
    ym_sgd_gradient gradient;
    bool average; /* ema = ema * ema_decay + param * ema_weight */
    float ema_decay, ema_weight;

    /* Made by ym_sgd_divide (ops/sgd.h): task i is the spans
     * [task_first[i], task_first[i + 1]). */
    ym_sgd_span *span;
    int32_t *task_first;
    double *partial; /* sum of squares of each span */
    int32_t span_count, task_count;

    double sum_of_squares; /* the answer of sgd_norm, of gradients as they are */
} ym_sgd_job;

#endif
