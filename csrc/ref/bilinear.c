/* SPDX-License-Identifier: MIT
 *
 * Bilinear resizing: an output pixel is a weighted mean of two rows and two columns,
 *
 *     y[oh][ow] = sum of row(oh, h) * column(ow, w) * x[h][w] over h and w
 *
 * with the weights of math/bilinear.h. Backward sums the same products over oh and ow.
 */
#include "math/bilinear.h"
#include "ref/ref.h"

ym_status ref_bilinear_forward(ym_context *context, const ym_resize *resize,
                               const ym_tensor *x, ym_tensor *y)
{
    (void)context;
    const ym_side rows = ym_rows_between(resize, x, y);
    const ym_side columns = ym_columns_between(resize, x, y);
    for (int64_t i = 0; i < ym_pixels(y) * y->c; i++) {
        const int64_t p = i / y->c;
        const int32_t c = (int32_t)(i % y->c), n = (int32_t)(p / y->w / y->h);
        const ym_between h = ym_between_of(rows, (int32_t)(p / y->w % y->h));
        const ym_between w = ym_between_of(columns, (int32_t)(p % y->w));
        double sum = 0.0;
        for (int k = 0; k < 4; k++) {
            const double weight = (double)h.weight[k / 2] * w.weight[k % 2];
            const int64_t at = ref_index(x, n, h.source[k / 2], w.source[k % 2], c);
            sum += weight * ref_load(x, at);
        }
        ref_store(y, p * y->pitch + c, sum);
    }
    return YM_OK;
}

ym_status ref_bilinear_backward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    const ym_side rows = ym_rows_between(resize, dx, dy);
    const ym_side columns = ym_columns_between(resize, dx, dy);
    for (int64_t i = 0; i < ym_pixels(dx) * dx->c; i++) {
        const int64_t p = i / dx->c;
        const int32_t c = (int32_t)(i % dx->c), n = (int32_t)(p / dx->w / dx->h);
        const int32_t h = (int32_t)(p / dx->w % dx->h), w = (int32_t)(p % dx->w);
        double sum = 0.0;
        for (int32_t oh = 0; oh < dy->h; oh++) {
            const double of_row = ym_weight_of(rows, oh, h);
            for (int32_t ow = 0; of_row > 0 && ow < dy->w; ow++) {
                const double weight = of_row * ym_weight_of(columns, ow, w);
                if (weight > 0) {
                    sum += weight * ref_load(dy, ref_index(dy, n, oh, ow, c));
                }
            }
        }
        ref_put(dx, p * dx->pitch + c, sum, accumulate);
    }
    return YM_OK;
}
