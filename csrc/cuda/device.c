/* SPDX-License-Identifier: MIT
 * Errors of the CUDA runtime as values.
 */
#include "cuda/cuda.h"

#include <stdio.h>

static const char *advice(cudaError_t result)
{
    switch ((int)result) {
    case 2:
        return "; the GPU has no memory left: a smaller batch or keep='min' needs less";
    case 35:
        return "; there is no NVIDIA driver, or it is older than the CUDA runtime of "
               "this "
               "build: see nvidia-smi, update the driver, or build with an older "
               "toolkit";
    case 100:
        return "; no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES";
    case 209:
        return "; this build has no code for this GPU: build again with "
               "YOLOV9MEM_CUDA_ARCHS set to its compute capability";
    case 700:
    case 719:
        return "; the process cannot use the GPU any more: run it again under "
               "compute-sanitizer";
    default:
        return "";
    }
}

ym_status cuda_check(ym_context *context, cudaError_t result, const char *call)
{
    if (result == cudaSuccess) {
        return YM_OK;
    }
    cudaGetLastError(); /* so that the next call starts clean */
    char where[32] = "";
    if (context->device >= 0) {
        snprintf(where, sizeof where, " on device %d", context->device);
    }
    return ym_fail(&context->error,
                   result == (cudaError_t)2 ? YM_ERR_MEMORY : YM_ERR_BACKEND,
                   "cuda: %s%s: %s (%s)%s", call, where, cudaGetErrorString(result),
                   cudaGetErrorName(result), advice(result));
}

ym_status cuda_launched(ym_context *context, const char *kernel)
{
    return cuda_check(context, cudaGetLastError(), kernel);
}

int cuda_enter_device(const ym_context *context)
{
    int previous = -1;
    if (context->device < 0 || cudaGetDevice(&previous) != cudaSuccess ||
        previous == context->device || cudaSetDevice(context->device) != cudaSuccess) {
        return -1;
    }
    return previous;
}

void cuda_leave_device(int previous)
{
    if (previous >= 0) {
        cudaSetDevice(previous);
    }
}

#define DEVICES 64 /* whose answer is kept */

int32_t cuda_multiprocessors(const ym_context *context)
{
    static _Atomic int32_t known[DEVICES];
    const int device = context->device;
    const bool keeps = device >= 0 && device < DEVICES;
    int found = keeps ? known[device] : 0;
    if (found == 0) {
        const cudaError_t result = cudaDeviceGetAttribute(
            &found, cudaDevAttrMultiProcessorCount, device < 0 ? 0 : device);
        if (result != cudaSuccess || found < 1) {
            cudaGetLastError();
            return 1; /* the launch will say what is wrong */
        }
        if (keeps) {
            known[device] = found;
        }
    }
    return found;
}

bool cuda_is_captured(const ym_context *context)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing((cudaStream_t)context->stream, &status) != cudaSuccess) {
        cudaGetLastError(); /* the legacy stream while another is captured */
        return true;
    }
    return status != cudaStreamCaptureStatusNone;
}

ym_status cuda_require_no_capture(ym_context *context, const char *call)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    YM_TRY(cuda_check(context,
                      cudaStreamIsCapturing((cudaStream_t)context->stream, &status),
                      "cudaStreamIsCapturing"));
    YM_CHECK(&context->error, status == cudaStreamCaptureStatusNone, YM_ERR_BACKEND,
             "cuda: %s: the stream is being captured, which this call does not allow: "
             "make it before the capture",
             call);
    return YM_OK;
}

ym_status cuda_require_scratch(ym_context *context, const char *call, size_t bytes)
{
    YM_CHECK(
        &context->error, context->scratch_bytes >= bytes, YM_ERR_ARGUMENT,
        "cuda: %s: %zu bytes of scratch given, it needs %zu; was the plan made for "
        "another device?",
        call, context->scratch_bytes, bytes);
    return YM_OK;
}
