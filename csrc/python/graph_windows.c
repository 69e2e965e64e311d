/* SPDX-License-Identifier: MIT
 * The methods of Graph that add pooling and upsampling, as those of graph_nodes.c.
 */
#include <math.h>
#include <string.h>

#include "python/graph_nodes.h"
#include "python/graph_type.h"

const char ym_node_max_pool_doc[] =
    PyDoc_STR("max_pool(x, kernel, stride, padding=(0, 0), ceil_mode=False, name='')\n"
              "    -> value");

PyObject *ym_node_max_pool(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x",         "kernel", "stride", "padding",
                            "ceil_mode", "name",   NULL};
    int x, kernel[2], stride[2], pad[2] = {0, 0}, ceil_mode = 0;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i(ii)(ii)|(ii)ps:max_pool", names,
                                     &x, &kernel[0], &kernel[1], &stride[0], &stride[1],
                                     &pad[0], &pad[1], &ceil_mode, &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    const ym_pool window = {kernel[0], kernel[1], stride[0], stride[1],
                            pad[0],    pad[1],    false};
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_pool(graph, YM_OP_MAX_POOL, x, &window, ceil_mode != 0,
                                     name, &made, &error);
    return ym_graph_made(status, made, &error);
}

const char ym_node_avg_pool_doc[] =
    PyDoc_STR("avg_pool(x, kernel, stride, padding=(0, 0), ceil_mode=False,\n"
              "         count_include_pad=True, name='') -> value");

PyObject *ym_node_avg_pool(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x",       "kernel",    "stride",
                            "padding", "ceil_mode", "count_include_pad",
                            "name",    NULL};
    int x, kernel[2], stride[2], pad[2] = {0, 0}, ceil_mode = 0, include_pad = 1;
    const char *name = "";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i(ii)(ii)|(ii)pps:avg_pool", names,
                                     &x, &kernel[0], &kernel[1], &stride[0], &stride[1],
                                     &pad[0], &pad[1], &ceil_mode, &include_pad,
                                     &name)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    if (graph == NULL) {
        return NULL;
    }
    const ym_pool window = {kernel[0], kernel[1], stride[0],       stride[1],
                            pad[0],    pad[1],    include_pad != 0};
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_pool(graph, YM_OP_AVG_POOL, x, &window, ceil_mode != 0,
                                     name, &made, &error);
    return ym_graph_made(status, made, &error);
}

/* By a factor, as torch does for scale_factor=; nearest's is whole. */
static int read_factor(PyObject *scale, ym_upsample *upsample)
{
    double h, w;
    if (!PyArg_ParseTuple(scale, "dd:scale", &h, &w)) {
        return -1;
    }
    const bool possible = h > 0 && w > 0 && h <= 1024 && w <= 1024;
    const bool whole = h == floor(h) && w == floor(w);
    if (!possible || !(whole || upsample->bilinear)) {
        PyErr_Format(PyExc_ValueError, "upsample: scale is %R, must be %s", scale,
                     upsample->bilinear ? "above 0 and at most 1024"
                                        : "whole numbers from 1 to 1024");
        return -1;
    }
    upsample->factor_h = h;
    upsample->factor_w = w;
    return 0;
}

static int read_upsample(PyObject *scale, PyObject *size, const char *mode,
                         ym_upsample *upsample)
{
    upsample->bilinear = strcmp(mode, "bilinear") == 0;
    if (!upsample->bilinear && strcmp(mode, "nearest") != 0) {
        PyErr_Format(PyExc_ValueError,
                     "upsample: mode is '%s', must be nearest or bilinear", mode);
        return -1;
    }
    if ((scale == Py_None) == (size == Py_None)) {
        PyErr_SetString(PyExc_ValueError, "upsample: give either scale or size");
        return -1;
    }
    PyObject *given = scale != Py_None ? scale : size;
    if (!PyTuple_Check(given)) {
        PyErr_Format(PyExc_TypeError, "upsample: expected a pair (h, w), got %R",
                     given);
        return -1;
    }
    if (scale != Py_None) {
        return read_factor(scale, upsample);
    }
    return PyArg_ParseTuple(size, "ii:size", &upsample->out_h, &upsample->out_w) ? 0
                                                                                 : -1;
}

const char ym_node_upsample_doc[] =
    PyDoc_STR("upsample(x, scale=None, size=None, name='', mode='nearest',\n"
              "         align_corners=False) -> value\n\n"
              "By factors (h, w), which are whole for mode 'nearest', or to a size\n"
              "(h, w), which may be smaller. Mode 'bilinear' as PyTorch's, with\n"
              "align_corners or without.");

PyObject *ym_node_upsample(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"x",    "scale",         "size", "name",
                            "mode", "align_corners", NULL};
    int x, align_corners = 0;
    PyObject *scale = Py_None, *size = Py_None;
    const char *name = "", *mode = "nearest";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|OOssp:upsample", names, &x,
                                     &scale, &size, &name, &mode, &align_corners)) {
        return NULL;
    }
    ym_graph *graph = ym_graph_open(self);
    ym_upsample upsample = {.align_corners = align_corners != 0};
    if (graph == NULL || read_upsample(scale, size, mode, &upsample) < 0) {
        return NULL;
    }
    int32_t made = -1;
    ym_error error;
    ym_status status = ym_graph_upsample(graph, x, &upsample, name, &made, &error);
    return ym_graph_made(status, made, &error);
}
