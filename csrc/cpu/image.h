/* SPDX-License-Identifier: MIT
 * Image resizing, bit-equal to cv2.resize(..., interpolation=cv2.INTER_LINEAR).
 */
#ifndef YM_CPU_IMAGE_H
#define YM_CPU_IMAGE_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct ym_image {
    uint8_t *pixels; /* (height, width, 3), 3 bytes a pixel */
    int64_t row_bytes;
    int32_t height, width;
} ym_image;

/* Scratch for an output of this width; 64-byte aligned. */
size_t cpu_resize_scratch_bytes(int32_t width);

/* Sizes 1 to 32766. The source is not written. */
ym_status cpu_resize_image(const ym_image *source, const ym_image *out, void *scratch,
                           ym_error *error);

#endif
