/* SPDX-License-Identifier: MIT
 *
 * Views of memory that somebody else owns.
 *
 * Values (activations and their gradients) are channels-last. A value may be a slice
 * of the channels of a wider buffer, so consecutive pixels lie `pitch` elements apart:
 *
 *     element (n, h, w, c) = data[((n * H + h) * W + w) * pitch + c],  pitch >= C
 *
 * Weights are fp32 with any strides (torch keeps (K, C, R, S) or channels_last).
 */
#ifndef YM_CORE_TENSOR_H
#define YM_CORE_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum ym_dtype {
    YM_F32 = 0,
    YM_BF16 = 1,
    YM_F16 = 2, /* CUDA only */
    YM_U8 = 3,
} ym_dtype;

static inline size_t ym_dtype_bytes(ym_dtype dtype)
{
    return dtype == YM_F32 ? 4 : dtype == YM_U8 ? 1 : 2;
}

static inline const char *ym_dtype_name(ym_dtype dtype)
{
    static const char *const names[] = {"float32", "bfloat16", "float16", "uint8"};
    return names[dtype];
}

typedef struct ym_tensor {
    void *data;
    ym_dtype dtype;
    int32_t n, h, w, c;
    int64_t pitch; /* elements between neighbouring pixels */
} ym_tensor;

static inline int64_t ym_pixels(const ym_tensor *x)
{
    return (int64_t)x->n * x->h * x->w;
}

/* The number of a pixel among those of all images. */
static inline int64_t ym_pixel_index(const ym_tensor *x, int32_t n, int32_t h,
                                     int32_t w)
{
    return ((int64_t)n * x->h + h) * x->w + w;
}

/* The channels [first, first + count) of x. */
static inline ym_tensor ym_channels(ym_tensor x, int32_t first, int32_t count)
{
    x.data = (char *)x.data + (size_t)first * ym_dtype_bytes(x.dtype);
    x.c = count;
    return x;
}

typedef struct ym_extent {
    int32_t n, h, w, c;
} ym_extent;

static inline int32_t ym_longest(int32_t a, int32_t b, int32_t c)
{
    const int32_t most = a > b ? a : b;
    return most > c ? most : c;
}

/* What three tensors span where sides of 1 are repeated or summed; those of an absent
 * tensor are 0. */
static inline ym_extent ym_span(const ym_tensor *a, const ym_tensor *b,
                                const ym_tensor *y)
{
    ym_extent all;
    all.n = ym_longest(a->n, b->n, y->n);
    all.h = ym_longest(a->h, b->h, y->h);
    all.w = ym_longest(a->w, b->w, y->w);
    all.c = ym_longest(a->c, b->c, y->c);
    return all;
}

typedef struct ym_weight {
    float *data;        /* (K, C / groups, R, S), or NULL: absent */
    int32_t k, c, r, s; /* c counts the channels of one group */
    int64_t stride_k, stride_c, stride_r, stride_s; /* elements */
    void *packed; /* the same as pack_weights left it, or NULL: only data is there */
} ym_weight;

#endif
