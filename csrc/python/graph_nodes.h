/* SPDX-License-Identifier: MIT
 * The methods of Graph that add a node, with their docstrings.
 */
#ifndef YM_PYTHON_GRAPH_NODES_H
#define YM_PYTHON_GRAPH_NODES_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *ym_node_conv(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_conv_transpose(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_batch_norm(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_affine(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_activation(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_add(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_concat(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_slice(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_max_pool(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_avg_pool(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_upsample(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_multiply(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_mean(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *ym_node_maximum(PyObject *self, PyObject *args, PyObject *kwargs);

extern const char ym_node_conv_doc[];
extern const char ym_node_conv_transpose_doc[];
extern const char ym_node_batch_norm_doc[];
extern const char ym_node_affine_doc[];
extern const char ym_node_activation_doc[];
extern const char ym_node_add_doc[];
extern const char ym_node_concat_doc[];
extern const char ym_node_slice_doc[];
extern const char ym_node_max_pool_doc[];
extern const char ym_node_avg_pool_doc[];
extern const char ym_node_upsample_doc[];
extern const char ym_node_multiply_doc[];
extern const char ym_node_mean_doc[];
extern const char ym_node_maximum_doc[];

#endif
