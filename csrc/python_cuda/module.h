/* SPDX-License-Identifier: MIT
 * yolov9mem._cuda: what its files share.
 */
#ifndef YM_PYTHON_CUDA_MODULE_H
#define YM_PYTHON_CUDA_MODULE_H

#include "python/arguments.h"

#include "cuda/cuda.h"

extern PyMethodDef ym_cuda_device_methods[];
extern PyMethodDef ym_cuda_sgd_methods[];
extern PyMethodDef ym_cuda_mosaic_methods[];

/* Raises if the process was forked after the GPU was first used; else returns 0. */
int ym_cuda_check_process(void);

/* The number of rows of a buffer of 8-byte entries, or -1 with an exception. */
int32_t ym_cuda_count_rows(const Py_buffer *buffer, const char *name, int columns);

#endif
