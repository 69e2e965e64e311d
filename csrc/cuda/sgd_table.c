/* SPDX-License-Identifier: MIT
 * The table of an optimizer step, and the backend's entries for jobs on the host.
 */
#include "cuda/sgd.h"

#include <stdlib.h>
#include <string.h>

static int64_t spans_of(int64_t count)
{
    return (count + YM_CUDA_SGD_SPAN - 1) / YM_CUDA_SGD_SPAN;
}

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

cuda_sgd_table cuda_sgd_table_at(void *memory, const ym_sgd_tensor *tensor,
                                 int32_t tensor_count)
{
    int64_t spans = 0;
    for (int32_t i = 0; i < tensor_count; i++) {
        spans += spans_of(tensor[i].count);
    }
    size_t partial = aligned(sizeof(cuda_sgd_state));
    size_t span = partial + aligned((size_t)spans * sizeof(double));
    size_t tensors = span + aligned((size_t)spans * sizeof(ym_sgd_span));
    uintptr_t base = (uintptr_t)memory;
    return (cuda_sgd_table){
        .state = (cuda_sgd_state *)base,
        .partial = (double *)(base + partial),
        .span = (ym_sgd_span *)(base + span),
        .tensor = (ym_sgd_tensor *)(base + tensors),
        .span_count = (int32_t)spans,
        .bytes = tensors + aligned((size_t)tensor_count * sizeof(ym_sgd_tensor)),
    };
}

size_t cuda_sgd_table_bytes(const ym_sgd_tensor *tensor, int32_t tensor_count)
{
    return cuda_sgd_table_at(NULL, tensor, tensor_count).bytes;
}

void cuda_sgd_fill_table(const cuda_sgd_table *table, const ym_sgd_tensor *tensor,
                         int32_t tensor_count)
{
    memset(table->state, 0, table->bytes);
    memcpy(table->tensor, tensor, (size_t)tensor_count * sizeof *tensor);
    int32_t at = 0;
    for (int32_t i = 0; i < tensor_count; i++) {
        for (int64_t first = 0; first < tensor[i].count; first += YM_CUDA_SGD_SPAN) {
            int64_t left = tensor[i].count - first;
            int32_t count =
                (int32_t)(left < YM_CUDA_SGD_SPAN ? left : YM_CUDA_SGD_SPAN);
            table->span[at++] = (ym_sgd_span){i, count, first};
        }
    }
}

/* Makes the job's table on the host and copies it to scratch. */
static ym_status upload(ym_context *context, const ym_sgd_job *job, cuda_sgd_call *call)
{
    call->table = cuda_sgd_table_at(context->scratch, job->tensor, job->tensor_count);
    const size_t bytes = call->table.bytes;
    YM_TRY(cuda_require_scratch(context, "optimizer step", bytes));
    YM_TRY(cuda_require_no_capture(context, "optimizer step"));
    void *host = malloc(bytes);
    YM_CHECK(&context->error, host != NULL, YM_ERR_MEMORY,
             "no memory for a table of %d tensors", job->tensor_count);
    cuda_sgd_table table = cuda_sgd_table_at(host, job->tensor, job->tensor_count);
    cuda_sgd_fill_table(&table, job->tensor, job->tensor_count);
    ym_status status = cuda_check(context,
                                  cudaMemcpyAsync(context->scratch, host, bytes,
                                                  cudaMemcpyHostToDevice,
                                                  (cudaStream_t)context->stream),
                                  "cudaMemcpyAsync");
    free(host);
    return status;
}

static ym_status call_of(ym_context *context, const ym_sgd_job *job,
                         cuda_sgd_call *call)
{
    YM_CHECK(&context->error, job->group_count <= YM_CUDA_SGD_GROUPS,
             YM_ERR_UNSUPPORTED, "cuda: %d parameter groups, at most %d are possible",
             job->group_count, YM_CUDA_SGD_GROUPS);
    *call = (cuda_sgd_call){.inverse_scale = job->inverse_scale,
                            .update = job->update,
                            .gradient = job->gradient,
                            .average = job->average,
                            .ema_decay = job->ema_decay,
                            .ema_weight = job->ema_weight,
                            .group_count = job->group_count};
    if (job->group_count > 0) {
        memcpy(call->group, job->group, (size_t)job->group_count * sizeof *job->group);
    }
    return upload(context, job, call);
}

ym_status cuda_sgd_norm(ym_context *context, struct ym_sgd_job *job)
{
    cuda_sgd_call call;
    YM_TRY(call_of(context, job, &call));
    YM_TRY(cuda_sgd_run_norm(context, &call));
    /* On that stream: cudaMemcpy alone does not wait for one of torch's. */
    YM_TRY(cuda_check(
        context,
        cudaMemcpyAsync(&job->sum_of_squares, &call.table.state->sum_of_squares,
                        sizeof job->sum_of_squares, cudaMemcpyDeviceToHost,
                        (cudaStream_t)context->stream),
        "cudaMemcpyAsync"));
    return cuda_check(context, cudaStreamSynchronize((cudaStream_t)context->stream),
                      "cudaStreamSynchronize");
}

ym_status cuda_sgd_step(ym_context *context, struct ym_sgd_job *job)
{
    cuda_sgd_call call;
    YM_TRY(call_of(context, job, &call));
    call.clip = job->clip;
    return cuda_sgd_run_step(context, &call, false);
}
