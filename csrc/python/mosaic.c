/* SPDX-License-Identifier: MIT
 *
 * yolov9mem._core.mosaic_render and resize_image; the polygons' functions are in
 * mosaic_labels.c. yolov9mem/mosaic.py says what the arguments mean to a user.
 */
#include "python/mosaic.h"

#include "core/backend.h"
#include "core/mosaic.h"
#include "cpu/image.h"
#include "ops/mosaic.h"

#include <string.h>

/* (H, W, 3) uint8 whose pixels are packed; rows may lie apart. */
static int parse_image(PyObject *object, const char *name, ym_array *array)
{
    static const int64_t shape[] = {-1, -1, 3};
    if (ym_parse_array(object, name, array) < 0 ||
        ym_require_dtype(array, name, YM_U8) < 0 ||
        ym_require_shape(array, name, 3, shape) < 0) {
        return -1;
    }
    if (array->device != -1) {
        PyErr_Format(PyExc_ValueError, "%s: is on device %d, must be on the CPU", name,
                     (int)array->device);
        return -1;
    }
    for (int i = 0; i < 2; i++) {
        if (array->shape[i] < 1 || array->shape[i] > YM_MOSAIC_MAX_SIDE) {
            PyErr_Format(PyExc_ValueError, "%s: %s is %lld, must be 1 to %d", name,
                         i == 0 ? "height" : "width", (long long)array->shape[i],
                         YM_MOSAIC_MAX_SIDE);
            return -1;
        }
    }
    if ((array->shape[1] > 1 && array->stride[1] != 3) || array->stride[2] != 1) {
        PyErr_Format(PyExc_ValueError,
                     "%s: strides of a pixel are (%lld, %lld), must be (3, 1): make it "
                     "contiguous",
                     name, (long long)array->stride[1], (long long)array->stride[2]);
        return -1;
    }
    return 0;
}

static int parse_tile(PyObject *object, int index, ym_tile *tile)
{
    char name[32];
    snprintf(name, sizeof name, "tile %d", index);
    PyObject *image;
    ym_array array;
    if (!PyTuple_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: must be a tuple (image, x, y)", name);
        return -1;
    }
    if (!PyArg_ParseTuple(object, "Oii", &image, &tile->x, &tile->y) ||
        parse_image(image, name, &array) < 0) {
        return -1;
    }
    tile->pixels = array.data;
    tile->row_bytes = array.stride[0];
    tile->height = (int32_t)array.shape[0];
    tile->width = (int32_t)array.shape[1];
    return 0;
}

static int parse_tiles(PyObject *tiles, ym_scene *scene)
{
    Py_ssize_t count = PyTuple_GET_SIZE(tiles);
    if (count > YM_MOSAIC_TILES) {
        PyErr_Format(PyExc_ValueError, "mosaic: %zd tiles in a scene, must be 0 to %d",
                     count, YM_MOSAIC_TILES);
        return -1;
    }
    scene->tile_count = (int32_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_tile(PyTuple_GET_ITEM(tiles, i), (int)i, &scene->tile[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

static int parse_paste(PyObject *object, ym_scene *scene)
{
    ym_array array;
    const int64_t shape[] = {scene->height, -1};
    if (ym_parse_optional_array(object, "paste", &array) < 0) {
        return -1;
    }
    if (array.data == NULL) {
        return 0;
    }
    if (ym_require_dtype(&array, "paste", YM_U8) < 0 ||
        ym_require_shape(&array, "paste", 2, shape) < 0 ||
        ym_require_packed(&array, "paste") < 0) {
        return -1;
    }
    scene->paste = array.data;
    scene->paste_row_bytes = array.shape[1];
    return 0;
}

int ym_parse_matrix(PyObject *object, double matrix[9])
{
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 9) {
        PyErr_SetString(PyExc_TypeError, "matrix: must be a tuple of 9 numbers");
        return -1;
    }
    for (int i = 0; i < 9; i++) {
        matrix[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(object, i));
        if (matrix[i] == -1.0 && PyErr_Occurred()) {
            return -1;
        }
    }
    return 0;
}

/* (tiles, (height, width), warp, matrix or None, paste or None) */
static int parse_scene(PyObject *object, ym_scene *scene)
{
    PyObject *tiles, *matrix, *paste;
    int warp;
    if (!PyTuple_Check(object) ||
        !PyArg_ParseTuple(object, "O!(ii)iOO", &PyTuple_Type, &tiles, &scene->height,
                          &scene->width, &warp, &matrix, &paste)) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "mosaic: a scene must be a tuple");
        }
        return -1;
    }
    if (warp < YM_WARP_NONE || warp > YM_WARP_PERSPECTIVE) {
        PyErr_Format(PyExc_ValueError, "mosaic: warp is %d, must be 0, 1 or 2", warp);
        return -1;
    }
    scene->warp = (ym_warp)warp;
    if (scene->warp != YM_WARP_NONE) {
        double forward[9];
        if (ym_parse_matrix(matrix, forward) < 0) {
            return -1;
        }
        ym_scene_invert(scene, forward);
    }
    return parse_tiles(tiles, scene) < 0 ? -1 : parse_paste(paste, scene);
}

static int parse_scenes(PyObject *scenes, ym_mosaic_job *job)
{
    Py_ssize_t count = PyTuple_GET_SIZE(scenes);
    if (count < 1 || count > 2) {
        PyErr_Format(PyExc_ValueError, "mosaic: %zd scenes, must be 1 or 2", count);
        return -1;
    }
    job->scene_count = (int32_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_scene(PyTuple_GET_ITEM(scenes, i), &job->scene[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

static int parse_out(PyObject *object, ym_mosaic_job *job)
{
    static const int64_t shape[] = {3, -1, -1};
    ym_array array;
    if (ym_parse_array(object, "out", &array) < 0 ||
        ym_require_dtype(&array, "out", YM_U8) < 0 ||
        ym_require_shape(&array, "out", 3, shape) < 0 ||
        ym_require_writable(&array, "out") < 0 ||
        ym_require_packed(&array, "out") < 0) {
        return -1;
    }
    if (array.shape[1] > YM_MOSAIC_MAX_SIDE || array.shape[2] > YM_MOSAIC_MAX_SIDE) {
        PyErr_Format(PyExc_ValueError, "out: %lldx%lld pixels, sides must be 1 to %d",
                     (long long)array.shape[2], (long long)array.shape[1],
                     YM_MOSAIC_MAX_SIDE);
        return -1;
    }
    job->out = array.data;
    job->height = (int32_t)array.shape[1];
    job->width = (int32_t)array.shape[2];
    return 0;
}

static int parse_tables(PyObject *object, ym_mosaic_job *job)
{
    static const int64_t shape[] = {3, 256};
    ym_array array;
    if (ym_parse_optional_array(object, "hsv", &array) < 0) {
        return -1;
    }
    if (array.data != NULL && (ym_require_dtype(&array, "hsv", YM_U8) < 0 ||
                               ym_require_shape(&array, "hsv", 2, shape) < 0 ||
                               ym_require_packed(&array, "hsv") < 0)) {
        return -1;
    }
    job->hsv = array.data;
    return 0;
}

/* "ref", "cpu", or "cpu" held to some instructions: "cpu-plain", "cpu-avx2", ... */
static const ym_backend *parse_backend(const char *name, ym_mosaic_simd *simd)
{
    static const char *const names[] = {"cpu", "cpu-plain", "cpu-avx2", "cpu-avx512"};
    for (int i = YM_MOSAIC_SIMD_BEST; i <= YM_MOSAIC_SIMD_AVX512; i++) {
        if (strcmp(name, names[i]) == 0) {
            *simd = (ym_mosaic_simd)i;
            return ym_cpu_backend();
        }
    }
    if (strcmp(name, "ref") == 0) {
        return ym_ref_backend();
    }
    PyErr_Format(
        PyExc_ValueError,
        "backend is '%s', must be 'cpu', 'cpu-plain', 'cpu-avx2', 'cpu-avx512' "
        "or 'ref'",
        name);
    return NULL;
}

PyDoc_STRVAR(
    mosaic_render_doc,
    "mosaic_render(out, scenes, ratio=1.0, hsv=None, flip_vertical=False,\n"
    "              flip_horizontal=False, backend='cpu')\n\n"
    "Writes out (3, H, W) uint8 RGB. scenes: one or two tuples (tiles, (height,\n"
    "width), warp, matrix, paste): tiles a tuple of (image (h, w, 3) uint8 BGR,\n"
    "x, y) on a canvas; warp 0 none, 1 affine, 2 perspective; matrix 9 floats,\n"
    "canvas to image; paste (height, bytes) uint8 bits or None. ratio: of the\n"
    "first scene in the blend of two. hsv: (3, 256) uint8 tables or None.");

static PyObject *mosaic_render(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"out",           "scenes",          "ratio",   "hsv",
                            "flip_vertical", "flip_horizontal", "backend", NULL};
    PyObject *out, *scenes, *hsv = NULL;
    double ratio = 1.0;
    int flip_vertical = 0, flip_horizontal = 0;
    const char *backend_name = "cpu";
    ym_mosaic_job job;
    memset(&job, 0, sizeof job);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!|dOpps:mosaic_render", names,
                                     &out, &PyTuple_Type, &scenes, &ratio, &hsv,
                                     &flip_vertical, &flip_horizontal, &backend_name)) {
        return NULL;
    }
    const ym_backend *backend = parse_backend(backend_name, &job.simd);
    if (backend == NULL || parse_out(out, &job) < 0 || parse_scenes(scenes, &job) < 0 ||
        parse_tables(hsv, &job) < 0) {
        return NULL;
    }
    job.ratio = ratio;
    job.flip_vertical = flip_vertical != 0;
    job.flip_horizontal = flip_horizontal != 0;

    ym_context context = {.backend = backend, .device = -1};
    ym_status status = ym_mosaic_check(&job, &context.error);
    if (status == YM_OK) {
        Py_BEGIN_ALLOW_THREADS
            status = backend->mosaic(&context, &job);
        Py_END_ALLOW_THREADS
    }
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, &context.error);
}

PyDoc_STRVAR(
    resize_image_doc,
    "resize_image(source, out)\n\n"
    "out (h, w, 3) uint8 becomes source (H, W, 3) uint8 resized, bit-equal to\n"
    "cv2.resize with INTER_LINEAR.");

static ym_image image_of(const ym_array *array)
{
    return (ym_image){.pixels = array->data,
                      .row_bytes = array->stride[0],
                      .height = (int32_t)array->shape[0],
                      .width = (int32_t)array->shape[1]};
}

static PyObject *resize_image(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *source_object, *out_object;
    ym_array source, out;
    if (!PyArg_ParseTuple(args, "OO:resize_image", &source_object, &out_object) ||
        parse_image(source_object, "source", &source) < 0 ||
        parse_image(out_object, "out", &out) < 0 ||
        ym_require_writable(&out, "out") < 0) {
        return NULL;
    }
    ym_image from = image_of(&source), to = image_of(&out);
    size_t bytes = cpu_resize_scratch_bytes(to.width);
    void *scratch = PyMem_RawMalloc(bytes + 64);
    if (scratch == NULL) {
        return PyErr_NoMemory();
    }
    char *aligned = (char *)scratch + (64 - (uintptr_t)scratch % 64);

    ym_error error;
    ym_status status;
    Py_BEGIN_ALLOW_THREADS
        status = cpu_resize_image(&from, &to, aligned, &error);
    Py_END_ALLOW_THREADS

    PyMem_RawFree(scratch);
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, &error);
}

PyMethodDef ym_mosaic_methods[] = {
    {"mosaic_render", (PyCFunction)(void (*)(void))mosaic_render,
     METH_VARARGS | METH_KEYWORDS, mosaic_render_doc},
    {"resize_image", resize_image, METH_VARARGS, resize_image_doc},
    {"polygon_fill", ym_py_polygon_fill, METH_VARARGS, ym_py_polygon_fill_doc},
    {"polygon_boxes", ym_py_polygon_boxes, METH_VARARGS, ym_py_polygon_boxes_doc},
    {NULL, NULL, 0, NULL},
};
