/* SPDX-License-Identifier: MIT
 * A whole batch of augmented images in one launch.
 */
#ifndef YM_CUDA_MOSAIC_H
#define YM_CUDA_MOSAIC_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "core/mosaic.h"

/* Makes job[i].out for every i < count; the jobs lie on the host, every array in them
 * on the device and the jobs are read before the call returns. context->scratch holds
 * their copy and stays untouched until the stream is done with it. Cannot be captured.
 */
size_t cuda_mosaic_scratch_bytes(int32_t count);
ym_status cuda_mosaic_batch(ym_context *context, const ym_mosaic_job *job,
                            int32_t count);
ym_status cuda_mosaic(ym_context *context, const struct ym_mosaic_job *job);

#ifdef __cplusplus
}
#endif

#endif
