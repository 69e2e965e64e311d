/* SPDX-License-Identifier: MIT
 * Handles and plans, for each thread and device.
 */
#include "cuda/cudnn_cache.h"

#include "cuda/mosaic.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct entry {
    cudnn_problem problem;
    cudnn_plan plan;
    struct entry *next; /* in its bucket */
    uint64_t used;      /* when last */
} entry;

#define BUCKETS 512

typedef struct store {
    cudnn_handle handle;
    entry *bucket[BUCKETS];
    int32_t count;
    uint64_t clock;
} store;

static _Thread_local store *stores[YM_CUDNN_DEVICES];
static atomic_bool tf32 = true;

void cudnn_allow_tf32(bool allowed)
{
    atomic_store(&tf32, allowed);
}

bool cudnn_tf32_allowed(void)
{
    return atomic_load(&tf32);
}

static uint32_t hash_of(const cudnn_problem *problem)
{
    const unsigned char *bytes = (const unsigned char *)problem;
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < sizeof *problem; i++) {
        hash = (hash ^ bytes[i]) * 16777619u;
    }
    return hash % BUCKETS;
}

/* Makes this thread's store on first use. */
static ym_status find_store(const cudnn_library *library, store **found,
                            ym_error *error)
{
    int device = 0;
    cudaError_t result = cudaGetDevice(&device);
    YM_CHECK(error, result == cudaSuccess, YM_ERR_BACKEND, "cuda: cudaGetDevice: %s",
             cudaGetErrorString(result));
    YM_CHECK(error, device < YM_CUDNN_DEVICES, YM_ERR_UNSUPPORTED,
             "cuda: device %d, only devices below %d are known", device,
             YM_CUDNN_DEVICES);
    if (stores[device] == NULL) {
        store *made = calloc(1, sizeof *made);
        YM_CHECK(error, made != NULL, YM_ERR_MEMORY, "cuda: no memory for plans");
        ym_status status =
            cudnn_check(library, library->create(&made->handle), "cudnnCreate", error);
        if (status != YM_OK) {
            free(made);
            return status;
        }
        stores[device] = made;
    }
    *found = stores[device];
    return YM_OK;
}

/* Drops the older half: rare, and a new plan costs milliseconds. */
static void make_room(store *s, const cudnn_library *library)
{
    uint64_t limit = s->clock > YM_CUDNN_PLANS / 2 ? s->clock - YM_CUDNN_PLANS / 2 : 0;
    for (int i = 0; i < BUCKETS; i++) {
        for (entry **at = &s->bucket[i]; *at != NULL;) {
            entry *old = *at;
            if (old->used > limit) {
                at = &old->next;
                continue;
            }
            *at = old->next;
            if (old->plan.descriptor != NULL) {
                library->destroy_descriptor(old->plan.descriptor);
            }
            free(old);
            s->count--;
        }
    }
}

static ym_status make_entry(ym_context *context, store *s, const cudnn_library *library,
                            const cudnn_problem *problem, entry **made, ym_error *error)
{
    if (context != NULL) {
        YM_TRY(cuda_require_no_capture(context, "the first convolution of its shape"));
    }
    if (s->count >= YM_CUDNN_PLANS) {
        make_room(s, library);
    }
    entry *e = calloc(1, sizeof *e);
    YM_CHECK(error, e != NULL, YM_ERR_MEMORY, "cuda: no memory for a plan");
    const cudnn_target target = {.library = library, .handle = s->handle};
    ym_status status = cudnn_make_plan(&target, problem, &e->plan, error);
    if (status != YM_OK) {
        free(e);
        return status;
    }
    e->problem = *problem;
    entry **bucket = &s->bucket[hash_of(problem)];
    e->next = *bucket;
    *bucket = e;
    s->count++;
    *made = e;
    return YM_OK;
}

ym_status cudnn_find(ym_context *context, const cudnn_problem *problem,
                     cudnn_cached *found)
{
    ym_error silent;
    ym_error *error = context != NULL ? &context->error : &silent;
    store *s = NULL;
    YM_TRY(cudnn_open(NULL, &found->library, error));
    YM_TRY(find_store(found->library, &s, error));
    entry *e = s->bucket[hash_of(problem)];
    while (e != NULL && memcmp(&e->problem, problem, sizeof *problem) != 0) {
        e = e->next;
    }
    if (e == NULL) {
        YM_TRY(make_entry(context, s, found->library, problem, &e, error));
    }
    e->used = ++s->clock;
    found->handle = s->handle;
    found->plan = &e->plan;
    return YM_OK;
}
