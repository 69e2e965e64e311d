/* SPDX-License-Identifier: MIT
 *
 * Thread pool: runs task(argument, 0 .. count - 1) on several threads and returns when
 * all are done. Threads start on first use. Which thread runs which index is not
 * fixed, so a task's result must depend on its index only.
 *
 * It may be called from several threads at once (one gets the workers, the others run
 * their tasks themselves), from within a task (runs inline) and after fork (the child
 * starts its own threads).
 */
#ifndef YM_CPU_POOL_H
#define YM_CPU_POOL_H

#include <stdint.h>

#define YM_POOL_MAX_THREADS 256

void ym_pool_run(void (*task)(void *argument, int32_t index), void *argument,
                 int32_t count);

/* The same on at most `threads` threads. */
void ym_pool_run_on(int32_t threads, void (*task)(void *argument, int32_t index),
                    void *argument, int32_t count);

/* Inside a task: which of the run's threads this is, 0 .. threads - 1. */
int32_t ym_pool_slot(void);

/* How many threads a run uses: what was set, else the least of YOLOV9MEM_NUM_THREADS
 * (or what is usual), the CPUs of the affinity mask and the cgroup's quota. */
int32_t ym_pool_threads(void);

/* What is usual, if not OMP_NUM_THREADS: that of a library which was told another
 * number since. */
void ym_pool_set_usual_threads(int32_t count);

/* count < 1: back to the default. */
void ym_pool_set_threads(int32_t count);

#endif
