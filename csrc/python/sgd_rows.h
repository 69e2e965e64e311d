/* SPDX-License-Identifier: MIT
 *
 * The rows that yolov9mem/sgd.py and yolov9mem/torch/optimizer/step_table.py pack, read
 * for _core and _cuda: of a tensor int64 (param, grad, momentum, ema, count, group,
 * first_step), the first four addresses of float32 memory or 0; of a group float64
 * (lr, momentum, dampening, weight_decay, nesterov, maximize).
 */
#ifndef YM_PYTHON_SGD_ROWS_H
#define YM_PYTHON_SGD_ROWS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core/sgd.h"

/* The number of rows, or -1 with an exception. */
int32_t ym_sgd_tensor_rows(const Py_buffer *table);
int32_t ym_sgd_group_rows(const Py_buffer *groups);

void ym_sgd_read_tensors(const Py_buffer *table, int32_t count, ym_sgd_tensor *out);
void ym_sgd_read_groups(const Py_buffer *groups, int32_t count, ym_sgd_group *out);

#endif
