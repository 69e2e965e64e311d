/* SPDX-License-Identifier: MIT
 * The CUDA runtime on the host: everything is done at once.
 */
#include "cuda_runtime_api.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_DEVICES 4
/* Bytes of pageable memory; where there are more the driver may wait. */
#define ASYNCHRONOUS 65536
#define PATIENCE 10000 /* milliseconds */

enum { MULTIPROCESSORS = 132 };

static cudaError_t pending = cudaSuccess;
static int multiprocessors = MULTIPROCESSORS;
static cudaError_t driver = cudaSuccess;
static bool is_capturing = false;
static int devices = 1;
static int capability = 9;
static atomic_int holds, held;
static long counts[YM_EMULATION_COUNTS];
static char watched[64] = "no kernel";
static _Thread_local int current = 0;
static double now = 0; /* milliseconds */

struct CUevent_st {
    double time;
};

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
    return driver != cudaSuccess ? driver : error;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = driver == cudaSuccess ? devices : 0;
    return driver;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device)
{
    *found =
        (struct cudaDeviceProp){"", capability, 0, multiprocessors, (size_t)1 << 36};
    snprintf(found->name, sizeof found->name, "Emulated %d", device);
    return driver;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr name, int device)
{
    (void)device;
    *value = name == cudaDevAttrMultiProcessorCount ? multiprocessors : capability;
    return driver;
}

static void stay_while_held(void)
{
    held++;
    for (int i = 0; holds && i < PATIENCE; i++) {
        usleep(1000);
    }
    holds = 0;
    held--;
}

cudaError_t cudaGetDevice(int *device)
{
    if (holds) {
        stay_while_held();
    }
    *device = current;
    return driver;
}

cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= devices) {
        return cudaErrorInvalidDevice;
    }
    current = device;
    return driver;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    if (driver == cudaSuccess && !ym_emulation_record_fill(stream, to, value, bytes)) {
        memset(to, value, bytes);
    }
    return cudaGetLastError();
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
                            enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (kind == cudaMemcpyHostToDevice) {
        ym_emulation_add(YM_EMULATION_UPLOADS);
        if (bytes > ASYNCHRONOUS) {
            ym_emulation_add(YM_EMULATION_WAITS);
        }
    }
    if (driver == cudaSuccess && !ym_emulation_record_copy(stream, to, from, bytes)) {
        memcpy(to, from, bytes);
    }
    return cudaGetLastError();
}

static cudaError_t wait(void)
{
    ym_emulation_add(YM_EMULATION_WAITS);
    return is_capturing ? cudaErrorStreamCaptureUnsupported : cudaGetLastError();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    (void)stream;
    return wait();
}

cudaError_t cudaEventCreate(cudaEvent_t *made)
{
    *made = calloc(1, sizeof **made);
    return cudaGetLastError();
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return driver;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    (void)stream;
    event->time = now;
    return cudaGetLastError();
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    (void)event;
    return wait();
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin,
                                 cudaEvent_t end)
{
    *milliseconds = (float)(end->time - begin->time);
    return cudaGetLastError();
}

void ym_emulation_advance(double milliseconds)
{
    now += milliseconds;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                  enum cudaStreamCaptureStatus *status)
{
    const bool captures = is_capturing || ym_emulation_records(stream);
    *status = captures ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return driver;
}

void ym_emulation_multiprocessors(int count)
{
    multiprocessors = count > 0 ? count : MULTIPROCESSORS;
}

void ym_emulation_fail_next(cudaError_t error)
{
    pending = error;
}

void ym_emulation_driver(cudaError_t error)
{
    driver = error;
}

void ym_emulation_devices(int count)
{
    devices = count < MOST_DEVICES ? count : MOST_DEVICES;
}

void ym_emulation_hold(int hold)
{
    holds = hold;
}

int ym_emulation_held(void)
{
    return held;
}

void ym_emulation_capability(int major)
{
    capability = major;
}

void ym_emulation_capture(int capturing)
{
    is_capturing = capturing != 0;
}

long ym_emulation_count(int what)
{
    return counts[what];
}

void ym_emulation_reset_counts(void)
{
    memset(counts, 0, sizeof counts);
}

void ym_emulation_add(int what)
{
    counts[what]++;
}

void ym_emulation_subtract(int what)
{
    counts[what]--;
}

void ym_emulation_watch(const char *text)
{
    snprintf(watched, sizeof watched, "%s", text);
}

void ym_emulation_note_launch(const char *kernel)
{
    ym_emulation_add(YM_EMULATION_LAUNCHES);
    if (strstr(kernel, watched) != NULL) {
        ym_emulation_add(YM_EMULATION_WATCHED);
    }
}
