/* SPDX-License-Identifier: MIT
 *
 * Stored values as floats, V channels at a time: V such that an access has 16 bytes
 * where address, pitch and channels allow it, else 1.
 */
#ifndef YM_CUDA_VALUES_CUH
#define YM_CUDA_VALUES_CUH

#include <cuda_fp16.h>
#include <math.h>

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

/* V stored values, in 32-bit words where there are that many bytes: kept apart, each
 * half word would take a register. */
template <int BYTES> struct alignas(BYTES) cuda_words {
    uint32_t data[BYTES / 4];
};

template <> struct alignas(2) cuda_words<2> {
    uint16_t data[1];
};

template <typename T, int V> using cuda_pack = cuda_words<(int)sizeof(T) * V>;

/* A single value between its bits and a float. */
template <typename T> struct cuda_single {
    static __device__ __forceinline__ float read(uint16_t bits)
    {
        return to_float(T{bits});
    }
    static __device__ __forceinline__ uint16_t write(float value)
    {
        T made;
        from_float(value, &made);
        return made.bits;
    }
};

template <> struct cuda_single<float> {
    static __device__ __forceinline__ float read(uint32_t bits)
    {
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    static __device__ __forceinline__ uint32_t write(float value)
    {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        return bits;
    }
};

/* Two neighbours at once: one instruction where the GPU has it. */
template <typename T>
__device__ __forceinline__ void split(uint32_t word, float &first, float &second)
{
    first = cuda_single<T>::read((uint16_t)word);
    second = cuda_single<T>::read((uint16_t)(word >> 16));
}

template <typename T>
__device__ __forceinline__ uint32_t join(float first, float second)
{
    return (uint32_t)cuda_single<T>::write(first) |
           (uint32_t)cuda_single<T>::write(second) << 16;
}

#ifdef __CUDA_ARCH__
template <>
__device__ __forceinline__ void split<cuda_half>(uint32_t word, float &first,
                                                 float &second)
{
    const __half2 pair = *reinterpret_cast<const __half2 *>(&word);
    first = __low2float(pair);
    second = __high2float(pair);
}

template <>
__device__ __forceinline__ uint32_t join<cuda_half>(float first, float second)
{
    const __half2 pair = __floats2half2_rn(first, second);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

template <>
__device__ __forceinline__ void split<cuda_bfloat>(uint32_t word, float &first,
                                                   float &second)
{
    first = __uint_as_float(word << 16);
    second = __uint_as_float(word & 0xffff0000u);
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ uint32_t join<cuda_bfloat>(float first, float second)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
}
#endif
#endif

/* As it is stored: several of these are fetched before the first is used. */
template <typename T, int V>
__device__ __forceinline__ cuda_pack<T, V> fetch(const T *from)
{
    return *reinterpret_cast<const cuda_pack<T, V> *>(from);
}

template <typename T, int V>
__device__ __forceinline__ void unpack(const cuda_pack<T, V> &pack, float (&out)[V])
{
    if constexpr (V == 1 || sizeof(T) == 4) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            out[v] = cuda_single<T>::read(pack.data[v]);
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v += 2) {
            split<T>(pack.data[v / 2], out[v], out[v + 1]);
        }
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
    if constexpr (V == 1 || sizeof(T) == 4) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            pack.data[v] = cuda_single<T>::write(in[v]);
        }
    } else {
#pragma unroll
        for (int v = 0; v < V; v += 2) {
            pack.data[v / 2] = join<T>(in[v], in[v + 1]);
        }
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

/* What sums are divided by, a whole number. A GPU divides slowly: where the inverse is
 * exact, as that of 4, the quotient is a product. */
struct cuda_divisor {
    float count, inverse;
    bool exact;

    __device__ __forceinline__ explicit cuda_divisor(int32_t values)
        : count((float)values), inverse(1.0f / count),
          exact((values & (values - 1)) == 0)
    {
    }
    /* That of which scale is the inverse, however large. */
    explicit cuda_divisor(double scale)
        : count((float)(1 / scale)), inverse((float)scale), exact(false)
    {
        int exponent;
        exact = frexpf(count, &exponent) == 0.5f;
    }
    __device__ __forceinline__ float of(float sum) const
    {
        return exact ? sum * inverse : sum / count;
    }
};

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
