/* SPDX-License-Identifier: MIT
 * Maxima over the pixels or the channels of an image: the first in row-major order, but
 * a NaN wins.
 */
#include "ref/ref.h"

#include <math.h>

/* The element of x that element (n, h, w, c) of y is; y has one place where x has
 * several. */
static int64_t maximum(const ym_tensor *x, const ym_tensor *y, const int32_t at[4])
{
    const int32_t end_h = y->h == x->h ? at[1] + 1 : x->h;
    const int32_t end_w = y->w == x->w ? at[2] + 1 : x->w;
    const int32_t end_c = y->c == x->c ? at[3] + 1 : x->c;
    int64_t best = -1;
    double most = 0;
    for (int32_t h = at[1]; h < end_h; h++) {
        for (int32_t w = at[2]; w < end_w; w++) {
            for (int32_t c = at[3]; c < end_c; c++) {
                const int64_t index = ref_index(x, at[0], h, w, c);
                const double value = ref_load(x, index);
                if (best < 0 || value > most || isnan(value)) {
                    best = index;
                    most = value;
                }
            }
        }
    }
    return best;
}

static void place_of(const ym_tensor *y, int64_t element, int32_t at[4])
{
    const int64_t p = element / y->c;
    at[0] = (int32_t)(p / y->w / y->h);
    at[1] = (int32_t)(p / y->w % y->h);
    at[2] = (int32_t)(p % y->w);
    at[3] = (int32_t)(element % y->c);
}

size_t ref_maximum_scratch_bytes(const ym_tensor *x, const ym_tensor *y)
{
    (void)x, (void)y;
    return 0;
}

ym_status ref_maximum_forward(ym_context *context, const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    for (int64_t i = 0; i < ym_pixels(y) * y->c; i++) {
        int32_t at[4];
        place_of(y, i, at);
        ref_store(y, ref_index(y, at[0], at[1], at[2], at[3]),
                  ref_load(x, maximum(x, y, at)));
    }
    return YM_OK;
}

ym_status ref_maximum_backward(ym_context *context, const ym_tensor *x,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    for (int64_t i = 0; i < ym_pixels(dx) * dx->c; i++) {
        int32_t at[4];
        place_of(dx, i, at);
        const int64_t here = ref_index(x, at[0], at[1], at[2], at[3]);
        at[1] = dy->h == dx->h ? at[1] : 0;
        at[2] = dy->w == dx->w ? at[2] : 0;
        at[3] = dy->c == dx->c ? at[3] : 0;
        const bool chosen = maximum(x, dy, at) == here;
        const double d = ref_load(dy, ref_index(dy, at[0], at[1], at[2], at[3]));
        place_of(dx, i, at);
        ref_put(dx, ref_index(dx, at[0], at[1], at[2], at[3]), chosen ? d : 0,
                accumulate);
    }
    return YM_OK;
}
