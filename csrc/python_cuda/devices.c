/* SPDX-License-Identifier: MIT
 * yolov9mem._cuda: which GPUs there are, what was built, and the backend for a plan.
 */
#include "python_cuda/module.h"

#include "cuda/cudnn_cache.h"

#include <limits.h>
#include <string.h>
#include <unistd.h>

#ifndef YM_CUDA_ARCHS
#define YM_CUDA_ARCHS ""
#endif

int ym_cuda_check_process(void)
{
    static pid_t user = 0;
    if (user == 0) {
        user = getpid();
    }
    if (user == getpid()) {
        return 0;
    }
    ym_error error;
    ym_status status =
        ym_fail(&error, YM_ERR_BACKEND,
                "cuda: this process was forked from one that uses the GPU, "
                "which CUDA does not allow: start workers by 'spawn'");
    ym_raise(status, &error);
    return -1;
}

static int count_devices(int *count)
{
    ym_context context = {.device = -1};
    if (ym_cuda_check_process() < 0) {
        return -1;
    }
    ym_status status =
        cuda_check(&context, cudaGetDeviceCount(count), "cudaGetDeviceCount");
    if (status != YM_OK) {
        ym_raise(status, &context.error);
        return -1;
    }
    return 0;
}

static int current_device(int *device)
{
    ym_context context = {.device = -1};
    ym_status status = cuda_check(&context, cudaGetDevice(device), "cudaGetDevice");
    if (status != YM_OK) {
        ym_raise(status, &context.error);
        return -1;
    }
    return 0;
}

static PyObject *describe(int index)
{
    struct cudaDeviceProp found;
    ym_context context = {.device = index};
    ym_status status = cuda_check(&context, cudaGetDeviceProperties(&found, index),
                                  "cudaGetDeviceProperties");
    if (status != YM_OK) {
        return ym_raise(status, &context.error);
    }
    return Py_BuildValue("{s:i,s:s,s:(ii),s:i,s:n}", "index", index, "name", found.name,
                         "capability", found.major, found.minor, "multiprocessors",
                         found.multiProcessorCount, "memory_bytes",
                         (Py_ssize_t)found.totalGlobalMem);
}

PyDoc_STRVAR(
    devices_doc,
    "devices($module, /)\n--\n\n"
    "A list of dicts: index, name, capability, multiprocessors, memory_bytes.\n"
    "Raises BackendError without a driver or a GPU.");

static PyObject *devices(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    int count = 0;
    if (count_devices(&count) < 0) {
        return NULL;
    }
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *entry = describe(i);
        if (entry == NULL || PyList_Append(list, entry) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(entry);
    }
    return list;
}

PyDoc_STRVAR(build_info_doc,
             "build_info($module, /)\n--\n\n"
             "runtime (CUDA version of the build), archs. Makes no CUDA "
             "call.");

static PyObject *build_info(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    return Py_BuildValue("{s:(ii),s:s}", "runtime", CUDART_VERSION / 1000,
                         CUDART_VERSION % 1000 / 10, "archs", YM_CUDA_ARCHS);
}

PyDoc_STRVAR(cudnn_doc, "cudnn($module, path=None, /)\n--\n\n"
                        "Opens cuDNN 9 (the one at `path` first, unless one is loaded) "
                        "and returns (version, path).\nRaises BackendError if there is "
                        "none or it is too old.");

static PyObject *cudnn(PyObject *module, PyObject *args)
{
    (void)module;
    const char *path = NULL;
    if (!PyArg_ParseTuple(args, "|z:cudnn", &path)) {
        return NULL;
    }
    ym_error error;
    const cudnn_library *library;
    ym_status status;
    Py_BEGIN_ALLOW_THREADS
        status = cudnn_open(path, &library, &error);
    Py_END_ALLOW_THREADS
    if (status != YM_OK) {
        return ym_raise(status, &error);
    }
    return Py_BuildValue("(ns)", (Py_ssize_t)library->version, library->path);
}

/* "cuda", "cuda:1", "cuda:plain", "cuda:1:plain"; -1: no number. */
static int parse_device(const char *text, int *device, bool *plain)
{
    const bool is_cuda = strncmp(text, "cuda", 4) == 0;
    const char *rest = is_cuda ? text + 4 : text;
    *device = -1;
    if (is_cuda && rest[0] == ':' && rest[1] >= '0' && rest[1] <= '9') {
        char *end;
        const long number = strtol(rest + 1, &end, 10);
        *device = number < INT_MAX ? (int)number : INT_MAX;
        rest = end;
    }
    *plain = strcmp(rest, ":plain") == 0;
    if (is_cuda && (*plain || rest[0] == '\0')) {
        return 0;
    }
    PyErr_Format(PyExc_ValueError,
                 "backend: is '%s', must be cuda, cuda:N, cuda:plain or cuda:N:plain",
                 text);
    return -1;
}

/* The library of the wheel nvidia-cudnn, as a new str; NULL without an exception where
 * there is none. */
static PyObject *find_wheel(void)
{
    PyObject *util = PyImport_ImportModule("importlib.util");
    PyObject *spec = util != NULL
                         ? PyObject_CallMethod(util, "find_spec", "s", "nvidia.cudnn")
                         : NULL;
    PyObject *places = spec != NULL && spec != Py_None
                           ? PyObject_GetAttrString(spec, "submodule_search_locations")
                           : NULL;
    PyObject *first = places != NULL ? PySequence_GetItem(places, 0) : NULL;
    PyObject *path = first != NULL ? PyUnicode_FromFormat("%U/lib/libcudnn.so.9", first)
                                   : NULL;
    Py_XDECREF(first);
    Py_XDECREF(places);
    Py_XDECREF(spec);
    Py_XDECREF(util);
    PyErr_Clear();
    return path;
}

static ym_status choose_table(bool plain, const ym_backend **table, ym_error *error)
{
    const cudnn_library *library;
    *table = ym_cuda_plain_backend();
    if (plain) {
        return YM_OK;
    }
    PyObject *wheel = find_wheel();
    const char *path = wheel != NULL ? PyUnicode_AsUTF8(wheel) : NULL;
    ym_status status = cudnn_open(path, &library, error);
    Py_XDECREF(wheel);
    *table = ym_cuda_backend();
    return status;
}

PyDoc_STRVAR(use_cudnn_doc,
             "use_cudnn($module, tf32, trials, /)\n--\n\n"
             "Whether float32 convolutions may round to TF32, and whether engines are\n"
             "tried and the fastest kept, as torch.backends.cudnn.allow_tf32 and\n"
             "benchmark say. A plan needs the same settings to be made and to run.");

static PyObject *use_cudnn(PyObject *module, PyObject *arguments)
{
    (void)module;
    int tf32, trials;
    if (!PyArg_ParseTuple(arguments, "pp:use_cudnn", &tf32, &trials)) {
        return NULL;
    }
    cudnn_use((cudnn_settings){tf32 != 0, trials != 0});
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    backend_doc,
    "backend($module, text, /)\n--\n\n"
    "What Plan(backend=...) takes, for 'cuda' (the current device), 'cuda:N', or\n"
    "either with ':plain' behind it: without cuDNN. The device must be current\n"
    "whenever the plan is made or asked for sizes.");

static PyObject *backend(PyObject *module, PyObject *argument)
{
    (void)module;
    const char *text = PyUnicode_AsUTF8(argument);
    int device, count = 0;
    bool plain;
    if (text == NULL || parse_device(text, &device, &plain) < 0 ||
        count_devices(&count) < 0) {
        return NULL;
    }
    if (device < 0 && current_device(&device) < 0) {
        return NULL;
    }
    if (device >= count) {
        return PyErr_Format(PyExc_ValueError, "backend: is '%s', there are %d devices",
                            text, count);
    }
    const ym_backend *table;
    ym_error error;
    ym_status status = choose_table(plain, &table, &error);
    if (status != YM_OK) {
        return ym_raise(status, &error);
    }
    PyObject *capsule = PyCapsule_New((void *)table, YM_BACKEND_CAPSULE, NULL);
    if (capsule != NULL) {
        PyCapsule_SetContext(capsule, (void *)(intptr_t)(device + 1));
    }
    return capsule;
}

PyMethodDef ym_cuda_device_methods[] = {
    {"devices", devices, METH_NOARGS, devices_doc},
    {"build_info", build_info, METH_NOARGS, build_info_doc},
    {"cudnn", cudnn, METH_VARARGS, cudnn_doc},
    {"backend", backend, METH_O, backend_doc},
    {"use_cudnn", use_cudnn, METH_VARARGS, use_cudnn_doc},
    {NULL, NULL, 0, NULL},
};
