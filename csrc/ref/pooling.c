/* SPDX-License-Identifier: MIT
 *
 * Max and average pooling. A window covers rows oh * stride_h - pad_h + i, 0 <= i <
 * kernel_h. The maximum is the first in row-major order inside the image; a NaN wins.
 * The average divides by the window's area inside the padded image if
 * count_include_pad, else by its area inside the image.
 */
#include "ref/ref.h"

#include <math.h>

typedef struct range {
    int32_t first, end; /* inside the image */
    int32_t padded;     /* how many, counting the padding */
} range;

static range window(int32_t o, int32_t kernel, int32_t stride, int32_t pad,
                    int32_t size)
{
    int32_t first = o * stride - pad, end = first + kernel;
    int32_t padded = (end < size + pad ? end : size + pad) - first;
    return (range){first > 0 ? first : 0, end < size ? end : size, padded};
}

/* The first window that can hold pixel i. */
static int32_t first_window(int32_t i, int32_t kernel, int32_t stride, int32_t pad)
{
    int32_t past = i + pad - kernel;
    return past < 0 ? 0 : past / stride + 1;
}

typedef struct place {
    range h, w;
    int32_t n, c;
    int64_t output; /* index of the element of y */
} place;

static place place_of(const ym_pool *pool, const ym_tensor *x, const ym_tensor *y,
                      int64_t element)
{
    const ym_extent o = ref_element(y, element);
    return (place){window(o.h, pool->kernel_h, pool->stride_h, pool->pad_h, x->h),
                   window(o.w, pool->kernel_w, pool->stride_w, pool->pad_w, x->w), o.n,
                   o.c, ref_index_of(y, o)};
}

static int64_t maximum(const ym_tensor *x, const place *at)
{
    int64_t best = -1;
    double most = 0.0;
    for (int32_t h = at->h.first; h < at->h.end; h++) {
        for (int32_t w = at->w.first; w < at->w.end; w++) {
            int64_t index = ref_index(x, at->n, h, w, at->c);
            double value = ref_load(x, index);
            if (best < 0 || value > most || isnan(value)) {
                best = index;
                most = value;
            }
        }
    }
    return best;
}

ym_status ref_max_pool_forward(ym_context *context, const ym_pool *pool,
                               const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(y); i++) {
        place at = place_of(pool, x, y, i);
        int64_t best = maximum(x, &at);
        ref_store(y, at.output, best < 0 ? -INFINITY : ref_load(x, best));
    }
    return YM_OK;
}

/* Sums in double before one rounding: for each element of dx the windows that chose it.
 */
static double max_pool_gradient_at(const ym_pool *pool, const ym_tensor *x,
                                   const ym_tensor *dy, ym_extent at)
{
    const int64_t index = ref_index_of(x, at);
    const int32_t last_h = at.h + pool->pad_h, last_w = at.w + pool->pad_w;
    const int32_t first_h =
        first_window(at.h, pool->kernel_h, pool->stride_h, pool->pad_h);
    const int32_t first_w =
        first_window(at.w, pool->kernel_w, pool->stride_w, pool->pad_w);
    double sum = 0.0;
    for (int32_t oh = first_h; oh < dy->h && oh * pool->stride_h <= last_h; oh++) {
        range rows = window(oh, pool->kernel_h, pool->stride_h, pool->pad_h, x->h);
        for (int32_t ow = first_w; ow < dy->w && ow * pool->stride_w <= last_w; ow++) {
            range columns =
                window(ow, pool->kernel_w, pool->stride_w, pool->pad_w, x->w);
            place here = {rows, columns, at.n, at.c, 0};
            if (maximum(x, &here) == index) {
                sum += ref_load(dy, ref_index(dy, at.n, oh, ow, at.c));
            }
        }
    }
    return sum;
}

ym_status ref_max_pool_backward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *x, const ym_tensor *dy, ym_tensor *dx,
                                bool accumulate)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(dx); i++) {
        const ym_extent at = ref_element(dx, i);
        ref_put(dx, ref_index_of(dx, at), max_pool_gradient_at(pool, x, dy, at),
                accumulate);
    }
    return YM_OK;
}

static double divisor(const ym_pool *pool, range h, range w)
{
    if (pool->count_include_pad) {
        return (double)h.padded * w.padded;
    }
    return (double)(h.end - h.first) * (w.end - w.first);
}

ym_status ref_avg_pool_forward(ym_context *context, const ym_pool *pool,
                               const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(y); i++) {
        place at = place_of(pool, x, y, i);
        double sum = 0.0;
        for (int32_t h = at.h.first; h < at.h.end; h++) {
            for (int32_t w = at.w.first; w < at.w.end; w++) {
                sum += ref_load(x, ref_index(x, at.n, h, w, at.c));
            }
        }
        ref_store(y, at.output, sum / divisor(pool, at.h, at.w));
    }
    return YM_OK;
}

static double avg_pool_gradient_at(const ym_pool *pool, const ym_tensor *dy,
                                   const ym_tensor *dx, ym_extent at)
{
    const int32_t last_h = at.h + pool->pad_h, last_w = at.w + pool->pad_w;
    const int32_t first_h =
        first_window(at.h, pool->kernel_h, pool->stride_h, pool->pad_h);
    const int32_t first_w =
        first_window(at.w, pool->kernel_w, pool->stride_w, pool->pad_w);
    double sum = 0.0;
    for (int32_t oh = first_h; oh < dy->h && oh * pool->stride_h <= last_h; oh++) {
        range h = window(oh, pool->kernel_h, pool->stride_h, pool->pad_h, dx->h);
        for (int32_t ow = first_w; ow < dy->w && ow * pool->stride_w <= last_w; ow++) {
            range w = window(ow, pool->kernel_w, pool->stride_w, pool->pad_w, dx->w);
            sum += ref_load(dy, ref_index(dy, at.n, oh, ow, at.c)) /
                   divisor(pool, h, w);
        }
    }
    return sum;
}

ym_status ref_avg_pool_backward(ym_context *context, const ym_pool *pool,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(dx); i++) {
        const ym_extent at = ref_element(dx, i);
        ref_put(dx, ref_index_of(dx, at), avg_pool_gradient_at(pool, dy, dx, at),
                accumulate);
    }
    return YM_OK;
}
