/* SPDX-License-Identifier: MIT */
#include "python/sgd_rows.h"

enum { PARAM = 0, GRAD, MOMENTUM, EMA, COUNT, GROUP, FIRST_STEP, TENSOR_COLUMNS };
enum {
    GROUP_LR = 0,
    GROUP_MOMENTUM,
    GROUP_DAMPENING,
    GROUP_WEIGHT_DECAY,
    GROUP_NESTEROV,
    GROUP_MAXIMIZE,
    GROUP_COLUMNS
};

static int32_t count_rows(const Py_buffer *buffer, const char *name, int columns)
{
    Py_ssize_t row_bytes = (Py_ssize_t)columns * 8;
    if (buffer->len % row_bytes != 0 || buffer->len / row_bytes > INT32_MAX / 2 ||
        (buffer->len > 0 && (uintptr_t)buffer->buf % 8 != 0)) {
        PyErr_Format(PyExc_ValueError,
                     "%s: %zd bytes, must be aligned rows of %zd bytes", name,
                     buffer->len, row_bytes);
        return -1;
    }
    return (int32_t)(buffer->len / row_bytes);
}

int32_t ym_sgd_tensor_rows(const Py_buffer *table)
{
    return count_rows(table, "table", TENSOR_COLUMNS);
}

int32_t ym_sgd_group_rows(const Py_buffer *groups)
{
    return count_rows(groups, "groups", GROUP_COLUMNS);
}

void ym_sgd_read_tensors(const Py_buffer *table, int32_t count, ym_sgd_tensor *out)
{
    const int64_t *row = table->buf;
    for (int32_t i = 0; i < count; i++, row += TENSOR_COLUMNS) {
        out[i] = (ym_sgd_tensor){
            .param = (float *)(uintptr_t)row[PARAM],
            .grad = (float *)(uintptr_t)row[GRAD],
            .momentum = (float *)(uintptr_t)row[MOMENTUM],
            .ema = (float *)(uintptr_t)row[EMA],
            .count = row[COUNT],
            .group = (int32_t)row[GROUP],
            .first_step = row[FIRST_STEP] != 0,
        };
    }
}

void ym_sgd_read_groups(const Py_buffer *groups, int32_t count, ym_sgd_group *out)
{
    const double *row = groups->buf;
    for (int32_t i = 0; i < count; i++, row += GROUP_COLUMNS) {
        out[i] = (ym_sgd_group){
            .weight_decay = (float)row[GROUP_WEIGHT_DECAY],
            .momentum = (float)row[GROUP_MOMENTUM],
            .gradient_weight = (float)(1.0 - row[GROUP_DAMPENING]),
            .minus_lr = (float)-row[GROUP_LR],
            .decays = row[GROUP_WEIGHT_DECAY] != 0,
            .moves = row[GROUP_MOMENTUM] != 0,
            .nesterov = row[GROUP_NESTEROV] != 0,
            .maximize = row[GROUP_MAXIMIZE] != 0,
        };
    }
}
