/* SPDX-License-Identifier: MIT
 *
 * From Python's tuples to a mosaic job, for _core.mosaic_render and _cuda.mosaic_batch.
 * Each returns 0, or -1 with an exception; arrays must lie on `device`, -1: the CPU.
 */
#ifndef YM_PYTHON_MOSAIC_ARGUMENTS_H
#define YM_PYTHON_MOSAIC_ARGUMENTS_H

#include "python/arguments.h"

#include "core/mosaic.h"

/* (H, W, 3) uint8 whose pixels are packed; rows may lie apart. */
int ym_parse_image(PyObject *object, const char *name, int32_t device, ym_array *array);

/* A tuple of 9 numbers. */
int ym_parse_matrix(PyObject *object, double matrix[9]);

/* One or two of (tiles, (height, width), warp, matrix or None, paste or None); tiles a
 * tuple of (image, x, y), paste (height, bytes) uint8 bits. */
int ym_parse_scenes(PyObject *scenes, int32_t device, ym_mosaic_job *job);

/* (3, H, W) uint8 and its size. */
int ym_parse_out(PyObject *object, int32_t device, ym_mosaic_job *job);

/* (3, 256) uint8 tables or None. */
int ym_parse_hsv(PyObject *object, int32_t device, ym_mosaic_job *job);

#endif
