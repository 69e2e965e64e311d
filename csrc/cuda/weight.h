/* SPDX-License-Identifier: MIT
 * What cuDNN's convolutions need beside them: weights packed in the values' type, and
 * the bias.
 */
#ifndef YM_CUDA_WEIGHT_H
#define YM_CUDA_WEIGHT_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `packed` of each of at most YM_WEIGHTS_AT_ONCE weights = the weight as (K, R, S, C)
 * of the given type, in one launch. */
ym_status cuda_pack_weights(ym_context *context, const ym_weight *w, int32_t count,
                            ym_dtype dtype);
/* dw (+)= packed. */
ym_status cuda_unpack_weight(ym_context *context, const void *packed, ym_dtype dtype,
                             ym_weight *dw, bool accumulate);
/* y += bias of its channel. */
ym_status cuda_add_bias(ym_context *context, const float *bias, ym_tensor *y);

#ifdef __cplusplus
}
#endif

#endif
