/* SPDX-License-Identifier: MIT
 *
 * image (3, H, W) <- scenes, one thread a pixel: the formulas of math/warp.h and
 * math/hsv.h, so the bytes are those of the other backends. Compiled without fused
 * multiply-add.
 */
#include "cuda/launch.cuh"
#include "cuda/mosaic.h"
#include "math/hsv.h"
#include "math/warp.h"

namespace
{

const int THREADS = 256;

__device__ ym_tap find_tap(const ym_mosaic_job &job, const ym_scene &scene, int32_t x,
                           int32_t y)
{
    if (scene.warp == YM_WARP_AFFINE) {
        return ym_affine_tap(scene.inverse, x, y);
    }
    if (scene.warp == YM_WARP_PERSPECTIVE) {
        const int32_t block = ym_perspective_block(job.height, job.width);
        return ym_perspective_tap(scene.inverse, x, y, block);
    }
    return {x, y, 0, 0};
}

__device__ void sample_scene(const ym_mosaic_job &job, const ym_scene &scene, int32_t x,
                             int32_t y, uint8_t (&bgr)[3])
{
    const bool floats = scene.warp >= YM_WARP_AFFINE_FLOAT;
    ym_float_tap float_tap = {};
    ym_tap tap = {};
    if (floats) {
        const bool perspective = ym_warp_is_perspective(scene.warp);
        float_tap = ym_float_tap_at(scene.inverse, perspective, x, y, job.width);
        tap.x = float_tap.x;
        tap.y = float_tap.y;
    } else {
        tap = find_tap(job, scene, x, y);
    }
    const uint8_t grey[3] = {YM_MOSAIC_FILL, YM_MOSAIC_FILL, YM_MOSAIC_FILL};
    const uint8_t *corner[4];
    for (int32_t i = 0; i < 4; i++) {
        corner[i] = ym_scene_pixel(&scene, tap.x + (i & 1), tap.y + (i >> 1));
        corner[i] = corner[i] != nullptr ? corner[i] : grey;
    }
    for (int32_t c = 0; c < 3; c++) {
        const int32_t at[4] = {corner[0][c], corner[1][c], corner[2][c], corner[3][c]};
        bgr[c] = floats ? ym_blend_floats(at[0], at[1], at[2], at[3], float_tap.fx,
                                          float_tap.fy)
                        : ym_blend_taps(at[0], at[1], at[2], at[3], tap);
    }
}

/* blockIdx.y: which image. */
__global__ void __launch_bounds__(THREADS) mosaic_kernel(const ym_mosaic_job *jobs)
{
    const ym_mosaic_job &job = jobs[blockIdx.y];
    const int64_t plane = (int64_t)job.height * job.width;
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= plane) {
        return;
    }
    const int32_t x = (int32_t)(i % job.width), y = (int32_t)(i / job.width);
    uint8_t bgr[3];
    sample_scene(job, job.scene[0], x, y, bgr);
    if (job.scene_count == 2) {
        uint8_t other[3];
        sample_scene(job, job.scene[1], x, y, other);
        for (int32_t c = 0; c < 3; c++) {
            bgr[c] = ym_mix(bgr[c], other[c], job.ratio);
        }
    }
    if (job.hsv != nullptr) {
        ym_hsv_jitter(bgr, job.hsv, x >= ym_hsv_tail(job.width));
    }
    const int32_t row = job.flip_vertical ? job.height - 1 - y : y;
    const int32_t column = job.flip_horizontal ? job.width - 1 - x : x;
    uint8_t *out = job.out + (int64_t)row * job.width + column;
    for (int32_t c = 0; c < 3; c++) {
        out[c * plane] = bgr[2 - c];
    }
}

} // namespace

size_t cuda_mosaic_scratch_bytes(int32_t count)
{
    return (size_t)count * sizeof(ym_mosaic_job);
}

ym_status cuda_require_no_capture(ym_context *context, const char *call)
{
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    YM_TRY(cuda_check(context,
                      cudaStreamIsCapturing((cudaStream_t)context->stream, &status),
                      "cudaStreamIsCapturing"));
    YM_CHECK(&context->error, status == cudaStreamCaptureStatusNone, YM_ERR_BACKEND,
             "cuda: %s: the stream is being captured, which this call does not allow: "
             "make it before the capture",
             call);
    return YM_OK;
}

ym_status cuda_mosaic_batch(ym_context *context, const ym_mosaic_job *job,
                            int32_t count)
{
    const cuda_device_guard guard(context);
    const size_t bytes = cuda_mosaic_scratch_bytes(count);
    YM_CHECK(&context->error, count >= 1 && count <= 65535, YM_ERR_ARGUMENT,
             "mosaic: %d images in a batch, must be 1 to 65535", count);
    YM_TRY(cuda_require_scratch(context, "mosaic", bytes));
    YM_TRY(cuda_require_no_capture(context, "mosaic"));
    int64_t most = 0;
    for (int32_t i = 0; i < count; i++) {
        const int64_t plane = (int64_t)job[i].height * job[i].width;
        most = plane > most ? plane : most;
    }
    /* From pageable memory: the jobs are read before the call returns. */
    YM_TRY(
        cuda_check(context,
                   cudaMemcpyAsync(context->scratch, job, bytes, cudaMemcpyHostToDevice,
                                   (cudaStream_t)context->stream),
                   "cudaMemcpyAsync"));
    const dim3 grid((unsigned)((most + THREADS - 1) / THREADS), (unsigned)count);
    YM_LAUNCH(mosaic_kernel, grid, dim3(THREADS), context,
              static_cast<const ym_mosaic_job *>(context->scratch));
    return cuda_launched(context, "mosaic_kernel");
}

ym_status cuda_mosaic(ym_context *context, const struct ym_mosaic_job *job)
{
    return cuda_mosaic_batch(context, job, 1);
}
