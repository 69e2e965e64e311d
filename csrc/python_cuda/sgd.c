/* SPDX-License-Identifier: MIT
 *
 * yolov9mem._cuda.sgd_table, sgd_norm and sgd_step. The rows are those of
 * yolov9mem._core.sgd_step; the table made of them is copied to the device by the
 * caller, who keeps it until an address changes.
 */
#include "python_cuda/module.h"

#include "cuda/sgd.h"
#include "ops/sgd.h"
#include "python/sgd_rows.h"

static ym_sgd_tensor *read_tensors(const Py_buffer *table, int32_t *count)
{
    *count = ym_sgd_tensor_rows(table);
    if (*count < 0) {
        return NULL;
    }
    ym_sgd_tensor *made = PyMem_Calloc((size_t)*count + 1, sizeof *made);
    if (made == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    ym_sgd_read_tensors(table, *count, made);
    return made;
}

static int read_groups(const Py_buffer *groups, cuda_sgd_call *call)
{
    call->group_count = ym_sgd_group_rows(groups);
    if (call->group_count < 0) {
        return -1;
    }
    if (call->group_count > YM_CUDA_SGD_GROUPS) {
        PyErr_Format(PyExc_NotImplementedError, "groups: %d, at most %d are possible",
                     call->group_count, YM_CUDA_SGD_GROUPS);
        return -1;
    }
    ym_sgd_read_groups(groups, call->group_count, call->group);
    return 0;
}

/* As ops/sgd.h; nothing is read from the device. */
static int check(const ym_sgd_tensor *tensor, int32_t count, const cuda_sgd_call *call)
{
    ym_sgd_job job = {.tensor = tensor,
                      .tensor_count = count,
                      .group = call->group,
                      .group_count = call->group_count,
                      .update = true};
    for (int32_t i = 0; i < count; i++) {
        if (tensor[i].count < 0 || tensor[i].count > INT64_C(1) << 40) {
            PyErr_Format(PyExc_ValueError,
                         "tensor %d: count is %lld, must be 0 to 2^40", i,
                         (long long)tensor[i].count);
            return -1;
        }
    }
    void *scratch = PyMem_Malloc(ym_sgd_scratch_bytes(&job) + 1);
    if (scratch == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    ym_error error;
    ym_status status = ym_sgd_check(&job, scratch, &error);
    PyMem_Free(scratch);
    if (status != YM_OK) {
        ym_raise(status, &error);
    }
    return status == YM_OK ? 0 : -1;
}

PyDoc_STRVAR(
    sgd_table_doc,
    "sgd_table($module, table, groups, /)\n--\n\n"
    "Checks the rows and returns the bytes of the device's table: copy them to\n"
    "uint8 memory on the device, aligned to 64 bytes, and give sgd_step its\n"
    "address.");

static PyObject *sgd_table(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer table, groups;
    if (!PyArg_ParseTuple(args, "y*y*:sgd_table", &table, &groups)) {
        return NULL;
    }
    PyObject *bytes = NULL;
    int32_t count;
    cuda_sgd_call call = {0};
    ym_sgd_tensor *tensor = read_tensors(&table, &count);
    if (tensor != NULL && read_groups(&groups, &call) == 0 &&
        check(tensor, count, &call) == 0) {
        Py_ssize_t size = (Py_ssize_t)cuda_sgd_table_bytes(tensor, count);
        bytes = PyBytes_FromStringAndSize(NULL, size);
    }
    if (bytes != NULL) {
        cuda_sgd_table made =
            cuda_sgd_table_at(PyBytes_AS_STRING(bytes), tensor, count);
        cuda_sgd_fill_table(&made, tensor, count);
    }
    PyMem_Free(tensor);
    PyBuffer_Release(&table);
    PyBuffer_Release(&groups);
    return bytes;
}

typedef struct step_arguments {
    Py_buffer table, groups;
    unsigned long long memory, stream, scale, found_inf;
    int device, update, gradient, measured;
    double inverse_scale;
    PyObject *max_norm, *ema_decay;
} step_arguments;

static int read_call(const step_arguments *a, cuda_sgd_call *call)
{
    int32_t count;
    ym_sgd_tensor *tensor = read_tensors(&a->table, &count);
    if (tensor == NULL || read_groups(&a->groups, call) < 0) {
        PyMem_Free(tensor);
        return -1;
    }
    call->table = cuda_sgd_table_at((void *)(uintptr_t)a->memory, tensor, count);
    PyMem_Free(tensor);
    if (a->gradient < YM_SGD_GRADIENT_KEEP || a->gradient > YM_SGD_GRADIENT_WRITE) {
        PyErr_Format(PyExc_ValueError, "gradient is %d, must be 0, 1 or 2",
                     a->gradient);
        return -1;
    }
    call->scale = (const float *)(uintptr_t)a->scale;
    call->found_inf = (float *)(uintptr_t)a->found_inf;
    call->inverse_scale = (float)a->inverse_scale;
    call->clip = 1;
    call->update = a->update != 0;
    call->gradient = (ym_sgd_gradient)a->gradient;
    call->clips = a->max_norm != NULL && a->max_norm != Py_None;
    call->average = a->ema_decay != NULL && a->ema_decay != Py_None;
    double max_norm = call->clips ? PyFloat_AsDouble(a->max_norm) : 0;
    double decay = call->average ? PyFloat_AsDouble(a->ema_decay) : 0;
    call->max_norm = (float)max_norm;
    call->ema_decay = (float)decay;
    call->ema_weight = (float)(1.0 - decay);
    if (PyErr_Occurred()) {
        return -1;
    }
    if (!(max_norm >= 0)) {
        PyErr_Format(PyExc_ValueError, "max_norm is %R, must be at least 0",
                     a->max_norm);
        return -1;
    }
    if (!(decay >= 0 && decay <= 1)) {
        PyErr_Format(PyExc_ValueError, "ema_decay is %R, must be in [0, 1]",
                     a->ema_decay);
        return -1;
    }
    return 0;
}

/* Gives the buffers back; then None, or NULL with an exception: that of read_call
 * where the arguments were not read. */
static PyObject *finish(step_arguments *a, bool is_read, ym_status status,
                        const ym_error *error)
{
    PyBuffer_Release(&a->table);
    PyBuffer_Release(&a->groups);
    if (!is_read) {
        return NULL;
    }
    return status == YM_OK ? Py_NewRef(Py_None) : ym_raise(status, error);
}

PyDoc_STRVAR(
    sgd_step_doc,
    "sgd_step(table, memory, groups, device, *, stream=0, scale=0, found_inf=0,\n"
    "         inverse_scale=1.0, max_norm=None, update=True, gradient=1,\n"
    "         ema_decay=None, measured=False)\n\n"
    "One step on the stream, without waiting. memory: address of sgd_table's bytes on\n"
    "the device. scale, found_inf: addresses of GradScaler's float32 scalars, 0: "
    "none;\n"
    "found_inf is set to 1 where a gradient is not finite, and then parameters and\n"
    "momentum stay. measured: sgd_norm has run on this memory already. Two launches, "
    "or\n"
    "one where measured, and one without a scale and a clip.");

static PyObject *sgd_step(PyObject *module, PyObject *args, PyObject *keywords)
{
    (void)module;
    static char *names[] = {"table",    "memory", "groups",    "device",
                            "stream",   "scale",  "found_inf", "inverse_scale",
                            "max_norm", "update", "gradient",  "ema_decay",
                            "measured", NULL};
    step_arguments a = {
        .inverse_scale = 1, .update = 1, .gradient = YM_SGD_GRADIENT_ZERO};
    if (ym_cuda_check_process() < 0 ||
        !PyArg_ParseTupleAndKeywords(
            args, keywords, "y*Ky*i|$KKKdOpiOp:sgd_step", names, &a.table, &a.memory,
            &a.groups, &a.device, &a.stream, &a.scale, &a.found_inf, &a.inverse_scale,
            &a.max_norm, &a.update, &a.gradient, &a.ema_decay, &a.measured)) {
        return NULL;
    }
    cuda_sgd_call call = {0};
    bool is_read = read_call(&a, &call) == 0;
    ym_context context = {.stream = (void *)(uintptr_t)a.stream, .device = a.device};
    ym_status status = YM_OK;
    if (is_read) {
        bool norm = call.clips || call.found_inf != NULL;
        Py_BEGIN_ALLOW_THREADS
            status = norm && !a.measured ? cuda_sgd_run_norm(&context, &call) : YM_OK;
            if (status == YM_OK) {
                status = cuda_sgd_run_step(&context, &call, norm);
            }
        Py_END_ALLOW_THREADS
    }
    return finish(&a, is_read, status, &context.error);
}

PyDoc_STRVAR(
    sgd_norm_doc,
    "sgd_norm(table, memory, groups, device, *, stream=0, scale=0, found_inf=0,\n"
    "         inverse_scale=1.0)\n\n"
    "The first pass alone, without waiting: the L2 norm of the unscaled gradients, "
    "as\n"
    "float32, is then at memory + 8. Arguments as sgd_step's.");

static PyObject *sgd_norm(PyObject *module, PyObject *args, PyObject *keywords)
{
    (void)module;
    static char *names[] = {"table", "memory",    "groups",        "device", "stream",
                            "scale", "found_inf", "inverse_scale", NULL};
    step_arguments a = {.inverse_scale = 1};
    if (ym_cuda_check_process() < 0 ||
        !PyArg_ParseTupleAndKeywords(args, keywords, "y*Ky*i|$KKKd:sgd_norm", names,
                                     &a.table, &a.memory, &a.groups, &a.device,
                                     &a.stream, &a.scale, &a.found_inf,
                                     &a.inverse_scale)) {
        return NULL;
    }
    cuda_sgd_call call = {0};
    bool is_read = read_call(&a, &call) == 0;
    ym_context context = {.stream = (void *)(uintptr_t)a.stream, .device = a.device};
    ym_status status = YM_OK;
    if (is_read) {
        Py_BEGIN_ALLOW_THREADS
            status = cuda_sgd_run_norm(&context, &call);
        Py_END_ALLOW_THREADS
    }
    return finish(&a, is_read, status, &context.error);
}

PyMethodDef ym_cuda_sgd_methods[] = {
    {"sgd_norm", (PyCFunction)(void (*)(void))sgd_norm, METH_VARARGS | METH_KEYWORDS,
     sgd_norm_doc},
    {"sgd_table", sgd_table, METH_VARARGS, sgd_table_doc},
    {"sgd_step", (PyCFunction)(void (*)(void))sgd_step, METH_VARARGS | METH_KEYWORDS,
     sgd_step_doc},
    {NULL, NULL, 0, NULL},
};
