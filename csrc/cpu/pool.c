/* SPDX-License-Identifier: MIT */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "cpu/pool.h"

#include "cpu/limits.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum {
    /* 5 to 20 us: long enough to meet the next kernel of a run, short enough not to
     * stand in the way of another library's threads. */
    SPINS = 400,
};

typedef struct pool_job {
    void (*task)(void *argument, int32_t index);
    void *argument;
    int32_t count;
} pool_job;

static struct {
    pthread_mutex_t run;  /* held by the thread whose job has the workers */
    pthread_mutex_t lock; /* guards what follows, up to the atomics */
    pthread_cond_t wake, done;
    pool_job job;
    int32_t workers;        /* threads started */
    int32_t joined, wanted; /* workers in the job; how many may join */
    int32_t sleeping;
    atomic_int running;     /* workers that joined and have not left */
    atomic_uint generation; /* jobs so far */
    atomic_int next;        /* index */
    atomic_int chosen;      /* threads set, 0: none were */
    atomic_int usual;       /* elsewhere in the program, 0: as OMP_NUM_THREADS says */
    atomic_int found;       /* for want of a choice, 0: not yet */
} pool = {
    .run = PTHREAD_MUTEX_INITIALIZER,
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .wake = PTHREAD_COND_INITIALIZER,
    .done = PTHREAD_COND_INITIALIZER,
};

static pthread_once_t fork_handler = PTHREAD_ONCE_INIT;
static _Thread_local int32_t slot;
static _Thread_local bool inside;

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void work(const pool_job *job)
{
    inside = true;
    for (;;) {
        int32_t index = atomic_fetch_add(&pool.next, 1);
        if (index >= job->count) {
            break;
        }
        job->task(job->argument, index);
    }
    inside = false;
}

static void join_job(void)
{
    pthread_mutex_lock(&pool.lock);
    if (pool.joined >= pool.wanted) {
        pthread_mutex_unlock(&pool.lock);
        return;
    }
    slot = ++pool.joined;
    atomic_fetch_add(&pool.running, 1);
    pool_job mine = pool.job;
    pthread_mutex_unlock(&pool.lock);
    work(&mine);
    pthread_mutex_lock(&pool.lock);
    if (atomic_fetch_sub(&pool.running, 1) == 1) {
        pthread_cond_signal(&pool.done);
    }
    pthread_mutex_unlock(&pool.lock);
}

static void wait_for_job(unsigned seen)
{
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load(&pool.generation) != seen) {
            return;
        }
        pause_briefly();
    }
    pthread_mutex_lock(&pool.lock);
    pool.sleeping++;
    while (atomic_load(&pool.generation) == seen) {
        pthread_cond_wait(&pool.wake, &pool.lock);
    }
    pool.sleeping--;
    pthread_mutex_unlock(&pool.lock);
}

static void *worker(void *argument)
{
    unsigned seen = (unsigned)(uintptr_t)argument;
    for (;;) {
        wait_for_job(seen);
        seen = atomic_load(&pool.generation);
        join_job();
    }
    return NULL;
}

/* The child has none of the parent's threads, and its locks may have been held. */
static void forget_workers(void)
{
    pthread_mutex_init(&pool.run, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.workers = pool.joined = pool.wanted = pool.sleeping = 0;
    atomic_store(&pool.running, 0);
}

static void install_fork_handler(void)
{
    pthread_atfork(NULL, NULL, forget_workers);
}

/* With pool.lock held. Signals are left to the program's own threads. */
static void start_workers(int32_t count)
{
    sigset_t all, before;
    pthread_once(&fork_handler, install_fork_handler);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.workers < count) {
        pthread_t thread;
        void *seen = (void *)(uintptr_t)atomic_load(&pool.generation);
        if (pthread_create(&thread, NULL, worker, seen) != 0) {
            break;
        }
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void open_job(const pool_job *job, int32_t helpers)
{
    pthread_mutex_lock(&pool.lock);
    if (pool.workers < helpers) {
        start_workers(helpers);
    }
    pool.job = *job;
    pool.joined = 0;
    pool.wanted = helpers;
    atomic_store(&pool.next, 0);
    atomic_fetch_add(&pool.generation, 1);
    if (pool.sleeping > 0) {
        pthread_cond_broadcast(&pool.wake);
    }
    pthread_mutex_unlock(&pool.lock);
}

/* After this no worker can join, and all that did have left. */
static void close_job(void)
{
    pthread_mutex_lock(&pool.lock);
    pool.wanted = 0;
    pthread_mutex_unlock(&pool.lock);
    for (int spin = 0; spin < SPINS && atomic_load(&pool.running) > 0; spin++) {
        pause_briefly();
    }
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.running) > 0) {
        pthread_cond_wait(&pool.done, &pool.lock);
    }
    pthread_mutex_unlock(&pool.lock);
}

static void run_inline(const pool_job *job)
{
    const int32_t outer = slot;
    slot = 0;
    for (int32_t index = 0; index < job->count; index++) {
        job->task(job->argument, index);
    }
    slot = outer;
}

void ym_pool_run_on(int32_t threads, void (*task)(void *argument, int32_t index),
                    void *argument, int32_t count)
{
    const pool_job mine = {task, argument, count};
    const int32_t most = ym_pool_threads();
    threads = threads < most ? threads : most;
    threads = threads < count ? threads : count;
    if (threads <= 1 || inside || pthread_mutex_trylock(&pool.run) != 0) {
        run_inline(&mine);
        return;
    }
    slot = 0;
    open_job(&mine, threads - 1);
    work(&mine);
    close_job();
    pthread_mutex_unlock(&pool.run);
}

void ym_pool_run(void (*task)(void *argument, int32_t index), void *argument,
                 int32_t count)
{
    ym_pool_run_on(YM_POOL_MAX_THREADS, task, argument, count);
}

int32_t ym_pool_slot(void)
{
    return slot;
}

int32_t ym_pool_threads(void)
{
    int32_t count = atomic_load(&pool.chosen);
    if (count == 0) {
        count = atomic_load(&pool.found);
    }
    if (count == 0) {
        count = cpu_limit_threads("", atomic_load(&pool.usual));
        atomic_store(&pool.found, count);
    }
    return count < YM_POOL_MAX_THREADS ? count : YM_POOL_MAX_THREADS;
}

void ym_pool_set_threads(int32_t count)
{
    atomic_store(&pool.chosen, count < 1 ? 0 : count);
}

void ym_pool_set_usual_threads(int32_t count)
{
    if (atomic_exchange(&pool.usual, count) != count) {
        atomic_store(&pool.found, 0);
    }
}
