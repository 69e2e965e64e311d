/* SPDX-License-Identifier: MIT
 *
 * Rows are widened once each into 32-bit sums and blended in pairs. OpenCV replaces an
 * exact halving by the mean of 2x2 pixels, and so does this.
 */
#include "ops/resize.h"

#include "math/resize.h"

typedef struct resizer {
    const ym_image *source, *out;
    ym_lerp *column; /* (out width) */
    int32_t *row[2]; /* (out width, 3), sums in 1/2048 */
    int32_t held[2]; /* the source row in each, -1: none */
} resizer;

static size_t aligned(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

size_t ym_resize_scratch_bytes(int32_t width)
{
    return aligned((size_t)width * sizeof(ym_lerp)) +
           2 * aligned((size_t)width * 3 * sizeof(int32_t));
}

static void widen_row(const resizer *r, int32_t y, int32_t *sums)
{
    const uint8_t *row = r->source->pixels + y * r->source->row_bytes;
    int32_t last = r->source->width - 1;
    for (int32_t x = 0; x < r->out->width; x++, sums += 3) {
        ym_lerp lerp = r->column[x];
        const uint8_t *a = row + (int64_t)lerp.first * 3;
        const uint8_t *b = lerp.first < last ? a + 3 : a;
        sums[0] = a[0] * lerp.weight0 + b[0] * lerp.weight1;
        sums[1] = a[1] * lerp.weight0 + b[1] * lerp.weight1;
        sums[2] = a[2] * lerp.weight0 + b[2] * lerp.weight1;
    }
}

/* The sums of source row y, clamped to the image. */
static const int32_t *find_row(resizer *r, int32_t y)
{
    y = y < 0 ? 0 : y;
    y = y >= r->source->height ? r->source->height - 1 : y;
    int32_t slot = y & 1;
    if (r->held[slot] != y) {
        widen_row(r, y, r->row[slot]);
        r->held[slot] = y;
    }
    return r->row[slot];
}

static void blend_rows(const int32_t *restrict upper, const int32_t *restrict lower,
                       ym_lerp weights, int32_t count, uint8_t *restrict out)
{
    for (int32_t i = 0; i < count; i++) {
        out[i] = ym_resize_blend(upper[i], lower[i], weights.weight0, weights.weight1);
    }
}

static void resize_bilinear(resizer *r)
{
    for (int32_t x = 0; x < r->out->width; x++) {
        r->column[x] = ym_resize_column(x, r->source->width, r->out->width);
    }
    for (int32_t y = 0; y < r->out->height; y++) {
        ym_lerp lerp = ym_resize_row(y, r->source->height, r->out->height);
        const int32_t *upper = find_row(r, lerp.first);
        const int32_t *lower = find_row(r, lerp.first + 1);
        blend_rows(upper, lower, lerp, r->out->width * 3,
                   r->out->pixels + y * r->out->row_bytes);
    }
}

static void halve(const ym_image *source, const ym_image *out)
{
    for (int32_t y = 0; y < out->height; y++) {
        const uint8_t *upper = source->pixels + 2 * y * source->row_bytes;
        const uint8_t *lower = upper + source->row_bytes;
        uint8_t *to = out->pixels + y * out->row_bytes;
        for (int32_t x = 0; x < out->width; x++, upper += 6, lower += 6, to += 3) {
            for (int32_t c = 0; c < 3; c++) {
                to[c] =
                    (uint8_t)((upper[c] + upper[c + 3] + lower[c] + lower[c + 3] + 2) >>
                              2);
            }
        }
    }
}

static ym_status check_image(const ym_image *image, const char *name, ym_error *error)
{
    YM_CHECK(error,
             image->height >= 1 && image->width >= 1 &&
                 image->height <= YM_MOSAIC_MAX_SIDE &&
                 image->width <= YM_MOSAIC_MAX_SIDE,
             YM_ERR_ARGUMENT, "resize: %s is %dx%d, sides must be 1 to %d", name,
             image->width, image->height, YM_MOSAIC_MAX_SIDE);
    return YM_OK;
}

ym_status ym_resize_image(const ym_image *source, const ym_image *out, void *scratch,
                          ym_error *error)
{
    YM_TRY(check_image(source, "the source", error));
    YM_TRY(check_image(out, "the result", error));
    if (source->height == 2 * out->height && source->width == 2 * out->width) {
        halve(source, out);
        return YM_OK;
    }
    char *bytes = scratch;
    size_t row_bytes = aligned((size_t)out->width * 3 * sizeof(int32_t));
    resizer r = {.source = source, .out = out, .column = scratch, .held = {-1, -1}};
    r.row[0] = (int32_t *)(bytes + aligned((size_t)out->width * sizeof(ym_lerp)));
    r.row[1] = (int32_t *)((char *)r.row[0] + row_bytes);
    resize_bilinear(&r);
    return YM_OK;
}
