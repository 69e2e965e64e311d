/* SPDX-License-Identifier: MIT
 *
 * image (3, H, W) <- scenes, one thread a pixel: the formulas of math/mosaic.h, so the
 * bytes are those of the other backends. Compiled without fused multiply-add.
 */
#include "cuda/launch.cuh"
#include "cuda/mosaic.h"
#include "math/mosaic.h"

namespace
{

const int THREADS = 256;

/* blockIdx.y: which image. */
__global__ void __launch_bounds__(THREADS) mosaic_kernel(const ym_mosaic_job *jobs)
{
    const ym_mosaic_job &job = jobs[blockIdx.y];
    const int64_t plane = (int64_t)job.height * job.width;
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= plane) {
        return;
    }
    ym_mosaic_put_pixel(&job, (int32_t)(i % job.width), (int32_t)(i / job.width));
}

/* Only up to 64 KB are copied from pageable memory without waiting for the stream (CUDA
 * Programming Guide, "Concurrent Execution between Host and Device"), and they are read
 * before the call returns. */
const int32_t JOBS_AT_ONCE = 64;
static_assert(JOBS_AT_ONCE * sizeof(ym_mosaic_job) <= 65536, "a copy would wait");

ym_status upload(ym_context *context, const ym_mosaic_job *job, int32_t count)
{
    ym_mosaic_job *to = static_cast<ym_mosaic_job *>(context->scratch);
    for (int32_t i = 0; i < count; i += JOBS_AT_ONCE) {
        const int32_t some = count - i < JOBS_AT_ONCE ? count - i : JOBS_AT_ONCE;
        YM_TRY(cuda_check(context,
                          cudaMemcpyAsync(to + i, job + i, some * sizeof *job,
                                          cudaMemcpyHostToDevice,
                                          (cudaStream_t)context->stream),
                          "cudaMemcpyAsync"));
    }
    return YM_OK;
}

} // namespace

size_t cuda_mosaic_scratch_bytes(int32_t count)
{
    return (size_t)count * sizeof(ym_mosaic_job);
}

ym_status cuda_mosaic_batch(ym_context *context, const ym_mosaic_job *job,
                            int32_t count)
{
    const cuda_device_guard guard(context);
    YM_CHECK(&context->error, count >= 1 && count <= 65535, YM_ERR_ARGUMENT,
             "mosaic: %d images in a batch, must be 1 to 65535", count);
    YM_TRY(cuda_require_scratch(context, "mosaic", cuda_mosaic_scratch_bytes(count)));
    YM_TRY(cuda_require_no_capture(context, "mosaic"));
    int64_t most = 0;
    for (int32_t i = 0; i < count; i++) {
        const int64_t plane = (int64_t)job[i].height * job[i].width;
        most = plane > most ? plane : most;
    }
    YM_TRY(upload(context, job, count));
    const dim3 grid((unsigned)((most + THREADS - 1) / THREADS), (unsigned)count);
    YM_LAUNCH(mosaic_kernel, grid, dim3(THREADS), context,
              static_cast<const ym_mosaic_job *>(context->scratch));
    return cuda_launched(context, "mosaic_kernel");
}

ym_status cuda_mosaic(ym_context *context, const struct ym_mosaic_job *job)
{
    return cuda_mosaic_batch(context, job, 1);
}
