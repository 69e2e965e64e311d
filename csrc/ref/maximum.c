/* SPDX-License-Identifier: MIT
 * Maxima over the pixels or the channels of an image: the first in row-major order, but
 * a NaN wins.
 */
#include "ref/ref.h"

#include <math.h>

/* The element of x that element (n, h, w, c) of y is; y has one place where x has
 * several. */
static int64_t maximum(const ym_tensor *x, const ym_tensor *y, ym_extent at)
{
    const int32_t end_h = y->h == x->h ? at.h + 1 : x->h;
    const int32_t end_w = y->w == x->w ? at.w + 1 : x->w;
    const int32_t end_c = y->c == x->c ? at.c + 1 : x->c;
    int64_t best = -1;
    double most = 0;
    for (int32_t h = at.h; h < end_h; h++) {
        for (int32_t w = at.w; w < end_w; w++) {
            for (int32_t c = at.c; c < end_c; c++) {
                const int64_t index = ref_index(x, at.n, h, w, c);
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

size_t ref_maximum_scratch_bytes(const ym_tensor *x, const ym_tensor *y)
{
    (void)x, (void)y;
    return 0;
}

ym_status ref_maximum_forward(ym_context *context, const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(y); i++) {
        const ym_extent at = ref_element(y, i);
        ref_store(y, ref_index_of(y, at), ref_load(x, maximum(x, y, at)));
    }
    return YM_OK;
}

ym_status ref_maximum_backward(ym_context *context, const ym_tensor *x,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(dx); i++) {
        const ym_extent at = ref_element(dx, i);
        const ym_extent of = {at.n, dy->h == dx->h ? at.h : 0,
                              dy->w == dx->w ? at.w : 0, dy->c == dx->c ? at.c : 0};
        const bool chosen = maximum(x, dy, of) == ref_index_of(x, at);
        const double d = ref_load(dy, ref_index_of(dy, of));
        ref_put(dx, ref_index_of(dx, at), chosen ? d : 0, accumulate);
    }
    return YM_OK;
}
