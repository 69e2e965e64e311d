/* SPDX-License-Identifier: MIT
 *
 * yolov9mem._core.sgd_norm, sgd_step and sgd_check. The hundreds of tensors of a model
 * come as one table of addresses, made and kept alive by yolov9mem/sgd.py or
 * yolov9mem/torch/.
 */
#include "core/backend.h"
#include "ops/sgd.h"
#include "python/module.h"
#include "python/sgd_rows.h"

#include <math.h>
#include <string.h>

static const ym_backend *backend_by_name(const char *name)
{
    if (strcmp(name, "cpu") == 0) {
        return ym_cpu_backend();
    }
    if (strcmp(name, "ref") == 0) {
        return ym_ref_backend();
    }
    PyErr_Format(PyExc_ValueError, "backend is '%s', must be 'cpu' or 'ref'", name);
    return NULL;
}

/* Everything one call allocates, released by release(). */
typedef struct call {
    ym_sgd_job job;
    ym_sgd_tensor *tensor;
    ym_sgd_group *group;
    void *scratch;
} call;

static void release(call *c)
{
    PyMem_RawFree(c->tensor);
    PyMem_RawFree(c->group);
    PyMem_RawFree(c->scratch);
}

static ym_status prepare(call *c, const Py_buffer *table, const Py_buffer *groups,
                         ym_error *error)
{
    c->tensor = PyMem_RawMalloc((size_t)c->job.tensor_count * sizeof *c->tensor);
    c->group = PyMem_RawMalloc((size_t)c->job.group_count * sizeof *c->group);
    YM_CHECK(error, c->tensor != NULL && c->group != NULL, YM_ERR_MEMORY,
             "no memory for a table of %d tensors", c->job.tensor_count);
    ym_sgd_read_tensors(table, c->job.tensor_count, c->tensor);
    if (groups != NULL) {
        ym_sgd_read_groups(groups, c->job.group_count, c->group);
    }
    c->job.tensor = c->tensor;
    c->job.group = c->group;
    for (int32_t i = 0; i < c->job.tensor_count; i++) {
        YM_CHECK(error, c->tensor[i].count >= 0, YM_ERR_ARGUMENT,
                 "tensor %d: count is %lld, must be at least 0", i,
                 (long long)c->tensor[i].count);
    }
    c->scratch = PyMem_RawMalloc(ym_sgd_scratch_bytes(&c->job));
    YM_CHECK(error, c->scratch != NULL, YM_ERR_MEMORY,
             "no memory to divide %d tensors into tasks", c->job.tensor_count);
    return YM_OK;
}

static ym_status run_norm(const ym_backend *backend, call *c, const Py_buffer *table,
                          ym_error *error)
{
    ym_context context = {.backend = backend, .device = -1};
    YM_TRY(prepare(c, table, NULL, error));
    ym_sgd_divide(&c->job, c->scratch);
    ym_status status = backend->sgd_norm(&context, &c->job);
    if (status != YM_OK) {
        *error = context.error;
    }
    return status;
}

static ym_status run_step(const ym_backend *backend, call *c, const Py_buffer *table,
                          const Py_buffer *groups, ym_error *error)
{
    ym_context context = {.backend = backend, .device = -1};
    YM_TRY(prepare(c, table, groups, error));
    YM_TRY(ym_sgd_check(&c->job, c->scratch, error));
    ym_sgd_divide(&c->job, c->scratch);
    ym_status status = backend->sgd_step(&context, &c->job);
    if (status != YM_OK) {
        *error = context.error;
    }
    return status;
}

PyDoc_STRVAR(sgd_norm_doc,
             "sgd_norm(table, backend='cpu') -> float\n\n"
             "L2 norm of all gradients as they are; not finite exactly when one of\n"
             "them is not. table: int64 rows (param, grad, momentum, ema, count,\n"
             "group, first_step), addresses of float32 memory, 0: absent.");

static PyObject *sgd_norm(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"table", "backend", NULL};
    Py_buffer table;
    const char *backend_name = "cpu";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|s:sgd_norm", names, &table,
                                     &backend_name)) {
        return NULL;
    }
    const ym_backend *backend = backend_by_name(backend_name);
    call c = {.job = {.inverse_scale = 1, .clip = 1}};
    c.job.tensor_count = ym_sgd_tensor_rows(&table);
    if (backend == NULL || c.job.tensor_count < 0) {
        PyBuffer_Release(&table);
        return NULL;
    }

    ym_error error;
    ym_status status;
    Py_BEGIN_ALLOW_THREADS
        status = run_norm(backend, &c, &table, &error);
        release(&c);
    Py_END_ALLOW_THREADS

    PyBuffer_Release(&table);
    return status == YM_OK ? PyFloat_FromDouble(sqrt(c.job.sum_of_squares))
                           : ym_raise(status, &error);
}

PyDoc_STRVAR(
    sgd_step_doc,
    "sgd_step(table, groups, *, inverse_scale=1.0, clip=1.0, update=True,\n"
    "         gradient=1, ema_decay=None, backend='cpu')\n\n"
    "The rest of an optimizer step. groups: float64 rows (lr, momentum,\n"
    "dampening, weight_decay, nesterov, maximize). gradient: 0 keep, 1 zero,\n"
    "2 write unscaled and clipped. update=False skips parameters and momentum.");

/* ema_decay: a float, or None for no average. */
static int read_average(PyObject *ema_decay, ym_sgd_job *job)
{
    job->average = ema_decay != NULL && ema_decay != Py_None;
    if (!job->average) {
        return 0;
    }
    double decay = PyFloat_AsDouble(ema_decay);
    job->ema_decay = (float)decay;
    job->ema_weight = (float)(1.0 - decay);
    return decay == -1 && PyErr_Occurred() ? -1 : 0;
}

static int read_job(ym_sgd_job *job, const Py_buffer *table, const Py_buffer *groups,
                    int gradient, PyObject *ema_decay)
{
    if (gradient < YM_SGD_GRADIENT_KEEP || gradient > YM_SGD_GRADIENT_WRITE) {
        PyErr_Format(PyExc_ValueError, "gradient is %d, must be 0, 1 or 2", gradient);
        return -1;
    }
    job->gradient = (ym_sgd_gradient)gradient;
    job->tensor_count = ym_sgd_tensor_rows(table);
    job->group_count = ym_sgd_group_rows(groups);
    if (job->tensor_count < 0 || job->group_count < 0) {
        return -1;
    }
    return read_average(ema_decay, job);
}

static PyObject *sgd_step(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"table",    "groups",    "inverse_scale", "clip", "update",
                            "gradient", "ema_decay", "backend",       NULL};
    Py_buffer table, groups;
    double inverse_scale = 1, clip = 1;
    int update = 1, gradient = YM_SGD_GRADIENT_ZERO;
    PyObject *ema_decay = NULL;
    const char *backend_name = "cpu";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*y*|$ddpiOs:sgd_step", names,
                                     &table, &groups, &inverse_scale, &clip, &update,
                                     &gradient, &ema_decay, &backend_name)) {
        return NULL;
    }
    const ym_backend *backend = backend_by_name(backend_name);
    call c = {.job = {.inverse_scale = (float)inverse_scale,
                      .clip = (float)clip,
                      .update = update != 0}};
    int read = backend == NULL ? -1
                               : read_job(&c.job, &table, &groups, gradient, ema_decay);

    ym_error error;
    ym_status status = YM_OK;
    if (read == 0) {
        Py_BEGIN_ALLOW_THREADS
            status = run_step(backend, &c, &table, &groups, &error);
            release(&c);
        Py_END_ALLOW_THREADS
    }

    PyBuffer_Release(&table);
    PyBuffer_Release(&groups);
    if (read < 0) {
        return NULL;
    }
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, &error);
}

PyDoc_STRVAR(
    sgd_check_doc,
    "sgd_check(table, groups, *, update=True, ema_decay=None)\n\n"
    "Raises what sgd_step would raise, and touches no tensor: the rows' memory\n"
    "may be a GPU's.");

static PyObject *sgd_check(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    static char *names[] = {"table", "groups", "update", "ema_decay", NULL};
    Py_buffer table, groups;
    int update = 1;
    PyObject *ema_decay = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*y*|$pO:sgd_check", names, &table,
                                     &groups, &update, &ema_decay)) {
        return NULL;
    }
    call c = {.job = {.update = update != 0}};
    int read = read_job(&c.job, &table, &groups, YM_SGD_GRADIENT_KEEP, ema_decay);

    ym_error error;
    ym_status status = YM_OK;
    if (read == 0) {
        status = prepare(&c, &table, &groups, &error);
        if (status == YM_OK) {
            status = ym_sgd_check(&c.job, c.scratch, &error);
        }
        release(&c);
    }

    PyBuffer_Release(&table);
    PyBuffer_Release(&groups);
    if (read < 0) {
        return NULL;
    }
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, &error);
}

PyMethodDef ym_sgd_methods[] = {
    {"sgd_norm", (PyCFunction)(void (*)(void))sgd_norm, METH_VARARGS | METH_KEYWORDS,
     sgd_norm_doc},
    {"sgd_step", (PyCFunction)(void (*)(void))sgd_step, METH_VARARGS | METH_KEYWORDS,
     sgd_step_doc},
    {"sgd_check", (PyCFunction)(void (*)(void))sgd_check, METH_VARARGS | METH_KEYWORDS,
     sgd_check_doc},
    {NULL, NULL, 0, NULL},
};
