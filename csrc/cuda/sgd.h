/* SPDX-License-Identifier: MIT
 *
 * The optimizer step for all tensors in one launch a pass. What the kernels need beside
 * the tensors lies in one table in device memory: descriptions that are uploaded when
 * an address changes, and results that never come to the host. Loss scale and overflow
 * flag are those of torch.amp.GradScaler, read and written where they are.
 */
#ifndef YM_CUDA_SGD_H
#define YM_CUDA_SGD_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "core/sgd.h"

#define YM_CUDA_SGD_SPAN 8192  /* elements of a block */
#define YM_CUDA_SGD_GROUPS 128 /* a kernel takes 4 KiB of arguments */

/* Results of the first pass. */
typedef struct cuda_sgd_state {
    double sum_of_squares; /* of the gradients as they are */
    float norm;            /* of the unscaled gradients */
    unsigned arrived; /* blocks of the first pass that are done; 0 between passes */
} cuda_sgd_state;

/* The parts of a table. */
typedef struct cuda_sgd_table {
    cuda_sgd_state *state;
    double *partial; /* of each span */
    ym_sgd_span *span;
    ym_sgd_tensor *tensor;
    int32_t span_count;
    size_t bytes;
} cuda_sgd_table;

typedef struct cuda_sgd_call {
    cuda_sgd_table table; /* in device memory */
    const float *scale;   /* device scalar, the loss scale; NULL: inverse_scale */
    float *found_inf; /* device scalar: not 0 skips the step; pass 1 sets it; or NULL */
    float inverse_scale;
    float clip; /* a coefficient known before, where pass 1 is not run */
    bool clips;
    float max_norm; /* clip by the norm of all gradients, where `clips` */
    bool update;    /* false: parameters and momentum stay */
    ym_sgd_gradient gradient;
    bool average;
    float ema_decay, ema_weight;
    int32_t group_count;
    ym_sgd_group group[YM_CUDA_SGD_GROUPS];
} cuda_sgd_call;

/* The size of the table of these tensors, then its parts when it starts at `memory`. */
size_t cuda_sgd_table_bytes(const ym_sgd_tensor *tensor, int32_t tensor_count);
cuda_sgd_table cuda_sgd_table_at(void *memory, const ym_sgd_tensor *tensor,
                                 int32_t tensor_count);
/* Fills a table in host memory, which is then copied to the device as it is. */
void cuda_sgd_fill_table(const cuda_sgd_table *table, const ym_sgd_tensor *tensor,
                         int32_t tensor_count);

/* Pass 1: every gradient once; sets state and *found_inf. Needed only with a loss scale
 * or a clip. Pass 2 (after_norm: clips by the norm that pass 1 left): the rest. */
ym_status cuda_sgd_run_norm(ym_context *context, const cuda_sgd_call *call);
ym_status cuda_sgd_run_step(ym_context *context, const cuda_sgd_call *call,
                            bool after_norm);

/* The backend's entries, for a job on the host: context->scratch holds the table;
 * sgd_norm waits for its answer. */
ym_status cuda_sgd_norm(ym_context *context, struct ym_sgd_job *job);
ym_status cuda_sgd_step(ym_context *context, struct ym_sgd_job *job);

#ifdef __cplusplus
}
#endif

#endif
