/* SPDX-License-Identifier: MIT
 *
 * Both passes of the optimizer step, a block for each span of a tensor. Pass 1 adds up
 * squares in double; the last block to finish adds up the spans in their order and
 * decides about clip and overflow, so pass 2 follows without the host. Compiled without
 * fused multiply-add: the bits are those of math/sgd.h.
 */
#include "cuda/launch.cuh"
#include "cuda/sgd.h"
#include "math/sgd.h"

#include <math.h>

namespace
{

const int THREADS = 256;
const int WARPS = THREADS / 32;
const unsigned ALL_LANES = 0xffffffffu;

/* What a pass needs, without pointers to the host. */
typedef cuda_sgd_call pass;

/* The sum over the block, in a fixed order; thread 0 has it. */
__device__ double add_block(double value)
{
    __shared__ double of_warp[WARPS];
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_down_sync(ALL_LANES, value, (unsigned)distance);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        of_warp[threadIdx.x / 32] = value;
    }
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < WARPS; i++) {
        sum += of_warp[i];
    }
    return sum;
}

__device__ float inverse_scale_of(const pass &p)
{
    /* As torch: 1 / scale in double, rounded once. */
    return p.scale != nullptr ? (float)(1.0 / (double)*p.scale) : p.inverse_scale;
}

/* clip_grad_norm_'s factor, at most 1; NaN stays NaN. */
__device__ float clip_of(const pass &p, float norm)
{
    if (!p.clips) {
        return 1.0f;
    }
    const float factor = 1.0f / (norm + 1e-6f) * p.max_norm;
    return factor > 1.0f ? 1.0f : factor;
}

__device__ void decide(const pass &p, float inverse_scale, double sum)
{
    cuda_sgd_state *state = p.table.state;
    const bool finite = sum - sum == 0;
    state->sum_of_squares = sum;
    state->norm = (float)sqrt(sum);
    state->inverse_scale = inverse_scale;
    state->clip = clip_of(p, state->norm);
    state->update = 1;
    state->arrived = 0;
    if (p.found_inf != nullptr) {
        *p.found_inf = finite ? *p.found_inf : 1.0f;
        state->update = *p.found_inf == 0.0f;
    }
}

__global__ void __launch_bounds__(THREADS) sgd_norm_kernel(pass p)
{
    __shared__ unsigned position;
    const ym_sgd_span span = p.table.span[blockIdx.x];
    const float *g = p.table.tensor[span.tensor].grad;
    const float inverse_scale = inverse_scale_of(p);
    double sum = 0;
    for (int32_t i = (int32_t)threadIdx.x; g != nullptr && i < span.count;
         i += THREADS) {
        const double x = (double)ym_sgd_unscale(g[span.first + i], inverse_scale, 1.0f);
        sum += x * x;
    }
    sum = add_block(sum);
    if (threadIdx.x == 0) {
        p.table.partial[blockIdx.x] = sum;
        __threadfence();
        position = atomicAdd(&p.table.state->arrived, 1u);
    }
    __syncthreads();
    if (position != gridDim.x - 1) {
        return;
    }
    /* The last block sees what all others have written. */
    __threadfence();
    const volatile double *partial = p.table.partial;
    sum = 0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += THREADS) {
        sum += partial[i];
    }
    sum = add_block(sum);
    if (threadIdx.x == 0) {
        decide(p, inverse_scale, sum);
    }
}

/* One element's new parameter; momentum on the way. g is unscaled and clipped. */
__device__ __forceinline__ float
step_element(const ym_sgd_group &group, const ym_sgd_tensor &t, int64_t i, float g)
{
    const float param = t.param[i];
    g = group.maximize ? -g : g;
    if (group.weight_decay != 0) {
        g = ym_sgd_weight_decay(g, param, group.weight_decay);
    }
    if (group.momentum != 0) {
        const float buffer = t.first_step
                                 ? g
                                 : ym_sgd_momentum(t.momentum[i], g, group.momentum,
                                                   group.gradient_weight);
        t.momentum[i] = buffer;
        g = group.nesterov ? ym_sgd_nesterov(g, buffer, group.momentum) : buffer;
    }
    return ym_sgd_descend(param, g, group.minus_lr);
}

__global__ void __launch_bounds__(THREADS) sgd_step_kernel(pass p, bool after_norm)
{
    const ym_sgd_span span = p.table.span[blockIdx.x];
    const ym_sgd_tensor t = p.table.tensor[span.tensor];
    const cuda_sgd_state *state = p.table.state;
    const float inverse_scale = after_norm ? state->inverse_scale : inverse_scale_of(p);
    const float clip = after_norm ? state->clip : p.clip;
    const bool finite = after_norm ? state->update != 0
                                   : p.found_inf == nullptr || *p.found_inf == 0.0f;
    const bool update = p.update && finite && t.grad != nullptr;
    const bool average = p.average && t.ema != nullptr;
    const bool reads = t.grad != nullptr &&
                       (update || p.gradient == YM_SGD_GRADIENT_WRITE);
    for (int64_t i = span.first + threadIdx.x; i < span.first + span.count;
         i += THREADS) {
        float g = 0, param = 0;
        if (reads) {
            g = ym_sgd_unscale(t.grad[i], inverse_scale, clip);
        }
        if (update) {
            param = step_element(p.group[t.group], t, i, g);
            t.param[i] = param;
        } else if (average) {
            param = t.param[i];
        }
        if (average) {
            t.ema[i] = ym_sgd_average(t.ema[i], param, p.ema_decay, p.ema_weight);
        }
        if (t.grad != nullptr && p.gradient != YM_SGD_GRADIENT_KEEP) {
            t.grad[i] = p.gradient == YM_SGD_GRADIENT_ZERO ? 0.0f : g;
        }
    }
}

} // namespace

ym_status cuda_sgd_run_norm(ym_context *context, const cuda_sgd_call *call)
{
    const cuda_device_guard guard(context);
    if (call->table.span_count == 0) {
        return YM_OK;
    }
    YM_LAUNCH(sgd_norm_kernel, dim3((unsigned)call->table.span_count), dim3(THREADS),
              context, *call);
    return cuda_launched(context, "sgd_norm_kernel");
}

ym_status cuda_sgd_run_step(ym_context *context, const cuda_sgd_call *call,
                            bool after_norm)
{
    const cuda_device_guard guard(context);
    if (call->table.span_count == 0) {
        return YM_OK;
    }
    YM_LAUNCH(sgd_step_kernel, dim3((unsigned)call->table.span_count), dim3(THREADS),
              context, *call, after_norm);
    return cuda_launched(context, "sgd_step_kernel");
}
