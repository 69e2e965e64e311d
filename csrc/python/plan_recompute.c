/* SPDX-License-Identifier: MIT
 * Recomputed outputs: what they take, and Plan.recompute.
 */
#include "python/plan_arguments.h"

/* The flags of what an output reads, to be freed with PyMem_Free. */
typedef struct reads {
    bool *params, *norms;
} reads;

static int find_reads(const ym_plan *plan, int32_t output, reads *found)
{
    const ym_graph *g = plan->graph;
    found->params = PyMem_Calloc((size_t)g->param_count + 1, sizeof(bool));
    found->norms = PyMem_Calloc((size_t)g->norm_count + 1, sizeof(bool));
    if (found->params == NULL || found->norms == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ym_plan_recompute_reads(plan, output, found->params, found->norms);
    return 0;
}

static void free_reads(reads *found)
{
    PyMem_Free(found->params);
    PyMem_Free(found->norms);
}

static PyObject *needs_of(const ym_plan *plan, int32_t output)
{
    size_t bytes;
    if (!ym_plan_recompute_bytes(plan, output, &bytes)) {
        Py_RETURN_NONE;
    }
    reads found = {NULL, NULL};
    PyObject *needs = NULL;
    if (find_reads(plan, output, &found) == 0) {
        needs = Py_BuildValue("(nNN)", (Py_ssize_t)bytes,
                              ym_list_of_flags(found.params, plan->graph->param_count),
                              ym_list_of_flags(found.norms, plan->graph->norm_count));
    }
    free_reads(&found);
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

static PyObject *missing(const char *list, int32_t i)
{
    return PyErr_Format(PyExc_ValueError, "%s[%d]: is None, but the output reads it",
                        list, i);
}

/* None, or NULL with an exception that names what is not there. */
static PyObject *require_reads(const ym_run_arguments *a, int32_t output)
{
    const ym_graph *g = a->plan->graph;
    reads found = {NULL, NULL};
    PyObject *result = find_reads(a->plan, output, &found) == 0 ? Py_None : NULL;
    for (int32_t i = 0; result != NULL && i < g->param_count; i++) {
        if (found.params[i] && a->params[i].data == NULL) {
            result = missing("params", i);
        }
    }
    for (int32_t i = 0; result != NULL && i < g->norm_count; i++) {
        const bool is_given = a->norms[i].batch_statistics ||
                              a->norms[i].running_mean != NULL ||
                              g->norm[i].is_constant;
        if (found.norms[i] && !is_given) {
            result = missing("norms", i);
        }
    }
    if (result != NULL && a->outputs[output].data == NULL) {
        result = PyErr_Format(PyExc_ValueError,
                              "outputs[%d]: is None, but is to be written", output);
    }
    free_reads(&found);
    return result;
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
    PyObject *result = NULL;
    if (ym_parse_recompute(&a, params, norms, saved, workspace) == 0 &&
        ym_parse_values(self->plan, outputs, &rule, &a.outputs) == 0 &&
        require_reads(&a, output) != NULL) {
        a.bindings.outputs = a.outputs;
        result = run(&a, output, stream);
    }
    ym_release_arguments(&a);
    return result;
}
