/* SPDX-License-Identifier: MIT
 *
 * Nearest upsampling: an output pixel is one of the input (math/nearest.h), and
 * backward sums what all outputs of an input pixel have.
 */
#include "math/nearest.h"
#include "ref/ref.h"

ym_status ref_nearest_forward(ym_context *context, const ym_resize *resize,
                              const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(y); i++) {
        const ym_extent at = ref_element(y, i);
        const int32_t h = ym_nearest_source(at.h, resize->scale_h, x->h);
        const int32_t w = ym_nearest_source(at.w, resize->scale_w, x->w);
        ref_store(y, ref_index_of(y, at), ref_load(x, ref_index(x, at.n, h, w, at.c)));
    }
    return YM_OK;
}

ym_status ref_nearest_backward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    for (int64_t i = 0; i < ref_count(dx); i++) {
        const ym_extent at = ref_element(dx, i);
        double sum = 0.0;
        for (int32_t oh = 0; oh < dy->h; oh++) {
            for (int32_t ow = 0;
                 ym_nearest_source(oh, resize->scale_h, dx->h) == at.h && ow < dy->w;
                 ow++) {
                if (ym_nearest_source(ow, resize->scale_w, dx->w) == at.w) {
                    sum += ref_load(dy, ref_index(dy, at.n, oh, ow, at.c));
                }
            }
        }
        ref_put(dx, ref_index_of(dx, at), sum, accumulate);
    }
    return YM_OK;
}
