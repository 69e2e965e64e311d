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

#endif
