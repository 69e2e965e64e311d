/* SPDX-License-Identifier: MIT
 * The only file that uses NumPy's C API.
 */
#include "python/module.h"

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <string.h>

int ym_import_numpy(void)
{
    import_array1(-1);
    return 0;
}

int ym_dtype_named(const char *text, ym_dtype *dtype)
{
    for (int i = YM_F32; i <= YM_U8; i++) {
        if (strcmp(text, ym_dtype_name((ym_dtype)i)) == 0) {
            *dtype = (ym_dtype)i;
            return 0;
        }
    }
    return -1;
}

static int numpy_dtype(PyArrayObject *source, const char *name, ym_dtype *dtype)
{
    switch (PyArray_TYPE(source)) {
    case NPY_FLOAT32:
        *dtype = YM_F32;
        return 0;
    case NPY_FLOAT16:
        *dtype = YM_F16;
        return 0;
    case NPY_UINT8:
        *dtype = YM_U8;
        return 0;
    case NPY_UINT16: /* the bits of bfloat16 */
        *dtype = YM_BF16;
        return 0;
    default:
        break;
    }
    PyObject *text = PyObject_Str((PyObject *)PyArray_DESCR(source));
    if (text == NULL) {
        return -1;
    }
    const char *found = PyUnicode_AsUTF8(text);
    int status = found != NULL && strcmp(found, "bfloat16") == 0 ? 0 : -1;
    if (status == 0) {
        *dtype = YM_BF16;
    } else if (found != NULL) {
        PyErr_Format(PyExc_TypeError,
                     "%s: dtype %s is not one of float32, float16, bfloat16, uint8",
                     name, found);
    }
    Py_DECREF(text);
    return status;
}

static int parse_numpy(PyArrayObject *source, const char *name, ym_array *array)
{
    if (PyArray_NDIM(source) > YM_MAX_DIMENSIONS) {
        PyErr_Format(PyExc_ValueError, "%s: %d dimensions, at most %d are understood",
                     name, PyArray_NDIM(source), YM_MAX_DIMENSIONS);
        return -1;
    }
    if (!PyArray_ISALIGNED(source) || !PyArray_ISNOTSWAPPED(source)) {
        PyErr_Format(PyExc_ValueError, "%s: must be aligned and in native byte order",
                     name);
        return -1;
    }
    if (numpy_dtype(source, name, &array->dtype) < 0) {
        return -1;
    }
    array->is_uint16 = PyArray_TYPE(source) == NPY_UINT16;
    int64_t item_bytes = (int64_t)ym_dtype_bytes(array->dtype);
    array->data = PyArray_DATA(source);
    array->ndim = PyArray_NDIM(source);
    array->device = -1;
    array->writable = PyArray_ISWRITEABLE(source);
    for (int i = 0; i < array->ndim; i++) {
        int64_t stride_bytes = (int64_t)PyArray_STRIDE(source, i);
        if (stride_bytes % item_bytes != 0) {
            PyErr_Format(
                PyExc_ValueError,
                "%s: stride of %lld bytes is no multiple of the element's %lld", name,
                (long long)stride_bytes, (long long)item_bytes);
            return -1;
        }
        array->shape[i] = (int64_t)PyArray_DIM(source, i);
        array->stride[i] = stride_bytes / item_bytes;
    }
    return 0;
}

static int parse_sizes(PyObject *sizes, const char *name, int64_t *out, int expected)
{
    if (!PyTuple_Check(sizes) ||
        (expected >= 0 && PyTuple_GET_SIZE(sizes) != expected) ||
        PyTuple_GET_SIZE(sizes) > YM_MAX_DIMENSIONS) {
        PyErr_Format(PyExc_TypeError,
                     "%s: shape and strides must be tuples of equal length, at most %d",
                     name, YM_MAX_DIMENSIONS);
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(sizes); i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes, i));
        if (out[i] == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    return 0;
}

static int parse_tuple(PyObject *source, const char *name, ym_array *array)
{
    unsigned long long address;
    const char *dtype;
    PyObject *shape, *stride;
    if (!PyArg_ParseTuple(source, "KsOOi", &address, &dtype, &shape, &stride,
                          &array->device)) {
        PyErr_Format(PyExc_TypeError,
                     "%s: a tuple must be (address, dtype, shape, strides, device)",
                     name);
        return -1;
    }
    if (ym_dtype_named(dtype, &array->dtype) < 0) {
        PyErr_Format(PyExc_TypeError,
                     "%s: dtype %s is not one of float32, float16, bfloat16, uint8",
                     name, dtype);
        return -1;
    }
    if (parse_sizes(shape, name, array->shape, -1) < 0) {
        return -1;
    }
    array->ndim = (int)PyTuple_GET_SIZE(shape);
    array->data = (void *)(uintptr_t)address;
    array->writable = true;
    return parse_sizes(stride, name, array->stride, array->ndim);
}

int ym_parse_array(PyObject *object, const char *name, ym_array *array)
{
    memset(array, 0, sizeof *array);
    if (PyArray_Check(object)) {
        return parse_numpy((PyArrayObject *)object, name, array);
    }
    if (PyTuple_Check(object)) {
        return parse_tuple(object, name, array);
    }
    PyErr_Format(PyExc_TypeError, "%s: expected a NumPy array, got %s", name,
                 Py_TYPE(object)->tp_name);
    return -1;
}

int ym_parse_optional_array(PyObject *object, const char *name, ym_array *array)
{
    if (object == NULL || object == Py_None) {
        memset(array, 0, sizeof *array);
        return 0;
    }
    return ym_parse_array(object, name, array);
}

int ym_require_dtype(const ym_array *array, const char *name, ym_dtype dtype)
{
    if (array->dtype != dtype) {
        const char *found = array->is_uint16 ? "uint16" : ym_dtype_name(array->dtype);
        PyErr_Format(PyExc_TypeError, "%s: dtype is %s, must be %s", name, found,
                     ym_dtype_name(dtype));
        return -1;
    }
    return 0;
}

int ym_require_device(const ym_array *array, const char *name, int32_t device)
{
    if (array->device != device) {
        PyErr_Format(PyExc_ValueError, "%s: is on device %d, must be on %d (-1: CPU)",
                     name, (int)array->device, (int)device);
        return -1;
    }
    return 0;
}

int ym_require_writable(const ym_array *array, const char *name)
{
    if (!array->writable) {
        PyErr_Format(PyExc_ValueError, "%s: is read-only, must be writable", name);
        return -1;
    }
    return 0;
}

/* Writes "(2, 3, any)" for messages. */
static void format_shape(char *text, size_t size, int ndim, const int64_t *shape)
{
    size_t used = 0;
    used += (size_t)snprintf(text, size, "(");
    for (int i = 0; i < ndim && used < size; i++) {
        const char *comma = i > 0 ? ", " : "";
        used += shape[i] < 0
                    ? (size_t)snprintf(text + used, size - used, "%sany", comma)
                    : (size_t)snprintf(text + used, size - used, "%s%lld", comma,
                                       (long long)shape[i]);
    }
    if (used < size) {
        snprintf(text + used, size - used, ")");
    }
}

int ym_require_shape(const ym_array *array, const char *name, int ndim,
                     const int64_t *shape)
{
    bool same = array->ndim == ndim;
    for (int i = 0; same && i < ndim; i++) {
        same = shape[i] < 0 || array->shape[i] == shape[i];
    }
    if (!same) {
        char found[128], wanted[128];
        format_shape(found, sizeof found, array->ndim, array->shape);
        format_shape(wanted, sizeof wanted, ndim, shape);
        PyErr_Format(PyExc_ValueError, "%s: shape is %s, must be %s", name, found,
                     wanted);
        return -1;
    }
    return 0;
}

int ym_require_packed(const ym_array *array, const char *name)
{
    int64_t expected = 1;
    for (int i = array->ndim - 1; i >= 0; i--) {
        if (array->shape[i] > 1 && array->stride[i] != expected) {
            PyErr_Format(PyExc_ValueError,
                         "%s: stride of dimension %d is %lld, must be %lld (packed)",
                         name, i, (long long)array->stride[i], (long long)expected);
            return -1;
        }
        expected *= array->shape[i];
    }
    return 0;
}

/* The bytes of memory that an array lies in, the strides' signs counted. */
static void find_span(PyArrayObject *array, int64_t span[2])
{
    span[0] = span[1] = (int64_t)(uintptr_t)PyArray_DATA(array);
    if (PyArray_SIZE(array) == 0) {
        return;
    }
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        int64_t reach = (int64_t)PyArray_STRIDE(array, i) * (PyArray_DIM(array, i) - 1);
        span[reach < 0 ? 0 : 1] += reach;
    }
    span[1] += (int64_t)PyArray_ITEMSIZE(array);
}

PyDoc_STRVAR(array_spans_doc,
             "array_spans($module, arrays, /)\n--\n\n"
             "Of each NumPy array of a list the address of its first byte and of the\n"
             "one after its last, as int64 in bytes; both equal for an empty array.");

static PyObject *array_spans(PyObject *module, PyObject *arrays)
{
    (void)module;
    if (!PyList_Check(arrays)) {
        PyErr_SetString(PyExc_TypeError, "arrays: must be a list");
        return NULL;
    }
    const Py_ssize_t count = PyList_GET_SIZE(arrays);
    PyObject *spans = PyBytes_FromStringAndSize(NULL, count * 2 * sizeof(int64_t));
    for (Py_ssize_t i = 0; spans != NULL && i < count; i++) {
        PyObject *array = PyList_GET_ITEM(arrays, i);
        int64_t span[2];
        if (!PyArray_Check(array)) {
            PyErr_Format(PyExc_TypeError, "arrays[%zd]: expected a NumPy array, got %s",
                         i, Py_TYPE(array)->tp_name);
            Py_CLEAR(spans);
            break;
        }
        find_span((PyArrayObject *)array, span);
        memcpy(PyBytes_AS_STRING(spans) + i * (Py_ssize_t)sizeof span, span,
               sizeof span);
    }
    return spans;
}

PyMethodDef ym_array_methods[] = {
    {"array_spans", array_spans, METH_O, array_spans_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *exception_type(ym_status status)
{
    switch (status) {
    case YM_ERR_ARGUMENT:
        return PyExc_ValueError;
    case YM_ERR_DTYPE:
        return PyExc_TypeError;
    case YM_ERR_MEMORY:
        return PyExc_MemoryError;
    case YM_ERR_UNSUPPORTED:
        return PyExc_NotImplementedError;
    default:
        return NULL;
    }
}

PyObject *ym_raise(ym_status status, const ym_error *error)
{
    PyObject *type = exception_type(status);
    if (type != NULL) {
        PyErr_SetString(type, error->text);
        return NULL;
    }
    PyObject *errors = PyImport_ImportModule("yolov9mem._errors");
    PyObject *backend = errors ? PyObject_GetAttrString(errors, "BackendError") : NULL;
    if (backend != NULL) {
        PyErr_SetString(backend, error->text);
    }
    Py_XDECREF(errors);
    Py_XDECREF(backend);
    return NULL;
}
