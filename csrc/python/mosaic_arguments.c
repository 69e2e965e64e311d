/* SPDX-License-Identifier: MIT */
#include "python/mosaic_arguments.h"

#include "ops/mosaic.h"

/* A uint8 array of that shape (-1: any) on the device. */
static int require_bytes(const ym_array *array, const char *name, int32_t device,
                         int ndim, const int64_t *shape)
{
    return ym_require_dtype(array, name, YM_U8) < 0 ||
                   ym_require_shape(array, name, ndim, shape) < 0
               ? -1
               : ym_require_device(array, name, device);
}

int ym_parse_image(PyObject *object, const char *name, int32_t device, ym_array *array)
{
    static const int64_t shape[] = {-1, -1, 3};
    if (ym_parse_array(object, name, array) < 0 ||
        require_bytes(array, name, device, 3, shape) < 0) {
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

static int parse_tile(PyObject *object, int index, int32_t device, ym_tile *tile)
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
        ym_parse_image(image, name, device, &array) < 0) {
        return -1;
    }
    tile->pixels = array.data;
    tile->row_bytes = array.stride[0];
    tile->height = (int32_t)array.shape[0];
    tile->width = (int32_t)array.shape[1];
    return 0;
}

static int parse_tiles(PyObject *tiles, int32_t device, ym_scene *scene)
{
    Py_ssize_t count = PyTuple_GET_SIZE(tiles);
    if (count > YM_MOSAIC_TILES) {
        PyErr_Format(PyExc_ValueError, "mosaic: %zd tiles in a scene, must be 0 to %d",
                     count, YM_MOSAIC_TILES);
        return -1;
    }
    scene->tile_count = (int32_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_tile(PyTuple_GET_ITEM(tiles, i), (int)i, device, &scene->tile[i]) <
            0) {
            return -1;
        }
    }
    return 0;
}

static int parse_paste(PyObject *object, int32_t device, ym_scene *scene)
{
    ym_array array;
    const int64_t shape[] = {scene->height, -1};
    if (ym_parse_optional_array(object, "paste", &array) < 0) {
        return -1;
    }
    if (array.data == NULL) {
        return 0;
    }
    if (require_bytes(&array, "paste", device, 2, shape) < 0 ||
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
static int parse_scene(PyObject *object, int32_t device, ym_scene *scene)
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
    if (warp < YM_WARP_NONE || warp > YM_WARP_PERSPECTIVE_FLOAT) {
        PyErr_Format(PyExc_ValueError, "mosaic: warp is %d, must be 0 to 4", warp);
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
    return parse_tiles(tiles, device, scene) < 0 ? -1
                                                 : parse_paste(paste, device, scene);
}

int ym_parse_scenes(PyObject *scenes, int32_t device, ym_mosaic_job *job)
{
    Py_ssize_t count = PyTuple_GET_SIZE(scenes);
    if (count < 1 || count > 2) {
        PyErr_Format(PyExc_ValueError, "mosaic: %zd scenes, must be 1 or 2", count);
        return -1;
    }
    job->scene_count = (int32_t)count;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_scene(PyTuple_GET_ITEM(scenes, i), device, &job->scene[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

int ym_parse_out(PyObject *object, int32_t device, ym_mosaic_job *job)
{
    static const int64_t shape[] = {3, -1, -1};
    ym_array array;
    if (ym_parse_array(object, "out", &array) < 0 ||
        require_bytes(&array, "out", device, 3, shape) < 0 ||
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

int ym_parse_hsv(PyObject *object, int32_t device, ym_mosaic_job *job)
{
    static const int64_t shape[] = {3, 256};
    ym_array array;
    if (ym_parse_optional_array(object, "hsv", &array) < 0) {
        return -1;
    }
    if (array.data != NULL && (require_bytes(&array, "hsv", device, 2, shape) < 0 ||
                               ym_require_packed(&array, "hsv") < 0)) {
        return -1;
    }
    job->hsv = array.data;
    return 0;
}
