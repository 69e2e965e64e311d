/* SPDX-License-Identifier: MIT
 *
 * The part of the CUDA runtime that csrc/cuda calls, on the host: device memory is host
 * memory, streams run at once. For tests only.
 */
#ifndef YM_EMULATION_CUDA_RUNTIME_API_H
#define YM_EMULATION_CUDA_RUNTIME_API_H

#include <stddef.h>

#define CUDART_VERSION 13000

#ifdef __cplusplus
extern "C" {
#endif

typedef int cudaError_t;
typedef struct CUstream_st *cudaStream_t;
enum {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidDevice = 101,
    cudaErrorStreamCaptureUnsupported = 900,
};
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem;
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
enum { cudaStreamNonBlocking = 1 };
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeRelaxed = 2,
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1,
};

const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError(void);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                            enum cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaEventCreate(cudaEvent_t *made);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin,
                                 cudaEvent_t end);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  enum cudaStreamCaptureStatus *status);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *made, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream,
                                   enum cudaStreamCaptureMode mode);
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *made);
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph,
                                          unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);

/* For tests: what the next calls pretend. */
void ym_emulation_fail_next(cudaError_t error);
/* While not 0, every call fails with it: 35 is no driver or one too old, 100 no GPU. */
void ym_emulation_driver(cudaError_t error);
void ym_emulation_devices(int count);
/* Compute capability major.0 instead of 9.0. */
void ym_emulation_capability(int major);
/* So many instead of an H100's; 0: as many as that. */
void ym_emulation_multiprocessors(int count);
/* Until told otherwise, for seconds at most, cudaGetDevice does not return; how many
 * threads are in it. */
void ym_emulation_hold(int hold);
int ym_emulation_held(void);
/* sizeof of what Python mirrors; 0: not known here. */
size_t ym_emulation_size_of(const char *structure);
/* While capturing, a call that a capture does not allow fails. */
void ym_emulation_capture(int capturing);
/* Since the last reset: launches, calls that wait for the device, copies to it. */
enum {
    YM_EMULATION_LAUNCHES = 0,
    YM_EMULATION_WAITS,
    YM_EMULATION_UPLOADS,
    YM_EMULATION_WATCHED, /* launches of what ym_emulation_watch was told */
    YM_EMULATION_GRAPHS,  /* made and not destroyed */
    YM_EMULATION_COUNTS
};
long ym_emulation_count(int what);
/* Where the stream is one that records: notes the call for its graph. */
int ym_emulation_records(cudaStream_t stream);
int ym_emulation_record_fill(cudaStream_t stream, void *to, int value, size_t bytes);
int ym_emulation_record_copy(cudaStream_t stream, void *to, const void *from,
                             size_t bytes);
void ym_emulation_reset_counts(void);
void ym_emulation_add(int what);
void ym_emulation_subtract(int what);
/* The clock that events read stands still but for this. */
void ym_emulation_advance(double milliseconds);
void ym_emulation_note_launch(const char *kernel);
/* Count launches of kernels whose name contains the text. */
void ym_emulation_watch(const char *text);
/* 0: threads and blocks in order, 1: in reverse, 2: in turns from the middle. */
void ym_emulation_order(int order);

#ifdef __cplusplus
}
#endif

#endif
