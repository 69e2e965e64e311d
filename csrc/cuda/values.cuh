/* SPDX-License-Identifier: MIT
 *
 * Stored values as floats, V channels at a time: V such that an access has 16 bytes
 * where address, pitch and channels allow it, else 1.
 */
#ifndef YM_CUDA_VALUES_CUH
#define YM_CUDA_VALUES_CUH

#include <cuda_fp16.h>

#include "cuda/launch.cuh"
#include "math/bf16.h"

struct cuda_half {
    uint16_t bits;
};

struct cuda_bfloat {
    uint16_t bits;
};

__device__ __forceinline__ float to_float(float value)
{
    return value;
}

__device__ __forceinline__ float to_float(cuda_half value)
{
    return __half2float(__ushort_as_half(value.bits));
}

__device__ __forceinline__ float to_float(cuda_bfloat value)
{
    return ym_bf16_to_f32(value.bits);
}

__device__ __forceinline__ void from_float(float value, float *to)
{
    *to = value;
}

__device__ __forceinline__ void from_float(float value, cuda_half *to)
{
    to->bits = __half_as_ushort(__float2half_rn(value));
}

__device__ __forceinline__ void from_float(float value, cuda_bfloat *to)
{
    to->bits = ym_f32_to_bf16(value);
}

/* Two neighbours at once: one instruction where the GPU has it. */
template <typename T>
__device__ __forceinline__ void from_floats(float first, float second, T *to)
{
    from_float(first, to);
    from_float(second, to + 1);
}

#ifdef __CUDA_ARCH__
template <>
__device__ __forceinline__ void from_floats(float first, float second, cuda_half *to)
{
    const __half2 pair = __floats2half2_rn(first, second);
    to[0].bits = __half_as_ushort(__low2half(pair));
    to[1].bits = __half_as_ushort(__high2half(pair));
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ void from_floats(float first, float second, cuda_bfloat *to)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    to[0].bits = (uint16_t)pair;
    to[1].bits = (uint16_t)(pair >> 16);
}
#endif
#endif

template <typename T, int V> struct alignas(sizeof(T) * V) cuda_pack {
    T value[V];
};

/* As it is stored: several of these are fetched before the first is used. */
template <typename T, int V>
__device__ __forceinline__ cuda_pack<T, V> fetch(const T *from)
{
    return *reinterpret_cast<const cuda_pack<T, V> *>(from);
}

template <typename T, int V>
__device__ __forceinline__ void unpack(const cuda_pack<T, V> &pack, float (&out)[V])
{
#pragma unroll
    for (int v = 0; v < V; v++) {
        out[v] = to_float(pack.value[v]);
    }
}

template <typename T, int V>
__device__ __forceinline__ void load(const T *from, float (&out)[V])
{
    unpack<T, V>(fetch<T, V>(from), out);
}

template <typename T, int V>
__device__ __forceinline__ void store(T *to, const float (&in)[V])
{
    cuda_pack<T, V> pack;
    if (V == 1) {
        from_float(in[0], &pack.value[0]);
    }
#pragma unroll
    for (int v = 0; v + 1 < V; v += 2) {
        from_floats(in[v], in[v + 1], &pack.value[v]);
    }
    *reinterpret_cast<cuda_pack<T, V> *>(to) = pack;
}

/* to (+)= in. */
template <typename T, int V>
__device__ __forceinline__ void put(T *to, float (&in)[V], bool accumulate)
{
    if (accumulate) {
        float old[V];
        load<T, V>(to, old);
#pragma unroll
        for (int v = 0; v < V; v++) {
            in[v] += old[v];
        }
    }
    store<T, V>(to, in);
}

/* A tensor as kernels take it. */
template <typename T> struct cuda_values {
    T *data;
    int64_t pitch;
    int32_t h, w;

    explicit cuda_values(const ym_tensor &x)
        : data(static_cast<T *>(x.data)), pitch(x.pitch), h(x.h), w(x.w)
    {
    }
    __device__ __forceinline__ T *at(int64_t pixel, int32_t channel) const
    {
        return data + pixel * pitch + channel;
    }
    __device__ __forceinline__ T *at(int32_t n, int32_t y, int32_t x,
                                     int32_t channel) const
    {
        return at(((int64_t)n * h + y) * w + x, channel);
    }
};

/* Can x be read 16 bytes at a time? Absent tensors do not object. */
static inline bool cuda_is_wide(const ym_tensor &x)
{
    const int64_t bytes = (int64_t)ym_dtype_bytes(x.dtype);
    return x.data == nullptr ||
           (((int64_t)(uintptr_t)x.data | x.pitch * bytes | x.c * bytes) & 15) == 0;
}

/* Runs the statements with T, the stored type, and V, the channels of one access. */
#define YM_WITH_TYPE_AND_WIDTH(dtype, wide, ...)  \
    do {                                          \
        if ((dtype) == YM_F32 && (wide)) {        \
            using T = float;                      \
            constexpr int V = 4;                  \
            __VA_ARGS__;                          \
        } else if ((dtype) == YM_F32) {           \
            using T = float;                      \
            constexpr int V = 1;                  \
            __VA_ARGS__;                          \
        } else if ((dtype) == YM_F16 && (wide)) { \
            using T = cuda_half;                  \
            constexpr int V = 8;                  \
            __VA_ARGS__;                          \
        } else if ((dtype) == YM_F16) {           \
            using T = cuda_half;                  \
            constexpr int V = 1;                  \
            __VA_ARGS__;                          \
        } else if (wide) {                        \
            using T = cuda_bfloat;                \
            constexpr int V = 8;                  \
            __VA_ARGS__;                          \
        } else {                                  \
            using T = cuda_bfloat;                \
            constexpr int V = 1;                  \
            __VA_ARGS__;                          \
        }                                         \
    } while (0)

#define YM_WITH_TYPE(dtype, ...)        \
    do {                                \
        if ((dtype) == YM_F32) {        \
            using T = float;            \
            __VA_ARGS__;                \
        } else if ((dtype) == YM_F16) { \
            using T = cuda_half;        \
            __VA_ARGS__;                \
        } else {                        \
            using T = cuda_bfloat;      \
            __VA_ARGS__;                \
        }                               \
    } while (0)

#endif
