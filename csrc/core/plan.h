/* SPDX-License-Identifier: MIT
 *
 * Plan: how a graph is run for one set of input sizes, dtype, wanted gradients and keep
 * rule. It says which values are kept from forward to backward and which are rebuilt,
 * where each value lies in the two arenas (`saved` and `workspace`), and the steps in
 * order. All sizes are known before anything runs; a plan is immutable and threads may
 * share it.
 */
#ifndef YM_CORE_PLAN_H
#define YM_CORE_PLAN_H

#include "core/graph.h"

typedef enum ym_keep {
    YM_KEEP_ALL = 0, /* all that backward reads, as eager */
    YM_KEEP_CONV,    /* convolution outputs: no convolution is run twice */
    YM_KEEP_MIN,     /* the smallest peak found, in a large graph to a 32nd, with each
                        convolution run at most twice */
    YM_KEEP_BUDGET,  /* the cheapest of all whose peak fits budget_bytes */
} ym_keep;

/* How the caller has an input: packed, or planar, as images come. */
typedef struct ym_input_form {
    bool is_planar; /* (N, C, H, W) without gaps; else (N, H, W, C), the plan's dtype */
    ym_dtype dtype; /* where planar: YM_F32 or the plan's */
} ym_input_form;

typedef struct ym_plan_request {
    const ym_backend *backend;
    int32_t device;                  /* CUDA device of all memory, -1: the host's */
    ym_dtype dtype;                  /* of every value: YM_F32, YM_BF16 or YM_F16 */
    const int32_t (*input_size)[3];  /* N, H, W of each input */
    const ym_input_form *input_form; /* per input; NULL: all are packed */
    const bool *input_grad;          /* per input: is its gradient wanted? */
    const bool *param_grad;          /* per param */
    ym_keep keep;
    size_t budget_bytes;
    int32_t segment_count; /* into how many parts backward is cut, at least 1; more
                              where a part would have several stages of forward */
    bool replays;          /* record work and repeat it, on a backend that can, if no
                              other process has a part in it */
} ym_plan_request;

typedef struct ym_plan ym_plan;

/* The memory of one run. `saved` must stay untouched from forward to the last segment
 * of backward; `workspace` only during a call, in backward from the first segment to
 * the last. Both 64-byte aligned. */
typedef struct ym_bindings {
    const ym_tensor *inputs; /* (N, H, W, C) packed, plan dtype; or as input_form says,
                                without a pitch */
    ym_tensor *outputs;      /* forward only */
    const ym_weight *params; /* by param number; vectors as (K, 1, 1, 1) */
    const ym_norm *norms;    /* by norm module; gamma, beta, dgamma, dbeta ignored */
    const ym_tensor *grad_outputs; /* backward; data NULL: no gradient */
    ym_tensor *grad_inputs;        /* backward; data NULL: not wanted */
    ym_weight *grad_params;        /* backward */
    const bool *accumulate_params; /* by param: added to its gradient; NULL: none */
    void *saved, *workspace;
    size_t saved_bytes, workspace_bytes; /* of the memory given */
} ym_bindings;

ym_status ym_plan_create(const ym_graph *graph, const ym_plan_request *request,
                         ym_plan **made, ym_error *error);
void ym_plan_free(ym_plan *plan);

/* Backward depends on which outputs have a gradient. Schedules are made on first use
 * and kept by the plan: the caller serialises calls of this function. mask NULL: all.
 */
typedef struct ym_schedule ym_schedule;
ym_status ym_plan_backward_schedule(ym_plan *plan, const bool *output_has_grad,
                                    const ym_schedule **made, ym_error *error);
const ym_schedule *ym_plan_forward_schedule(const ym_plan *plan);

/* Runs one segment of a schedule, the first to run is segment_count - 1: a stage of
 * forward, or a part of backward. Of inputs and outputs those must be bound that the
 * stage has or that are inputs of earlier stages; of gradients of outputs, those of the
 * segment's stage and of later ones. Where the plan has a record of such bindings, that
 * is repeated. */
ym_status ym_plan_run(const ym_plan *plan, const ym_schedule *schedule, int32_t segment,
                      ym_context *context, const ym_bindings *bindings);

/* Writes an output of forward once more, as forward did, from what it kept: before the
 * first segment of the output's stage runs, in backward or ahead of it. Of outputs,
 * params and norms only that one need be bound, and those that it reads; an error where
 * that would take an input or a convolution. */
ym_status ym_plan_recompute(const ym_plan *plan, int32_t output, ym_context *context,
                            const ym_bindings *bindings);

#endif
