/* SPDX-License-Identifier: MIT
 *
 * The CUDA model for the host compiler: csrc/emulation/threads.cpp runs the blocks of a
 * launch one after the other and the threads of a block as fibers that change at
 * barriers and shuffles. For tests only.
 */
#ifndef YM_EMULATION_CUDA_RUNTIME_H
#define YM_EMULATION_CUDA_RUNTIME_H

#include <functional>
#include <string.h>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static /* blocks run one at a time */
#define __launch_bounds__(...)

struct float2 {
    float x, y;
};

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_)
    {
    }
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

void ym_emulation_launch(const char *name, dim3 grid, dim3 block, cudaStream_t stream,
                         const std::function<void()> &kernel);
/* Where the stream is one that records: notes the work for its graph. */
bool ym_emulation_record(cudaStream_t stream, const std::function<void()> &work);

void __syncthreads();

/* Leaves 8 bytes for the other lanes of the warp and fetches those of lane `from`. */
unsigned long long ym_emulation_shuffle(unsigned long long bits, int from);
int ym_emulation_lane();

template <typename T> T ym_emulation_shuffle_value(T value, int from)
{
    static_assert(sizeof(T) <= 8, "at most 8 bytes are shuffled");
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = ym_emulation_shuffle(bits, from);
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename T> T __shfl_down_sync(unsigned, T value, unsigned distance)
{
    int lane = ym_emulation_lane(), from = lane + (int)distance;
    return ym_emulation_shuffle_value(value, from < 32 ? from : lane);
}

template <typename T> T __shfl_xor_sync(unsigned, T value, int mask)
{
    return ym_emulation_shuffle_value(value, ym_emulation_lane() ^ mask);
}

inline void __threadfence()
{
}

inline unsigned atomicAdd(unsigned *to, unsigned value)
{
    unsigned old = *to;
    *to = old + value;
    return old;
}

#endif
