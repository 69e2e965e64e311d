/* SPDX-License-Identifier: MIT
 *
 * The backend: the kernels that a run is made of, as a table of function pointers.
 * "ref" fills every entry with plain loops; "cpu" and "cuda" are further tables.
 * Call sites never ask which backend they run on.
 *
 * Rules for every entry: tensors are as core/tensor.h says (pitch >= C unless the
 * capability below is missing), sizes are already checked by the plan, outputs do not
 * overlap inputs unless the entry says so, nothing is allocated: what a kernel needs
 * beside its operands is `context->scratch`, of the size that the *_scratch_bytes entry
 * answered for the same sizes. Arithmetic and sums are fp32 or wider for every dtype.
 */
#ifndef YM_CORE_BACKEND_H
#define YM_CORE_BACKEND_H

#include "core/replay.h"
#include "core/status.h"
#include "core/tensor.h"

#define YM_BACKEND_API_VERSION 11
#define YM_BACKEND_CAPSULE "yolov9mem.backend" /* in which Python holds a table */

#define YM_MOST_PROCESSES 65536

/* Which processes share a batch norm's statistics: SyncBatchNorm. */
typedef struct ym_sharing {
    int32_t group;     /* the caller's number of theirs, from 1; 0: not shared */
    int32_t processes; /* in it */
    int32_t rank;      /* of this one */
} ym_sharing;

struct ym_context;

/* Each of the numbers becomes its sum over the processes of a group, which all call
 * this in the same order. They lie in an arena of the run; work on them is put on
 * context->stream. */
typedef ym_status (*ym_sum_over_processes)(struct ym_context *context, int32_t group,
                                           double *values, int64_t count);

typedef struct ym_context {
    const struct ym_backend *backend;
    ym_error error;
    void *scratch; /* 64-byte aligned */
    size_t scratch_bytes;
    void *stream;              /* CUDA stream, NULL on the CPU */
    int32_t device;            /* CUDA device, -1 on the CPU */
    ym_sum_over_processes sum; /* NULL: nothing is shared */
    void *sum_argument;
} ym_context;

typedef struct ym_conv {
    int32_t k, c, r, s; /* output channels, input channels (all groups), kernel */
    int32_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups;
} ym_conv;

typedef enum ym_conv_pass {
    YM_CONV_FORWARD = 0,
    YM_CONV_BACKWARD_DATA,
    YM_CONV_BACKWARD_WEIGHT,
} ym_conv_pass;

typedef enum ym_activation_kind {
    YM_IDENTITY = 0,
    YM_SILU,
    YM_RELU,
    YM_LEAKY_RELU,
    YM_HARDTANH, /* ReLU6 is the one from 0 to 6 */
    YM_HARDSWISH,
    YM_MISH,
    YM_SIGMOID,
    YM_HARDSIGMOID,
    YM_GELU,
    YM_GELU_TANH, /* GELU's approximation by a tanh */
} ym_activation_kind;

static inline const char *ym_activation_name(ym_activation_kind kind)
{
    static const char *const names[] = {
        "identity", "silu",    "relu",        "leaky_relu", "hardtanh", "hardswish",
        "mish",     "sigmoid", "hardsigmoid", "gelu",       "gelu_tanh"};
    return names[kind];
}

typedef struct ym_activation {
    ym_activation_kind kind;
    float slope;     /* of LeakyReLU */
    float low, high; /* of Hardtanh */
} ym_activation;

/* What one call of a batch norm reads and moves at run time. */
typedef struct ym_norm {
    const float *gamma, *beta;          /* (C), each may be NULL: 1 and 0 */
    float *running_mean, *running_var;  /* (C), both may be NULL */
    float constant_mean, constant_rstd; /* where neither they nor the batch tell */
    float *dgamma, *dbeta;              /* (C), each may be NULL: not wanted */
    double eps, momentum;
    bool batch_statistics; /* normalise by the batch (training), not by running_* */
    bool update_running;   /* move running_* once, with the unbiased variance */
    ym_sharing sharing;    /* of the batch's statistics */
} ym_norm;

/* One addend of a brick: value, or batch norm of value. */
typedef struct ym_term {
    ym_tensor value;
    bool has_norm;
    ym_norm norm;             /* already offset to the first channel of value */
    const float *mean, *rstd; /* (C) saved by norm_statistics */
} ym_term;

/* out = activation(term 0 + term 1) + residual: the E-ELAN brick. */
typedef struct ym_brick {
    int32_t term_count; /* 1 or 2 */
    ym_term term[2];
    ym_activation activation;
    bool has_residual;
    ym_tensor residual;
} ym_brick;

/* Where the gradient of one term goes; data == NULL: not wanted. It may be exactly the
 * memory of the incoming gradient (in place). */
typedef struct ym_term_gradient {
    ym_tensor dvalue;
    bool accumulate;                        /* dvalue += instead of = */
    bool accumulate_gamma, accumulate_beta; /* dgamma, dbeta += instead of = */
} ym_term_gradient;

typedef struct ym_pool {
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    bool count_include_pad; /* average pool only */
} ym_pool;

/* From x to y of another size. */
typedef struct ym_resize {
    bool bilinear;          /* else nearest */
    bool align_corners;     /* bilinear: the corners' pixels stay where they are */
    float scale_h, scale_w; /* source pixels per output pixel */
} ym_resize;

struct ym_mosaic_job; /* core/mosaic.h */
struct ym_sgd_job;    /* core/sgd.h */

enum {
    YM_CAP_STRIDED_CONV = 1, /* convolutions take x, y, dx, dy with pitch > C */
};

/* Of one call of pack_weights: as many as a CUDA kernel takes as arguments (4 KiB), so
 * that no table has to be copied to the device. */
#define YM_WEIGHTS_AT_ONCE 60

typedef struct ym_backend {
    int api_version;
    const char *name;
    unsigned capabilities;

    /* (optional) Bytes of a weight as conv_forward and conv_backward_data want it for
     * values of these sizes and this dtype; 0, or no entry: they take the float32 one.
     */
    size_t (*packed_weight_bytes)(const ym_conv *conv, const ym_tensor *x,
                                  const ym_tensor *y);
    /* (optional) Fills `packed` of each of at most YM_WEIGHTS_AT_ONCE weights. It runs
     * once, before forward: all that a step computes sees the same weights. */
    ym_status (*pack_weights)(ym_context *context, const ym_weight *w, int32_t count,
                              ym_dtype dtype);

    /* y = conv(x, w) + bias. bias may be NULL. x is (n, h, w, c) with the given dtype.
     */
    size_t (*conv_scratch_bytes)(ym_conv_pass pass, const ym_conv *conv,
                                 const ym_tensor *x, const ym_tensor *y);
    ym_status (*conv_forward)(ym_context *context, const ym_conv *conv,
                              const ym_tensor *x, const ym_weight *w, const float *bias,
                              ym_tensor *y);
    /* dx (+)= the data gradient. */
    ym_status (*conv_backward_data)(ym_context *context, const ym_conv *conv,
                                    const ym_tensor *dy, const ym_weight *w,
                                    ym_tensor *dx, bool accumulate);
    /* dw (+)=, dbias (+)=; dw->data or dbias may be NULL: not wanted. */
    ym_status (*conv_backward_weight)(ym_context *context, const ym_conv *conv,
                                      const ym_tensor *x, const ym_tensor *dy,
                                      ym_weight *dw, bool accumulate_dw, float *dbias,
                                      bool accumulate_dbias);

    /* mean and rstd = 1 / sqrt(biased variance + eps) of each channel, (C) each, from
     * the batch, from running_* or the constants; moves running_* if asked. */
    size_t (*norm_scratch_bytes)(const ym_tensor *x);
    ym_status (*norm_statistics)(ym_context *context, const ym_tensor *x,
                                 const ym_norm *norm, float *mean, float *rstd);
    /* The same in two steps, where processes share them: first what one has itself (the
     * layout is core/sharing.h's), then the statistics of the parts of all, in a row.
     */
    ym_status (*norm_moments)(ym_context *context, const ym_tensor *x, double *part);
    ym_status (*norm_merge)(ym_context *context, const double *parts, int32_t channels,
                            const ym_norm *norm, float *mean, float *rstd);

    /* out may have any pitch. */
    ym_status (*brick_forward)(ym_context *context, const ym_brick *brick,
                               ym_tensor *out);
    /* From dout to the terms, with dgamma and dbeta of each norm, which are this
     * process's own where statistics are shared. The residual's gradient is dout itself
     * and is not this entry's business. */
    size_t (*brick_scratch_bytes)(const ym_tensor *out);
    ym_status (*brick_backward)(ym_context *context, const ym_brick *brick,
                                const ym_tensor *dout, ym_term_gradient gradient[2]);

    /* Max pool: first maximum in row-major order, NaN wins, as torch; padding never
     * wins. The backward finds the maxima again from x. */
    ym_status (*max_pool_forward)(ym_context *context, const ym_pool *pool,
                                  const ym_tensor *x, ym_tensor *y);
    ym_status (*max_pool_backward)(ym_context *context, const ym_pool *pool,
                                   const ym_tensor *x, const ym_tensor *dy,
                                   ym_tensor *dx, bool accumulate);
    ym_status (*avg_pool_forward)(ym_context *context, const ym_pool *pool,
                                  const ym_tensor *x, ym_tensor *y);
    ym_status (*avg_pool_backward)(ym_context *context, const ym_pool *pool,
                                   const ym_tensor *dy, ym_tensor *dx, bool accumulate);

    /* Nearest: places in float as torch (math/nearest.h). */
    ym_status (*nearest_forward)(ym_context *context, const ym_resize *resize,
                                 const ym_tensor *x, ym_tensor *y);
    ym_status (*nearest_backward)(ym_context *context, const ym_resize *resize,
                                  const ym_tensor *dy, ym_tensor *dx, bool accumulate);
    /* Bilinear: places and weights in float as torch (math/bilinear.h). */
    ym_status (*bilinear_forward)(ym_context *context, const ym_resize *resize,
                                  const ym_tensor *x, ym_tensor *y);
    ym_status (*bilinear_backward)(ym_context *context, const ym_resize *resize,
                                   const ym_tensor *dy, ym_tensor *dx, bool accumulate);

    /* The maximum over the sides that are 1 in y: those of pixels, or the channels. The
     * first in row-major order, NaN wins, as max_pool. The backward finds it again. */
    size_t (*maximum_scratch_bytes)(const ym_tensor *x, const ym_tensor *y);
    ym_status (*maximum_forward)(ym_context *context, const ym_tensor *x, ym_tensor *y);
    ym_status (*maximum_backward)(ym_context *context, const ym_tensor *x,
                                  const ym_tensor *dy, ym_tensor *dx, bool accumulate);

    /* y (+)= scale * sum of a * b over the sides that are 1 in y only. Each side (n, h,
     * w, c) of each tensor is as long as the longest of the three, or 1: repeated in a
     * and b, summed in y. b->data may be NULL: ones of y's sizes. Where y has all
     * sides in full it may be exactly the memory of a or of b that has them too. */
    size_t (*multiply_scratch_bytes)(const ym_tensor *a, const ym_tensor *b,
                                     const ym_tensor *y);
    ym_status (*multiply)(ym_context *context, const ym_tensor *a, const ym_tensor *b,
                          double scale, ym_tensor *y, bool accumulate);

    /* y (+)= x, any pitches. */
    ym_status (*copy)(ym_context *context, const ym_tensor *x, ym_tensor *y,
                      bool accumulate);
    ym_status (*fill_zero)(ym_context *context, ym_tensor *y);
    /* y = x, which lies as (n, c, h, w) without gaps and has no pitch: float32 or of
     * y's dtype, at any address. A NaN stays one. */
    ym_status (*pack_planes)(ym_context *context, const ym_tensor *x, ym_tensor *y);

    /* (optional) NULL: no memory. */
    ym_replayer *(*make_replayer)(void);

    ym_status (*mosaic)(ym_context *context, const struct ym_mosaic_job *job);
    ym_status (*sgd_norm)(ym_context *context, struct ym_sgd_job *job);
    ym_status (*sgd_step)(ym_context *context, struct ym_sgd_job *job);
} ym_backend;

/* The tables; "cpu" has norm_merge alone from "ref", all else is its own. */
const ym_backend *ym_ref_backend(void);
const ym_backend *ym_cpu_backend(void);

#endif
