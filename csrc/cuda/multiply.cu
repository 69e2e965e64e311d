/* SPDX-License-Identifier: MIT
 * Products whose result has all sides in full: a value of each factor for each of y's.
 */
#include "cuda/multiply.cuh"

#include "cuda/pool.cuh"

namespace
{

const int EACH = 4; /* pixels of a thread, fetched before the first is used */

/* y may be the memory of a or b that has all sides: a thread reads of it what it
 * writes. */
template <typename T, int V, bool A_FLAT, bool B_FLAT>
__global__ void __launch_bounds__(YM_BLOCK)
    multiply_kernel(cuda_product<T> of, cuda_sides sides, int32_t pixels,
                    int32_t channels)
{
    const int32_t c = cuda_first_channel<V>();
    const int64_t step = blockDim.y, first = blockIdx.x * (EACH * step) + threadIdx.y;
    cuda_taken<T, V, A_FLAT> left[EACH];
    cuda_taken<T, V, B_FLAT> right[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (c < channels && p < pixels) {
            const cuda_position at = sides.locate((int32_t)p);
            left[i].fetch_from(of.a, of.a.pixel(at), c);
            right[i].fetch_from(of.b, of.b.pixel(at), c);
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const int64_t p = first + i * step;
        if (c < channels && p < pixels) {
            float value[V], other[V];
            left[i].unpack_to(of.a, value);
            right[i].unpack_to(of.b, other);
#pragma unroll
            for (int v = 0; v < V; v++) {
                value[v] = of.divisor.of(value[v] * other[v]);
            }
            put<T, V>(of.y.at(p, c), value, of.accumulate);
        }
    }
}

bool has_all_sides(const ym_tensor &y, const ym_extent &all)
{
    return y.n == all.n && y.h == all.h && y.w == all.w && y.c == all.c;
}

ym_status multiply_each(ym_context *context, const ym_tensor &a, const ym_tensor &b,
                        const cuda_divisor &divisor, ym_tensor *y, bool accumulate)
{
    const ym_extent all = ym_span(&a, &b, y);
    const int32_t pixels = (int32_t)ym_pixels(y);
    const cuda_sides sides(y->h, y->w);
    const bool wide = cuda_is_wide(*y) && cuda_is_wide_or_flat(a, all) &&
                      cuda_is_wide_or_flat(b, all);
    YM_WITH_TYPE_AND_WIDTH(
        y->dtype, wide, const cuda_tiles tiles = cuda_divide(y->c, V);
        const cuda_product<T> of(a, b, *y, divisor, accumulate); YM_WITH_FLATNESS(
            cuda_is_flat(a, all), cuda_is_flat(b, all),
            YM_LAUNCH((multiply_kernel<T, V, A, B>),
                      cuda_pixel_grid(tiles, pixels, EACH), cuda_block(tiles), context,
                      of, sides, pixels, y->c)));
    return cuda_launched(context, "multiply_kernel");
}

} // namespace

size_t cuda_multiply_scratch_bytes(const ym_tensor *a, const ym_tensor *b,
                                   const ym_tensor *y)
{
    const ym_extent all = ym_span(a, b, y);
    return has_all_sides(*y, all) ? 0 : cuda_sum_scratch_bytes(all, *y);
}

ym_status cuda_multiply(ym_context *context, const ym_tensor *a, const ym_tensor *b,
                        double scale, ym_tensor *y, bool accumulate)
{
    const cuda_device_guard guard(context);
    const ym_tensor ones = {}, &other = b->data != nullptr ? *b : ones;
    const ym_extent all = ym_span(a, &other, y);
    const ym_tensor whole = {nullptr, y->dtype, all.n, all.h, all.w, all.c, all.c};
    YM_TRY(cuda_check_pixels(context, "multiply", &whole));
    /* The kernels take the flat one of two factors as the second. */
    const bool swap = cuda_is_flat(*a, all) && !cuda_is_flat(other, all);
    const ym_tensor &left = swap ? other : *a, &right = swap ? *a : other;
    if (has_all_sides(*y, all)) {
        return multiply_each(context, left, right, cuda_divisor(scale), y, accumulate);
    }
    return cuda_multiply_sum(context, left, right, scale, y, accumulate);
}
