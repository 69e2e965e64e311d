/* SPDX-License-Identifier: MIT
 *
 * Positions of OpenCV 5's warps, LANES pixels at a time: as ym_float_position,
 * ym_float_in_reach and ym_float_tap_of, which no compiler makes vectors of, for a
 * comparison may trap. mosaic_avx2.c and mosaic_avx512.c define before they include
 * this
 *
 *     LANES, ISA              pixels of a vector, the functions' target
 *     vector                  as many floats
 *     vector fused(a, b, c)   a b + c, rounded once
 *     vector larger(a, b), smaller(a, b)
 *                             of two; b where one is no number
 *     vector rounded_down(a)
 *     void put_whole(to, a)   as int32_t; aligned
 *
 * Once for each file.
 */

ISA static inline vector find_position(ym_float_row row, vector x, bool tail)
{
    const vector zero = {0}, slope = zero + row.slope;
    if (tail) {
        return fused(slope, x, zero + row.of_y) + row.offset;
    }
    return fused(slope, x, zero + (row.of_y + row.offset));
}

ISA static inline void put_position(vector at, int32_t *whole, float *fraction)
{
    const vector zero = {0}, far = zero + YM_FLOAT_FAR;
    at = smaller(larger(at, -far), far);
    const vector floored = rounded_down(at);
    put_whole(whole, floored);
    *(vector *)fraction = at - floored;
}

ISA static void locate_floats(cpu_span *span, const cpu_floats *floats, int32_t count)
{
    const ym_float_row row_x = ym_float_row_at(floats->inverse, floats->y);
    const ym_float_row row_y = ym_float_row_at(floats->inverse + 3, floats->y);
    const ym_float_row row_w = ym_float_row_at(floats->inverse + 6, floats->y);
    const int32_t tail = ym_float_tail(floats->width) - floats->x;
    vector column;
    for (int32_t k = 0; k < LANES; k++) {
        column[k] = (float)(floats->x + k);
    }
    for (int32_t i = 0; i < count; i += LANES, column += LANES) {
        vector x = find_position(row_x, column, i >= tail);
        vector y = find_position(row_y, column, i >= tail);
        if (floats->perspective) {
            const vector w = find_position(row_w, column, i >= tail);
            x /= w;
            y /= w;
        }
        put_position(x, &span->x[i], &span->fx[i]);
        put_position(y, &span->y[i], &span->fy[i]);
    }
}
