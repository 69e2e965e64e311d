/* SPDX-License-Identifier: MIT
 *
 * Streams that record and the graphs that are made of it: a list of calls with their
 * arguments. A launch of a graph counts as one.
 */
#include "cuda_runtime.h"

#include <mutex>
#include <set>
#include <vector>

typedef std::vector<std::function<void()>> calls;

struct CUgraph_st {
    calls work;
};

struct CUgraphExec_st {
    calls work;
};

struct CUstream_st {
    CUgraph_st *graph = nullptr;
};

namespace
{

std::mutex lock;
std::set<CUstream_st *> streams; /* of our own; a test's may be any number */
thread_local enum cudaStreamCaptureMode mode_now = cudaStreamCaptureModeGlobal;

CUgraph_st *recording(cudaStream_t stream)
{
    const std::lock_guard<std::mutex> guard(lock);
    return streams.count(stream) != 0 ? stream->graph : nullptr;
}

} // namespace

bool ym_emulation_record(cudaStream_t stream, const std::function<void()> &work)
{
    CUgraph_st *graph = recording(stream);
    if (graph != nullptr) {
        graph->work.push_back(work);
    }
    return graph != nullptr;
}

extern "C" {

int ym_emulation_records(cudaStream_t stream)
{
    return recording(stream) != nullptr;
}

int ym_emulation_record_fill(cudaStream_t stream, void *to, int value, size_t bytes)
{
    return ym_emulation_record(stream, [=] { memset(to, value, bytes); });
}

int ym_emulation_record_copy(cudaStream_t stream, void *to, const void *from,
                             size_t bytes)
{
    return ym_emulation_record(stream, [=] { memcpy(to, from, bytes); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *made, unsigned)
{
    const std::lock_guard<std::mutex> guard(lock);
    *made = new CUstream_st;
    streams.insert(*made);
    return cudaGetLastError();
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    const std::lock_guard<std::mutex> guard(lock);
    streams.erase(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode)
{
    const cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) {
        stream->graph = new CUgraph_st;
        ym_emulation_add(YM_EMULATION_GRAPHS);
    }
    return error;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    std::swap(mode_now, *mode);
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *made)
{
    *made = stream->graph;
    stream->graph = nullptr;
    return cudaGetLastError();
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *made, cudaGraph_t graph,
                                          unsigned long long)
{
    *made = new CUgraphExec_st{graph->work};
    ym_emulation_add(YM_EMULATION_GRAPHS);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t)
{
    const cudaError_t error = cudaGetLastError();
    ym_emulation_note_launch("graph");
    for (const auto &call : graph->work) {
        if (error == cudaSuccess) {
            call();
        }
    }
    return error;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    ym_emulation_subtract(YM_EMULATION_GRAPHS);
    return cudaSuccess;
}

/* While a stream is captured, not in a thread that has not said that it may. */
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph)
{
    enum cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (mode_now == cudaStreamCaptureModeGlobal &&
        cudaStreamIsCapturing(nullptr, &status) == cudaSuccess &&
        status != cudaStreamCaptureStatusNone) {
        return cudaErrorStreamCaptureUnsupported;
    }
    delete graph;
    ym_emulation_subtract(YM_EMULATION_GRAPHS);
    return cudaSuccess;
}
}
