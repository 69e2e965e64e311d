/* SPDX-License-Identifier: MIT
 *
 * Errors as values. Every function that can fail returns a ym_status and leaves a
 * sentence in the caller's ym_error; nothing in csrc prints, exits or aborts.
 */
#ifndef YM_CORE_STATUS_H
#define YM_CORE_STATUS_H

typedef enum ym_status {
    YM_OK = 0,
    YM_ERR_ARGUMENT,    /* a value breaks a rule: ValueError */
    YM_ERR_DTYPE,       /* wrong element type: TypeError */
    YM_ERR_MEMORY,      /* an allocation failed: MemoryError */
    YM_ERR_UNSUPPORTED, /* known, but not done here: NotImplementedError */
    YM_ERR_BACKEND,     /* a foreign library or device failed: BackendError */
} ym_status;

typedef struct ym_error {
    char text[512];
} ym_error;

/* Formats the message into *error (which may be NULL) and returns `status`. */
ym_status ym_fail(ym_error *error, ym_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* An input rule: "what, value, rule". */
#define YM_CHECK(error, condition, status, ...)             \
    do {                                                    \
        if (!(condition)) {                                 \
            return ym_fail((error), (status), __VA_ARGS__); \
        }                                                   \
    } while (0)

/* Forwards a failure; the message is already in place. */
#define YM_TRY(call)                      \
    do {                                  \
        ym_status ym_try_status = (call); \
        if (ym_try_status != YM_OK) {     \
            return ym_try_status;         \
        }                                 \
    } while (0)

#endif
