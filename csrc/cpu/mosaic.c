/* SPDX-License-Identifier: MIT
 * What both ways of making an image share: the choice of instructions, and the end.
 */
#include "cpu/mosaic.h"

#include "cpu/isa.h"
#include "math/hsv.h"
#include "math/warp.h"

#include <string.h>

static ym_status choose_kernels(const ym_mosaic_job *job, ym_error *error,
                                const cpu_mosaic_kernels **kernels)
{
    *kernels = &cpu_mosaic_plain;
    const bool avx2 = cpu_isa_here() >= CPU_ISA_AVX2;
    bool avx512 = false;
#if defined(__x86_64__)
    avx512 = cpu_isa_here() >= CPU_ISA_AVX512 && __builtin_cpu_supports("avx512vbmi");
#endif
    YM_CHECK(error, avx2 || job->simd != YM_MOSAIC_SIMD_AVX2, YM_ERR_UNSUPPORTED,
             "mosaic: this CPU has no AVX2 and FMA");
    YM_CHECK(error, avx512 || job->simd != YM_MOSAIC_SIMD_AVX512, YM_ERR_UNSUPPORTED,
             "mosaic: this CPU has no AVX-512 F, BW, DQ, VL and VBMI");
#if defined(__x86_64__)
    const bool best = job->simd == YM_MOSAIC_SIMD_BEST;
    const cpu_isa isa = cpu_isa_allowed();
    if (job->simd == YM_MOSAIC_SIMD_AVX512 ||
        (best && avx512 && isa >= CPU_ISA_AVX512)) {
        *kernels = &cpu_mosaic_avx512;
    } else if (job->simd == YM_MOSAIC_SIMD_AVX2 || (best && isa >= CPU_ISA_AVX2)) {
        *kernels = &cpu_mosaic_avx2;
    }
#endif
    return YM_OK;
}

void cpu_mosaic_begin_span(cpu_output *output, int32_t first)
{
    int32_t left = output->job->width - first;
    output->first = first;
    output->count = left < CPU_SPAN ? left : CPU_SPAN;
    output->padded = (output->count + 31) / 32 * 32;
}

/* The colours of the span; the row's rounded end pixel by pixel. */
static void jitter_span(cpu_output *output, cpu_planes *planes)
{
    const uint8_t *lut = output->job->hsv;
    int32_t tail = ym_hsv_tail(output->job->width) - output->first;
    tail = tail < output->count ? tail : output->count;
    uint8_t end[32][3];
    for (int32_t i = tail; i < output->count; i++) {
        end[i - tail][0] = planes->b[i];
        end[i - tail][1] = planes->g[i];
        end[i - tail][2] = planes->r[i];
        ym_hsv_jitter(end[i - tail], lut, true);
    }
    output->kernels->jitter(planes, lut, tail);
    for (int32_t i = tail; i < output->count; i++) {
        planes->b[i] = end[i - tail][0];
        planes->g[i] = end[i - tail][1];
        planes->r[i] = end[i - tail][2];
    }
}

static void store_plane(const cpu_output *output, const uint8_t *plane, int32_t channel,
                        int32_t y)
{
    const ym_mosaic_job *job = output->job;
    int64_t row = job->flip_vertical ? job->height - 1 - y : y;
    uint8_t *out = job->out + ((int64_t)channel * job->height + row) * job->width;
    if (job->flip_horizontal) {
        int32_t first = job->width - output->first - output->count;
        output->kernels->reverse(out + first, plane, output->count);
    } else {
        memcpy(out + output->first, plane, (size_t)output->count);
    }
}

void cpu_mosaic_finish_span(cpu_output *output, int32_t y)
{
    const ym_mosaic_job *job = output->job;
    cpu_planes *planes = &output->planes[0];
    if (job->scene_count == 2) {
        output->kernels->mix(planes, &output->planes[1], job->ratio, output->padded);
    }
    if (job->hsv != NULL) {
        jitter_span(output, planes);
    }
    store_plane(output, planes->r, 0, y);
    store_plane(output, planes->g, 1, y);
    store_plane(output, planes->b, 2, y);
}

ym_status cpu_mosaic(ym_context *context, const ym_mosaic_job *job)
{
    cpu_output output;
    output.job = job;
    YM_TRY(choose_kernels(job, &context->error, &output.kernels));
    if (cpu_mosaic_rows_fit(job)) {
        cpu_mosaic_by_rows(&output);
    } else {
        cpu_mosaic_by_spans(&output);
    }
    return YM_OK;
}
