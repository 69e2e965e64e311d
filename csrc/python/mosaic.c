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
#include "python/mosaic_arguments.h"

#include <string.h>

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
    "x, y) on a canvas; warp 0 none, 1 affine, 2 perspective, both by OpenCV 4's\n"
    "integers, 3 and 4 by OpenCV 5's floats; matrix 9 floats, canvas to image;\n"
    "paste (height, bytes) uint8 bits or None. ratio: of the first scene in the\n"
    "blend of two. hsv: (3, 256) uint8 tables or None.");

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
    if (backend == NULL || ym_parse_out(out, -1, &job) < 0 ||
        ym_parse_scenes(scenes, -1, &job) < 0 || ym_parse_hsv(hsv, -1, &job) < 0) {
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
        ym_parse_image(source_object, "source", -1, &source) < 0 ||
        ym_parse_image(out_object, "out", -1, &out) < 0 ||
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
