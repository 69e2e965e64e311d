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
    for (int64_t p = 0; p < ym_pixels(y); p++) {
        const int32_t n = (int32_t)(p / y->w / y->h);
        const int32_t h =
            ym_nearest_source((int32_t)(p / y->w % y->h), resize->scale_h, x->h);
        const int32_t w = ym_nearest_source((int32_t)(p % y->w), resize->scale_w, x->w);
        for (int32_t c = 0; c < y->c; c++) {
            ref_store(y, p * y->pitch + c, ref_load(x, ref_index(x, n, h, w, c)));
        }
    }
    return YM_OK;
}

ym_status ref_nearest_backward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    for (int64_t i = 0; i < ym_pixels(dx) * dx->c; i++) {
        const int64_t p = i / dx->c;
        const int32_t c = (int32_t)(i % dx->c), n = (int32_t)(p / dx->w / dx->h);
        const int32_t h = (int32_t)(p / dx->w % dx->h), w = (int32_t)(p % dx->w);
        double sum = 0.0;
        for (int32_t oh = 0; oh < dy->h; oh++) {
            for (int32_t ow = 0;
                 ym_nearest_source(oh, resize->scale_h, dx->h) == h && ow < dy->w;
                 ow++) {
                if (ym_nearest_source(ow, resize->scale_w, dx->w) == w) {
                    sum += ref_load(dy, ref_index(dy, n, oh, ow, c));
                }
            }
        }
        ref_put(dx, p * dx->pitch + c, sum, accumulate);
    }
    return YM_OK;
}
