/* SPDX-License-Identifier: MIT
 * Parsing the arguments of Plan.forward and Plan.backward.
 */
#include "python/plan_arguments.h"

#include <stdio.h>
#include <string.h>

void ym_release_arguments(ym_run_arguments *a)
{
    PyMem_Free(a->inputs);
    PyMem_Free(a->outputs);
    PyMem_Free(a->grad_outputs);
    PyMem_Free(a->grad_inputs);
    PyMem_Free(a->params);
    PyMem_Free(a->grad_params);
    PyMem_Free(a->norms);
    PyMem_Free(a->mask);
    PyMem_Free(a->accumulate);
    PyMem_Free(a->reads_param);
    PyMem_Free(a->reads_norm);
    PyMem_Free(a->touches_param);
}

/* Norms and biases are read and written as packed vectors, whatever their shape. */
static bool is_vector(const ym_graph *g, const ym_param *param)
{
    const int32_t number = (int32_t)(param - g->param);
    bool found = false;
    for (int32_t i = 0; !found && i < g->norm_count; i++) {
        found = g->norm[i].gamma == number || g->norm[i].beta == number;
    }
    for (int32_t i = 0; !found && i < g->node_count; i++) {
        found = g->node[i].op == YM_OP_CONV && g->node[i].u.conv.bias == number;
    }
    return found;
}

/* A vector (K) of another shape, with sides of 1 beside that of K, becomes one: the
 * (1, K, 1, 1) of a parameter that is multiplied with an activation. */
static void drop_sides_of_one(ym_array *array, int64_t length)
{
    int side = -1;
    for (int i = 0; i < array->ndim; i++) {
        if (array->shape[i] == 1) {
            continue;
        }
        if (side >= 0 || array->shape[i] != length) {
            return;
        }
        side = i;
    }
    if (side < 0 && length != 1) {
        return;
    }
    array->stride[0] = side < 0 ? 1 : array->stride[side];
    array->shape[0] = length;
    array->ndim = 1;
}

static int read_weight(const ym_plan *plan, PyObject *object, const char *name,
                       const ym_param *param, bool writes, ym_weight *weight)
{
    ym_array array;
    int64_t shape[4] = {param->k, param->c, param->r, param->s};
    if (ym_parse_array(object, name, &array) < 0 ||
        ym_require_dtype(&array, name, YM_F32) < 0 ||
        (writes && ym_require_writable(&array, name) < 0)) {
        return -1;
    }
    const bool column = param->c == 1 && param->r == 1 && param->s == 1;
    if (column && array.ndim != 1 && is_vector(plan->graph, param)) {
        drop_sides_of_one(&array, param->k);
    }
    bool vector = column && array.ndim == 1;
    bool matrix = param->r == 1 && param->s == 1 && array.ndim == 2;
    if (ym_require_shape(&array, name, vector ? 1 : matrix ? 2 : 4, shape) < 0) {
        return -1;
    }
    if (vector && param->k > 1 && array.stride[0] != 1) {
        return ym_require_packed(&array, name);
    }
    if (ym_require_device_of(&array, name, plan) < 0) {
        return -1;
    }
    *weight = (ym_weight){.data = array.data,
                          .k = param->k,
                          .c = param->c,
                          .r = param->r,
                          .s = param->s,
                          .stride_k = array.stride[0]};
    if (matrix) { /* of a linear layer */
        weight->stride_c = array.stride[1];
        weight->stride_r = weight->stride_s = 1;
    } else if (!vector) {
        weight->stride_c = array.stride[1];
        weight->stride_r = array.stride[2];
        weight->stride_s = array.stride[3];
    }
    return 0;
}

/* A weight (K, C / groups, R, S) with any strides, or a packed vector (C). A detector
 * has a thousand, so a name is made up only where one is wrong. */
static int parse_weight(const ym_plan *plan, PyObject *object, const ym_param *param,
                        bool writes, ym_weight *weight)
{
    if (read_weight(plan, object, "", param, writes, weight) == 0) {
        return 0;
    }
    PyErr_Clear();
    char name[192];
    snprintf(name, sizeof name, "%s %.150s", writes ? "gradient of" : "parameter",
             param->name);
    return read_weight(plan, object, name, param, writes, weight);
}

/* Those that are needed; the others may be None. */
static int parse_weights(const ym_plan *plan, PyObject *object, const char *name,
                         bool gradients, const bool *needed, ym_weight **weights)
{
    const ym_graph *g = plan->graph;
    PyObject *list = ym_sequence_of(object, name, g->param_count);
    *weights = ym_room_for(list, sizeof **weights);
    int status = *weights != NULL ? 0 : -1;
    for (int32_t i = 0; status == 0 && i < g->param_count; i++) {
        PyObject *entry = PySequence_Fast_GET_ITEM(list, i);
        const ym_param *p = &g->param[i];
        if (needed[i] && entry == Py_None) {
            PyErr_Format(PyExc_ValueError, "%s[%d]: is None, but %s (%s)", name, i,
                         gradients ? "this segment computes it" : "is read here",
                         p->name);
            status = -1;
        } else if (needed[i]) {
            status = parse_weight(plan, entry, p, gradients, &(*weights)[i]);
        } else {
            (*weights)[i] = (ym_weight){.k = p->k, .c = p->c, .r = p->r, .s = p->s};
        }
    }
    Py_XDECREF(list);
    return status;
}

static int read_running(const ym_plan *plan, PyObject *object, const char *name,
                        const ym_norm_module *module, bool writes, float **data)
{
    ym_array array;
    int64_t shape[1] = {module->channels};
    if (ym_parse_optional_array(object, name, &array) < 0) {
        return -1;
    }
    *data = array.data;
    if (array.data == NULL) {
        return 0;
    }
    if (ym_require_dtype(&array, name, YM_F32) < 0 ||
        ym_require_shape(&array, name, 1, shape) < 0 ||
        ym_require_packed(&array, name) < 0 ||
        (writes && ym_require_writable(&array, name) < 0) ||
        ym_require_device_of(&array, name, plan) < 0) {
        return -1;
    }
    return 0;
}

static int parse_running(const ym_plan *plan, PyObject *object, const char *what,
                         const ym_norm_module *module, bool writes, float **data)
{
    if (read_running(plan, object, "", module, writes, data) == 0) {
        return 0;
    }
    PyErr_Clear();
    char name[192];
    snprintf(name, sizeof name, "%s of %.150s", what, module->name);
    return read_running(plan, object, name, module, writes, data);
}

static int parse_norm(const ym_plan *plan, PyObject *object,
                      const ym_norm_module *module, ym_norm *norm)
{
    PyObject *mean, *variance;
    double eps, momentum;
    int batch_statistics, update_running;
    if (module->is_constant) {
        *norm = (ym_norm){0};
        return object == Py_None ? 0
                                 : (PyErr_Format(PyExc_TypeError,
                                                 "norm %s: is of an affine call, must "
                                                 "be None, got %R",
                                                 module->name, object),
                                    -1);
    }
    if (!PyTuple_Check(object) ||
        !PyArg_ParseTuple(object, "OOddpp", &mean, &variance, &eps, &momentum,
                          &batch_statistics, &update_running)) {
        if (!PyErr_Occurred()) {
            PyErr_Format(
                PyExc_TypeError,
                "norm %s: is a %s, must be a tuple (running_mean, running_var, eps, "
                "momentum, batch_statistics, update_running)",
                module->name, Py_TYPE(object)->tp_name);
        }
        return -1;
    }
    *norm = (ym_norm){.eps = eps,
                      .momentum = momentum,
                      .batch_statistics = batch_statistics != 0,
                      .update_running = update_running != 0};
    const bool writes = norm->update_running;
    if (parse_running(plan, mean, "running_mean", module, writes, &norm->running_mean) <
            0 ||
        parse_running(plan, variance, "running_var", module, writes,
                      &norm->running_var) < 0) {
        return -1;
    }
    if ((!norm->batch_statistics || norm->update_running) &&
        (norm->running_mean == NULL || norm->running_var == NULL)) {
        PyErr_Format(PyExc_ValueError,
                     "norm %s: running_mean and running_var are needed here, got None",
                     module->name);
        return -1;
    }
    return 0;
}

/* Those that are needed. */
static int parse_norms(const ym_plan *plan, PyObject *object, const bool *needed,
                       ym_norm **norms)
{
    const ym_graph *g = plan->graph;
    PyObject *list = ym_sequence_of(object, "norms", g->norm_count);
    *norms = ym_room_for(list, sizeof **norms);
    int status = *norms != NULL ? 0 : -1;
    for (int32_t i = 0; status == 0 && i < g->norm_count; i++) {
        if (needed[i]) {
            status = parse_norm(plan, PySequence_Fast_GET_ITEM(list, i), &g->norm[i],
                                &(*norms)[i]);
        }
    }
    Py_XDECREF(list);
    return status;
}

/* An arena: bytes in a row, aligned. None stands for no bytes. */
static int parse_arena(const ym_plan *plan, PyObject *object, const char *name,
                       void **data, size_t *bytes)
{
    ym_array array;
    int64_t shape[1] = {-1};
    if (ym_parse_optional_array(object, name, &array) < 0) {
        return -1;
    }
    if (object == Py_None) {
        *bytes = 0;
        return 0;
    }
    if (ym_require_dtype(&array, name, YM_U8) < 0 ||
        ym_require_shape(&array, name, 1, shape) < 0 ||
        ym_require_packed(&array, name) < 0 || ym_require_writable(&array, name) < 0 ||
        ym_require_device_of(&array, name, plan) < 0) {
        return -1;
    }
    if (array.shape[0] > 0 && (uintptr_t)array.data % 64 != 0) {
        PyErr_Format(PyExc_ValueError, "%s: is at %p, must be aligned to 64 bytes",
                     name, array.data);
        return -1;
    }
    *data = array.data;
    *bytes = (size_t)array.shape[0];
    return 0;
}

int ym_parse_inputs(ym_run_arguments *a, PyObject *inputs)
{
    int32_t *items = ym_input_items(a->plan);
    if (items == NULL) {
        return -1;
    }
    ym_value_list rule = {.name = "inputs",
                          .items = items,
                          .count = a->plan->graph->input_count,
                          .may_be_planar = true};
    const int status = ym_parse_values(a->plan, inputs, &rule, &a->inputs);
    PyMem_Free(items);
    a->bindings.inputs = a->inputs;
    return status;
}

int ym_parse_reads(ym_run_arguments *a, const ym_schedule *schedule, int32_t segment,
                   PyObject *params, PyObject *norms)
{
    const ym_graph *g = a->plan->graph;
    a->reads_param = PyMem_Calloc((size_t)g->param_count + 1, sizeof(bool));
    a->reads_norm = PyMem_Calloc((size_t)g->norm_count + 1, sizeof(bool));
    if (a->reads_param == NULL || a->reads_norm == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ym_plan_reads(a->plan, schedule, segment, a->reads_param, a->reads_norm);
    if (parse_weights(a->plan, params, "params", false, a->reads_param, &a->params) <
            0 ||
        parse_norms(a->plan, norms, a->reads_norm, &a->norms) < 0) {
        return -1;
    }
    a->bindings.params = a->params;
    a->bindings.norms = a->norms;
    return 0;
}

int ym_parse_arenas(ym_run_arguments *a, PyObject *saved, PyObject *workspace)
{
    const ym_plan *plan = a->plan;
    ym_bindings *b = &a->bindings;
    if (parse_arena(plan, saved, "saved", &b->saved, &b->saved_bytes) < 0) {
        return -1;
    }
    return parse_arena(plan, workspace, "workspace", &b->workspace,
                       &b->workspace_bytes);
}

int ym_parse_touched(ym_run_arguments *a, const ym_schedule *schedule, int32_t segment,
                     PyObject *grad_params)
{
    const ym_graph *g = a->plan->graph;
    a->touches_param = PyMem_Calloc((size_t)g->param_count + 1, sizeof(bool));
    if (a->touches_param == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ym_plan_touched_params(a->plan, schedule, segment, a->touches_param);
    if (parse_weights(a->plan, grad_params, "grad_params", true, a->touches_param,
                      &a->grad_params) < 0) {
        return -1;
    }
    a->bindings.grad_params = a->grad_params;
    return 0;
}

int ym_parse_gradients(ym_run_arguments *a, PyObject *grad_outputs,
                       PyObject *grad_inputs)
{
    const ym_graph *g = a->plan->graph;
    int32_t *items = ym_input_items(a->plan);
    if (items == NULL) {
        return -1;
    }
    ym_value_list outputs = {.name = "grad_outputs",
                             .items = a->plan->program->output,
                             .count = g->output_count};
    ym_value_list inputs = {
        .name = "grad_inputs", .items = items, .count = g->input_count, .writes = true};
    int status =
        ym_parse_values(a->plan, grad_outputs, &outputs, &a->grad_outputs) < 0 ||
                ym_parse_values(a->plan, grad_inputs, &inputs, &a->grad_inputs) < 0
            ? -1
            : 0;
    PyMem_Free(items);
    a->bindings.grad_outputs = a->grad_outputs;
    a->bindings.grad_inputs = a->grad_inputs;
    return status;
}
