/* SPDX-License-Identifier: MIT
 * yolov9mem._core: threads, and what this build is.
 */
#include "core/sanitize.h"
#include "cpu/kernels.h"
#include "cpu/pool.h"
#include "python/module.h"

#ifdef __clang__
#define COMPILER __VERSION__
#else
#define COMPILER "GCC " __VERSION__
#endif

#ifdef YM_DEBUG
#define DEBUG_BUILD Py_True
#else
#define DEBUG_BUILD Py_False
#endif

#if YM_SANITIZED
#define SANITIZED Py_True
#else
#define SANITIZED Py_False
#endif

PyDoc_STRVAR(
    set_num_threads_doc,
    "set_num_threads($module, count, /)\n--\n\n"
    "Threads that a run on the CPU uses, at least 1. Results do not depend on it.");

static PyObject *set_num_threads(PyObject *module, PyObject *count)
{
    (void)module;
    long threads = PyLong_AsLong(count);
    if (threads == -1 && PyErr_Occurred() &&
        !PyErr_ExceptionMatches(PyExc_OverflowError)) {
        return PyErr_Format(PyExc_TypeError, "count: is %R, must be a whole number",
                            count);
    }
    if (threads < 1 || threads > YM_POOL_MAX_THREADS) { /* what overflowed is -1 */
        return PyErr_Format(PyExc_ValueError,
                            "count: is %R, must be a number of threads from 1 to %d",
                            count, YM_POOL_MAX_THREADS);
    }
    ym_pool_set_threads((int32_t)threads);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_usual_num_threads_doc,
             "set_usual_num_threads($module, count, /)\n--\n\n"
             "What counts in place of OMP_NUM_THREADS, where set_num_threads and\n"
             "YOLOV9MEM_NUM_THREADS say nothing: the threads of another library.");

static PyObject *set_usual_num_threads(PyObject *module, PyObject *count)
{
    (void)module;
    long threads = PyLong_AsLong(count);
    if (threads == -1 && PyErr_Occurred()) {
        return NULL;
    }
    ym_pool_set_usual_threads(
        (int32_t)(threads < YM_POOL_MAX_THREADS ? threads : YM_POOL_MAX_THREADS));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    get_num_threads_doc,
    "get_num_threads($module, /)\n--\n\n"
    "What was set, else the least of YOLOV9MEM_NUM_THREADS (or OMP_NUM_THREADS, or\n"
    "what torch.get_num_threads() was at the last forward of a checkpointed module\n"
    "or step of an optimizer), the CPUs of the affinity mask and the cgroup's quota.");

static PyObject *get_num_threads(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromLong(ym_pool_threads());
}

PyDoc_STRVAR(build_info_doc,
             "build_info($module, /)\n--\n\n"
             "compiler, isa (of the CPU kernels in use), backends, debug, sanitize.");

static PyObject *build_info(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return Py_BuildValue("{s:s,s:s,s:(ss),s:O,s:O}", "compiler", COMPILER, "isa",
                         cpu_kernels_best()->name, "backends", "cpu", "ref", "debug",
                         DEBUG_BUILD, "sanitize", SANITIZED);
}

PyMethodDef ym_runtime_methods[] = {
    {"set_num_threads", set_num_threads, METH_O, set_num_threads_doc},
    {"set_usual_num_threads", set_usual_num_threads, METH_O, set_usual_num_threads_doc},
    {"get_num_threads", get_num_threads, METH_NOARGS, get_num_threads_doc},
    {"build_info", build_info, METH_NOARGS, build_info_doc},
    {NULL, NULL, 0, NULL},
};
