/* SPDX-License-Identifier: MIT */
#include "cpu/pages.h"

#include <stdint.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#define LARGE_PAGE ((size_t)2 << 20)

void ym_prefer_large_pages(void *data, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    /* Only whole large pages inside the arena: its neighbours are not ours. */
    uintptr_t begin = ((uintptr_t)data + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    uintptr_t end = ((uintptr_t)data + bytes) / LARGE_PAGE * LARGE_PAGE;
    if (data != NULL && begin < end) {
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    }
#else
    (void)data;
    (void)bytes;
#endif
}
