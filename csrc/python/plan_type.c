/* SPDX-License-Identifier: MIT
 * yolov9mem._core.Plan: making plans and asking for their sizes.
 */
#include "python/plan_type.h"

#include <string.h>

#include "python/graph_type.h"
#include "python/module.h"

int ym_parse_flags(PyObject *object, const char *name, int32_t count, bool **flags)
{
    *flags = NULL;
    if (object == NULL || object == Py_None) {
        return 0;
    }
    PyObject *list = ym_sequence_of(object, name, count);
    *flags = ym_room_for(list, sizeof **flags);
    int status = *flags != NULL ? 0 : -1;
    for (int32_t i = 0; status == 0 && i < count; i++) {
        const int is_true = PyObject_IsTrue(PySequence_Fast_GET_ITEM(list, i));
        (*flags)[i] = is_true == 1;
        status = is_true < 0 ? -1 : 0;
    }
    Py_XDECREF(list);
    if (status < 0) {
        PyMem_Free(*flags);
        *flags = NULL;
    }
    return status;
}

static int parse_input_sizes(PyObject *object, int32_t count, int32_t (**sizes)[3])
{
    PyObject *list = ym_sequence_of(object, "input_sizes", count);
    *sizes = ym_room_for(list, sizeof **sizes);
    int status = *sizes != NULL ? 0 : -1;
    for (int32_t i = 0; status == 0 && i < count; i++) {
        int32_t *size = (*sizes)[i];
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);
        if (!PyTuple_Check(item) ||
            !PyArg_ParseTuple(item, "iii", &size[0], &size[1], &size[2])) {
            PyErr_Format(PyExc_TypeError,
                         "input_sizes[%d]: is %R, must be a tuple (N, H, W) of int32",
                         i, item);
            status = -1;
        }
    }
    Py_XDECREF(list);
    return status;
}

static int parse_keep(const char *text, ym_keep *keep)
{
    static const char *const names[] = {"all", "conv", "min", "budget"};
    for (int i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) == 0) {
            *keep = (ym_keep)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "keep: is '%s', must be all, conv, min or budget",
                 text);
    return -1;
}

static int parse_dtype(const char *text, const char *name, ym_dtype *dtype)
{
    if (ym_dtype_named(text, dtype) == 0 && *dtype <= YM_F16) {
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "%s: is '%s', must be float32, bfloat16 or float16",
                 name, text);
    return -1;
}

/* A dtype's name for each input that comes planar, None for the others. */
static int parse_forms(PyObject *object, int32_t count, ym_input_form **forms)
{
    if (object == NULL || object == Py_None) {
        return 0;
    }
    PyObject *list = ym_sequence_of(object, "planar_inputs", count);
    *forms = ym_room_for(list, sizeof **forms);
    int status = *forms != NULL ? 0 : -1;
    for (int32_t i = 0; status == 0 && i < count; i++) {
        PyObject *entry = PySequence_Fast_GET_ITEM(list, i);
        char name[64];
        snprintf(name, sizeof name, "planar_inputs[%d]", i);
        if (entry == Py_None) {
            continue;
        }
        const char *text = PyUnicode_Check(entry) ? PyUnicode_AsUTF8(entry) : NULL;
        (*forms)[i].is_planar = true;
        if (text == NULL && !PyErr_Occurred()) {
            PyErr_Format(PyExc_TypeError, "%s: must be a dtype's name or None, got %R",
                         name, entry);
        }
        status = text != NULL ? parse_dtype(text, name, &(*forms)[i].dtype) : -1;
    }
    Py_XDECREF(list);
    return status;
}

typedef struct plan_arguments {
    PyObject *graph, *sizes, *input_grads, *param_grads;
    PyObject *backend, *planar; /* NULL: the CPU's; none */
    const char *dtype, *keep;
    unsigned long long budget;
    int segments, replays;
} plan_arguments;

/* What a request points to. */
typedef struct request_lists {
    int32_t (*sizes)[3];
    ym_input_form *forms;
    bool *inputs, *params;
} request_lists;

static void free_lists(request_lists *lists)
{
    PyMem_Free(lists->sizes);
    PyMem_Free(lists->forms);
    PyMem_Free(lists->inputs);
    PyMem_Free(lists->params);
}

/* Fills the request; its lists are freed by the caller on every path. */
static int parse_request(const plan_arguments *a, const ym_graph *g,
                         ym_plan_request *request, request_lists *lists)
{
    request->budget_bytes = (size_t)a->budget;
    request->segment_count = a->segments;
    request->replays = a->replays != 0;
    if (parse_dtype(a->dtype, "dtype", &request->dtype) < 0 ||
        parse_keep(a->keep, &request->keep) < 0 ||
        ym_parse_backend(a->backend, request) < 0 ||
        parse_input_sizes(a->sizes, g->input_count, &lists->sizes) < 0 ||
        parse_forms(a->planar, g->input_count, &lists->forms) < 0 ||
        ym_parse_flags(a->input_grads, "input_grads", g->input_count, &lists->inputs) <
            0 ||
        ym_parse_flags(a->param_grads, "param_grads", g->param_count, &lists->params) <
            0) {
        return -1;
    }
    if (lists->params == NULL) {
        lists->params = PyMem_Malloc((size_t)g->param_count + 1);
        if (lists->params == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memset(lists->params, 1, (size_t)g->param_count + 1);
    }
    request->input_size = (const int32_t(*)[3])lists->sizes;
    request->input_form = lists->forms;
    request->input_grad = lists->inputs;
    request->param_grad = lists->params;
    return 0;
}

/* Fills self, which holds what is read without the GIL; -1 with an exception. */
static int make_plan(plan_object *self, const ym_plan_request *request)
{
    const ym_graph *graph = ym_graph_of(self->graph);
    ym_error error;
    ym_status status;
    Py_BEGIN_ALLOW_THREADS
        status = ym_plan_create(graph, request, &self->plan, &error);
    Py_END_ALLOW_THREADS
    if (status != YM_OK) {
        ym_raise(status, &error);
        return -1;
    }
    return 0;
}

static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"graph",    "input_sizes", "dtype",         "keep",
                            "budget",   "backend",     "input_grads",   "param_grads",
                            "segments", "replays",     "planar_inputs", NULL};
    plan_arguments a = {.dtype = "float32", .keep = "conv", .segments = 1};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|$ssKOOOipO", names, &a.graph,
                                     &a.sizes, &a.dtype, &a.keep, &a.budget, &a.backend,
                                     &a.input_grads, &a.param_grads, &a.segments,
                                     &a.replays, &a.planar)) {
        return NULL;
    }
    const ym_graph *graph = ym_graph_of(a.graph);
    plan_object *self = graph != NULL ? (plan_object *)type->tp_alloc(type, 0) : NULL;
    if (self == NULL) {
        return NULL;
    }
    self->graph = Py_NewRef(a.graph);
    self->backend = Py_XNewRef(a.backend);
    ym_plan_request request = {0};
    request_lists lists = {0};
    ym_graph_hold(self->graph);
    const bool made = parse_request(&a, graph, &request, &lists) == 0 &&
                      make_plan(self, &request) == 0;
    ym_graph_let_go(self->graph, made);
    free_lists(&lists);
    if (!made) {
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void plan_dealloc(plan_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    ym_plan_free(self->plan);
    Py_XDECREF(self->graph);
    Py_XDECREF(self->backend);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef plan_methods[] = {
    {"forward", (PyCFunction)ym_plan_forward_method, METH_VARARGS,
     "forward(inputs, params, norms, outputs, saved, workspace, stream=0, "
     "stage=0, sum=None)\n--\n\n"
     "Runs a stage of forward, the lowest first; fills its outputs and saved. Inputs "
     "that it does not read and other outputs may be None. stream: a CUDA stream's "
     "handle. sum: where processes share a batch norm's statistics, called as "
     "sum(group, address, count): so many float64 become their sums over the group."},
    {"backward", (PyCFunction)ym_plan_backward_method, METH_VARARGS,
     "backward(segment, inputs, params, norms, grad_outputs, grad_inputs, grad_params, "
     "saved, workspace, stream=0, accumulate=None, mask=None, sum=None)\n--\n\n"
     "Runs one segment of backward, the highest first. accumulate: a byte for each "
     "param, not 0: its gradient is added to what is there. mask: which outputs will "
     "have had a gradient; None: those that have one now. sum: as forward's."},
    {"recompute", (PyCFunction)ym_plan_recompute_method, METH_VARARGS,
     "recompute(output, params, norms, outputs, saved, workspace, stream=0)\n--\n\n"
     "Fills an output as forward did, from what that kept, before the first segment of "
     "the output's stage runs. What recompute_needs() does not tell may be None."},
    {"recompute_needs", (PyCFunction)ym_plan_recompute_needs_method, METH_NOARGS,
     "recompute_needs()\n--\n\n"
     "What recompute() takes for each output: (bytes of workspace, flags of params, of "
     "norms), or None: it would take an input or a convolution."},
    {"backward_workspace", (PyCFunction)ym_plan_backward_workspace_method, METH_O,
     "backward_workspace(mask)\n--\n\nBytes for that set of outputs with gradients."},
    {"reached_params", (PyCFunction)ym_plan_reached_params_method, METH_O,
     "reached_params(mask)\n--\n\nWhich params get a gradient."},
    {"reached_inputs", (PyCFunction)ym_plan_reached_inputs_method, METH_O,
     "reached_inputs(mask)\n--\n\nWhich inputs get a gradient."},
    {"touched_params", (PyCFunction)ym_plan_touched_params_method, METH_VARARGS,
     "touched_params(segment, mask=None)\n--\n\n"
     "Which params' gradients that segment of backward writes."},
    {"gradient_segments", (PyCFunction)ym_plan_gradient_segments_method, METH_O,
     "gradient_segments(mask)\n--\n\n"
     "The segment of backward that first writes each input's gradient, and that last "
     "reads each output's; -1 where none does."},
    {"input_segments", (PyCFunction)ym_plan_input_segments_method, METH_O,
     "input_segments(mask)\n--\n\n"
     "The segment of backward that first reads each input, and the last; -1 where none "
     "does: an input may be None before and afterwards."},
    {"input_stages", (PyCFunction)ym_plan_input_stages_method, METH_NOARGS,
     "input_stages()\n--\n\n"
     "The last stage of forward that reads each input, or -1: it may be None after "
     "it."},
    {"param_segments", (PyCFunction)ym_plan_param_segments_method, METH_NOARGS,
     "param_segments()\n--\n\nThe segment that completes each param's gradient, or "
     "-1."},
    {"segment_stages", (PyCFunction)ym_plan_segment_stages_method, METH_NOARGS,
     "segment_stages()\n--\n\nThe stage of forward that each segment belongs to."},
    {"table", (PyCFunction)ym_plan_table_method, METH_NOARGS,
     "table()\n--\n\nOne dict per value: name, op (what it is made by, as conv, or as "
     "batch_norm+silu where that was fused), shape, bytes, state, rebuilds (how often "
     "backward computes it again), needs_grad."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_doc,
     "Plan(graph, input_sizes, *, dtype, keep, budget, backend, input_grads, "
     "param_grads, segments, replays, planar_inputs)\n--\n\n"
     "How a graph is run for one set of sizes: see csrc/core/plan.h. planar_inputs: by "
     "input None, it comes packed as (N, H, W, C) in dtype, or the name of the dtype, "
     "float32 or the plan's, in which it comes as (N, C, H, W)."},
    {Py_tp_new, plan_new},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_methods, plan_methods},
    {Py_tp_getset, ym_plan_getset},
    {0, NULL},
};

static PyType_Spec plan_spec = {
    .name = "yolov9mem._core.Plan",
    .basicsize = sizeof(plan_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = plan_slots,
};

int ym_add_plan_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &plan_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int status = PyModule_AddObjectRef(module, "Plan", type);
    Py_DECREF(type);
    return status;
}
