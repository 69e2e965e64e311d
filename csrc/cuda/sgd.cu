/* SPDX-License-Identifier: MIT
 *
 * Both passes of the optimizer step, a block for each span of a tensor. Pass 1 adds up
 * squares in double; the last block to finish adds up the spans in their order and
 * says whether all is finite, so pass 2 follows without the host. Four elements an
 * access where the tensor's addresses allow it. Compiled without fused multiply-add:
 * the bits are those of math/sgd.h.
 */
#include "cuda/sgd.h"
#include "cuda/values.cuh"
#include "math/sgd.h"

#include <math.h>

namespace
{

const int THREADS = 256;
const int WARPS = THREADS / 32;
const int WIDE = 4; /* elements of an access of 16 bytes */
const unsigned ALL_LANES = 0xffffffffu;

/* What a pass needs, without pointers to the host. */
typedef cuda_sgd_call pass;
static_assert(sizeof(pass) <= 4096, "more than a kernel takes as arguments");

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

/* Elements from `first` on that are stepped four at a time. */
__device__ int32_t wide_count(const ym_sgd_span &span, uintptr_t addresses)
{
    return addresses % 16 == 0 && span.first % WIDE == 0 ? span.count / WIDE * WIDE : 0;
}

__device__ __forceinline__ double square(float g)
{
    const double x = (double)g;
    return x * x;
}

/* This thread's share of the sum of squares of a span. */
__device__ double sum_squares(const ym_sgd_span &span, const float *g)
{
    const int32_t wide = wide_count(span, (uintptr_t)g);
    double sum = 0;
#pragma unroll 4
    for (int32_t i = (int32_t)threadIdx.x * WIDE; i < wide; i += THREADS * WIDE) {
        float four[WIDE];
        load<float, WIDE>(g + span.first + i, four);
#pragma unroll
        for (int v = 0; v < WIDE; v++) {
            sum += square(four[v]);
        }
    }
    for (int32_t i = wide + (int32_t)threadIdx.x; i < span.count; i += THREADS) {
        sum += square(g[span.first + i]);
    }
    return sum;
}

__global__ void __launch_bounds__(THREADS) sgd_norm_kernel(pass p)
{
    __shared__ unsigned position;
    const ym_sgd_span span = p.table.span[blockIdx.x];
    const float *g = p.table.tensor[span.tensor].grad;
    double sum = add_block(g != nullptr ? sum_squares(span, g) : 0.0);
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
#pragma unroll 8
    for (unsigned i = threadIdx.x; i < gridDim.x; i += THREADS) {
        sum += partial[i];
    }
    sum = add_block(sum);
    if (threadIdx.x == 0) {
        p.table.state->sum_of_squares = sum;
        p.table.state->norm = (float)(sqrt(sum) * (double)inverse_scale_of(p));
        p.table.state->arrived = 0;
        if (p.found_inf != nullptr && !(sum - sum == 0)) {
            *p.found_inf = 1.0f;
        }
    }
}

/* What a block does with its span. */
struct work {
    ym_sgd_tensor tensor;
    ym_sgd_group group;
    float inverse_scale, clip, ema_decay, ema_weight;
    ym_sgd_gradient gradient;
    bool update, average, reads;
};

/* V elements' new parameters and momentum. g is unscaled and clipped. */
template <int V>
__device__ __forceinline__ void
step_elements(const work &w, int64_t i, const float (&gradient)[V], float (&param)[V])
{
    const ym_sgd_group &group = w.group;
    float buffer[V] = {};
    const bool moves = group.moves;
    if (moves && !w.tensor.first_step) {
        load<float, V>(w.tensor.momentum + i, buffer);
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        float g = group.maximize ? -gradient[v] : gradient[v];
        if (group.decays) {
            g = ym_sgd_weight_decay(g, param[v], group.weight_decay);
        }
        if (moves) {
            buffer[v] = w.tensor.first_step
                            ? g
                            : ym_sgd_momentum(buffer[v], g, group.momentum,
                                              group.gradient_weight);
            g = group.nesterov ? ym_sgd_nesterov(g, buffer[v], group.momentum)
                               : buffer[v];
        }
        param[v] = ym_sgd_descend(param[v], g, group.minus_lr);
    }
    if (moves) {
        store<float, V>(w.tensor.momentum + i, buffer);
    }
    store<float, V>(w.tensor.param + i, param);
}

/* Everything of V elements; all loads come before the first store. */
template <int V> __device__ __forceinline__ void run_elements(const work &w, int64_t i)
{
    float g[V] = {}, param[V] = {}, ema[V] = {};
    if (w.reads) {
        load<float, V>(w.tensor.grad + i, g);
    }
    if (w.update || w.average) {
        load<float, V>(w.tensor.param + i, param);
    }
    if (w.average) {
        load<float, V>(w.tensor.ema + i, ema);
    }
#pragma unroll
    for (int v = 0; v < V; v++) {
        g[v] = w.reads ? ym_sgd_unscale(g[v], w.inverse_scale, w.clip) : 0.0f;
    }
    if (w.update) {
        step_elements<V>(w, i, g, param);
    }
    if (w.average) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            ema[v] = ym_sgd_average(ema[v], param[v], w.ema_decay, w.ema_weight);
        }
        store<float, V>(w.tensor.ema + i, ema);
    }
    if (w.tensor.grad != nullptr && w.gradient != YM_SGD_GRADIENT_KEEP) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            g[v] = w.gradient == YM_SGD_GRADIENT_ZERO ? 0.0f : g[v];
        }
        store<float, V>(w.tensor.grad + i, g);
    }
}

__global__ void __launch_bounds__(THREADS) sgd_step_kernel(pass p, bool after_norm)
{
    const ym_sgd_span span = p.table.span[blockIdx.x];
    work w;
    w.tensor = p.table.tensor[span.tensor];
    w.group = p.group[w.tensor.group];
    w.inverse_scale = inverse_scale_of(p);
    w.clip = after_norm ? clip_of(p, p.table.state->norm) : p.clip;
    w.ema_decay = p.ema_decay;
    w.ema_weight = p.ema_weight;
    w.gradient = p.gradient;
    w.update = p.update && w.tensor.grad != nullptr &&
               (p.found_inf == nullptr || *p.found_inf == 0.0f);
    w.average = p.average && w.tensor.ema != nullptr;
    w.reads = w.tensor.grad != nullptr &&
              (w.update || p.gradient == YM_SGD_GRADIENT_WRITE);
    const uintptr_t addresses = (uintptr_t)w.tensor.param | (uintptr_t)w.tensor.grad |
                                (uintptr_t)w.tensor.momentum | (uintptr_t)w.tensor.ema;
    const int32_t wide = wide_count(span, addresses);
    for (int32_t i = (int32_t)threadIdx.x * WIDE; i < wide; i += THREADS * WIDE) {
        run_elements<WIDE>(w, span.first + i);
    }
    for (int32_t i = wide + (int32_t)threadIdx.x; i < span.count; i += THREADS) {
        run_elements<1>(w, span.first + i);
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
