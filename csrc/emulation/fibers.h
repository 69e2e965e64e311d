/* SPDX-License-Identifier: MIT
 *
 * How a fiber gives way to another: the registers that a call keeps go onto its stack.
 * swapcontext saves the mask of signals too, by a system call, and under
 * AddressSanitizer it forgets what is poisoned in the stack that it goes to: an array
 * of a kernel had no guard after its first barrier. Other processors still have it.
 */
#ifndef YM_EMULATION_FIBERS_H
#define YM_EMULATION_FIBERS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)

/* Where a fiber has stopped: the top of its stack. */
typedef void *ym_place;

extern "C" void ym_emulation_switch(ym_place *from, ym_place to)
    __attribute__((visibility("hidden")));

asm(R"(
    .text
    .type ym_emulation_switch, @function
ym_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size ym_emulation_switch, . - ym_emulation_switch
)");

/* A fiber that begins with `entry`, which never returns. */
static inline void ym_begin(ym_place *made, char *stack, size_t bytes, void (*entry)())
{
    void **top = (void **)(((uintptr_t)stack + bytes) & ~(uintptr_t)15);
    *--top = nullptr; /* where entry would return to */
    *--top = (void *)entry;
    for (int saved = 0; saved < 6; saved++) {
        *--top = nullptr;
    }
    *made = top;
}

static inline void ym_switch(ym_place *from, const ym_place *to)
{
    ym_emulation_switch(from, *to);
}

#else

#include <ucontext.h>

typedef ucontext_t ym_place;

static inline void ym_begin(ym_place *made, char *stack, size_t bytes, void (*entry)())
{
    getcontext(made);
    made->uc_stack.ss_sp = stack;
    made->uc_stack.ss_size = bytes;
    made->uc_link = nullptr;
    makecontext(made, entry, 0);
}

static inline void ym_switch(ym_place *from, const ym_place *to)
{
    swapcontext(from, to);
}

#endif

#endif
