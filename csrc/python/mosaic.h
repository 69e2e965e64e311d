/* SPDX-License-Identifier: MIT
 * What mosaic.c and mosaic_labels.c share.
 */
#ifndef YM_PYTHON_MOSAIC_H
#define YM_PYTHON_MOSAIC_H

#include "python/module.h"

extern const char ym_py_polygon_fill_doc[];
PyObject *ym_py_polygon_fill(PyObject *module, PyObject *args);
extern const char ym_py_polygon_boxes_doc[];
PyObject *ym_py_polygon_boxes(PyObject *module, PyObject *args);

#endif
