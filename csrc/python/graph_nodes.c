/* SPDX-License-Identifier: MIT
 * The methods of Graph that add a node: they read the arguments, core/graph.c checks.
 */
#include "python/graph_nodes.h"

#include <stdio.h>
#include <string.h>

#include "python/graph_type.h"

/* Reads a sequence of value numbers. The caller frees *values with PyMem_Free. */
static int read_values(PyObject *sequence, const char *name, int32_t **values,
                       int32_t *count)
{
    char message[192];
    snprintf(message, sizeof message, "%s: x is a %.90s, must be a sequence of values",
             name, Py_TYPE(sequence)->tp_name);
    PyObject *fast = PySequence_Fast(sequence, message);
    if (fast == NULL) {
        return -1;
    }
    Py_ssize_t length = PySequence_Fast_GET_SIZE(fast);
    if (length > INT32_MAX) {
        Py_DECREF(fast);
        PyErr_Format(PyExc_ValueError, "%s: x has %zd values, at most %d are possible",
                     name, length, INT32_MAX);
        return -1;
    }
    *values = PyMem_New(int32_t, length > 0 ? (size_t)length : 1);
    bool failed = *values == NULL;
    for (Py_ssize_t i = 0; i < length && !failed; i++) {
        long value = PyLong_AsLong(PySequence_Fast_GET_ITEM(fast, i));
        failed = value == -1 && PyErr_Occurred();
        /* numbers beyond int32 can't exist: -1 makes the graph say so */
        (*values)[i] = value > INT32_MAX || value < 0 ? -1 : (int32_t)value;
    }
    Py_DECREF(fast);
    if (failed) {
        PyMem_Free(*values);
        return PyErr_Occurred() ? -1 : (PyErr_NoMemory(), -1);
    }
    *count = (int32_t)length;
    return 0;
}

/* A convolution, all but what complete_conv adds. */
static ym_conv sliding(const int stride[2], const int pad[2], const int dilation[2],
                       int groups)
{
    return (ym_conv){.stride_h = stride[0],
                     .stride_w = stride[1],
                     .pad_h = pad[0],
                     .pad_w = pad[1],
                     .dilation_h = dilation[0],
                     .dilation_w = dilation[1],
                     .groups = groups};
}

/* The sizes that the weight already says; the graph checks them all. */
static int complete_conv(const ym_graph *graph, int weight, ym_conv *conv)
{
    if (weight < 0 || weight >= graph->param_count) {
        PyErr_Format(PyExc_ValueError,
                     "conv: param %d does not exist, the graph has %d", weight,
                     (int)graph->param_count);
        return -1;
    }
    const ym_param *w = &graph->param[weight];
    int64_t channels = (int64_t)w->c * conv->groups;
    if (channels > INT32_MAX) {
        PyErr_Format(PyExc_ValueError,
                     "conv: has %lld channels, at most %d are possible",
                     (long long)channels, INT32_MAX);
        return -1;
    }
    conv->k = w->k;
    conv->c = (int32_t)channels;
    conv->r = w->r;
    conv->s = w->s;
    return 0;
}

const char ym_node_conv_doc[] = PyDoc_STR(
    "conv(x, weight, bias=-1, stride=(1, 1), padding=(0, 0), dilation=(1, 1),\n"
    "     groups=1, name='') -> value");

PyObject *ym_node_conv(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x",        "weight", "bias", "stride", "padding",
                            "dilation", "groups", "name", NULL};
    int x, weight, bias = -1, stride[2] = {1, 1}, pad[2] = {0, 0}, dilation[2] = {1, 1};
    int groups = 1;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ii|i(ii)(ii)(ii)is:conv", names, &x,
                                     &weight, &bias, &stride[0], &stride[1], &pad[0],
                                     &pad[1], &dilation[0], &dilation[1], &groups,
                                     &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    ym_conv conv = sliding(stride, pad, dilation, groups);
    if (graph == NULL || complete_conv(graph, weight, &conv) < 0) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status =
        ym_graph_conv(graph, x, &conv, weight, bias, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

const char ym_node_conv_transpose_doc[] = PyDoc_STR(
    "conv_transpose(x, weight, stride=(1, 1), padding=(0, 0), output_padding=(0, 0),\n"
    "               dilation=(1, 1), groups=1, name='') -> value\n\n"
    "The gradient of a convolution with respect to its input, as F.conv_transpose2d.\n"
    "The weight is (channels of x, channels of the result / groups, R, S); a bias is\n"
    "an affine call that follows.");

PyObject *ym_node_conv_transpose(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x",        "weight", "stride", "padding", "output_padding",
                            "dilation", "groups", "name",   NULL};
    int x, weight, stride[2] = {1, 1}, pad[2] = {0, 0}, dilation[2] = {1, 1};
    int more[2] = {0, 0}, groups = 1;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(
            args, kwargs, "ii|(ii)(ii)(ii)(ii)is:conv_transpose", names, &x, &weight,
            &stride[0], &stride[1], &pad[0], &pad[1], &more[0], &more[1], &dilation[0],
            &dilation[1], &groups, &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    ym_conv conv = sliding(stride, pad, dilation, groups);
    if (graph == NULL || complete_conv(graph, weight, &conv) < 0) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status =
        ym_graph_conv_transpose(graph, x, &conv, more, weight, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

const char ym_node_batch_norm_doc[] =
    PyDoc_STR("batch_norm(x, norm, name='') -> value");

PyObject *ym_node_batch_norm(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "norm", "name", NULL};
    int x, norm;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ii|s:batch_norm", names, &x, &norm,
                                     &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_batch_norm(graph, x, norm, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

const char ym_node_affine_doc[] = PyDoc_STR(
    "affine(x, scale=1.0, shift=0.0, bias=-1, gamma=-1, name='') -> value\n\n"
    "gamma * scale * (x + shift) + bias. gamma and bias: params, (C) or one number\n"
    "for all channels, or -1. It takes the next norm number; None stands there in\n"
    "the norms of a run.");

PyObject *ym_node_affine(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "scale", "shift", "bias", "gamma", "name", NULL};
    int x;
    ym_affine affine = {.scale = 1.0f, .gamma = -1, .bias = -1};
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|ffiis:affine", names, &x,
                                     &affine.scale, &affine.shift, &affine.bias,
                                     &affine.gamma, &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_affine(graph, x, &affine, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

static int read_activation(const char *text, ym_activation_kind *kind)
{
    for (int i = YM_IDENTITY; i <= YM_GELU_TANH; i++) {
        if (strcmp(text, ym_activation_name((ym_activation_kind)i)) == 0) {
            *kind = (ym_activation_kind)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError,
                 "activation: kind is '%s', must be identity, silu, relu, leaky_relu, "
                 "hardtanh, hardswish, mish, sigmoid, hardsigmoid, gelu or gelu_tanh",
                 text);
    return -1;
}

const char ym_node_activation_doc[] = PyDoc_STR(
    "activation(x, kind, slope=0.01, low=-1.0, high=1.0, name='') -> value\n\n"
    "kind: 'silu', 'relu', 'leaky_relu' (with slope), 'hardtanh' (from low to\n"
    "high; ReLU6 is the one from 0 to 6), 'hardswish', 'mish', 'sigmoid',\n"
    "'hardsigmoid', 'gelu', 'gelu_tanh' (its approximation) or 'identity'.");

PyObject *ym_node_activation(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "kind", "slope", "low", "high", "name", NULL};
    int x;
    const char *text, *name = "";
    ym_activation activation = {.slope = 0.01f, .low = -1.0f, .high = 1.0f};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "is|fffs:activation", names, &x,
                                     &text, &activation.slope, &activation.low,
                                     &activation.high, &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL || read_activation(text, &activation.kind) < 0) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_activation(graph, x, activation, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

typedef ym_status add_many(ym_graph *g, const int32_t *x, int32_t count,
                           const char *name, int32_t *made, ym_error *error);

/* add and concat differ only in what they call. */
static PyObject *add_node_of_many(PyObject *self, PyObject *args, PyObject *kwargs,
                                  const char *format, const char *what, add_many *add)
{
    static char *names[] = {"x", "name", NULL};
    PyObject *sequence;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &sequence, &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    int32_t *values = NULL, count = 0;
    if (graph == NULL || read_values(sequence, what, &values, &count) < 0) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = add(graph, values, count, name, &made, &error);
    PyMem_Free(values);
    return ym_graph_made(status, made, &error);
}

const char ym_node_add_doc[] =
    PyDoc_STR("add(x, name='') -> value\n\nThe sum, from the left.");

PyObject *ym_node_add(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return add_node_of_many(self, args, kwargs, "O|s:add", "add", ym_graph_add);
}

const char ym_node_concat_doc[] =
    PyDoc_STR("concat(x, name='') -> value\n\nAlong the channels.");

PyObject *ym_node_concat(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return add_node_of_many(self, args, kwargs, "O|s:concat", "concat",
                            ym_graph_concat);
}

const char ym_node_slice_doc[] =
    PyDoc_STR("slice(x, first, count, name='') -> value\n\n"
              "The channels [first, first + count).");

PyObject *ym_node_slice(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x", "first", "count", "name", NULL};
    int x, first, count;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iii|s:slice", names, &x, &first,
                                     &count, &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_slice(graph, x, first, count, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

const char ym_node_multiply_doc[] =
    PyDoc_STR("multiply(a, b, name='') -> value\n\n"
              "Element by element. Sides of 1 (N, H, W or C) are repeated.");

PyObject *ym_node_multiply(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"a", "b", "name", NULL};
    int a, b;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ii|s:multiply", names, &a, &b,
                                     &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_multiply(graph, a, b, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

/* mean and maximum differ only in what they call. */
static PyObject *add_reduction(PyObject *self, PyObject *args, PyObject *kwargs,
                               const char *format, ym_op op)
{
    static char *names[] = {"x", "axes", "name", NULL};
    int x;
    const char *text, *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &x, &text, &name)) {
        return NULL;
    }
    if (text[strspn(text, "hwc")] != '\0') {
        PyErr_Format(PyExc_ValueError,
                     "%s: axes are '%s', must be some of 'h', 'w' and 'c'",
                     ym_op_name(op), text);
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    const ym_axes axes = {strchr(text, 'h') != NULL, strchr(text, 'w') != NULL,
                          strchr(text, 'c') != NULL};
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_reduce(graph, op, x, axes, name, &made, &error);
    return ym_graph_made(status, made, &error);
}

const char ym_node_mean_doc[] =
    PyDoc_STR("mean(x, axes, name='') -> value\n\n"
              "Over some of 'h', 'w' and 'c', as in 'hw'; these sides become 1.");

PyObject *ym_node_mean(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return add_reduction(self, args, kwargs, "is|s:mean", YM_OP_MEAN);
}

const char ym_node_maximum_doc[] =
    PyDoc_STR("maximum(x, axes, name='') -> value\n\n"
              "Over 'h', 'w', 'hw' or 'c'; these sides become 1.");

PyObject *ym_node_maximum(PyObject *self, PyObject *args, PyObject *kwargs)
{
    return add_reduction(self, args, kwargs, "is|s:maximum", YM_OP_MAXIMUM);
}
