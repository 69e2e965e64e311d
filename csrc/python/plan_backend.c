/* SPDX-License-Identifier: MIT
 *
 * Which backend a plan is for: "cpu", "ref", "cuda" or "cuda:1" (yolov9mem._cuda is
 * asked then), or a capsule made by such an extension module, whose pointer is the
 * ym_backend and whose context is the device number plus one (0: host memory).
 */
#include "python/plan_type.h"

#include <string.h>

static int take_capsule(PyObject *capsule, ym_plan_request *request)
{
    request->backend = PyCapsule_GetPointer(capsule, YM_BACKEND_CAPSULE);
    if (request->backend == NULL) {
        return -1;
    }
    if (request->backend->api_version != YM_BACKEND_API_VERSION) {
        PyErr_Format(PyExc_ImportError,
                     "backend %s: was built for version %d of the backend table, this "
                     "is %d: build yolov9mem again",
                     request->backend->name, request->backend->api_version,
                     YM_BACKEND_API_VERSION);
        return -1;
    }
    request->device = (int32_t)(intptr_t)PyCapsule_GetContext(capsule) - 1;
    return PyErr_Occurred() ? -1 : 0;
}

/* yolov9mem._cuda.backend(text) gives a capsule that lives as long as the module. */
static int ask_cuda(const char *text, ym_plan_request *request)
{
    PyObject *module = PyImport_ImportModule("yolov9mem._cuda");
    if (module == NULL) {
        if (PyErr_ExceptionMatches(PyExc_ModuleNotFoundError)) {
            PyErr_Format(PyExc_ModuleNotFoundError,
                         "backend: is '%s', and yolov9mem was built without CUDA: "
                         "build it again with YOLOV9MEM_CUDA=1",
                         text);
        }
        return -1;
    }
    PyObject *capsule = PyObject_CallMethod(module, "backend", "s", text);
    Py_DECREF(module);
    if (capsule == NULL) {
        return -1;
    }
    int status = take_capsule(capsule, request);
    Py_DECREF(capsule);
    return status;
}

int ym_parse_backend(PyObject *object, ym_plan_request *request)
{
    request->backend = ym_cpu_backend();
    request->device = -1;
    if (object != NULL && PyCapsule_CheckExact(object)) {
        return take_capsule(object, request);
    }
    if (object != NULL && !PyUnicode_Check(object)) {
        PyErr_Format(PyExc_TypeError,
                     "backend: is %R, must be a text: cpu, ref, cuda or cuda:N",
                     object);
        return -1;
    }
    const char *text = object == NULL ? "cpu" : PyUnicode_AsUTF8(object);
    if (text == NULL) {
        return -1;
    }
    if (strncmp(text, "cuda", 4) == 0) {
        return ask_cuda(text, request);
    }
    if (strcmp(text, "ref") == 0) {
        request->backend = ym_ref_backend();
    } else if (strcmp(text, "cpu") != 0) {
        PyErr_Format(PyExc_ValueError,
                     "backend: is '%s', must be cpu, ref, cuda or cuda:N", text);
        return -1;
    }
    if (request->dtype == YM_F16) {
        PyErr_SetString(
            PyExc_NotImplementedError,
            "dtype: float16 is not done on the CPU, use float32 or bfloat16");
        return -1;
    }
    return 0;
}
