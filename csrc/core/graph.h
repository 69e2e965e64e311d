/* SPDX-License-Identifier: MIT
 *
 * Graph: what a module computes, as a list of calls in the order they were made. Values
 * are numbered; a value is made by exactly one node. The graph knows channels but no
 * image sizes and no memory: those are the plan's.
 *
 *     ym_graph *g = ym_graph_create();
 *     ym_graph_input(g, 64, &x, &error);
 *     ym_graph_param(g, shape, "weight", &weight, &error);
 *     ym_graph_conv(g, x, &conv, weight, -1, "conv", &y, &error);
 *     ym_graph_output(g, y, &error);
 */
#ifndef YM_CORE_GRAPH_H
#define YM_CORE_GRAPH_H

#include "core/backend.h"

typedef enum ym_op {
    YM_OP_INPUT = 0,
    YM_OP_CONV, /* or transposed */
    YM_OP_BATCH_NORM,
    YM_OP_ACTIVATION,
    YM_OP_ADD,
    YM_OP_CONCAT, /* of channels */
    YM_OP_SLICE,  /* of channels */
    YM_OP_MAX_POOL,
    YM_OP_AVG_POOL,
    YM_OP_UPSAMPLE, /* nearest or bilinear */
    YM_OP_MULTIPLY, /* element by element; sides of 1 are repeated */
    YM_OP_MEAN,     /* over rows, columns, channels or several of them */
    YM_OP_MAXIMUM,  /* over rows, columns or both, or over channels */
} ym_op;

const char *ym_op_name(ym_op op);

typedef struct ym_upsample {
    bool bilinear;             /* else nearest */
    bool align_corners;        /* of bilinear only */
    double factor_h, factor_w; /* output = floor(input * factor), or 0: size below */
    int32_t out_h, out_w;
} ym_upsample;

/* Which sides a mean or maximum is taken over; they are 1 in what it makes. */
typedef struct ym_axes {
    bool h, w, c;
} ym_axes;

/* A convolution, or its adjoint: that maps what has the convolution's output's channels
 * to what has its input's. */
typedef struct ym_conv_call {
    ym_conv shape;
    int32_t weight, bias; /* params; bias -1: none, as the adjoint always has */
    bool is_transposed;
    int32_t more_h, more_w; /* of a transposed one: pixels beyond the fewest */
} ym_conv_call;

typedef struct ym_node {
    ym_op op;
    int32_t operand_count;
    int32_t *operand; /* values */
    int32_t channels; /* of the value it makes; node i makes value i */
    int32_t stage;
    union {
        ym_conv_call conv;
        int32_t norm; /* BATCH_NORM: which norm */
        ym_activation activation;
        int32_t first_channel; /* SLICE */
        struct {
            ym_pool window;
            bool ceil_mode;
        } pool;
        ym_upsample upsample;
        ym_axes axes;
    } u;
    char *name; /* the module's path, for tables and errors; may be "" */
} ym_node;

/* A convolution's weight (K, C / groups, R, S), or a vector (K, 1, 1, 1). */
typedef struct ym_param {
    int32_t k, c, r, s;
    char *name;
} ym_param;

/* A batch norm module: may be called by several nodes. */
typedef struct ym_norm_module {
    int32_t channels;
    int32_t gamma, beta; /* params or -1: (C), or one number for all channels */
    char *name;
    ym_sharing sharing; /* of the batch's statistics, where those are used */
    bool is_constant;   /* no module's: an affine call, with the statistics below */
    float mean, rstd;
} ym_norm_module;

typedef struct ym_affine {
    float scale, shift;
    int32_t gamma, bias; /* params or -1 */
} ym_affine;

typedef struct ym_graph {
    ym_node *node;
    int32_t node_count;
    ym_param *param;
    int32_t param_count;
    ym_norm_module *norm;
    int32_t norm_count;
    int32_t *input; /* values */
    int32_t input_count;
    int32_t *output; /* values, in order; a value may be listed twice or be an input */
    int32_t *output_stage;
    int32_t output_count;
    int32_t stage_count;
} ym_graph;

ym_graph *ym_graph_create(void); /* NULL: out of memory */
void ym_graph_free(ym_graph *graph);

/* Kernels, strides, paddings and dilations are at most this on each side: an image has
 * fewer pixels there, and kernels multiply two of them in 32 bits. */
#define YM_MAX_WINDOW 32768

/* Each adds one thing and stores its number in *made. On error the graph is unchanged.
 */
ym_status ym_graph_input(ym_graph *g, int32_t channels, int32_t *made, ym_error *error);
ym_status ym_graph_param(ym_graph *g, const int32_t shape[4], const char *name,
                         int32_t *made, ym_error *error);
ym_status ym_graph_norm(ym_graph *g, int32_t channels, int32_t gamma, int32_t beta,
                        const char *name, int32_t *made, ym_error *error);
/* The norm's statistics are shared between processes. */
ym_status ym_graph_share(ym_graph *g, int32_t norm, ym_sharing sharing,
                         ym_error *error);
ym_status ym_graph_conv(ym_graph *g, int32_t x, const ym_conv *conv, int32_t weight,
                        int32_t bias, const char *name, int32_t *made, ym_error *error);
/* The gradient of `conv` with respect to its input, as F.conv_transpose2d: x has its K
 * channels and the result its C. more: output_padding, less than the stride. */
ym_status ym_graph_conv_transpose(ym_graph *g, int32_t x, const ym_conv *conv,
                                  const int32_t more[2], int32_t weight,
                                  const char *name, int32_t *made, ym_error *error);
ym_status ym_graph_batch_norm(ym_graph *g, int32_t x, int32_t norm, const char *name,
                              int32_t *made, ym_error *error);
/* gamma * scale * (x + shift) + bias; gamma and bias as a norm's. */
ym_status ym_graph_affine(ym_graph *g, int32_t x, const ym_affine *affine,
                          const char *name, int32_t *made, ym_error *error);
ym_status ym_graph_activation(ym_graph *g, int32_t x, ym_activation activation,
                              const char *name, int32_t *made, ym_error *error);
ym_status ym_graph_add(ym_graph *g, const int32_t *x, int32_t count, const char *name,
                       int32_t *made, ym_error *error);
ym_status ym_graph_concat(ym_graph *g, const int32_t *x, int32_t count,
                          const char *name, int32_t *made, ym_error *error);
ym_status ym_graph_slice(ym_graph *g, int32_t x, int32_t first, int32_t count,
                         const char *name, int32_t *made, ym_error *error);
ym_status ym_graph_pool(ym_graph *g, ym_op op, int32_t x, const ym_pool *window,
                        bool ceil_mode, const char *name, int32_t *made,
                        ym_error *error);
ym_status ym_graph_upsample(ym_graph *g, int32_t x, const ym_upsample *upsample,
                            const char *name, int32_t *made, ym_error *error);
ym_status ym_graph_multiply(ym_graph *g, int32_t a, int32_t b, const char *name,
                            int32_t *made, ym_error *error);
ym_status ym_graph_reduce(ym_graph *g, ym_op op, int32_t x, ym_axes axes,
                          const char *name, int32_t *made, ym_error *error);
ym_status ym_graph_output(ym_graph *g, int32_t x, ym_error *error);

/* What follows belongs to a new stage. Forward runs one stage at a time, so that the
 * caller can make inputs of the later ones from outputs of the earlier ones. */
void ym_graph_stage(ym_graph *g);

#endif
