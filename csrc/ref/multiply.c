/* SPDX-License-Identifier: MIT
 * Products of two tensors, repeated and summed along sides of 1 (core/backend.h).
 */
#include "ref/ref.h"

static double factor(const ym_tensor *x, int32_t n, int32_t h, int32_t w, int32_t c)
{
    return ref_load(x, ref_index(x, x->n == 1 ? 0 : n, x->h == 1 ? 0 : h,
                                 x->w == 1 ? 0 : w, x->c == 1 ? 0 : c));
}

/* The end of a loop that starts at `at`: all of the side where y has but one. */
static int32_t end_of(int32_t at, int32_t of_y, int32_t side)
{
    return of_y == 1 ? side : at + 1;
}

static double sum_at(const ym_tensor *a, const ym_tensor *b, const ym_tensor *y,
                     const ym_extent *all, ym_extent at)
{
    double sum = 0;
    for (int32_t n = at.n; n < end_of(at.n, y->n, all->n); n++) {
        for (int32_t h = at.h; h < end_of(at.h, y->h, all->h); h++) {
            for (int32_t w = at.w; w < end_of(at.w, y->w, all->w); w++) {
                for (int32_t c = at.c; c < end_of(at.c, y->c, all->c); c++) {
                    const double other = b->data != NULL ? factor(b, n, h, w, c) : 1;
                    sum += factor(a, n, h, w, c) * other;
                }
            }
        }
    }
    return sum;
}

size_t ref_multiply_scratch_bytes(const ym_tensor *a, const ym_tensor *b,
                                  const ym_tensor *y)
{
    (void)a, (void)b, (void)y;
    return 0;
}

ym_status ref_multiply(ym_context *context, const ym_tensor *a, const ym_tensor *b,
                       double scale, ym_tensor *y, bool accumulate)
{
    (void)context;
    const ym_extent all = ym_span(a, b, y);
    for (int64_t i = 0; i < ref_count(y); i++) {
        const ym_extent at = ref_element(y, i);
        ref_put(y, ref_index_of(y, at), scale * sum_at(a, b, y, &all, at), accumulate);
    }
    return YM_OK;
}
