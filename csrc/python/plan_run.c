/* SPDX-License-Identifier: MIT
 * Plan.forward and Plan.backward: parse, run without the GIL, raise.
 */
#include "cpu/pages.h"
#include "python/plan_arguments.h"

static PyObject *run(ym_run_arguments *a, const ym_schedule *schedule, int32_t segment,
                     unsigned long long stream)
{
    ym_context context = {.backend = a->plan->backend,
                          .stream = (void *)(uintptr_t)stream,
                          .device = a->plan->device};
    ym_status status;
    Py_BEGIN_ALLOW_THREADS
        status = ym_plan_replay(a->plan, schedule, segment, &context, &a->bindings);
    Py_END_ALLOW_THREADS
    if (status != YM_OK) {
        return ym_raise(status, &context.error);
    }
    Py_RETURN_NONE;
}

PyObject *ym_plan_forward_method(plan_object *self, PyObject *args)
{
    PyObject *inputs, *params, *norms, *outputs, *saved, *workspace;
    unsigned long long stream = 0;
    if (!PyArg_ParseTuple(args, "OOOOOO|K:forward", &inputs, &params, &norms, &outputs,
                          &saved, &workspace, &stream)) {
        return NULL;
    }
    ym_run_arguments a = {.plan = self->plan};
    ym_value_list rule = {"outputs", self->plan->program->output,
                          self->plan->graph->output_count, false, true};
    PyObject *result = NULL;
    if (ym_parse_common(&a, inputs, params, norms, saved, workspace) == 0 &&
        ym_parse_values(self->plan, outputs, &rule, &a.outputs) == 0) {
        a.bindings.outputs = a.outputs;
        if (self->plan->device < 0) {
            ym_prefer_large_pages(a.bindings.saved, self->plan->forward.saved_bytes);
        }
        result = run(&a, ym_plan_forward_schedule(self->plan), 0, stream);
    }
    ym_release_arguments(&a);
    return result;
}

/* Every gradient that this segment writes must have a place. */
static int require_places(plan_object *self, const ym_run_arguments *a,
                          const ym_schedule *schedule, int32_t segment)
{
    const ym_graph *g = self->plan->graph;
    for (int32_t i = 0; i < g->input_count; i++) {
        if (schedule->reached_input[i] && a->grad_inputs[i].data == NULL) {
            PyErr_Format(PyExc_ValueError,
                         "grad_inputs[%d]: is None, but the plan computes it", i);
            return -1;
        }
    }
    bool *touched = PyMem_Calloc((size_t)g->param_count + 1, sizeof *touched);
    if (touched == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ym_plan_touched_params(self->plan, schedule, segment, touched);
    int status = 0;
    for (int32_t i = 0; status == 0 && i < g->param_count; i++) {
        if (touched[i] && a->grad_params[i].data == NULL) {
            PyErr_Format(PyExc_ValueError,
                         "grad_params[%d]: is None, but this segment computes it (%s)",
                         i, g->param[i].name);
            status = -1;
        }
    }
    PyMem_Free(touched);
    return status;
}

/* Backward depends on which outputs have a gradient. */
static const ym_schedule *backward_schedule(plan_object *self, ym_run_arguments *a)
{
    const ym_graph *g = self->plan->graph;
    a->mask = PyMem_Calloc((size_t)g->output_count + 1, sizeof(bool));
    if (a->mask == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (int32_t i = 0; i < g->output_count; i++) {
        a->mask[i] = a->grad_outputs[i].data != NULL;
    }
    const ym_schedule *schedule;
    ym_error error;
    ym_status status =
        ym_plan_backward_schedule(self->plan, a->mask, &schedule, &error);
    if (status != YM_OK) {
        ym_raise(status, &error);
        return NULL;
    }
    return schedule;
}

PyObject *ym_plan_backward_method(plan_object *self, PyObject *args)
{
    PyObject *inputs, *params, *norms, *grad_outputs, *grad_inputs, *grad_params,
        *saved, *workspace, *accumulate = NULL;
    int segment;
    unsigned long long stream = 0;
    if (!PyArg_ParseTuple(args, "iOOOOOOOO|KO:backward", &segment, &inputs, &params,
                          &norms, &grad_outputs, &grad_inputs, &grad_params, &saved,
                          &workspace, &stream, &accumulate)) {
        return NULL;
    }
    if (segment < 0 || segment >= self->plan->segment_count) {
        return PyErr_Format(PyExc_ValueError, "segment: is %d, must be in [0, %d)",
                            segment, self->plan->segment_count);
    }
    ym_run_arguments a = {.plan = self->plan};
    PyObject *result = NULL;
    const ym_schedule *schedule = NULL;
    if (ym_parse_common(&a, inputs, params, norms, saved, workspace) == 0 &&
        ym_parse_gradients(&a, grad_outputs, grad_inputs, grad_params) == 0 &&
        ym_parse_accumulate(&a, accumulate) == 0) {
        schedule = backward_schedule(self, &a);
    }
    if (schedule != NULL && require_places(self, &a, schedule, segment) == 0) {
        result = run(&a, schedule, segment, stream);
    }
    ym_release_arguments(&a);
    return result;
}
