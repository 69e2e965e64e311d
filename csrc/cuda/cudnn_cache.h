/* SPDX-License-Identifier: MIT
 *
 * A handle and the plans of each device, shared by all threads: autograd's run backward
 * and DataParallel's live for one forward, and each would have to plan again. cuDNN
 * allows no handle and not every plan in two threads at once, so a loan locks its
 * device until it is given back. They are kept until the process ends, since nothing of
 * CUDA may be torn down while a process exits; the plans longest unused make room for
 * new ones.
 */
#ifndef YM_CUDA_CUDNN_CACHE_H
#define YM_CUDA_CUDNN_CACHE_H

#include "cuda/cuda.h"
#include "cuda/cudnn_plan.h"

#define YM_CUDNN_PLANS 8192 /* of one device, 31 KB each: 21 sizes of yolov9-c */
#define YM_CUDNN_DEVICES 16

typedef struct cudnn_loan {
    const cudnn_library *library;
    cudnn_handle handle;
    const cudnn_problem *problem;
    cudnn_plan *plan; /* without descriptor: no engine does it */
    int device;
} cudnn_loan;

/* The plan of the current device, to be run; only after YM_OK it is to be given back.
 */
ym_status cudnn_borrow(ym_context *context, const cudnn_problem *problem,
                       cudnn_loan *loan);
void cudnn_give_back(const cudnn_loan *loan);

/* The same, to read sizes from (another thread may destroy its descriptor): false where
 * cuDNN or the GPU is missing or no engine does it. */
bool cudnn_ask(const cudnn_problem *problem, cudnn_plan *plan);

/* What torch says of cuDNN. Problems carry it, so each has its own plans. */
typedef struct cudnn_settings {
    bool tf32;   /* float32 convolutions may round to TF32; true until told */
    bool trials; /* engines are timed, see cudnn_trials.h; false until told */
} cudnn_settings;

void cudnn_use(cudnn_settings settings);
cudnn_settings cudnn_used(void);

#endif
