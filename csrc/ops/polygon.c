/* SPDX-License-Identifier: MIT
 *
 * The fill is OpenCV 4.x's (modules/imgproc/src/drawing.cpp), pixel by pixel: the
 * outline as 8-connected Bresenham lines, then even-odd scan lines whose edges move by
 * a truncated 16-bit fraction a row.
 */
#include "ops/polygon.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FRACTION_BITS 16
#define RESAMPLED 1000

typedef struct pixel {
    int64_t x, y;
} pixel;

typedef struct edge {
    int32_t y_first, y_end; /* rows [y_first, y_end) */
    int64_t x, x_step;      /* at the current row; 16 fraction bits */
} edge;

static void set_pixel(const ym_bitmap *bitmap, int64_t x, int64_t y)
{
    bitmap->bits[y * bitmap->row_bytes + (x >> 3)] |= (uint8_t)(1u << (x & 7));
}

/* Pixels first .. last of a row, clipped. */
static void set_span(const ym_bitmap *bitmap, int64_t y, int64_t first, int64_t last)
{
    first = first < 0 ? 0 : first;
    last = last >= bitmap->width ? bitmap->width - 1 : last;
    if (first > last) {
        return;
    }
    uint8_t *row = bitmap->bits + y * bitmap->row_bytes;
    uint8_t head = (uint8_t)(0xFFu << (first & 7));
    uint8_t tail = (uint8_t)(0xFFu >> (7 - (last & 7)));
    int64_t from = first >> 3, to = last >> 3;
    if (from == to) {
        row[from] |= head & tail;
        return;
    }
    row[from] |= head;
    memset(row + from + 1, 0xFF, (size_t)(to - from - 1));
    row[to] |= tail;
}

/* Bits 1, 2, 4, 8: left of, right of, above, below the bit map. */
static int outside(const ym_bitmap *bitmap, pixel p)
{
    return (p.x < 0 ? 1 : 0) | (p.x >= bitmap->width ? 2 : 0) | (p.y < 0 ? 4 : 0) |
           (p.y >= bitmap->height ? 8 : 0);
}

/* Moves `p` along the line to `other` onto the border that it is beyond. */
static void clip_rows(const ym_bitmap *bitmap, pixel *p, const pixel *a, const pixel *b,
                      int code)
{
    int64_t border = code < 8 ? 0 : bitmap->height - 1;
    p->x += (border - p->y) * (b->x - a->x) / (b->y - a->y);
    p->y = border;
}

static void clip_columns(const ym_bitmap *bitmap, pixel *p, const pixel *a,
                         const pixel *b, int code)
{
    int64_t border = code == 1 ? 0 : bitmap->width - 1;
    p->y += (border - p->x) * (b->y - a->y) / (b->x - a->x);
    p->x = border;
}

/* false: no part of the line is on the bit map. */
static bool clip_line(const ym_bitmap *bitmap, pixel *a, pixel *b)
{
    int code_a = outside(bitmap, *a), code_b = outside(bitmap, *b);
    if ((code_a & code_b) != 0) {
        return false;
    }
    if (code_a & 12) {
        clip_rows(bitmap, a, a, b, code_a);
        code_a = outside(bitmap, *a) & 3;
    }
    if (code_b & 12) {
        clip_rows(bitmap, b, a, b, code_b);
        code_b = outside(bitmap, *b) & 3;
    }
    if ((code_a & code_b) != 0) {
        return false;
    }
    if (code_a) {
        clip_columns(bitmap, a, a, b, code_a);
    }
    if (code_b) {
        clip_columns(bitmap, b, a, b, code_b);
    }
    return true;
}

static void draw_line(const ym_bitmap *bitmap, pixel a, pixel b)
{
    if (!clip_line(bitmap, &a, &b)) {
        return;
    }
    if (b.x < a.x) {
        pixel swap = a;
        a = b;
        b = swap;
    }
    int64_t width = b.x - a.x;
    int64_t height = b.y < a.y ? a.y - b.y : b.y - a.y;
    int64_t down = b.y < a.y ? -1 : 1;
    bool steep = height > width;
    int64_t major = steep ? height : width, minor = steep ? width : height;
    int64_t error = major - 2 * minor;
    for (int64_t i = 0; i <= major; i++) {
        set_pixel(bitmap, a.x, a.y);
        bool both = error < 0;
        error += both ? 2 * (major - minor) : -2 * minor;
        a.x += !steep || both;
        a.y += steep || both ? down : 0;
    }
}

static int compare_edges(const void *left, const void *right)
{
    const edge *a = left, *b = right;
    if (a->y_first != b->y_first) {
        return a->y_first < b->y_first ? -1 : 1;
    }
    return (a->x > b->x) - (a->x < b->x);
}

/* An edge runs from row to row as the unclipped line does, but its slope and place come
 * from the clipped one. */
static edge make_edge(const ym_bitmap *bitmap, pixel a, pixel b)
{
    const int64_t one = (int64_t)1 << FRACTION_BITS;
    pixel from = a, to = b;
    clip_line(bitmap, &from, &to);
    int64_t from_y = from.y != to.y ? from.y : a.y;
    int64_t to_y = from.y != to.y ? to.y : b.y;
    int64_t step = (to.x * one - from.x * one) / (to_y - from_y);
    if (a.y < b.y) {
        return (edge){(int32_t)a.y, (int32_t)b.y, from.x * one + (a.y - from_y) * step,
                      step};
    }
    return (edge){(int32_t)b.y, (int32_t)a.y, to.x * one + (b.y - to_y) * step, step};
}

/* Draws the outline and lists the edges that are not horizontal. */
static int32_t collect_edges(const ym_bitmap *bitmap, const ym_point *point,
                             int32_t count, edge *edges)
{
    int32_t used = 0;
    pixel a = {(int64_t)point[count - 1].x, (int64_t)point[count - 1].y};
    for (int32_t i = 0; i < count; i++) {
        pixel b = {(int64_t)point[i].x, (int64_t)point[i].y};
        draw_line(bitmap, a, b);
        if (a.y != b.y) {
            edges[used++] = make_edge(bitmap, a, b);
        }
        a = b;
    }
    qsort(edges, (size_t)used, sizeof *edges, compare_edges);
    return used;
}

/* Insertion sort: from row to row little moves. */
static void sort_active(edge **active, int32_t count)
{
    for (int32_t i = 1; i < count; i++) {
        edge *moved = active[i];
        int32_t place = i;
        for (; place > 0 && active[place - 1]->x > moved->x; place--) {
            active[place] = active[place - 1];
        }
        active[place] = moved;
    }
}

static int32_t drop_ended(edge **active, int32_t count, int32_t y)
{
    int32_t left = 0;
    for (int32_t i = 0; i < count; i++) {
        if (active[i]->y_end != y) {
            active[left++] = active[i];
        }
    }
    return left;
}

static void scan_edges(const ym_bitmap *bitmap, edge *edges, int32_t count,
                       edge **active)
{
    int32_t next = 0, active_count = 0;
    for (int32_t y = count > 0 ? edges[0].y_first : 0;
         y < bitmap->height && (next < count || active_count > 0); y++) {
        active_count = drop_ended(active, active_count, y);
        while (next < count && edges[next].y_first == y) {
            active[active_count++] = &edges[next++];
        }
        sort_active(active, active_count);
        for (int32_t i = 0; i + 1 < active_count; i += 2) {
            edge *left = active[i], *right = active[i + 1];
            int64_t ceiling = ((int64_t)1 << FRACTION_BITS) - 1;
            if (y >= 0) {
                set_span(bitmap, y, (left->x + ceiling) >> FRACTION_BITS,
                         right->x >> FRACTION_BITS);
            }
            left->x += left->x_step;
            right->x += right->x_step;
        }
    }
}

size_t ym_polygon_scratch_bytes(int32_t count)
{
    return (size_t)count * (sizeof(edge) + sizeof(edge *));
}

ym_status ym_polygon_fill(const ym_bitmap *bitmap, const ym_point *point, int32_t count,
                          void *scratch, ym_error *error)
{
    for (int32_t i = 0; i < count; i++) {
        YM_CHECK(error, fabs(point[i].x) < 32768.0 && fabs(point[i].y) < 32768.0,
                 YM_ERR_ARGUMENT,
                 "polygon: point %d is (%g, %g), must be finite and within 32767 of 0",
                 i, point[i].x, point[i].y);
    }
    if (count > 0) {
        edge *edges = scratch;
        int32_t used = collect_edges(bitmap, point, count, edges);
        scan_edges(bitmap, edges, used, (edge **)(edges + count));
    }
    return YM_OK;
}

/* numpy.interp over the closed outline at index `at`. */
static ym_point outline_at(const ym_point *closed, double at)
{
    int32_t i = (int32_t)at;
    double part = at - i;
    ym_point a = closed[i], b = closed[i + 1];
    return (ym_point){(b.x - a.x) * part + a.x, (b.y - a.y) * part + a.y};
}

static ym_point warp_point(const ym_polygon_warp *warp, ym_point p)
{
    const double *m = warp->matrix;
    ym_point moved = {p.x * m[0] + p.y * m[1] + m[2], p.x * m[3] + p.y * m[4] + m[5]};
    if (warp->perspective) {
        double w = p.x * m[6] + p.y * m[7] + m[8];
        moved.x /= w;
        moved.y /= w;
    }
    return moved;
}

void ym_polygon_box(const ym_polygon_warp *warp, const ym_point *closed, int32_t count,
                    double box[4])
{
    double step = (double)count / (RESAMPLED - 1);
    double low_x = INFINITY, low_y = INFINITY, high_x = -INFINITY, high_y = -INFINITY;
    bool found = false; /* YOLOv9 asks whether any x inside is other than 0 */
    for (int32_t i = 0; i < RESAMPLED; i++) {
        double at = i < RESAMPLED - 1 ? i * step : count;
        ym_point p = warp_point(warp, outline_at(closed, at));
        if (p.x >= 0.0 && p.y >= 0.0 && p.x <= warp->width && p.y <= warp->height) {
            found = found || p.x != 0.0;
            low_x = p.x < low_x ? p.x : low_x;
            low_y = p.y < low_y ? p.y : low_y;
            high_x = p.x > high_x ? p.x : high_x;
            high_y = p.y > high_y ? p.y : high_y;
        }
    }
    box[0] = found ? low_x : 0.0;
    box[1] = found ? low_y : 0.0;
    box[2] = found ? high_x : 0.0;
    box[3] = found ? high_y : 0.0;
}
