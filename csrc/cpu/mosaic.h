/* SPDX-License-Identifier: MIT
 *
 * Backend "cpu" makes an image a span of a row at a time, in steps that each run over
 * the whole span in the first-level cache. Any warp (mosaic_spans.c): locate (where
 * each pixel comes from), gather (its four neighbours as two 8-byte words), blend (to
 * planes). Warps that keep rows level (mosaic_rows.c; YOLOv9's own recipe has no
 * others): two rows of the canvas are put together, weighed into one, and sampled.
 * Then: mix, jitter, store.
 */
#ifndef YM_CPU_MOSAIC_H
#define YM_CPU_MOSAIC_H

#include "core/backend.h"
#include "core/mosaic.h"

/* A multiple of 64. Kernels work on whole groups of 32 and may write what is beyond the
 * count that they are given. */
#define CPU_SPAN 320

typedef struct cpu_span {
    _Alignas(64) uint64_t upper[CPU_SPAN]; /* b g r b g r of two neighbours, 2 unused */
    _Alignas(64) uint64_t lower[CPU_SPAN];
    _Alignas(64) int32_t x[CPU_SPAN]; /* of the upper left neighbour */
    _Alignas(64) int32_t y[CPU_SPAN];
    _Alignas(64) uint32_t weight_y[CPU_SPAN]; /* 32 - fy, fy: two 16-bit halves */
    _Alignas(64) uint16_t weight_x[CPU_SPAN]; /* 32 - fx, fx: two bytes */
    _Alignas(64) float fx[CPU_SPAN];          /* of a warp in floats, instead */
    _Alignas(64) float fy[CPU_SPAN];
} cpu_span;

typedef struct cpu_planes {
    _Alignas(64) uint8_t b[CPU_SPAN];
    _Alignas(64) uint8_t g[CPU_SPAN];
    _Alignas(64) uint8_t r[CPU_SPAN];
} cpu_planes;

/* Where a span is gathered from. */
typedef struct cpu_source {
    const ym_scene *scene;
    bool disjoint;     /* no two tiles overlap: they may be asked in any order */
    bool offsets_fit;  /* 32 bits hold the offset of every pixel of every tile */
    int32_t last_tile; /* that was found; where to begin if disjoint */
} cpu_source;

/* An affine position in 1/1024 pixel is column + row. */
typedef struct cpu_affine {
    const int32_t *column_x, *column_y; /* of the span's columns */
    int32_t row_x, row_y;
} cpu_affine;

typedef struct cpu_perspective {
    const double *inverse;
    int32_t x, y;  /* of the span's first pixel */
    int32_t block; /* see ym_perspective_block */
} cpu_perspective;

typedef struct cpu_floats {
    const double *inverse;
    bool perspective;
    int32_t x, y;  /* of the span's first pixel */
    int32_t width; /* of the image */
} cpu_floats;

typedef struct cpu_mosaic_kernels {
    void (*locate_affine)(cpu_span *span, const cpu_affine *affine, int32_t count);
    void (*locate_perspective)(cpu_span *span, const cpu_perspective *perspective,
                               int32_t count);
    void (*locate_floats)(cpu_span *span, const cpu_floats *floats, int32_t count);
    void (*gather)(cpu_span *span, cpu_source *source, int32_t count);
    /* out[i] = upper[i] * (32 - weight) + lower[i] * weight */
    void (*weigh_rows)(const uint8_t *upper, const uint8_t *lower, int32_t weight,
                       int32_t count, uint16_t *out);
    /* Pixels from weighed rows: neighbours at sums + offset and 3 on, weights as
     * cpu_span's weight_y has them. Reads 16 bytes at each offset. */
    void (*sample)(const uint16_t *sums, const int32_t *offset, const uint32_t *weight,
                   cpu_planes *planes, int32_t count);
    void (*blend)(const cpu_span *span, cpu_planes *planes, int32_t count);
    void (*blend_floats)(const cpu_span *span, cpu_planes *planes, int32_t count);
    void (*mix)(cpu_planes *planes, const cpu_planes *other, double ratio,
                int32_t count);
    /* Truncating; the rounded end of a row is redone by the caller. */
    void (*jitter)(cpu_planes *planes, const uint8_t *lut, int32_t count);
    /* out[count - 1 - i] = plane[i]; writes nothing else. */
    void (*reverse)(uint8_t *out, const uint8_t *plane, int32_t count);
} cpu_mosaic_kernels;

extern const cpu_mosaic_kernels cpu_mosaic_plain;
#if defined(__x86_64__)
extern const cpu_mosaic_kernels cpu_mosaic_avx2;
extern const cpu_mosaic_kernels cpu_mosaic_avx512;
#endif

/* The image being made, and the span of its columns in work. */
typedef struct cpu_output {
    const ym_mosaic_job *job;
    const cpu_mosaic_kernels *kernels;
    cpu_planes planes[2]; /* of each scene */
    int32_t first, count; /* columns of the span */
    int32_t padded;       /* count up to a whole group */
} cpu_output;

void cpu_mosaic_begin_span(cpu_output *output, int32_t first);
/* From planes to row y of the image: mix, jitter, store. */
void cpu_mosaic_finish_span(cpu_output *output, int32_t y);

void cpu_mosaic_by_spans(cpu_output *output);
bool cpu_mosaic_rows_fit(const ym_mosaic_job *job);
void cpu_mosaic_by_rows(cpu_output *output);

/* One pixel of the span, wherever it lies: by way of its tile where one shows all its
 * neighbours, or neighbour by neighbour. */
void cpu_mosaic_gather_pixel(cpu_span *span, const ym_scene *scene, int32_t i);
void cpu_mosaic_gather_singly(cpu_span *span, const ym_scene *scene, int32_t i);

/* How a stretch of 50 pixels of a row of the mask, up to `last`, is set, and the next
 * row's: the rows' bits are looked at as words of 64. */
typedef enum cpu_pasted { CPU_PASTED_NONE, CPU_PASTED_ALL, CPU_PASTED_SOME } cpu_pasted;

cpu_pasted cpu_mosaic_pasted(const ym_scene *scene, int32_t last, int32_t y);

#if defined(__x86_64__)
void cpu_mosaic_gather_avx2(cpu_span *span, cpu_source *source, int32_t count);
void cpu_mosaic_jitter_avx2(cpu_planes *planes, const uint8_t *lut, int32_t count);
void cpu_mosaic_gather_avx512(cpu_span *span, cpu_source *source, int32_t count);
#endif

ym_status cpu_mosaic(ym_context *context, const ym_mosaic_job *job);

#endif
