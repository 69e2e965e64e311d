/* SPDX-License-Identifier: MIT
 * What a plan is made of: for plan.c, the executor and the binding.
 */
#ifndef YM_CORE_PLAN_PARTS_H
#define YM_CORE_PLAN_PARTS_H

#include "core/recompute.h"
#include "core/choose.h"

struct ym_plan {
    const ym_graph *graph; /* borrowed: outlives the plan */
    const ym_backend *backend;
    int32_t device;
    ym_program *program;
    ym_forward forward;
    int32_t patience;
    int32_t *segment_first; /* items */
    int32_t *segment_stage; /* of forward, that a segment belongs to */
    int32_t segment_count;
    int32_t *param_segment;  /* -1: no gradient wanted */
    ym_schedule **recompute; /* by output: what recomputes it, or NULL */
    ym_schedule *backward;   /* list; the first is for all outputs */
    ym_replayer *replayer;   /* NULL: work is queued every time */
};

/* Flags the params whose gradients are written in one segment of a backward schedule.
 */
void ym_plan_touched_params(const ym_plan *plan, const ym_schedule *schedule,
                            int32_t segment, bool *touched);

/* Flags the params and norm modules that one segment reads. */
void ym_plan_reads(const ym_plan *plan, const ym_schedule *schedule, int32_t segment,
                   bool *params, bool *norms);

/* The steps [*begin, *end) of one segment: of backward the last runs first. */
void ym_segment_steps(const ym_schedule *schedule, int32_t segment, int32_t *begin,
                      int32_t *end);

/* Runs the steps [begin, end), which follow those before them. */
ym_status ym_plan_run_steps(const ym_plan *plan, const ym_schedule *schedule,
                            int32_t begin, int32_t end, ym_context *context,
                            const ym_bindings *bindings);

/* Must the block be there while the segment runs? From the first to the last step that
 * uses it. */
bool ym_block_lives(const ym_schedule *schedule, const ym_block *block,
                    int32_t segment);

#endif
