/* SPDX-License-Identifier: MIT
 * Large pages for large arenas.
 */
#ifndef YM_CPU_PAGES_H
#define YM_CPU_PAGES_H

#include <stddef.h>

/* Asks the system to back the memory by large pages where it is not mapped yet. An
 * arena is new at every step: page faults on 4 KiB pages would cost a tenth of the
 * step. A system that can't, or will not, changes nothing. */
void ym_prefer_large_pages(void *data, size_t bytes);

#endif
