/* SPDX-License-Identifier: MIT
 *
 * Handles and plans of the calling thread: cuDNN allows no handle in two threads at
 * once. They are kept until the process ends, since nothing of CUDA may be torn down
 * while a process exits; the plans longest unused make room for new ones.
 */
#ifndef YM_CUDA_CUDNN_CACHE_H
#define YM_CUDA_CUDNN_CACHE_H

#include "cuda/cuda.h"
#include "cuda/cudnn_plan.h"

#define YM_CUDNN_PLANS 1024 /* of one thread and device */
#define YM_CUDNN_DEVICES 16

typedef struct cudnn_cached {
    const cudnn_library *library;
    cudnn_handle handle;
    const cudnn_plan *plan; /* without descriptor: no engine does it */
} cudnn_cached;

/* On the current device. `context` may be NULL (planning): errors are then silent. */
ym_status cudnn_find(ym_context *context, const cudnn_problem *problem,
                     cudnn_cached *found);

/* Whether float32 convolutions may round to TF32; as in torch they may, until told. */
void cudnn_allow_tf32(bool allowed);
bool cudnn_tf32_allowed(void);

#endif
