/* SPDX-License-Identifier: MIT
 * Plan.forward and Plan.backward: parse, run without the GIL, raise.
 */
#include "cpu/pages.h"
#include "python/plan_arguments.h"

/* In the middle of a run: the caller's function has the GIL for itself. What it raises
 * waits in this thread until the run has ended. */
static ym_status sum_in_python(ym_context *context, int32_t group, double *values,
                               int64_t count)
{
    const PyGILState_STATE state = PyGILState_Ensure();
    PyObject *result = PyObject_CallFunction(context->sum_argument, "iKL", (int)group,
                                             (unsigned long long)(uintptr_t)values,
                                             (long long)count);
    const bool failed = result == NULL;
    Py_XDECREF(result);
    PyGILState_Release(state);
    YM_CHECK(&context->error, !failed, YM_ERR_BACKEND, "batch norm: the sum failed");
    return YM_OK;
}

/* sum: called as sum(group, address, count), or None. */
static PyObject *run(ym_run_arguments *a, const ym_schedule *schedule, int32_t segment,
                     unsigned long long stream, PyObject *sum)
{
    ym_context context = {.backend = a->plan->backend,
                          .stream = (void *)(uintptr_t)stream,
                          .device = a->plan->device};
    ym_status status;
    if (sum != NULL && sum != Py_None) {
        context.sum = sum_in_python;
        context.sum_argument = sum;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ym_plan_run(a->plan, schedule, segment, &context, &a->bindings);
    Py_END_ALLOW_THREADS
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (status != YM_OK) {
        return ym_raise(status, &context.error);
    }
    Py_RETURN_NONE;
}

/* Every input, and every gradient of a value, that this segment reads or writes must be
 * there. */
static int require_values(const ym_run_arguments *a, const ym_schedule *schedule,
                          int32_t segment)
{
    const struct {
        ym_place place;
        const ym_tensor *given;
        const char *name, *does;
    } lists[] = {{YM_PLACE_INPUT, a->inputs, "inputs", "reads"},
                 {YM_PLACE_GRAD_OUTPUT, a->grad_outputs, "grad_outputs", "reads"},
                 {YM_PLACE_GRAD_INPUT, a->grad_inputs, "grad_inputs", "computes"}};
    for (int32_t i = 0; i < schedule->block_count; i++) {
        const ym_block *block = &schedule->block[i];
        for (size_t k = 0; k < sizeof lists / sizeof *lists; k++) {
            if (block->place == lists[k].place &&
                ym_block_lives(schedule, block, segment) &&
                lists[k].given[block->index].data == NULL) {
                PyErr_Format(PyExc_ValueError,
                             "%s[%d]: is None, but this segment %s it", lists[k].name,
                             block->index, lists[k].does);
                return -1;
            }
        }
    }
    return 0;
}

PyObject *ym_plan_forward_method(plan_object *self, PyObject *args)
{
    PyObject *inputs, *params, *norms, *outputs, *saved, *workspace, *sum = NULL;
    unsigned long long stream = 0;
    int stage = 0;
    if (!PyArg_ParseTuple(args, "OOOOOO|KiO:forward", &inputs, &params, &norms,
                          &outputs, &saved, &workspace, &stream, &stage, &sum)) {
        return NULL;
    }
    const int stages = self->plan->graph->stage_count;
    if (stage < 0 || stage >= stages) {
        return PyErr_Format(PyExc_ValueError, "stage: is %d, must be in [0, %d)", stage,
                            stages);
    }
    ym_run_arguments a = {.plan = self->plan};
    ym_value_list rule = {.name = "outputs",
                          .items = self->plan->program->output,
                          .count = self->plan->graph->output_count,
                          .writes = true,
                          .stage = self->plan->graph->output_stage,
                          .needed_stage = stage};
    const ym_schedule *schedule = ym_plan_forward_schedule(self->plan);
    const int32_t segment = stages - 1 - stage;
    PyObject *result = NULL;
    if (ym_parse_inputs(&a, inputs) == 0 &&
        ym_parse_reads(&a, schedule, segment, params, norms) == 0 &&
        ym_parse_arenas(&a, saved, workspace) == 0 &&
        ym_parse_values(self->plan, outputs, &rule, &a.outputs) == 0 &&
        require_values(&a, schedule, segment) == 0) {
        a.bindings.outputs = a.outputs;
        if (self->plan->device < 0) {
            ym_prefer_large_pages(a.bindings.saved, self->plan->forward.saved_bytes);
        }
        result = run(&a, schedule, segment, stream, sum);
    }
    ym_release_arguments(&a);
    return result;
}

/* accumulate: bytes-like, a byte for each param, or None. */
static int parse_accumulate(ym_run_arguments *a, PyObject *accumulate)
{
    const int32_t count = a->plan->graph->param_count;
    Py_buffer bytes;
    if (accumulate == NULL || accumulate == Py_None) {
        return 0;
    }
    if (PyObject_GetBuffer(accumulate, &bytes, PyBUF_SIMPLE) < 0) {
        return -1;
    }
    int status = -1;
    if (bytes.len != count) {
        PyErr_Format(PyExc_ValueError, "accumulate: has %zd bytes, must have %d",
                     bytes.len, count);
    } else if ((a->accumulate = PyMem_Calloc((size_t)count + 1, sizeof(bool))) ==
               NULL) {
        PyErr_NoMemory();
    } else {
        for (int32_t i = 0; i < count; i++) {
            a->accumulate[i] = ((const char *)bytes.buf)[i] != 0;
        }
        a->bindings.accumulate_params = a->accumulate;
        status = 0;
    }
    PyBuffer_Release(&bytes);
    return status;
}

/* Which outputs have a gradient: those that the mask says, or without one that are
 * given. Of stages whose turn has come no others may be. */
static int complete_mask(plan_object *self, ym_run_arguments *a, int32_t stage,
                         PyObject *mask)
{
    const ym_graph *g = self->plan->graph;
    if (ym_parse_flags(mask, "mask", g->output_count, &a->mask) < 0) {
        return -1;
    }
    const bool has_mask = a->mask != NULL;
    if (!has_mask) {
        a->mask = PyMem_Calloc((size_t)g->output_count + 1, sizeof(bool));
        if (a->mask == NULL) {
            PyErr_NoMemory();
            return -1;
        }
    }
    for (int32_t i = 0; i < g->output_count; i++) {
        const bool given = a->grad_outputs[i].data != NULL;
        if (!has_mask) {
            a->mask[i] = given;
        } else if (given && !a->mask[i] && g->output_stage[i] >= stage) {
            PyErr_Format(PyExc_ValueError,
                         "grad_outputs[%d]: is given, the mask says none", i);
            return -1;
        }
    }
    return 0;
}

/* Backward depends on which outputs have a gradient. */
static const ym_schedule *backward_schedule(plan_object *self, ym_run_arguments *a,
                                            int32_t stage, PyObject *mask)
{
    if (complete_mask(self, a, stage, mask) < 0) {
        return NULL;
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
        *saved, *workspace, *accumulate = NULL, *mask = NULL, *sum = NULL;
    int segment;
    unsigned long long stream = 0;
    if (!PyArg_ParseTuple(args, "iOOOOOOOO|KOOO:backward", &segment, &inputs, &params,
                          &norms, &grad_outputs, &grad_inputs, &grad_params, &saved,
                          &workspace, &stream, &accumulate, &mask, &sum)) {
        return NULL;
    }
    if (segment < 0 || segment >= self->plan->segment_count) {
        return PyErr_Format(PyExc_ValueError, "segment: is %d, must be in [0, %d)",
                            segment, self->plan->segment_count);
    }
    ym_run_arguments a = {.plan = self->plan};
    const int32_t stage = self->plan->segment_stage[segment];
    PyObject *result = NULL;
    const ym_schedule *schedule = NULL;
    if (ym_parse_inputs(&a, inputs) == 0 &&
        ym_parse_arenas(&a, saved, workspace) == 0 &&
        ym_parse_gradients(&a, grad_outputs, grad_inputs) == 0 &&
        parse_accumulate(&a, accumulate) == 0) {
        schedule = backward_schedule(self, &a, stage, mask);
    }
    if (schedule != NULL && ym_parse_reads(&a, schedule, segment, params, norms) == 0 &&
        require_values(&a, schedule, segment) == 0 &&
        ym_parse_touched(&a, schedule, segment, grad_params) == 0) {
        result = run(&a, schedule, segment, stream, sum);
    }
    ym_release_arguments(&a);
    return result;
}
