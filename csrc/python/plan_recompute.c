/* SPDX-License-Identifier: MIT
 * Recomputed outputs: what they take, and Plan.recompute.
 */
#include "python/plan_arguments.h"

/* (bytes, params, norms), or None. */
static PyObject *needs_of(const ym_plan *plan, int32_t output)
{
    const ym_graph *g = plan->graph;
    const ym_schedule *schedule = plan->recompute[output];
    if (schedule == NULL) {
        Py_RETURN_NONE;
    }
    bool *params = PyMem_Calloc((size_t)g->param_count + 1, sizeof *params);
    bool *norms = PyMem_Calloc((size_t)g->norm_count + 1, sizeof *norms);
    PyObject *needs = NULL;
    if (params == NULL || norms == NULL) {
        PyErr_NoMemory();
    } else {
        ym_plan_reads(plan, schedule, 0, params, norms);
        needs = Py_BuildValue("(nNN)", (Py_ssize_t)schedule->workspace_bytes,
                              ym_list_of_flags(params, g->param_count),
                              ym_list_of_flags(norms, g->norm_count));
    }
    PyMem_Free(params);
    PyMem_Free(norms);
    return needs;
}

PyObject *ym_plan_recompute_needs_method(plan_object *self, PyObject *unused)
{
    (void)unused;
    const int32_t count = self->plan->graph->output_count;
    PyObject *list = PyList_New(count);
    for (int32_t i = 0; list != NULL && i < count; i++) {
        PyObject *needs = needs_of(self->plan, i);
        if (needs == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, needs);
    }
    return list;
}

static int require_output(const ym_run_arguments *a, int32_t output)
{
    if (a->outputs[output].data == NULL) {
        PyErr_Format(PyExc_ValueError, "outputs[%d]: is None, but is to be written",
                     output);
        return -1;
    }
    return 0;
}

static PyObject *run(ym_run_arguments *a, int32_t output, unsigned long long stream)
{
    ym_context context = {.backend = a->plan->backend,
                          .stream = (void *)(uintptr_t)stream,
                          .device = a->plan->device};
    ym_status status;
    Py_BEGIN_ALLOW_THREADS
        status = ym_plan_recompute(a->plan, output, &context, &a->bindings);
    Py_END_ALLOW_THREADS
    if (status != YM_OK) {
        return ym_raise(status, &context.error);
    }
    Py_RETURN_NONE;
}

PyObject *ym_plan_recompute_method(plan_object *self, PyObject *args)
{
    PyObject *params, *norms, *outputs, *saved, *workspace;
    int output;
    unsigned long long stream = 0;
    if (!PyArg_ParseTuple(args, "iOOOOO|K:recompute", &output, &params, &norms,
                          &outputs, &saved, &workspace, &stream)) {
        return NULL;
    }
    const ym_graph *g = self->plan->graph;
    if (output < 0 || output >= g->output_count) {
        return PyErr_Format(PyExc_ValueError, "output: is %d, must be in [0, %d)",
                            output, g->output_count);
    }
    ym_run_arguments a = {.plan = self->plan};
    const ym_value_list rule = {.name = "outputs",
                                .items = self->plan->program->output,
                                .count = g->output_count,
                                .writes = true};
    const ym_schedule *schedule = self->plan->recompute[output];
    PyObject *result = NULL;
    if (schedule == NULL) {
        return PyErr_Format(PyExc_ValueError,
                            "output: %d cannot be recomputed without inputs or "
                            "convolutions",
                            output);
    }
    if (ym_parse_reads(&a, schedule, 0, params, norms) == 0 &&
        ym_parse_arenas(&a, saved, workspace) == 0 &&
        ym_parse_values(self->plan, outputs, &rule, &a.outputs) == 0 &&
        require_output(&a, output) == 0) {
        a.bindings.outputs = a.outputs;
        result = run(&a, output, stream);
    }
    ym_release_arguments(&a);
    return result;
}
