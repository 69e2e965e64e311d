/* SPDX-License-Identifier: MIT
 *
 * Products of two tensors, repeated and summed along sides of 1 (rules:
 * core/backend.h): what the elementwise kernel and those that sum have in common.
 */
#ifndef YM_CUDA_MULTIPLY_CUH
#define YM_CUDA_MULTIPLY_CUH

#include "cuda/tiles.cuh"

/* Quotients of numbers from 0 to 2^31 - 1: a product and a shift, as a GPU has no
 * division of integers (Granlund, Montgomery 1994). */
struct cuda_quotient {
    uint32_t factor;
    int32_t shift;

    explicit cuda_quotient(int32_t by)
    {
        for (shift = 31; (int64_t)1 << (shift - 31) < by; shift++) {
        }
        factor = (uint32_t)(((uint64_t)1 << shift) / (uint64_t)by + 1);
    }
    __device__ __forceinline__ int32_t of(int32_t number) const
    {
        return (int32_t)((uint64_t)(uint32_t)number * factor >> shift);
    }
};

/* Where pixels of images of one size are. */
struct cuda_sides {
    int32_t image, w; /* pixels of an image and of a row */
    cuda_quotient by_image, by_w;

    cuda_sides(int32_t h, int32_t w_) : image(h * w_), w(w_), by_image(image), by_w(w)
    {
    }
    __device__ __forceinline__ cuda_position locate(int32_t pixel) const
    {
        const int32_t n = by_image.of(pixel), rest = pixel - n * image;
        const int32_t y = by_w.of(rest);
        return {n, y, rest - y * w};
    }
};

/* A factor, which stands still along its sides of 1. */
template <typename T> struct cuda_factor {
    const T *data; /* NULL: ones */
    int64_t pitch;
    int32_t step_n, step_h, step_w; /* in pixels */
    int32_t step_c;

    explicit cuda_factor(const ym_tensor &x)
        : data(static_cast<const T *>(x.data)), pitch(x.pitch),
          step_n(x.n > 1 ? x.h * x.w : 0), step_h(x.h > 1 ? x.w : 0),
          step_w(x.w > 1 ? 1 : 0), step_c(x.c > 1 ? 1 : 0)
    {
    }
    __device__ __forceinline__ int32_t pixel(const cuda_position &at) const
    {
        return at.n * step_n + at.y * step_h + at.x * step_w;
    }
};

/* V channels of a factor as they are stored; FLAT: one value that stands for them, as
 * it does for ones. */
template <typename T, int V, bool FLAT> struct cuda_taken {
    cuda_pack<T, FLAT ? 1 : V> pack;

    static __device__ __forceinline__ bool is_ones(const cuda_factor<T> &x)
    {
        return (FLAT || V == 1) && x.data == nullptr;
    }
    __device__ __forceinline__ void fetch_from(const cuda_factor<T> &x, int32_t pixel,
                                               int32_t channel)
    {
        if (!is_ones(x)) {
            const T *from = x.data + pixel * x.pitch;
            if constexpr (FLAT) {
                pack = fetch<T, 1>(from);
            } else {
                pack = fetch<T, V>(from + channel * x.step_c);
            }
        }
    }
    __device__ __forceinline__ void unpack_to(const cuda_factor<T> &x,
                                              float (&out)[V]) const
    {
        if constexpr (FLAT || V == 1) {
            float value[1] = {1.0f};
            if (!is_ones(x)) {
                unpack<T, 1>(pack, value);
            }
#pragma unroll
            for (int v = 0; v < V; v++) {
                out[v] = value[0];
            }
        } else {
            unpack<T, V>(pack, out);
        }
    }
};

/* y (+)= the product's sums / divisor. */
template <typename T> struct cuda_product {
    cuda_factor<T> a, b;
    cuda_values<T> y;
    cuda_divisor divisor;
    bool accumulate;

    cuda_product(const ym_tensor &a_, const ym_tensor &b_, const ym_tensor &y_,
                 const cuda_divisor &divisor_, bool accumulate_)
        : a(a_), b(b_), y(y_), divisor(divisor_), accumulate(accumulate_)
    {
    }
};

/* Whether one value of x stands for all channels: so it does for ones. */
static inline bool cuda_is_flat(const ym_tensor &x, const ym_extent &all)
{
    return x.data == nullptr || (x.c == 1 && all.c > 1);
}

/* Can the channels of x be read 16 bytes at a time, where it has several? */
static inline bool cuda_is_wide_or_flat(const ym_tensor &x, const ym_extent &all)
{
    return cuda_is_flat(x, all) || cuda_is_wide(x);
}

/* Runs the statements with A and B, whether the factors are flat, where V > 1. a is
 * flat only where b is. */
#define YM_WITH_FLATNESS(a_flat, b_flat, ...)        \
    do {                                             \
        if (V == 1 || !(b_flat)) {                   \
            constexpr bool A = false, B = false;     \
            __VA_ARGS__;                             \
        } else if (!(a_flat)) {                      \
            constexpr bool A = false, B = (V > 1);   \
            __VA_ARGS__;                             \
        } else {                                     \
            constexpr bool A = (V > 1), B = (V > 1); \
            __VA_ARGS__;                             \
        }                                            \
    } while (0)

/* The sums: multiply_sum.cu. scale is 1 / divisor. */
size_t cuda_sum_scratch_bytes(const ym_extent &all, const ym_tensor &y);
ym_status cuda_multiply_sum(ym_context *context, const ym_tensor &a, const ym_tensor &b,
                            double scale, ym_tensor *y, bool accumulate);

#endif
