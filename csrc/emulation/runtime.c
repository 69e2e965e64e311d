/* SPDX-License-Identifier: MIT
 * The CUDA runtime on the host: everything is done at once.
 */
#include "cuda_runtime_api.h"

#include <stdbool.h>
#include <string.h>

static cudaError_t pending = cudaSuccess;
static bool is_capturing = false;

const char *cudaGetErrorName(cudaError_t error)
{
    return error == cudaSuccess ? "cudaSuccess" : "cudaErrorEmulated";
}

const char *cudaGetErrorString(cudaError_t error)
{
    return error == cudaSuccess ? "no error" : "an error made up by a test";
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = pending;
    pending = cudaSuccess;
    return error;
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    (void)stream;
    memset(to, value, bytes);
    return cudaGetLastError();
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                            enum cudaMemcpyKind kind, cudaStream_t stream)
{
    (void)kind, (void)stream;
    memcpy(to, from, bytes);
    return cudaGetLastError();
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  enum cudaStreamCaptureStatus *status)
{
    (void)stream;
    *status = is_capturing ? cudaStreamCaptureStatusActive
                           : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

void ym_emulation_fail_next(cudaError_t error)
{
    pending = error;
}

void ym_emulation_capture(int capturing)
{
    is_capturing = capturing != 0;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes,
                       enum cudaMemcpyKind kind)
{
    return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}
