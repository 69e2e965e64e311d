/* SPDX-License-Identifier: MIT
 * What each file of csrc/python adds to the module yolov9mem._core.
 */
#ifndef YM_PYTHON_MODULE_H
#define YM_PYTHON_MODULE_H

#include "python/arguments.h"

/* Method tables, each ended by a NULL entry. */
extern PyMethodDef ym_array_methods[];
extern PyMethodDef ym_mosaic_methods[];
extern PyMethodDef ym_sgd_methods[];
extern PyMethodDef ym_runtime_methods[];
extern PyMethodDef ym_unchanged_methods[];

/* Each adds its type to the module; -1 with an exception set. */
int ym_add_graph_type(PyObject *module);
int ym_add_plan_type(PyObject *module);

#endif
