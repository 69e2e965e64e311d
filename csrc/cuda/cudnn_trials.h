/* SPDX-License-Identifier: MIT
 *
 * torch.backends.cudnn.benchmark: the engines that cuDNN ranks first are run on a
 * call's own tensors, once to warm up and twice by the clock, and the fastest does that
 * problem from then on. Such a call waits for the GPU, as no other convolution does.
 * What adds to dx cannot be run twice and has the engine that cuDNN recommends.
 */
#ifndef YM_CUDA_CUDNN_TRIALS_H
#define YM_CUDA_CUDNN_TRIALS_H

#include "cuda/cudnn_cache.h"

/* Puts the convolution `what` on the stream, by that plan. */
typedef ym_status (*cudnn_run)(ym_context *context, const cudnn_loan *loan,
                               const cudnn_plan *plan, const void *what);

/* Of workspace to have ready for a problem: with trials, what its engines may ask. */
int64_t cudnn_room(const cudnn_problem *problem, const cudnn_plan *plan);

/* Puts the fastest plan into the loan's, once for each problem; where none can be
 * timed, and while the stream is captured, there stays what is there. */
void cudnn_try_engines(ym_context *context, const cudnn_loan *loan, cudnn_run run,
                       const void *what);

#endif
