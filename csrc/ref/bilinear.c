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
    for (int64_t i = 0; i < ref_count(y); i++) {
        const ym_extent at = ref_element(y, i);
        const ym_between h = ym_between_of(rows, at.h);
        const ym_between w = ym_between_of(columns, at.w);
        double sum = 0.0;
        for (int k = 0; k < 4; k++) {
            const double weight = (double)h.weight[k / 2] * w.weight[k % 2];
            sum += weight * ref_load(x, ref_index(x, at.n, h.source[k / 2],
                                                  w.source[k % 2], at.c));
        }
        ref_store(y, ref_index_of(y, at), sum);
    }
    return YM_OK;
}

ym_status ref_bilinear_backward(ym_context *context, const ym_resize *resize,
                                const ym_tensor *dy, ym_tensor *dx, bool accumulate)
{
    (void)context;
    const ym_side rows = ym_rows_between(resize, dx, dy);
    const ym_side columns = ym_columns_between(resize, dx, dy);
    for (int64_t i = 0; i < ref_count(dx); i++) {
        const ym_extent at = ref_element(dx, i);
        double sum = 0.0;
        for (int32_t oh = 0; oh < dy->h; oh++) {
            const double of_row = ym_weight_of(rows, oh, at.h);
            for (int32_t ow = 0; of_row > 0 && ow < dy->w; ow++) {
                const double weight = of_row * ym_weight_of(columns, ow, at.w);
                if (weight > 0) {
                    sum += weight * ref_load(dy, ref_index(dy, at.n, oh, ow, at.c));
                }
            }
        }
        ref_put(dx, ref_index_of(dx, at), sum, accumulate);
    }
    return YM_OK;
}
