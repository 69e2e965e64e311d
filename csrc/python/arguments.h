/* SPDX-License-Identifier: MIT
 *
 * From Python objects to views of memory. An array argument is
 *   - a NumPy array (float32, float16, uint8; bfloat16 as uint16 bits or ml_dtypes), or
 *   - a tuple (address, dtype name, shape, strides in elements, device) made by an
 *     adapter that keeps the memory alive; device is -1 on the CPU.
 * Nothing is copied and no reference is taken: the caller's argument outlives the call.
 */
#ifndef YM_PYTHON_ARGUMENTS_H
#define YM_PYTHON_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core/status.h"
#include "core/tensor.h"

#define YM_MAX_DIMENSIONS 5

typedef struct ym_array {
    void *data; /* NULL: the argument was None */
    ym_dtype dtype;
    int ndim;
    int64_t shape[YM_MAX_DIMENSIONS];
    int64_t stride[YM_MAX_DIMENSIONS]; /* elements */
    int32_t device;
    bool writable;
    bool is_uint16; /* bfloat16 as NumPy without ml_dtypes holds it: for messages */
} ym_array;

/* Called once from the module's exec slot. Returns -1 with an exception set. */
int ym_import_numpy(void);

/* Returns 0, or -1 without an exception. */
int ym_dtype_named(const char *text, ym_dtype *dtype);

/* Each returns 0, or -1 with an exception that starts with `name`. */
int ym_parse_array(PyObject *object, const char *name, ym_array *array);
int ym_parse_optional_array(PyObject *object, const char *name, ym_array *array);
int ym_require_dtype(const ym_array *array, const char *name, ym_dtype dtype);
int ym_require_device(const ym_array *array, const char *name, int32_t device);
int ym_require_writable(const ym_array *array, const char *name);
int ym_require_shape(const ym_array *array, const char *name, int ndim,
                     const int64_t *shape);                     /* -1 in shape: any */
int ym_require_packed(const ym_array *array, const char *name); /* C order, no gaps */

/* Sets the Python exception for a failed status: ValueError, TypeError, MemoryError,
 * NotImplementedError or yolov9mem.BackendError; returns NULL. */
PyObject *ym_raise(ym_status status, const ym_error *error);

#endif
