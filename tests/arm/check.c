/* SPDX-License-Identifier: MIT
 *
 * Run on the machine at hand and on a 64-bit ARM (tests/test_arm.py): checks the
 * kernels in use against sums in double and against the plain ones, and prints what
 * must be the same bits everywhere: a mosaic's bytes and an optimizer step's floats.
 */
#include "core/mosaic.h"
#include "core/sgd.h"
#include "cpu/kernels.h"
#include "cpu/mosaic.h"
#include "cpu/sgd.h"
#include "math/warp.h"
#include "ops/mosaic.h"
#include "ops/sgd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 15 * 64, TERMS = 5 * 11 * 23 };

static uint32_t state = 1;
static int failures;

static float draw(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)state * 0x1p-31f;
}

static void fill(float *x, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        x[i] = draw();
    }
}

static void expect(bool right, const char *what, int32_t size)
{
    if (!right) {
        printf("wrong: %s, size %d\n", what, size);
        failures++;
    }
}

static bool close_to(float found, double expected, double scale)
{
    return fabs(found - expected) <= 1e-5 * scale;
}

static void check_product(const cpu_kernels *kernels, int32_t rows, int32_t vectors)
{
    static float a[MOST + 15 * TERMS], b[TERMS * 64], c[15 * 64], before[15 * 64];
    int32_t width = vectors * kernels->lanes;
    fill(a, rows * TERMS);
    fill(b, TERMS * width);
    fill(c, rows * width);
    memcpy(before, c, sizeof c);
    cpu_product p = {
        .a = a,
        .b = b,
        .c = c,
        .a_row = TERMS,
        .c_row = width,
        .loop = {{5, 253, 253 * width}, {11, 23, 23 * width}, {23, 1, width}},
        .rows = rows,
        .vectors = vectors,
        .accumulate = true,
    };
    kernels->product(&p);
    for (int32_t i = 0; i < rows * width; i++) {
        double sum = before[i];
        for (int32_t t = 0; t < TERMS; t++) {
            sum += (double)a[i / width * TERMS + t] * b[t * width + i % width];
        }
        expect(close_to(c[i], sum, 30), "product", rows);
    }
}

/* Two rows of nine taps, three words apart. */
static void check_lanes(const cpu_kernels *kernels, int32_t rows, int32_t vectors)
{
    enum { TAPS = 9, APART = 3 };
    static float a[(15 + APART * TAPS) * 2 * 64], b[2 * TAPS * 64], c[15 * 64];
    const int32_t width = vectors * kernels->lanes, row = (15 + APART * TAPS) * width;
    fill(a, 2 * row);
    fill(b, 2 * TAPS * width);
    cpu_product p = {
        .a = a,
        .b = b,
        .c = c,
        .bias = b,
        .a_row = width,
        .c_row = width,
        .loop = {{1, 0, 0}, {2, row, TAPS * width}, {TAPS, APART * width, width}},
        .rows = rows,
        .vectors = vectors,
    };
    kernels->product_lanes(&p);
    for (int32_t i = 0; i < rows; i++) {
        for (int32_t j = 0; j < width; j++) {
            double sum = b[j];
            for (int32_t t = 0; t < 2 * TAPS; t++) {
                const int32_t at = t / TAPS * row + t % TAPS * APART * width;
                sum += (double)a[at + i * width + j] * b[t * width + j];
            }
            expect(close_to(c[i * width + j], sum, 30), "product of lanes", rows);
        }
    }
}

static void check_pick(const cpu_kernels *kernels)
{
    enum { PIXELS = 3, COUNT = 37, PITCH = 41 };
    float x[PIXELS * PITCH], y[PIXELS * COUNT];
    int32_t from[COUNT];
    fill(x, PIXELS * PITCH);
    for (int32_t i = 0; i < COUNT; i++) {
        from[i] = i * 7 % PITCH;
    }
    kernels->pick(PIXELS, COUNT, x, PITCH, from, y);
    for (int32_t i = 0; i < PIXELS * COUNT; i++) {
        expect(y[i] == x[i / COUNT * PITCH + from[i % COUNT]], "pick", i);
    }
}

/* Every size of a register tile; nothing outside is read into or written. */
static void check_pack(const cpu_kernels *kernels, int32_t pixels)
{
    static float x[MOST], y[MOST];
    for (int32_t count = 1; count <= kernels->tile_rows; count++) {
        const int32_t pitch = count + count % 3, last = (pixels - 1) * pitch + count;
        float *from = x + MOST - last; /* ends with the array */
        fill(from, last);
        fill(y, MOST);
        const float guard = y[pixels * count];
        kernels->pack(pixels, count, from, pitch, y);
        for (int32_t i = 0; i < pixels * count; i++) {
            expect(y[i] == from[i / count * pitch + i % count], "pack", count);
        }
        expect(y[pixels * count] == guard, "past the pack", count);
    }
}

/* The same of the words of bf16, whose rows end with their arrays. */
static void check_pairs(const cpu_kernels *kernels, int32_t pixels)
{
    static uint16_t x[2][MOST];
    static uint32_t y[MOST];
    for (int32_t i = 0; i < 2 * MOST; i++) {
        x[i / MOST][i % MOST] = (uint16_t)(i * 40503);
    }
    for (int32_t count = 1; count <= 34; count++) {
        const int32_t pitch = count + count % 3, last = (pixels - 1) * pitch + count;
        const uint16_t *first = x[0] + MOST - last, *second = x[1] + MOST - last;
        for (int32_t alone = 0; alone < 2; alone++) {
            y[pixels * count] = 77;
            kernels->pair_images(pixels, count, first, alone ? NULL : second, pitch, y,
                                 count);
            for (int32_t i = 0; i < pixels * count; i++) {
                const int32_t from = i / count * pitch + i % count;
                const uint32_t high = alone ? 0 : second[from];
                expect(y[i] == (first[from] | high << 16), "pair of images", count);
            }
            expect(y[pixels * count] == 77, "past the images", count);
        }
        const int32_t words = (count + 1) / 2;
        y[pixels * words] = 77;
        kernels->pair_channels(pixels, count, first, pitch, (uint16_t *)y);
        for (int32_t i = 0; i < pixels * words; i++) {
            const int32_t c = i % words * 2, from = i / words * pitch + c;
            const uint32_t high = c + 1 < count ? first[from + 1] : 0;
            expect(y[i] == (first[from] | high << 16), "pair of channels", count);
        }
        expect(y[pixels * words] == 77, "past the channels", count);
    }
}

/* Both transforms around the products of one kernel, against the sums of its taps. */
static void check_winograd(const cpu_kernels *kernels)
{
    enum { COUNT = 48 };
    static const double g_points[4][3] = {
        {1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
    static float x[16][COUNT], taps[9], points[16][COUNT], y[4][COUNT], before[COUNT];
    const float *from[16];
    float *to[4] = {y[0], NULL, y[2], y[3]};
    fill(x[0], 16 * COUNT);
    fill(taps, 9);
    fill(before, COUNT);
    for (int32_t k = 0; k < 16; k++) {
        from[k] = x[k];
    }
    for (int32_t k = 0; k < 4; k++) {
        memcpy(y[k], before, sizeof before);
    }
    kernels->winograd_in(COUNT, from, points[0], COUNT);
    for (int32_t p = 0; p < 16; p++) {
        double weight = 0;
        for (int32_t t = 0; t < 9; t++) {
            weight += g_points[p / 4][t / 3] * g_points[p % 4][t % 3] * taps[t];
        }
        for (int32_t i = 0; i < COUNT; i++) {
            points[p][i] *= (float)weight;
        }
    }
    kernels->winograd_out(COUNT, points[0], COUNT, before, true, to);
    for (int32_t i = 0; i < 4 * COUNT; i++) {
        const int32_t k = i / COUNT, c = i % COUNT;
        double sum = k == 1 ? before[c] : 2.0 * before[c];
        for (int32_t t = 0; k != 1 && t < 9; t++) {
            sum += (double)taps[t] * x[(k / 2 + t / 3) * 4 + k % 2 + t % 3][c];
        }
        expect(close_to(y[k][c], sum, 4), "winograd", i);
    }
}

static void check_rows(const cpu_kernels *kernels, int32_t n)
{
    static float x[3][512], y[512], z[512];
    static uint16_t low[512], other[512];
    for (int i = 0; i < 3; i++) {
        fill(x[i], n);
    }
    const cpu_kernels *plain = &cpu_kernels_plain;
    kernels->narrow(1, n, x[0], n, low, n);
    plain->narrow(1, n, x[0], n, other, n);
    expect(memcmp(low, other, (size_t)n * 2) == 0, "narrow", n);
    kernels->widen(1, n, low, n, y, n);
    plain->widen(1, n, low, n, z, n);
    expect(memcmp(y, z, (size_t)n * 4) == 0, "widen", n);
    kernels->add(n, x[1], y);
    plain->add(n, x[1], z);
    kernels->maximum(n, x[2], y);
    plain->maximum(n, x[2], z);
    kernels->divide(n, 3.0f, y);
    plain->divide(n, 3.0f, z);
    expect(memcmp(y, z, (size_t)n * 4) == 0, "add, maximum, divide", n);
}

static void check_brick(const cpu_kernels *kernels, ym_activation_kind kind, int32_t n)
{
    static float x[4][512], y[2][512], z[2][512];
    for (int i = 0; i < 4; i++) {
        fill(x[i], n);
    }
    cpu_brick_row row = {.n = n,
                         .terms = 1,
                         .activation = {kind, 0.1f, -0.4f, 0.3f},
                         .v = {x[0]},
                         .mean = {x[1]},
                         .scale = {x[2]},
                         .shift = x[1],
                         .d = x[3],
                         .d_mean = {x[1]},
                         .back = {x[2]}};
    row.out = y[0];
    row.dv[0] = y[1];
    kernels->brick_forward(&row);
    kernels->brick_values(&row);
    row.out = z[0];
    row.dv[0] = z[1];
    cpu_kernels_plain.brick_forward(&row);
    cpu_kernels_plain.brick_values(&row);
    for (int32_t i = 0; i < n; i++) {
        expect(close_to(y[0][i], z[0][i], 2), "brick", n);
        expect(close_to(y[1][i], z[1][i], 2), "gradient of a brick", n);
    }
}

static uint64_t hash(uint64_t h, const void *bytes, size_t count)
{
    const uint8_t *p = bytes;
    for (size_t i = 0; i < count; i++) {
        h = (h ^ p[i]) * 1099511628211u;
    }
    return h;
}

/* Four tiles of noise, every kind of warp, colours, mixup, flips. */
static uint64_t mosaic(ym_warp warp, uint64_t h)
{
    enum { SIDE = 160 };
    static uint8_t pixels[SIDE * SIDE * 3], out[3 * SIDE * SIDE], lut[3 * 256];
    ym_mosaic_job job = {.scene_count = 2,
                         .ratio = 0.45,
                         .hsv = lut,
                         .out = out,
                         .height = SIDE,
                         .width = SIDE,
                         .flip_horizontal = true};
    for (size_t i = 0; i < sizeof pixels; i++) {
        draw();
        pixels[i] = (uint8_t)(state >> 24);
    }
    for (int i = 0; i < 256; i++) {
        lut[i] = (uint8_t)((i * 77 + 5) % 180);
        lut[256 + i] = (uint8_t)(255 - i);
        lut[512 + i] = (uint8_t)(i * 91 + 3);
    }
    for (int s = 0; s < 2; s++) {
        ym_scene *scene = &job.scene[s];
        scene->height = scene->width = 2 * SIDE;
        scene->warp = warp;
        scene->tile_count = 4;
        for (int i = 0; i < 4; i++) {
            scene->tile[i] = (ym_tile){pixels,       SIDE * 3, i % 2 * SIDE + s,
                                       i / 2 * SIDE, SIDE,     SIDE - s};
        }
        double tilt = ym_warp_is_perspective(warp) ? 0.0004 : 0.0;
        const double forward[9] = {0.7,  0.11 * (s == 0), -13.3, 0.05, 0.8, -20.7,
                                   tilt, -tilt,           1.0};
        ym_scene_invert(scene, forward);
    }
    ym_context context = {0};
    expect(ym_mosaic_check(&job, &context.error) == YM_OK, "mosaic's arguments", SIDE);
    expect(cpu_mosaic(&context, &job) == YM_OK, "mosaic", SIDE);
    return hash(h, out, sizeof out);
}

static uint64_t optimizer_step(void)
{
    enum { COUNT = 70001 };
    static float p[COUNT], g[COUNT], m[COUNT], e[COUNT];
    fill(p, COUNT), fill(g, COUNT), fill(m, COUNT), fill(e, COUNT);
    ym_sgd_tensor tensor = {p, g, m, e, COUNT, 0, false};
    ym_sgd_group group = {5e-4f, 0.937f, 1, -1e-2f, true, false, true, true};
    ym_sgd_job job = {.tensor = &tensor,
                      .tensor_count = 1,
                      .group = &group,
                      .group_count = 1,
                      .inverse_scale = 0.25f,
                      .clip = 0.3f,
                      .update = true,
                      .gradient = YM_SGD_GRADIENT_WRITE,
                      .average = true,
                      .ema_decay = 0.99f,
                      .ema_weight = 0.01f};
    void *scratch = malloc(ym_sgd_scratch_bytes(&job));
    ym_sgd_divide(&job, scratch);
    cpu_sgd_norm(NULL, &job);
    cpu_sgd_step(NULL, &job);
    free(scratch);
    uint64_t h = hash(14695981039346656037u, &job.sum_of_squares, sizeof(double));
    h = hash(hash(h, p, sizeof p), g, sizeof g);
    return hash(hash(h, m, sizeof m), e, sizeof e);
}

int main(void)
{
    const cpu_kernels *kernels = cpu_kernels_best();
    for (int32_t rows = 1; rows <= kernels->tile_rows; rows++) {
        check_product(kernels, rows, 1);
        check_product(kernels, rows, 2);
        check_lanes(kernels, rows, 1);
        check_lanes(kernels, rows, 2);
    }
    for (int32_t n = 1; n < 70; n++) {
        check_rows(kernels, n);
        for (int kind = YM_IDENTITY; kind <= YM_GELU_TANH; kind++) {
            check_brick(kernels, (ym_activation_kind)kind, n);
        }
        check_pack(kernels, n % 16 + 1);
        check_pairs(kernels, n % 16 + 1);
    }
    check_pick(kernels);
    check_winograd(kernels);
    state = 1;
    uint64_t h = mosaic(YM_WARP_AFFINE, 14695981039346656037u);
    h = mosaic(YM_WARP_PERSPECTIVE, h);
    h = mosaic(YM_WARP_AFFINE_FLOAT, h);
    h = mosaic(YM_WARP_PERSPECTIVE_FLOAT, h);
    printf("mosaic %016llx\n", (unsigned long long)h);
    printf("sgd %016llx\n", (unsigned long long)optimizer_step());
    fprintf(stderr, "%s\n", kernels->name);
    return failures != 0;
}
