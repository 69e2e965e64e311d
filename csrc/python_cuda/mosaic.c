/* SPDX-License-Identifier: MIT
 * yolov9mem._cuda.mosaic_batch: arrays on the device as tuples, jobs as in
 * yolov9mem._core.mosaic_render.
 */
#include "python_cuda/module.h"

#include "cuda/mosaic.h"
#include "ops/mosaic.h"
#include "python/mosaic_arguments.h"

static int parse_job(PyObject *object, int device, ym_mosaic_job *job)
{
    PyObject *out, *scenes, *hsv;
    int vertical, horizontal;
    if (!PyTuple_Check(object)) {
        PyErr_SetString(PyExc_TypeError, "jobs: a job must be a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(object,
                          "OO!dOpp;a job must be (out, scenes, ratio, hsv, "
                          "flip_vertical, flip_horizontal)",
                          &out, &PyTuple_Type, &scenes, &job->ratio, &hsv, &vertical,
                          &horizontal) ||
        ym_parse_out(out, device, job) < 0 ||
        ym_parse_scenes(scenes, device, job) < 0) {
        return -1;
    }
    job->flip_vertical = vertical != 0;
    job->flip_horizontal = horizontal != 0;
    ym_error error; /* before the tables, which lie on the device: no look at them */
    ym_status status = ym_mosaic_check(job, &error);
    if (status != YM_OK) {
        ym_raise(status, &error);
        return -1;
    }
    return ym_parse_hsv(hsv, device, job);
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
    static const int64_t any[] = {-1};
    if (!PyArg_ParseTuple(args, "O!Oi|K:mosaic_batch", &PyTuple_Type, &jobs,
                          &scratch_object, &device, &stream) ||
        ym_cuda_check_process() < 0 ||
        ym_parse_array(scratch_object, "scratch", &scratch) < 0 ||
        ym_require_dtype(&scratch, "scratch", YM_U8) < 0 ||
        ym_require_shape(&scratch, "scratch", 1, any) < 0 ||
        ym_require_device(&scratch, "scratch", device) < 0) {
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
