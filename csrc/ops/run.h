/* SPDX-License-Identifier: MIT
 *
 * What the executor's files share: one run of a schedule, and where its things are.
 */
#ifndef YM_OPS_RUN_H
#define YM_OPS_RUN_H

#include "core/plan_parts.h"

typedef struct ym_runner {
    const ym_plan *plan;
    const ym_schedule *schedule;
    ym_context *context;
    const ym_bindings *bindings;
} ym_runner;

char *ym_run_arena(const ym_runner *r, size_t offset);
ym_tensor ym_run_tensor(const ym_runner *r, ym_view view);

/* Of a param, -1: none; NULL: there is none, or the gradient is not wanted. */
const float *ym_run_param(const ym_runner *r, int32_t param);
float *ym_run_gradient(const ym_runner *r, int32_t param);

/* Whether a gradient is added to what its memory holds: a caller's sum, or what the run
 * has put there before. */
bool ym_run_accumulates(const ym_runner *r, int32_t param, bool again);

/* run_brick.c */
ym_status ym_run_statistics(const ym_runner *r, const ym_step *step);
ym_status ym_run_brick(const ym_runner *r, const ym_step *step);
ym_status ym_run_brick_backward(const ym_runner *r, const ym_step *step);

#endif
