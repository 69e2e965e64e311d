/* SPDX-License-Identifier: MIT
 *
 * The three passes of a convolution. Each is a loop over the products of one output
 * pixel and one tap: y += x w, dx += dy w, dw += x dy.
 */
#include "cudnn_convolve.h"

#include "cuda/cudnn_library.h"
#include "cuda_fp16.h"
#include "math/bf16.h"

#include <vector>

namespace
{

typedef std::vector<double> values;

values read(const void *from, int type, size_t count)
{
    values made(count);
    for (size_t i = 0; i < count; i++) {
        const uint16_t half = type == CUDNN_DATA_FLOAT ? uint16_t(0)
                                                       : ((const uint16_t *)from)[i];
        made[i] = type == CUDNN_DATA_FLOAT  ? ((const float *)from)[i]
                  : type == CUDNN_DATA_HALF ? __half2float(__ushort_as_half(half))
                                            : ym_bf16_to_f32(half);
    }
    return made;
}

void write(void *to, int type, const values &sums, float beta)
{
    const values old = beta != 0 ? read(to, type, sums.size()) : values(sums.size());
    for (size_t i = 0; i < sums.size(); i++) {
        const float value = (float)(sums[i] + beta * old[i]);
        if (type == CUDNN_DATA_FLOAT) {
            ((float *)to)[i] = value;
        } else {
            ((uint16_t *)to)[i] = type == CUDNN_DATA_HALF
                                      ? __half_as_ushort(__float2half_rn(value))
                                      : ym_f32_to_bf16(value);
        }
    }
}

size_t count(const int64_t size[4])
{
    return (size_t)(size[0] * size[1] * size[2] * size[3]);
}

/* Of the first channel of a pixel. */
size_t place(const int64_t size[4], int64_t n, int64_t h, int64_t w)
{
    return (size_t)(((n * size[2] + h) * size[3] + w) * size[1]);
}

void multiply(const ym_fake_convolution &c, double *x, double *w, double *y)
{
    const int64_t inner = c.w[1], groups = c.x[1] / inner, outer = c.w[0] / groups;
    for (int64_t k = 0; k < c.w[0]; k++) {
        double *weights = w + k * inner, *to = y + k;
        double *from = x + k / outer * inner;
        for (int64_t i = 0; i < inner; i++) {
            if (c.pass == CUDNN_FORWARD_KIND) {
                *to += from[i] * weights[i];
            } else if (c.pass == CUDNN_BACKWARD_DATA_KIND) {
                from[i] += *to * weights[i];
            } else {
                weights[i] += *to * from[i];
            }
        }
    }
}

void all_taps(const ym_fake_convolution &c, values &x, values &w, values &y)
{
    /* K, R, S, C in memory: of one tap, all output channels. */
    const int64_t taps = c.w[2] * c.w[3], inner = c.w[1];
    for (int64_t tap = 0; tap < taps; tap++) {
        values weights((size_t)(c.w[0] * inner));
        for (size_t i = 0; i < weights.size(); i++) {
            const int64_t k = (int64_t)i / inner, j = (int64_t)i % inner;
            weights[i] = w[(size_t)((k * taps + tap) * inner + j)];
        }
        for (int64_t n = 0; n < c.y[0]; n++) {
            for (int64_t i = 0; i < c.y[2] * c.y[3]; i++) {
                const int64_t oh = i / c.y[3], ow = i % c.y[3];
                const int64_t h = oh * c.stride[0] - c.pad[0] +
                                  tap / c.w[3] * c.dilation[0];
                const int64_t v = ow * c.stride[1] - c.pad[1] +
                                  tap % c.w[3] * c.dilation[1];
                if (h >= 0 && h < c.x[2] && v >= 0 && v < c.x[3]) {
                    multiply(c, &x[place(c.x, n, h, v)], weights.data(),
                             &y[place(c.y, n, oh, ow)]);
                }
            }
        }
        for (size_t i = 0; i < weights.size(); i++) {
            const int64_t k = (int64_t)i / inner, j = (int64_t)i % inner;
            w[(size_t)((k * taps + tap) * inner + j)] = weights[i];
        }
    }
}

} // namespace

void ym_fake_convolve(const ym_fake_convolution &c, void *x, void *w, void *y)
{
    void *const memory[3] = {x, w, y};
    const int64_t *const size[3] = {c.x, c.w, c.y};
    const int written = c.pass == CUDNN_FORWARD_KIND         ? 2
                        : c.pass == CUDNN_BACKWARD_DATA_KIND ? 0
                                                             : 1;
    values operand[3];
    for (int i = 0; i < 3; i++) {
        operand[i] = i == written ? values(count(size[i]))
                                  : read(memory[i], c.type, count(size[i]));
    }
    all_taps(c, operand[0], operand[1], operand[2]);
    write(memory[written], c.type, operand[written], c.beta);
}
