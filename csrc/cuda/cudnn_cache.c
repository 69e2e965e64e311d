/* SPDX-License-Identifier: MIT
 * Handles and plans of each device.
 */
#include "cuda/cudnn_cache.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef struct entry {
    cudnn_problem problem;
    cudnn_plan plan;
    struct entry *next; /* in its bucket */
    uint64_t used;      /* when last */
} entry;

#define BUCKETS 1024

typedef struct store {
    cudnn_handle handle;
    entry *bucket[BUCKETS];
    int32_t count;
    uint64_t clock;
} store;

static store *stores[YM_CUDNN_DEVICES];
static pthread_mutex_t locks[YM_CUDNN_DEVICES] = {
    [0 ... YM_CUDNN_DEVICES - 1] = PTHREAD_MUTEX_INITIALIZER};
static atomic_bool tf32 = true, trials = false;

void cudnn_use(cudnn_settings settings)
{
    atomic_store(&tf32, settings.tf32);
    atomic_store(&trials, settings.trials);
}

cudnn_settings cudnn_used(void)
{
    return (cudnn_settings){atomic_load(&tf32), atomic_load(&trials)};
}

/* Planning asks thousands of times: FNV-1a by words, whose upper bits hang on all. */
static uint32_t hash_of(const cudnn_problem *problem)
{
    uint32_t word[sizeof *problem / sizeof(uint32_t)], hash = 2166136261u;
    _Static_assert(sizeof word == sizeof *problem, "a problem is whole words");
    memcpy(word, problem, sizeof word);
    for (size_t i = 0; i < sizeof word / sizeof *word; i++) {
        hash = (hash ^ word[i]) * 16777619u;
    }
    return (hash >> 16) % BUCKETS;
}

static ym_status current_device(int *device, ym_error *error)
{
    cudaError_t result = cudaGetDevice(device);
    YM_CHECK(error, result == cudaSuccess, YM_ERR_BACKEND, "cuda: cudaGetDevice: %s",
             cudaGetErrorString(result));
    YM_CHECK(error, *device < YM_CUDNN_DEVICES, YM_ERR_UNSUPPORTED,
             "cuda: device %d, only devices below %d are known", *device,
             YM_CUDNN_DEVICES);
    return YM_OK;
}

/* Makes the device's store on first use. */
static ym_status open_store(const cudnn_library *library, int device, ym_error *error)
{
    if (stores[device] != NULL) {
        return YM_OK;
    }
    store *made = calloc(1, sizeof *made);
    YM_CHECK(error, made != NULL, YM_ERR_MEMORY, "cuda: no memory for plans");
    ym_status status =
        cudnn_check(library, library->create(&made->handle), "cudnnCreate", error);
    if (status != YM_OK) {
        free(made);
        return status;
    }
    stores[device] = made;
    return YM_OK;
}

/* How many that may go were last used by then; a graph may replay one that compiles. */
static int32_t idle_since(const store *s, uint64_t time)
{
    int32_t count = 0;
    for (int i = 0; i < BUCKETS; i++) {
        for (const entry *e = s->bucket[i]; e != NULL; e = e->next) {
            count += e->used <= time && !e->plan.compiles;
        }
    }
    return count;
}

/* By when the older half was last used. */
static uint64_t middle_of(const store *s)
{
    const int32_t half = (idle_since(s, s->clock) + 1) / 2;
    uint64_t low = 0, high = s->clock;
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (idle_since(s, middle) < half) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Drops the older half: rare, and a new plan costs milliseconds. */
static void make_room(store *s, const cudnn_library *library)
{
    const uint64_t limit = middle_of(s);
    for (int i = 0; i < BUCKETS; i++) {
        for (entry **at = &s->bucket[i]; *at != NULL;) {
            entry *old = *at;
            if (old->used > limit || old->plan.compiles) {
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

/* The entry of a problem, made where there is none; the device is locked. */
static ym_status find(ym_context *context, const cudnn_library *library, int device,
                      const cudnn_problem *problem, entry **found, ym_error *error)
{
    YM_TRY(open_store(library, device, error));
    store *s = stores[device];
    entry *e = s->bucket[hash_of(problem)];
    while (e != NULL && memcmp(&e->problem, problem, sizeof *problem) != 0) {
        e = e->next;
    }
    if (e == NULL) {
        YM_TRY(make_entry(context, s, library, problem, &e, error));
    }
    e->used = ++s->clock;
    *found = e;
    return YM_OK;
}

/* context: NULL while planning. */
static ym_status borrow(ym_context *context, const cudnn_problem *problem,
                        cudnn_loan *loan, ym_error *error)
{
    entry *e = NULL;
    YM_TRY(cudnn_open(NULL, &loan->library, error));
    YM_TRY(current_device(&loan->device, error));
    pthread_mutex_lock(&locks[loan->device]);
    ym_status status = find(context, loan->library, loan->device, problem, &e, error);
    if (status != YM_OK) {
        cudnn_give_back(loan);
        return status;
    }
    loan->handle = stores[loan->device]->handle;
    loan->problem = &e->problem;
    loan->plan = &e->plan;
    return YM_OK;
}

ym_status cudnn_borrow(ym_context *context, const cudnn_problem *problem,
                       cudnn_loan *loan)
{
    return borrow(context, problem, loan, &context->error);
}

void cudnn_give_back(const cudnn_loan *loan)
{
    pthread_mutex_unlock(&locks[loan->device]);
}

bool cudnn_ask(const cudnn_problem *problem, cudnn_plan *plan)
{
    ym_error silent;
    cudnn_loan loan;
    if (borrow(NULL, problem, &loan, &silent) != YM_OK) {
        return false;
    }
    *plan = *loan.plan;
    cudnn_give_back(&loan);
    return plan->descriptor != NULL;
}
