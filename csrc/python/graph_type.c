/* SPDX-License-Identifier: MIT
 * yolov9mem._core.Graph: each method adds one thing and returns its number.
 */
#include "python/graph_type.h"

#include "python/graph_nodes.h"

typedef struct graph_object {
    PyObject_HEAD ym_graph *graph;
    bool sealed;       /* a plan was made from it */
    Py_ssize_t makers; /* of plans at this moment; they read it without the GIL */
} graph_object;

static PyObject *graph_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Graph", names)) {
        return NULL;
    }
    graph_object *self = (graph_object *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->graph = ym_graph_create();
    if (self->graph == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void graph_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    ym_graph_free(((graph_object *)object)->graph);
    type->tp_free(object);
    Py_DECREF(type);
}

/* The type can't be subclassed, so its dealloc identifies it without a global pointer.
 */
ym_graph *ym_graph_of(PyObject *object)
{
    if (Py_TYPE(object)->tp_dealloc != graph_dealloc) {
        PyErr_Format(PyExc_TypeError, "graph: expected a Graph, got %s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    return ((graph_object *)object)->graph;
}

void ym_graph_hold(PyObject *object)
{
    ((graph_object *)object)->makers++;
}

void ym_graph_let_go(PyObject *object, bool seal)
{
    graph_object *self = (graph_object *)object;
    self->makers--;
    self->sealed = self->sealed || seal;
}

ym_graph *ym_graph_open(PyObject *object)
{
    graph_object *self = (graph_object *)object;
    if (self->sealed) {
        PyErr_SetString(
            PyExc_ValueError,
            "graph: a plan was made from it, nothing can be added any more");
        return NULL;
    }
    if (self->makers > 0) {
        PyErr_SetString(PyExc_ValueError,
                        "graph: a plan is being made from it, nothing can be added");
        return NULL;
    }
    return self->graph;
}

PyObject *ym_graph_made(ym_status status, int32_t made, const ym_error *error)
{
    return status == YM_OK ? PyLong_FromLong(made) : ym_raise(status, error);
}

PyDoc_STRVAR(input_doc,
             "input(channels) -> value\n\nAn input with that many channels.");

static PyObject *graph_input(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"channels", NULL};
    int channels;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:input", names, &channels)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_input(graph, channels, &made, &error);
    return ym_graph_made(status, made, &error);
}

PyDoc_STRVAR(param_doc,
             "param(shape, name) -> param\n\n"
             "A parameter: a weight (K, C / groups, R, S) or a vector (C,).");

static PyObject *graph_param(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"shape", "name", NULL};
    PyObject *shape;
    const char *name;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!s:param", names, &PyTuple_Type,
                                     &shape, &name)) {
        return NULL;
    }
    int size[4] = {1, 1, 1, 1};
    Py_ssize_t length = PyTuple_GET_SIZE(shape);
    if (length != 1 && length != 4) {
        return PyErr_Format(PyExc_ValueError,
                            "param %s: shape has %zd dimensions, must have 1 or 4",
                            name, length);
    }
    if (!PyArg_ParseTuple(shape, "i|iii:shape", &size[0], &size[1], &size[2],
                          &size[3])) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    const int32_t dimensions[4] = {size[0], size[1], size[2], size[3]};
    ym_status status = ym_graph_param(graph, dimensions, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

PyDoc_STRVAR(
    norm_doc,
    "norm(channels, gamma=-1, beta=-1, name='') -> norm\n\n"
    "A batch norm module; gamma and beta are params, (C) or one number for all\n"
    "channels, or -1 (1 and 0).");

static PyObject *graph_norm(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"channels", "gamma", "beta", "name", NULL};
    int channels, gamma = -1, beta = -1;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|iis:norm", names, &channels,
                                     &gamma, &beta, &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_norm(graph, channels, gamma, beta, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

PyDoc_STRVAR(share_doc,
             "share(norm, group, processes, rank)\n\n"
             "The statistics of the norm's batches are of those of all processes of a "
             "group\n(a number from 1), in which this one has a rank. Plan.forward and "
             "Plan.backward\nthen need what sums over them.");

static PyObject *graph_share(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"norm", "group", "processes", "rank", NULL};
    int norm, group, processes, rank;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiii:share", names, &norm, &group,
                                     &processes, &rank)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    ym_error error;
    ym_status status =
        ym_graph_share(graph, norm, (ym_sharing){group, processes, rank}, &error);
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, &error);
}

PyDoc_STRVAR(output_doc, "output(x)\n\nDeclares the value x an output.");

static PyObject *graph_output(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", NULL};
    int x;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:output", names, &x)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    ym_error error;
    ym_status status = ym_graph_output(graph, x, &error);
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, &error);
}

PyDoc_STRVAR(stage_doc,
             "stage()\n\nWhat follows belongs to a new stage of forward, whose inputs "
             "may be made of\noutputs of the earlier ones.");

static PyObject *graph_stage(PyObject *self, PyObject *unused)
{
    (void)unused;
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    ym_graph_stage(graph);
    Py_RETURN_NONE;
}

#define METHOD(name, function, doc) \
    {name, (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS, doc}

static PyMethodDef graph_methods[] = {
    METHOD("input", graph_input, input_doc),
    METHOD("param", graph_param, param_doc),
    METHOD("norm", graph_norm, norm_doc),
    METHOD("share", graph_share, share_doc),
    METHOD("conv", ym_node_conv, ym_node_conv_doc),
    METHOD("conv_transpose", ym_node_conv_transpose, ym_node_conv_transpose_doc),
    METHOD("batch_norm", ym_node_batch_norm, ym_node_batch_norm_doc),
    METHOD("affine", ym_node_affine, ym_node_affine_doc),
    METHOD("activation", ym_node_activation, ym_node_activation_doc),
    METHOD("add", ym_node_add, ym_node_add_doc),
    METHOD("concat", ym_node_concat, ym_node_concat_doc),
    METHOD("slice", ym_node_slice, ym_node_slice_doc),
    METHOD("max_pool", ym_node_max_pool, ym_node_max_pool_doc),
    METHOD("avg_pool", ym_node_avg_pool, ym_node_avg_pool_doc),
    METHOD("upsample", ym_node_upsample, ym_node_upsample_doc),
    METHOD("multiply", ym_node_multiply, ym_node_multiply_doc),
    METHOD("mean", ym_node_mean, ym_node_mean_doc),
    METHOD("maximum", ym_node_maximum, ym_node_maximum_doc),
    {"stage", graph_stage, METH_NOARGS, stage_doc},
    METHOD("output", graph_output, output_doc),
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    graph_doc,
    "What a module computes: calls in the order they were made. Methods return\n"
    "numbers: of a value (what a call makes), a param or a norm module.");

static PyType_Slot graph_slots[] = {
    {Py_tp_doc, (void *)graph_doc},
    {Py_tp_new, graph_new},
    {Py_tp_dealloc, graph_dealloc},
    {Py_tp_methods, graph_methods},
    {0, NULL},
};

static PyType_Spec graph_spec = {
    .name = "yolov9mem._core.Graph",
    .basicsize = sizeof(graph_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = graph_slots,
};

int ym_add_graph_type(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &graph_spec, NULL);
    int status = type != NULL ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return status;
}
