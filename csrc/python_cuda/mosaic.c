/* SPDX-License-Identifier: MIT
 * yolov9mem._cuda.mosaic_batch: arrays on the device as tuples, jobs as in
 * yolov9mem._core.mosaic_render.
 */
#include "python_cuda/module.h"

#include "cuda/mosaic.h"
#include "ops/mosaic.h"

#include <string.h>

/* uint8 on that device; *row_bytes is the first stride but one (or the first of two).
 */
static int parse_bytes(PyObject *object, const char *name, int device, int ndim,
                       ym_array *array)
{
    if (ym_parse_array(object, name, array) < 0 ||
        ym_require_dtype(array, name, YM_U8) < 0) {
        return -1;
    }
    if (array->ndim != ndim || array->device != device) {
        PyErr_Format(PyExc_ValueError,
                     "%s: has %d dimensions on device %d, must have %d on device %d",
                     name, array->ndim, array->device, ndim, device);
        return -1;
    }
    for (int i = 0; i < ndim; i++) {
        if (array->shape[i] < 1 || array->shape[i] > INT32_MAX) {
            PyErr_Format(PyExc_ValueError, "%s: size %d is %lld, must be at least 1",
                         name, i, (long long)array->shape[i]);
            return -1;
        }
    }
    return 0;
}

static int parse_tile(PyObject *object, int device, ym_tile *tile)
{
    PyObject *image;
    ym_array array;
    if (!PyArg_ParseTuple(object, "Oii;a tile must be (image, x, y)", &image, &tile->x,
                          &tile->y) ||
        parse_bytes(image, "tile", device, 3, &array) < 0) {
        return -1;
    }
    if (array.shape[2] != 3 || array.stride[2] != 1 ||
        (array.stride[1] != 3 && array.shape[1] > 1)) {
        PyErr_SetString(PyExc_ValueError,
                        "tile: must be (H, W, 3) with packed pixels of 3 bytes");
        return -1;
    }
    tile->pixels = array.data;
    tile->row_bytes = array.stride[0];
    tile->height = (int32_t)array.shape[0];
    tile->width = (int32_t)array.shape[1];
    return 0;
}

static int parse_matrix(PyObject *object, ym_scene *scene)
{
    double m[9];
    if (scene->warp == YM_WARP_NONE) {
        return 0;
    }
    if (!PyArg_ParseTuple(object, "ddddddddd;the matrix must have 9 numbers", &m[0],
                          &m[1], &m[2], &m[3], &m[4], &m[5], &m[6], &m[7], &m[8])) {
        return -1;
    }
    ym_scene_invert(scene, m);
    return 0;
}

static int parse_paste(PyObject *object, int device, ym_scene *scene)
{
    ym_array array;
    if (object == Py_None) {
        return 0;
    }
    if (parse_bytes(object, "paste", device, 2, &array) < 0) {
        return -1;
    }
    if (array.shape[0] != scene->height) {
        PyErr_Format(PyExc_ValueError, "paste: has %lld rows, the canvas %d",
                     (long long)array.shape[0], scene->height);
        return -1;
    }
    scene->paste = array.data;
    scene->paste_row_bytes = array.stride[0];
    return 0;
}

static int parse_scene(PyObject *object, int device, ym_scene *scene)
{
    PyObject *tiles, *matrix, *paste;
    int warp;
    if (!PyArg_ParseTuple(object,
                          "O!(ii)iOO;a scene must be (tiles, (height, width), "
                          "warp, matrix, paste)",
                          &PyTuple_Type, &tiles, &scene->height, &scene->width, &warp,
                          &matrix, &paste)) {
        return -1;
    }
    if (PyTuple_GET_SIZE(tiles) > YM_MOSAIC_TILES || warp < 0 ||
        warp > YM_WARP_PERSPECTIVE) {
        PyErr_Format(PyExc_ValueError,
                     "scene: %zd tiles, at most %d; warp %d, must be 0-2",
                     PyTuple_GET_SIZE(tiles), YM_MOSAIC_TILES, warp);
        return -1;
    }
    scene->warp = (ym_warp)warp;
    scene->tile_count = (int32_t)PyTuple_GET_SIZE(tiles);
    for (int32_t i = 0; i < scene->tile_count; i++) {
        if (parse_tile(PyTuple_GET_ITEM(tiles, i), device, &scene->tile[i]) < 0) {
            return -1;
        }
    }
    return parse_matrix(matrix, scene) < 0 || parse_paste(paste, device, scene) < 0 ? -1
                                                                                    : 0;
}

static int parse_job(PyObject *object, int device, ym_mosaic_job *job)
{
    PyObject *out, *scenes, *hsv;
    int vertical, horizontal;
    ym_array array;
    if (!PyArg_ParseTuple(object,
                          "OO!dOpp;a job must be (out, scenes, ratio, hsv, "
                          "flip_vertical, flip_horizontal)",
                          &out, &PyTuple_Type, &scenes, &job->ratio, &hsv, &vertical,
                          &horizontal) ||
        parse_bytes(out, "out", device, 3, &array) < 0 ||
        ym_require_packed(&array, "out") < 0 ||
        ym_require_writable(&array, "out") < 0) {
        return -1;
    }
    job->out = array.data;
    job->height = (int32_t)array.shape[1];
    job->width = (int32_t)array.shape[2];
    job->flip_vertical = vertical != 0;
    job->flip_horizontal = horizontal != 0;
    job->scene_count = (int32_t)PyTuple_GET_SIZE(scenes);
    if (array.shape[0] != 3 || job->scene_count < 1 || job->scene_count > 2) {
        PyErr_SetString(PyExc_ValueError,
                        "job: out must be (3, H, W), and one or two scenes");
        return -1;
    }
    for (int32_t i = 0; i < job->scene_count; i++) {
        if (parse_scene(PyTuple_GET_ITEM(scenes, i), device, &job->scene[i]) < 0) {
            return -1;
        }
    }
    ym_error error; /* the tables lie on the device and cannot be looked at */
    ym_status status = ym_mosaic_check(job, &error);
    if (status != YM_OK) {
        ym_raise(status, &error);
        return -1;
    }
    if (hsv == Py_None) {
        return 0;
    }
    if (parse_bytes(hsv, "hsv", device, 2, &array) < 0 ||
        ym_require_packed(&array, "hsv") < 0) {
        return -1;
    }
    job->hsv = array.data;
    if (array.shape[0] * array.shape[1] != 3 * 256) {
        PyErr_SetString(PyExc_ValueError, "hsv: must be (3, 256)");
        return -1;
    }
    return 0;
}

static PyObject *render(PyObject *jobs, const ym_array *scratch, int device,
                        unsigned long long stream)
{
    Py_ssize_t count = PyTuple_GET_SIZE(jobs);
    ym_mosaic_job *job = PyMem_Calloc((size_t)count + 1, sizeof *job);
    if (job == NULL) {
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (parse_job(PyTuple_GET_ITEM(jobs, i), device, &job[i]) < 0) {
            PyMem_Free(job);
            return NULL;
        }
    }
    ym_context context = {.scratch = scratch->data,
                          .scratch_bytes = (size_t)scratch->shape[0],
                          .stream = (void *)(uintptr_t)stream,
                          .device = device};
    ym_status status;
    Py_BEGIN_ALLOW_THREADS
        status = cuda_mosaic_batch(&context, job, (int32_t)count);
    Py_END_ALLOW_THREADS
    PyMem_Free(job);
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, &context.error);
}

PyDoc_STRVAR(
    mosaic_batch_doc,
    "mosaic_batch($module, jobs, scratch, device, stream=0, /)\n--\n\n"
    "A batch in one launch. jobs: a tuple of (out, scenes, ratio, hsv,\n"
    "flip_vertical, flip_horizontal) as _core.mosaic_render takes them, every\n"
    "array on the device as (address, 'uint8', shape, strides, device).\n"
    "scratch: uint8 on the device, mosaic_scratch_bytes(len(jobs)) of them.");

static PyObject *mosaic_batch(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *jobs, *scratch_object;
    int device;
    unsigned long long stream = 0;
    ym_array scratch;
    if (!PyArg_ParseTuple(args, "O!Oi|K:mosaic_batch", &PyTuple_Type, &jobs,
                          &scratch_object, &device, &stream) ||
        ym_cuda_check_process() < 0 ||
        parse_bytes(scratch_object, "scratch", device, 1, &scratch) < 0) {
        return NULL;
    }
    if (PyTuple_GET_SIZE(jobs) < 1 || PyTuple_GET_SIZE(jobs) > 65535) {
        return PyErr_Format(PyExc_ValueError, "jobs: %zd of them, must be 1 to 65535",
                            PyTuple_GET_SIZE(jobs));
    }
    return render(jobs, &scratch, device, stream);
}

PyDoc_STRVAR(mosaic_scratch_bytes_doc, "mosaic_scratch_bytes($module, count, /)\n--\n\n"
                                       "Bytes of scratch for a batch of that many.");

static PyObject *mosaic_scratch_bytes(PyObject *module, PyObject *count)
{
    (void)module;
    long images = PyLong_AsLong(count);
    if (images < 0 || images > 65535) {
        return PyErr_Occurred()
                   ? NULL
                   : PyErr_Format(PyExc_ValueError, "count: is %ld, must be 0 to 65535",
                                  images);
    }
    return PyLong_FromSize_t(cuda_mosaic_scratch_bytes((int32_t)images));
}

PyMethodDef ym_cuda_mosaic_methods[] = {
    {"mosaic_batch", mosaic_batch, METH_VARARGS, mosaic_batch_doc},
    {"mosaic_scratch_bytes", mosaic_scratch_bytes, METH_O, mosaic_scratch_bytes_doc},
    {NULL, NULL, 0, NULL},
};
