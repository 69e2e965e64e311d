/* SPDX-License-Identifier: MIT
 *
 * A cuDNN that answers but computes nothing: one engine for everything, without
 * workspace. FAKE_CUDNN says what goes wrong: "old" (version 8.9.5), "create" (no
 * handle), "bf16" (no engine for bfloat16), "parts" (a library of it is missing);
 * FAKE_CUDNN_FAIL=N: the Nth execution fails.
 */
#include "cuda/cudnn_library.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fake_cudnn_handles, fake_cudnn_plans; /* made so far */
static int is_bf16, executions;

static int mode(const char *name)
{
    const char *told = getenv("FAKE_CUDNN");
    return told != NULL && strcmp(told, name) == 0;
}

size_t cudnnGetVersion(void)
{
    return mode("old") ? 8905 : 91000;
}

const char *cudnnGetErrorString(int status)
{
    return status == 5000 ? "CUDNN_STATUS_EXECUTION_FAILED" : "CUDNN_STATUS_FAKE";
}

void cudnnGetLastErrorString(char *text, size_t room)
{
    snprintf(text, room, "%s", mode("parts") ? "a part is missing" : "");
}

int cudnnCreate(cudnn_handle *handle)
{
    *handle = malloc(8);
    fake_cudnn_handles++;
    return mode("create") ? 1001 : 0;
}

int cudnnSetStream(cudnn_handle handle, void *stream)
{
    (void)handle, (void)stream;
    return 0;
}

int cudnnBackendCreateDescriptor(int kind, cudnn_descriptor *made)
{
    int *tag = malloc(sizeof *tag);
    *tag = kind;
    fake_cudnn_plans += kind == CUDNN_PLAN_KIND;
    *made = tag;
    return 0;
}

int cudnnBackendDestroyDescriptor(cudnn_descriptor d)
{
    free(d);
    return 0;
}

int cudnnBackendSetAttribute(cudnn_descriptor d, int name, int type, int64_t count,
                             const void *values)
{
    (void)d, (void)type, (void)count;
    if (name == CUDNN_TENSOR_DATA_TYPE) {
        is_bf16 = *(const int *)values == CUDNN_DATA_BFLOAT16;
    }
    return 0;
}

int cudnnBackendGetAttribute(cudnn_descriptor d, int name, int type, int64_t room,
                             int64_t *count, void *values)
{
    (void)d, (void)type, (void)room;
    *count = name == CUDNN_ENGINE_NUMERICAL_NOTE || name == CUDNN_ENGINE_BEHAVIOR_NOTE
                 ? 0
                 : 1;
    if (name == CUDNN_PLAN_WORKSPACE_SIZE || name == CUDNN_ENGINE_GLOBAL_INDEX) {
        *(int64_t *)values = 0;
    }
    return 0;
}

int cudnnBackendFinalize(cudnn_descriptor d)
{
    if (*(int *)d != CUDNN_ENGINEHEUR_KIND) {
        return 0;
    }
    return mode("parts") ? 1002 : is_bf16 && mode("bf16") ? 3000 : 0;
}

int cudnnBackendExecute(cudnn_handle handle, cudnn_descriptor plan,
                        cudnn_descriptor pack)
{
    (void)handle, (void)plan, (void)pack;
    const char *fails = getenv("FAKE_CUDNN_FAIL");
    return fails != NULL && ++executions == atoi(fails) ? 5000 : 0;
}
