/* SPDX-License-Identifier: MIT
 * What one run of a plan borrows from Python objects.
 */
#ifndef YM_PYTHON_PLAN_ARGUMENTS_H
#define YM_PYTHON_PLAN_ARGUMENTS_H

#include "python/plan_type.h"

/* All that one run borrows, in one allocation per list; freed by
 * ym_release_arguments. */
typedef struct ym_run_arguments {
    const ym_plan *plan;
    ym_bindings bindings;
    ym_tensor *inputs, *outputs, *grad_outputs, *grad_inputs;
    ym_weight *params, *grad_params;
    ym_norm *norms;
    bool *mask, *accumulate;
    bool *reads_param, *reads_norm, *touches_param; /* by param or norm */
} ym_run_arguments;

typedef struct ym_value_list {
    const char *name;
    const int32_t *items;
    int32_t count;
    bool writes;
    bool may_be_planar;   /* those are that the plan packs */
    const int32_t *stage; /* of each; NULL: none is needed here */
    int32_t needed_stage;
} ym_value_list;

/* The item of each input, to be freed with PyMem_Free; NULL with an exception. */
int32_t *ym_input_items(const ym_plan *plan);

/* Each returns 0, or -1 with an exception that names the entry. */
int ym_require_device_of(const ym_array *array, const char *name, const ym_plan *plan);
int ym_parse_values(const ym_plan *plan, PyObject *object, const ym_value_list *rule,
                    ym_tensor **values);
/* Inputs that the segment does not read may be missing. */
int ym_parse_inputs(ym_run_arguments *a, PyObject *inputs);
/* Of a network there are a thousand params, of which a stage or a segment reads a few:
 * those are looked at. */
int ym_parse_reads(ym_run_arguments *a, const ym_schedule *schedule, int32_t segment,
                   PyObject *params, PyObject *norms);
int ym_parse_arenas(ym_run_arguments *a, PyObject *saved, PyObject *workspace);
int ym_parse_gradients(ym_run_arguments *a, PyObject *grad_outputs,
                       PyObject *grad_inputs);
/* The gradients of params that this segment of backward writes: each must have a place.
 */
int ym_parse_touched(ym_run_arguments *a, const ym_schedule *schedule, int32_t segment,
                     PyObject *grad_params);
void ym_release_arguments(ym_run_arguments *a);

#endif
