/* SPDX-License-Identifier: MIT */
#include "cpu/environment.h"

#include "cpu/isa.h"

#include <stdlib.h>
#include <string.h>

static const char *value_of(const char *name)
{
    const char *text = getenv(name);
    return text != NULL && text[0] != '\0' ? text : NULL;
}

ym_status cpu_check_environment(ym_error *error)
{
    const char *threads = value_of("YOLOV9MEM_NUM_THREADS");
    const char *isa = value_of("YOLOV9MEM_ISA");
    if (threads != NULL) {
        size_t digits = strspn(threads, "0123456789");
        YM_CHECK(error, threads[digits] == '\0' && strspn(threads, "0") < digits,
                 YM_ERR_ARGUMENT,
                 "YOLOV9MEM_NUM_THREADS: is '%.100s', must be a whole number of at "
                 "least 1",
                 threads);
    }
    YM_CHECK(error, isa == NULL || cpu_isa_is_known(isa), YM_ERR_ARGUMENT,
             "YOLOV9MEM_ISA: is '%.100s', must be one of plain, neon, avx2, avx512, "
             "avx512_bf16",
             isa);
    return YM_OK;
}
