/* SPDX-License-Identifier: MIT
 *
 * Any warp: spans of columns on the outside, rows within, so that what depends on the
 * column alone is worked out once for each span.
 */
#include "cpu/mosaic.h"
#include "math/warp.h"

typedef struct cpu_columns {
    _Alignas(64) int32_t x[CPU_SPAN];
    _Alignas(64) int32_t y[CPU_SPAN];
} cpu_columns;

typedef struct worker {
    cpu_output *output;
    cpu_source source[2];   /* of each scene */
    cpu_columns columns[2]; /* of each scene */
    cpu_span span;
} worker;

static bool overlap(const ym_tile *a, const ym_tile *b)
{
    return a->x < b->x + b->width && b->x < a->x + a->width &&
           a->y < b->y + b->height && b->y < a->y + a->height;
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
    cpu_mosaic_begin_span(w->output, first);
    const ym_mosaic_job *job = w->output->job;
    for (int32_t s = 0; s < job->scene_count; s++) {
        const ym_scene *scene = &job->scene[s];
        for (int32_t i = 0; i < w->output->padded && scene->warp == YM_WARP_AFFINE;
             i++) {
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
    const cpu_output *output = w->output;
    const ym_mosaic_job *job = output->job;
    const ym_scene *scene = &job->scene[s];
    const double *m = scene->inverse;
    if (scene->warp == YM_WARP_AFFINE) {
        cpu_affine affine = {w->columns[s].x, w->columns[s].y,
                             ym_affine_row(m[1], m[2], y),
                             ym_affine_row(m[4], m[5], y)};
        output->kernels->locate_affine(&w->span, &affine, output->padded);
    } else if (scene->warp == YM_WARP_PERSPECTIVE) {
        int32_t block = ym_perspective_block(job->height, job->width);
        cpu_perspective perspective = {m, output->first, y, block};
        output->kernels->locate_perspective(&w->span, &perspective, output->padded);
    } else if (ym_warp_is_float(scene->warp)) {
        cpu_floats floats = {m, ym_warp_is_perspective(scene->warp), output->first, y,
                             job->width};
        output->kernels->locate_floats(&w->span, &floats, output->padded);
    } else {
        locate_unwarped(&w->span, output->first, y, output->padded);
    }
}

void cpu_mosaic_by_spans(cpu_output *output)
{
    const ym_mosaic_job *job = output->job;
    worker w;
    w.output = output;
    for (int32_t s = 0; s < job->scene_count; s++) {
        w.source[s] = make_source(&job->scene[s]);
    }
    for (int32_t first = 0; first < job->width; first += CPU_SPAN) {
        begin_span(&w, first);
        for (int32_t y = 0; y < job->height; y++) {
            for (int32_t s = 0; s < job->scene_count; s++) {
                locate(&w, s, y);
                output->kernels->gather(&w.span, &w.source[s], output->padded);
                bool floats = ym_warp_is_float(job->scene[s].warp);
                (floats ? output->kernels->blend_floats : output->kernels->blend)(
                    &w.span, &output->planes[s], output->padded);
            }
            cpu_mosaic_finish_span(output, y);
        }
    }
}
