/* SPDX-License-Identifier: MIT
 *
 * Which engine of cuDNN does a convolution: the first of its heuristics' list that is
 * deterministic, needs no compiler at run time and no more than the cap of workspace.
 * In float32, where that one would have no tensor cores but a better one has, the
 * better one may take eight times the cap. Where none is within the cap, it is the one
 * that needs least. The list is mode A's; that of the fallback, whose engines need
 * hardly any workspace but are slow, is asked only where mode A's has none at all.
 */
#ifndef YM_CUDA_CUDNN_PLAN_H
#define YM_CUDA_CUDNN_PLAN_H

#include "core/backend.h"
#include "cuda/cudnn_library.h"

#define YM_CUDNN_WORKSPACE_CAP ((int64_t)32 << 20)
#define YM_CUDNN_TRIES 10 /* as torch.backends.cudnn.benchmark_limit */

/* The numbers that tensors go by in a graph. */
enum { CUDNN_ID_X = 1, CUDNN_ID_W = 2, CUDNN_ID_Y = 3 };

/* One convolution pass on packed tensors. Compared byte by byte: fill with zeros first.
 */
typedef struct cudnn_problem {
    int32_t pass; /* ym_conv_pass */
    int32_t dtype;
    ym_conv conv;
    int32_t n, h, w, oh, ow;
    int32_t accumulate; /* dx +=, by beta */
    int32_t tf32;       /* float32 may be rounded to TF32 */
    int32_t trials;     /* when it is first run, engines are timed */
} cudnn_problem;

/* For whom: a handle of the device at hand, or the description of an absent one. */
typedef struct cudnn_target {
    const cudnn_library *library;
    cudnn_handle handle;         /* NULL: */
    cudnn_descriptor deviceprop; /* of CUDNN_DEVICEPROP_KIND */
} cudnn_target;

typedef struct cudnn_plan {
    cudnn_descriptor descriptor; /* NULL: no engine does it */
    int64_t workspace_bytes;
    int64_t engine; /* its number in cuDNN */
    bool tensor_core, compiles, found;
    bool tried; /* what there is was tried, and this is the fastest */
} cudnn_plan;

/* Without an engine, *plan has no descriptor and that is no error. */
ym_status cudnn_make_plan(const cudnn_target *target, const cudnn_problem *problem,
                          cudnn_plan *plan, ym_error *error);

/* What is to be tried, the heuristics' best first: those of their first YM_CUDNN_TRIES
 * that may be used and need at most `room` bytes. The plans are the caller's. */
ym_status cudnn_list_plans(const cudnn_target *target, const cudnn_problem *problem,
                           int64_t room, cudnn_plan plans[YM_CUDNN_TRIES],
                           int32_t *count, ym_error *error);

/* For tests on a machine without a GPU: the plan on the device that `json` describes,
 * by CUDNN_DEVICEPROP_JSON. *plan has no descriptor afterwards, but says whether one
 * was found. */
ym_status cudnn_plan_for_device(const char *json, const cudnn_problem *problem,
                                cudnn_plan *plan, ym_error *error);

#endif
