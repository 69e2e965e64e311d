/* SPDX-License-Identifier: MIT
 *
 * Spans of 320 columns on the outside, rows within: what depends on the column alone is
 * worked out once for each span.
 */
#include "cpu/mosaic.h"

#include "math/hsv.h"
#include "math/warp.h"

#include <string.h>

typedef struct cpu_columns {
    _Alignas(64) int32_t x[CPU_SPAN];
    _Alignas(64) int32_t y[CPU_SPAN];
} cpu_columns;

/* One span's worth of everything, about 20 KB. */
typedef struct worker {
    const ym_mosaic_job *job;
    const cpu_mosaic_kernels *kernels;
    cpu_source source[2];   /* of each scene */
    cpu_columns columns[2]; /* of each scene */
    cpu_span span;
    cpu_planes planes[2]; /* of each scene */
    int32_t first, count; /* columns of the span */
    int32_t padded;       /* count up to a whole group */
} worker;

static ym_status choose_kernels(const ym_mosaic_job *job, ym_error *error,
                                const cpu_mosaic_kernels **kernels)
{
    *kernels = &cpu_mosaic_plain;
    bool avx2 = false, avx512 = false;
#if defined(__x86_64__)
    __builtin_cpu_init();
    avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi");
#endif
    YM_CHECK(error, avx2 || job->simd != YM_MOSAIC_SIMD_AVX2, YM_ERR_UNSUPPORTED,
             "mosaic: this CPU has no AVX2 and FMA");
    YM_CHECK(error, avx512 || job->simd != YM_MOSAIC_SIMD_AVX512, YM_ERR_UNSUPPORTED,
             "mosaic: this CPU has no AVX-512 F, BW, DQ, VL and VBMI");
#if defined(__x86_64__)
    bool best = job->simd == YM_MOSAIC_SIMD_BEST;
    if (job->simd == YM_MOSAIC_SIMD_AVX512 || (best && avx512)) {
        *kernels = &cpu_mosaic_avx512;
    } else if (job->simd == YM_MOSAIC_SIMD_AVX2 || (best && avx2)) {
        *kernels = &cpu_mosaic_avx2;
    }
#endif
    return YM_OK;
}

static bool overlap(const ym_tile *a, const ym_tile *b)
{
    return a->x < b->x + b->width && b->x < a->x + a->width && a->y < b->y + b->height &&
           b->y < a->y + a->height;
}

static cpu_source make_source(const ym_scene *scene)
{
    cpu_source source = {.scene = scene, .disjoint = true, .offsets_fit = true};
    for (int32_t i = 0; i < scene->tile_count; i++) {
        const ym_tile *tile = &scene->tile[i];
        int64_t farthest = tile->row_bytes * tile->height + (int64_t)tile->width * 3;
        source.offsets_fit = source.offsets_fit && farthest <= INT32_MAX &&
                             farthest >= INT32_MIN;
        for (int32_t k = 0; k < i; k++) {
            source.disjoint = source.disjoint && !overlap(tile, &scene->tile[k]);
        }
    }
    return source;
}

static void begin_span(worker *w, int32_t first)
{
    int32_t left = w->job->width - first;
    w->first = first;
    w->count = left < CPU_SPAN ? left : CPU_SPAN;
    w->padded = (w->count + 31) / 32 * 32;
    for (int32_t s = 0; s < w->job->scene_count; s++) {
        const ym_scene *scene = &w->job->scene[s];
        for (int32_t i = 0; i < w->padded && scene->warp == YM_WARP_AFFINE; i++) {
            w->columns[s].x[i] = ym_affine_column(scene->inverse[0], first + i);
            w->columns[s].y[i] = ym_affine_column(scene->inverse[3], first + i);
        }
    }
}

static void locate_unwarped(cpu_span *span, int32_t first, int32_t y, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        span->x[i] = first + i;
        span->y[i] = y;
        span->weight_x[i] = 32;
        span->weight_y[i] = 32;
    }
}

static void locate(worker *w, int32_t s, int32_t y)
{
    const ym_scene *scene = &w->job->scene[s];
    const double *m = scene->inverse;
    if (scene->warp == YM_WARP_AFFINE) {
        cpu_affine affine = {w->columns[s].x, w->columns[s].y,
                             ym_affine_row(m[1], m[2], y), ym_affine_row(m[4], m[5], y)};
        w->kernels->locate_affine(&w->span, &affine, w->padded);
    } else if (scene->warp == YM_WARP_PERSPECTIVE) {
        int32_t block = ym_perspective_block(w->job->height, w->job->width);
        cpu_perspective perspective = {m, w->first, y, block};
        w->kernels->locate_perspective(&w->span, &perspective, w->padded);
    } else {
        locate_unwarped(&w->span, w->first, y, w->padded);
    }
}

/* The colours of the span; the row's rounded end pixel by pixel. */
static void jitter_span(worker *w, cpu_planes *planes)
{
    int32_t tail = ym_hsv_tail(w->job->width) - w->first;
    tail = tail < w->count ? tail : w->count;
    uint8_t end[32][3];
    for (int32_t i = tail; i < w->count; i++) {
        end[i - tail][0] = planes->b[i];
        end[i - tail][1] = planes->g[i];
        end[i - tail][2] = planes->r[i];
        ym_hsv_jitter(end[i - tail], w->job->hsv, true);
    }
    w->kernels->jitter(planes, w->job->hsv, tail);
    for (int32_t i = tail; i < w->count; i++) {
        planes->b[i] = end[i - tail][0];
        planes->g[i] = end[i - tail][1];
        planes->r[i] = end[i - tail][2];
    }
}

static void store_plane(const worker *w, const uint8_t *plane, int32_t channel, int32_t y)
{
    const ym_mosaic_job *job = w->job;
    int64_t row = job->flip_vertical ? job->height - 1 - y : y;
    uint8_t *out = job->out + ((int64_t)channel * job->height + row) * job->width;
    if (!job->flip_horizontal) {
        memcpy(out + w->first, plane, (size_t)w->count);
        return;
    }
    w->kernels->reverse(out + job->width - w->first - w->count, plane, w->count);
}

static void make_row(worker *w, int32_t y)
{
    const ym_mosaic_job *job = w->job;
    for (int32_t s = 0; s < job->scene_count; s++) {
        locate(w, s, y);
        w->kernels->gather(&w->span, &w->source[s], w->padded);
        w->kernels->blend(&w->span, &w->planes[s], w->padded);
    }
    cpu_planes *planes = &w->planes[0];
    if (job->scene_count == 2) {
        w->kernels->mix(planes, &w->planes[1], job->ratio, w->padded);
    }
    if (job->hsv != NULL) {
        jitter_span(w, planes);
    }
    store_plane(w, planes->r, 0, y);
    store_plane(w, planes->g, 1, y);
    store_plane(w, planes->b, 2, y);
}

ym_status cpu_mosaic(ym_context *context, const ym_mosaic_job *job)
{
    worker w;
    w.job = job;
    YM_TRY(choose_kernels(job, &context->error, &w.kernels));
    for (int32_t s = 0; s < job->scene_count; s++) {
        w.source[s] = make_source(&job->scene[s]);
    }
    for (int32_t first = 0; first < job->width; first += CPU_SPAN) {
        begin_span(&w, first);
        for (int32_t y = 0; y < job->height; y++) {
            make_row(&w, y);
        }
    }
    return YM_OK;
}
