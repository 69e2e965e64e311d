/* SPDX-License-Identifier: MIT
 *
 * Blocks, threads, barriers and shuffles. A thread is a fiber and runs until it waits;
 * the scheduler releases a barrier when the whole block has come to it and a shuffle
 * when the whole warp has. A thread that ends while others wait at a barrier, or a warp
 * that shuffles in part, is a bug in the kernel: the process ends with a message.
 */
#include "core/sanitize.h"
#include "cuda_runtime.h"
#include "fibers.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#if YM_SANITIZED
#include <sanitizer/common_interface_defs.h>
#else
static void __sanitizer_start_switch_fiber(void **, const void *, size_t)
{
}
static void __sanitizer_finish_switch_fiber(void *, const void **, size_t *)
{
}
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace
{

enum state { READY, AT_BARRIER, AT_SHUFFLE, DONE };

const size_t STACK_BYTES = 128 * 1024;
const int MOST_THREADS = 1024;

/* Begun once: after a thread's end it waits for the next thread of that number. */
struct fiber {
    ym_place place;
    char *stack = nullptr;
    void *fake_stack = nullptr;
    state now = DONE;
    dim3 index;
    unsigned long long bits = 0; /* for the warp */
};

struct machine {
    fiber fibers[MOST_THREADS];
    ym_place scheduler;
    void *fake_stack = nullptr;
    const void *stack = nullptr;
    size_t stack_bytes = 0;
    fiber *running = nullptr;
    const std::function<void()> *kernel = nullptr;
    const char *name = "";
    int count = 0;
    int order = 0;
};

machine here;

[[noreturn]] void stop(const char *what)
{
    fprintf(stderr, "emulation: kernel %s, block (%u, %u, %u): %s\n", here.name,
            blockIdx.x, blockIdx.y, blockIdx.z, what);
    abort();
}

/* From the running fiber back to the scheduler. */
void leave(state now)
{
    fiber *self = here.running;
    self->now = now;
    __sanitizer_start_switch_fiber(&self->fake_stack, here.stack, here.stack_bytes);
    ym_switch(&self->place, &here.scheduler);
    __sanitizer_finish_switch_fiber(self->fake_stack, &here.stack, &here.stack_bytes);
}

void run_thread()
{
    __sanitizer_finish_switch_fiber(nullptr, &here.stack, &here.stack_bytes);
    for (;;) {
        (*here.kernel)();
        leave(DONE);
    }
}

void resume(fiber *to)
{
    here.running = to;
    threadIdx = to->index;
    __sanitizer_start_switch_fiber(&here.fake_stack, to->stack, STACK_BYTES);
    ym_switch(&here.scheduler, &to->place);
    __sanitizer_finish_switch_fiber(here.fake_stack, nullptr, nullptr);
}

void prepare(fiber *f, int number)
{
    if (f->stack == nullptr) {
        f->stack = (char *)malloc(STACK_BYTES);
        ym_begin(&f->place, f->stack, STACK_BYTES, run_thread);
    }
    unsigned x = blockDim.x, y = blockDim.y;
    f->index = dim3(number % x, number / x % y, number / (x * y));
    f->now = READY;
}

/* Releases threads [first, end) if all of them wait for the same. */
bool release(int first, int end, state what)
{
    for (int i = first; i < end; i++) {
        if (here.fibers[i].now != what) {
            return false;
        }
    }
    for (int i = first; i < end; i++) {
        here.fibers[i].now = READY;
    }
    return true;
}

bool release_waiting()
{
    bool any = release(0, here.count, AT_BARRIER);
    for (int first = 0; first < here.count; first += 32) {
        int end = first + 32 < here.count ? first + 32 : here.count;
        any = release(first, end, AT_SHUFFLE) || any;
    }
    return any;
}

int nth(int i, int count)
{
    return here.order == 0   ? i
           : here.order == 1 ? count - 1 - i
                             : (i + count / 2) % count;
}

void run_block()
{
    for (int i = 0; i < here.count; i++) {
        prepare(&here.fibers[i], i);
    }
    do {
        for (int i = 0; i < here.count; i++) {
            fiber *f = &here.fibers[nth(i, here.count)];
            if (f->now == READY) {
                resume(f);
            }
        }
    } while (release_waiting());
    for (int i = 0; i < here.count; i++) {
        if (here.fibers[i].now != DONE) {
            stop("some threads wait for others that never come");
        }
    }
}

} // namespace

void __syncthreads()
{
    leave(AT_BARRIER);
    threadIdx = here.running->index;
}

int ym_emulation_lane()
{
    return (int)((here.running - here.fibers) % 32);
}

unsigned long long ym_emulation_shuffle(unsigned long long bits, int from)
{
    fiber *self = here.running;
    self->bits = bits;
    leave(AT_SHUFFLE);
    unsigned long long found = (self - ym_emulation_lane() + from)->bits;
    leave(AT_SHUFFLE); /* nobody overwrites before all have read */
    threadIdx = self->index;
    return found;
}

static void run_kernel(const char *name, dim3 grid, dim3 block,
                       const std::function<void()> &kernel)
{
    here.name = name;
    here.kernel = &kernel;
    here.count = (int)(block.x * block.y * block.z);
    blockDim = block;
    gridDim = grid;
    if (here.count > MOST_THREADS || grid.y > 65535 || grid.z > 65535) {
        stop("the launch is larger than CUDA allows");
    }
    int64_t blocks = (int64_t)grid.x * grid.y * grid.z;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t number = here.order == 0 ? i : blocks - 1 - i;
        blockIdx = dim3((unsigned)(number % grid.x),
                        (unsigned)(number / grid.x % grid.y),
                        (unsigned)(number / grid.x / grid.y));
        run_block();
    }
}

void ym_emulation_launch(const char *name, dim3 grid, dim3 block, cudaStream_t stream,
                         const std::function<void()> &kernel)
{
    const auto work = [=] { run_kernel(name, grid, block, kernel); };
    if (!ym_emulation_record(stream, work)) {
        ym_emulation_note_launch(name);
        work();
    }
}

extern "C" void ym_emulation_order(int order)
{
    here.order = order;
}
