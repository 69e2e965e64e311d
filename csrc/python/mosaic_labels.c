/* SPDX-License-Identifier: MIT
 *
 * yolov9mem._core.polygon_fill and polygon_boxes. Polygons are float32 as YOLOv9 keeps
 * them, or float64 as its 9-tile mosaic makes them.
 */
#include "python/mosaic.h"

#include "ops/polygon.h"
#include "python/mosaic_arguments.h"

#include <string.h>

/* Points of one polygon, then the first again twice; reused for the next polygon. */
typedef struct outline {
    ym_point *point;
    int32_t count, room;
    void *scratch; /* for ym_polygon_fill, room points */
} outline;

static void release(outline *o)
{
    PyMem_Free(o->point);
    PyMem_Free(o->scratch);
}

static int reserve(outline *o, Py_ssize_t count)
{
    const int32_t most = INT32_MAX / 64;
    if (count > most) {
        PyErr_Format(PyExc_ValueError,
                     "polygon: has %zd points, at most %d are possible", count, most);
        return -1;
    }
    if (count > o->room) {
        release(o);
        o->room = (int32_t)count;
        o->point = PyMem_Malloc((size_t)(count + 2) * sizeof *o->point);
        o->scratch = PyMem_Malloc(ym_polygon_scratch_bytes((int32_t)count));
    }
    if (count > 0 && (o->point == NULL || o->scratch == NULL)) {
        o->room = 0;
        PyErr_NoMemory();
        return -1;
    }
    o->count = (int32_t)count;
    return 0;
}

static double coordinate(const Py_buffer *view, Py_ssize_t row, Py_ssize_t column)
{
    const char *at = (const char *)view->buf + row * view->strides[0] +
                     column * view->strides[1];
    if (view->itemsize == 4) {
        float value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    double value;
    memcpy(&value, at, sizeof value);
    return value;
}

static int read_view(const Py_buffer *view, Py_ssize_t index, outline *o)
{
    bool floats = view->format != NULL &&
                  (strcmp(view->format, "f") == 0 || strcmp(view->format, "d") == 0);
    if (!floats) {
        PyErr_Format(PyExc_TypeError, "polygon %zd: must be float32 or float64", index);
        return -1;
    }
    if (view->ndim != 2 || view->shape[1] != 2 || view->shape[0] < 1) {
        PyErr_Format(PyExc_ValueError,
                     "polygon %zd: must be (n, 2) with at least one point", index);
        return -1;
    }
    if (reserve(o, view->shape[0]) < 0) {
        return -1;
    }
    for (Py_ssize_t i = 0; i < view->shape[0]; i++) {
        o->point[i] = (ym_point){coordinate(view, i, 0), coordinate(view, i, 1)};
    }
    o->point[o->count] = o->point[o->count + 1] = o->point[0];
    return 0;
}

static int read_polygon(PyObject *polygons, Py_ssize_t index, outline *o)
{
    Py_buffer view;
    PyObject *object = PyList_GET_ITEM(polygons, index);
    if (PyObject_GetBuffer(object, &view, PyBUF_STRIDES | PyBUF_FORMAT) < 0) {
        return -1;
    }
    int status = read_view(&view, index, o);
    PyBuffer_Release(&view);
    return status;
}

const char ym_py_polygon_fill_doc[] =
    "polygon_fill(bits, width, polygons)\n\n"
    "Sets bits (height, bytes a row) uint8, lowest bit first, inside and on the "
    "outline\n"
    "of each polygon of a list, as cv2.drawContours with FILLED does.";

PyObject *ym_py_polygon_fill(PyObject *module, PyObject *args)
{
    (void)module;
    static const int64_t shape[] = {-1, -1};
    PyObject *bits, *polygons;
    int width;
    ym_array array;
    if (!PyArg_ParseTuple(args, "OiO!:polygon_fill", &bits, &width, &PyList_Type,
                          &polygons) ||
        ym_parse_array(bits, "bits", &array) < 0 ||
        ym_require_dtype(&array, "bits", YM_U8) < 0 ||
        ym_require_shape(&array, "bits", 2, shape) < 0 ||
        ym_require_writable(&array, "bits") < 0 ||
        ym_require_packed(&array, "bits") < 0) {
        return NULL;
    }
    if (width < 1 || width > array.shape[1] * 8 || array.shape[0] < 1 ||
        array.shape[0] > 32767 || width > 32767) {
        return PyErr_Format(
            PyExc_ValueError, "bits: %lld rows of %lld bytes can't hold %d columns",
            (long long)array.shape[0], (long long)array.shape[1], width);
    }
    ym_bitmap bitmap = {array.data, array.shape[1], (int32_t)array.shape[0], width};
    outline o = {0};
    ym_error error;
    ym_status status = YM_OK;
    int read = 0;
    for (Py_ssize_t i = 0;
         i < PyList_GET_SIZE(polygons) && read == 0 && status == YM_OK; i++) {
        read = read_polygon(polygons, i, &o);
        if (read == 0) {
            status = ym_polygon_fill(&bitmap, o.point, o.count, o.scratch, &error);
        }
    }
    release(&o);
    if (read < 0) {
        return NULL;
    }
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, &error);
}

const char ym_py_polygon_boxes_doc[] =
    "polygon_boxes(polygons, matrix, perspective, height, width) -> list\n\n"
    "(x1, y1, x2, y2) of each polygon of a list after a warp: the outline is "
    "resampled\n"
    "to 1000 points, those outside the image are dropped; zeros where none is left.";

PyObject *ym_py_polygon_boxes(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *polygons, *matrix;
    int perspective;
    ym_polygon_warp warp;
    if (!PyArg_ParseTuple(args, "O!Opdd:polygon_boxes", &PyList_Type, &polygons,
                          &matrix, &perspective, &warp.height, &warp.width) ||
        ym_parse_matrix(matrix, warp.matrix) < 0) {
        return NULL;
    }
    warp.perspective = perspective != 0;
    Py_ssize_t count = PyList_GET_SIZE(polygons);
    PyObject *boxes = PyList_New(count);
    outline o = {0};
    for (Py_ssize_t i = 0; boxes != NULL && i < count; i++) {
        double box[4];
        PyObject *item = NULL;
        if (read_polygon(polygons, i, &o) == 0) {
            ym_polygon_box(&warp, o.point, o.count, box);
            item = Py_BuildValue("(dddd)", box[0], box[1], box[2], box[3]);
        }
        if (item == NULL) {
            Py_CLEAR(boxes);
        } else {
            PyList_SET_ITEM(boxes, i, item);
        }
    }
    release(&o);
    return boxes;
}
