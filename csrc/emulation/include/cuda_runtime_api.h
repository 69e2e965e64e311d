/* SPDX-License-Identifier: MIT
 *
 * The part of the CUDA runtime that csrc/cuda calls, on the host: device memory is host
 * memory, streams run at once, and there is one device, number 0. For tests only.
 */
#ifndef YM_EMULATION_CUDA_RUNTIME_API_H
#define YM_EMULATION_CUDA_RUNTIME_API_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int cudaError_t;
typedef struct CUstream_st *cudaStream_t;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidDevice = 101 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1,
};

const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes,
                       enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                            enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  enum cudaStreamCaptureStatus *status);

/* For tests: what the next calls pretend. */
void ym_emulation_fail_next(cudaError_t error);
void ym_emulation_capture(int capturing);
/* 0: threads and blocks in order, 1: in reverse, 2: in turns from the middle. */
void ym_emulation_order(int order);

#ifdef __cplusplus
}
#endif

#endif
