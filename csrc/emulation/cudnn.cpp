/* SPDX-License-Identifier: MIT
 *
 * The functions of cuDNN that csrc/cuda uses, in the emulation's own library: give its
 * path as YOLOV9MEM_CUDNN. Descriptors have cuDNN's rules: none is read before it is
 * final nor changed afterwards, tensors are packed, memory is aligned. The workspace is
 * overwritten. Executions are recorded on a stream that records.
 *
 * FAKE_CUDNN says what is odd: "old" (version 8.9.5), "create" (no handle), "bf16" (no
 * engine for bfloat16), "parts" (a library of it is missing), "engines" (several, see
 * ENGINES); FAKE_CUDNN_FAIL=N: the Nth execution fails.
 */
#include "cudnn_convolve.h"

#include "cuda/cudnn_library.h"
#include "cuda_runtime.h"

#include <map>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

struct cudnnContext {
    cudaStream_t stream;
};

namespace
{

const int BAD_PARAM = 2000, NOT_SUPPORTED = 3000, EXECUTION_FAILED = 5000;

struct engine {
    int64_t workspace;
    double milliseconds; /* of the emulation's clock */
    std::vector<int> numerical, behaviour;
    bool runs;
};

/* In cuDNN's order. The first is what it recommends; number 5 is the fastest that may
 * be used and fits the cap. */
const engine ENGINES[] = {
    {1000, 4, {}, {}, true},
    {1000, 1, {CUDNN_NOTE_NONDETERMINISTIC}, {}, true},
    {1000, 1, {}, {CUDNN_NOTE_RUNTIME_COMPILATION}, true},
    {(int64_t)64 << 20, 1, {}, {}, true},
    {0, 1, {}, {}, false},
    {4096, 2, {}, {}, true},
    {0, 3, {}, {}, true},
};

struct descriptor {
    int kind;
    bool is_final = false;
    std::map<int, std::vector<char>> attributes;
    ym_fake_convolution convolution = {};
    int number = 0; /* of the engine */

    template <typename T> T get(int name, int i = 0) const
    {
        T value = {};
        const auto found = attributes.find(name);
        if (found != attributes.end() && (i + 1) * sizeof(T) <= found->second.size()) {
            memcpy(&value, found->second.data() + i * sizeof(T), sizeof(T));
        }
        return value;
    }
    void copy(int name, int64_t *to, int count) const
    {
        for (int i = 0; i < count; i++) {
            to[i] = get<int64_t>(name, i);
        }
    }
};

int executions;

bool mode(const char *name)
{
    const char *told = getenv("FAKE_CUDNN");
    return told != nullptr && strcmp(told, name) == 0;
}

size_t bytes_of(int type, int64_t count)
{
    const bool is_int = type == CUDNN_TYPE_DATA_TYPE || type == CUDNN_TYPE_FLOAT ||
                        type == CUDNN_TYPE_CONVOLUTION_MODE ||
                        type == CUDNN_TYPE_HEUR_MODE;
    return (size_t)count * (type == CUDNN_TYPE_CHAR ? 1 : is_int ? 4 : 8);
}

bool is_packed(const descriptor &tensor)
{
    int64_t size[4], stride[4];
    tensor.copy(CUDNN_TENSOR_DIMENSIONS, size, 4);
    tensor.copy(CUDNN_TENSOR_STRIDES, stride, 4);
    return stride[1] == 1 && stride[3] == size[1] && stride[2] == size[3] * stride[3] &&
           stride[0] == size[2] * stride[2];
}

/* The names of an operation's attributes, in the order of its kind's numbers. */
struct operation {
    int beta, convolution, w, x, y;
};

const std::map<int, operation> OPERATIONS = {
    {CUDNN_FORWARD_KIND,
     {CUDNN_FORWARD_BETA, CUDNN_FORWARD_CONVOLUTION, CUDNN_FORWARD_W, CUDNN_FORWARD_X,
      CUDNN_FORWARD_Y}},
    {CUDNN_BACKWARD_DATA_KIND,
     {CUDNN_BACKWARD_DATA_BETA, CUDNN_BACKWARD_DATA_CONVOLUTION, CUDNN_BACKWARD_DATA_W,
      CUDNN_BACKWARD_DATA_DX, CUDNN_BACKWARD_DATA_DY}},
    {CUDNN_BACKWARD_FILTER_KIND,
     {CUDNN_BACKWARD_FILTER_BETA, CUDNN_BACKWARD_FILTER_CONVOLUTION,
      CUDNN_BACKWARD_FILTER_DW, CUDNN_BACKWARD_FILTER_X, CUDNN_BACKWARD_FILTER_DY}},
};

/* false: something it is made of is missing or not final. */
bool read_operation(descriptor *d)
{
    const operation &name = OPERATIONS.at(d->kind);
    const descriptor *const part[4] = {
        d->get<descriptor *>(name.x), d->get<descriptor *>(name.w),
        d->get<descriptor *>(name.y), d->get<descriptor *>(name.convolution)};
    for (const descriptor *p : part) {
        if (p == nullptr || !p->is_final) {
            return false;
        }
    }
    ym_fake_convolution &c = d->convolution;
    c.pass = d->kind;
    c.type = part[0]->get<int>(CUDNN_TENSOR_DATA_TYPE);
    c.beta = d->get<float>(name.beta);
    part[0]->copy(CUDNN_TENSOR_DIMENSIONS, c.x, 4);
    part[1]->copy(CUDNN_TENSOR_DIMENSIONS, c.w, 4);
    part[2]->copy(CUDNN_TENSOR_DIMENSIONS, c.y, 4);
    part[3]->copy(CUDNN_CONVOLUTION_PRE_PADDINGS, c.pad, 2);
    part[3]->copy(CUDNN_CONVOLUTION_STRIDES, c.stride, 2);
    part[3]->copy(CUDNN_CONVOLUTION_DILATIONS, c.dilation, 2);
    return true;
}

/* What one descriptor takes over from the one it is made of. */
bool take_over(descriptor *d, int from)
{
    const descriptor *source = d->get<descriptor *>(from);
    if (source == nullptr || !source->is_final) {
        return false;
    }
    d->convolution = source->convolution;
    d->number = source->number;
    return true;
}

int answer(const std::vector<int> &notes, int64_t room, int64_t *count, void *values)
{
    *count = (int64_t)notes.size() < room ? (int64_t)notes.size() : room;
    if (*count > 0) {
        memcpy(values, notes.data(), (size_t)*count * sizeof(int));
    }
    return 0;
}

int list_engines(const descriptor &heuristics, int64_t room, int64_t *count,
                 descriptor **configs)
{
    const int64_t all = mode("engines") ? (int64_t)(sizeof ENGINES / sizeof *ENGINES)
                                        : 1;
    const bool is_fallback = heuristics.get<int>(CUDNN_ENGINEHEUR_MODE) ==
                             CUDNN_HEUR_MODE_FALLBACK;
    *count = is_fallback ? 0 : all < room ? all : room;
    for (int64_t i = 0; i < *count; i++) {
        configs[i]->convolution = heuristics.convolution;
        configs[i]->number = (int)i;
        configs[i]->is_final = true;
    }
    return 0;
}

int run(cudaStream_t stream, const descriptor &plan, const descriptor &pack)
{
    void *place[3] = {};
    for (int i = 0; i < 3; i++) {
        const int64_t id = pack.get<int64_t>(CUDNN_VARIANT_PACK_UNIQUE_IDS, i);
        if (id < 1 || id > 3) {
            return BAD_PARAM;
        }
        place[id - 1] = pack.get<void *>(CUDNN_VARIANT_PACK_DATA_POINTERS, i);
    }
    void *workspace = pack.get<void *>(CUDNN_VARIANT_PACK_WORKSPACE);
    const engine *used = &ENGINES[plan.number];
    const uintptr_t all = (uintptr_t)place[0] | (uintptr_t)place[1] |
                          (uintptr_t)place[2];
    if (place[0] == nullptr || place[1] == nullptr || place[2] == nullptr ||
        all % 16 != 0 || workspace == nullptr) {
        return BAD_PARAM;
    }
    const ym_fake_convolution convolution = plan.convolution;
    const std::function<void()> work = [=] {
        memset(workspace, 0xa5, (size_t)used->workspace);
        ym_fake_convolve(convolution, place[0], place[1], place[2]);
    };
    ym_emulation_note_launch("cudnn");
    if (!ym_emulation_record(stream, work)) {
        work();
        ym_emulation_advance(used->milliseconds);
    }
    return 0;
}

std::mutex lock; /* of the counts */

} // namespace

extern "C" {

int fake_cudnn_handles, fake_cudnn_plans; /* made so far */
int fake_cudnn_executions[sizeof ENGINES / sizeof *ENGINES];

size_t cudnnGetVersion()
{
    return mode("old") ? 8905 : 91000;
}

const char *cudnnGetErrorString(int status)
{
    return status == EXECUTION_FAILED ? "CUDNN_STATUS_EXECUTION_FAILED"
           : status == BAD_PARAM      ? "CUDNN_STATUS_BAD_PARAM"
                                      : "CUDNN_STATUS_FAKE";
}

void cudnnGetLastErrorString(char *text, size_t room)
{
    snprintf(text, room, "%s", mode("parts") ? "a part is missing" : "");
}

int cudnnCreate(cudnn_handle *handle)
{
    *handle = new cudnnContext();
    fake_cudnn_handles++;
    return mode("create") ? 1001 : 0;
}

int cudnnSetStream(cudnn_handle handle, void *stream)
{
    handle->stream = (cudaStream_t)stream;
    return 0;
}

int cudnnBackendCreateDescriptor(int kind, cudnn_descriptor *made)
{
    const std::lock_guard<std::mutex> guard(lock);
    descriptor *d = new descriptor();
    d->kind = kind;
    fake_cudnn_plans += kind == CUDNN_PLAN_KIND;
    *made = d;
    return 0;
}

int cudnnBackendDestroyDescriptor(cudnn_descriptor d)
{
    delete (descriptor *)d;
    return 0;
}

int cudnnBackendSetAttribute(cudnn_descriptor d, int name, int type, int64_t count,
                             const void *values)
{
    descriptor *to = (descriptor *)d;
    if (to->is_final) {
        return BAD_PARAM;
    }
    const char *bytes = (const char *)values;
    to->attributes[name].assign(bytes, bytes + bytes_of(type, count));
    return 0;
}

int cudnnBackendGetAttribute(cudnn_descriptor d, int name, int, int64_t room,
                             int64_t *count, void *values)
{
    const descriptor &from = *(const descriptor *)d;
    const engine &used = ENGINES[from.number];
    *count = 1;
    switch (from.is_final ? name : -1) {
    case CUDNN_ENGINEHEUR_RESULTS:
        return list_engines(from, room, count, (descriptor **)values);
    case CUDNN_ENGINECFG_ENGINE:
        (*(descriptor **)values)->number = from.number;
        (*(descriptor **)values)->is_final = true;
        return 0;
    case CUDNN_ENGINE_GLOBAL_INDEX:
        *(int64_t *)values = from.number;
        return 0;
    case CUDNN_ENGINE_NUMERICAL_NOTE:
        return answer(used.numerical, room, count, values);
    case CUDNN_ENGINE_BEHAVIOR_NOTE:
        return answer(used.behaviour, room, count, values);
    case CUDNN_PLAN_WORKSPACE_SIZE:
        *(int64_t *)values = used.workspace;
        return 0;
    default:
        return BAD_PARAM;
    }
}

int cudnnBackendFinalize(cudnn_descriptor d)
{
    descriptor *made = (descriptor *)d;
    bool well = !made->is_final;
    switch (made->kind) {
    case CUDNN_TENSOR_KIND:
        well = well && is_packed(*made);
        break;
    case CUDNN_FORWARD_KIND:
    case CUDNN_BACKWARD_DATA_KIND:
    case CUDNN_BACKWARD_FILTER_KIND:
        well = well && read_operation(made);
        break;
    case CUDNN_GRAPH_KIND:
        well = well && take_over(made, CUDNN_GRAPH_OPS);
        break;
    case CUDNN_ENGINEHEUR_KIND:
        well = well && take_over(made, CUDNN_ENGINEHEUR_GRAPH);
        if (mode("parts")) {
            return 1002;
        }
        if (mode("bf16") && made->convolution.type == CUDNN_DATA_BFLOAT16) {
            return NOT_SUPPORTED;
        }
        break;
    case CUDNN_PLAN_KIND:
        well = well && take_over(made, CUDNN_PLAN_ENGINE_CONFIG);
        break;
    default:
        break;
    }
    made->is_final = well;
    return well ? 0 : BAD_PARAM;
}

int cudnnBackendExecute(cudnn_handle handle, cudnn_descriptor plan,
                        cudnn_descriptor pack)
{
    const descriptor &by = *(const descriptor *)plan;
    const descriptor &with = *(const descriptor *)pack;
    const char *fails = getenv("FAKE_CUDNN_FAIL");
    {
        const std::lock_guard<std::mutex> guard(lock);
        fake_cudnn_executions[by.number]++;
        if (fails != nullptr && ++executions == atoi(fails)) {
            return EXECUTION_FAILED;
        }
    }
    if (!by.is_final || !with.is_final || !ENGINES[by.number].runs) {
        return !ENGINES[by.number].runs ? NOT_SUPPORTED : BAD_PARAM;
    }
    return run(handle->stream, by, with);
}
}
