/* SPDX-License-Identifier: MIT
 *
 * Convolution without cuDNN: forward and both gradients as one product of matrices
 * whose elements are looked up in the tensors (implicit GEMM), in tiles of 64 x 64,
 * float32 throughout. It takes any pitch, type and group count; it is the fallback and
 * what the cuDNN path is compared with, not the fast way.
 */
#include "cuda/values.cuh"

namespace
{

const int TILE = 64;  /* rows and columns of the product that a block makes */
const int DEPTH = 16; /* of the sum, at a time */
const int THREADS = 256, EACH = 4; /* EACH: rows and columns of a thread */
const int64_t SPLIT_BLOCKS = 512; /* the weight gradient is cut until there are these */
const int64_t SPLIT_PIXELS = 256; /* but no smaller */

/* The convolution; c and k are of one group. */
struct sizes : ym_conv {
    int32_t n, h, w, oh, ow;
};

sizes sizes_of(const ym_conv *conv, const ym_tensor *x, const ym_tensor *y)
{
    sizes z;
    static_cast<ym_conv &>(z) = *conv;
    z.c /= conv->groups;
    z.k /= conv->groups;
    z.n = x->n;
    z.h = x->h;
    z.w = x->w;
    z.oh = y->h;
    z.ow = y->w;
    return z;
}

/* A tap of the kernel and a channel, from their joint number. */
struct tap {
    int32_t r, s, channel;
};

__device__ __forceinline__ tap tap_of(const sizes &z, int64_t i, int32_t channels)
{
    const int32_t place = (int32_t)(i / channels);
    return {place / z.s, place % z.s, (int32_t)(i % channels)};
}

/* The input that output (oh, ow) sees through a tap; 0: in the padding. */
template <typename T>
__device__ __forceinline__ float input_at(const sizes &z, const cuda_values<T> &x,
                                          int64_t output, tap t, int32_t channel)
{
    const int32_t ow = (int32_t)(output % z.ow), oh = (int32_t)(output / z.ow % z.oh);
    const int32_t n = (int32_t)(output / z.ow / z.oh);
    const int32_t h = oh * z.stride_h - z.pad_h + t.r * z.dilation_h;
    const int32_t w = ow * z.stride_w - z.pad_w + t.s * z.dilation_w;
    if (h < 0 || h >= z.h || w < 0 || w >= z.w) {
        return 0.0f;
    }
    return to_float(*x.at(n, h, w, channel));
}

/* The output gradient that input `pixel` gets through a tap; 0: none. */
template <typename T>
__device__ __forceinline__ float output_at(const sizes &z, const cuda_values<T> &dy,
                                           int64_t pixel, tap t, int32_t channel)
{
    const int32_t w = (int32_t)(pixel % z.w), h = (int32_t)(pixel / z.w % z.h);
    const int32_t n = (int32_t)(pixel / z.w / z.h);
    const int32_t above = h + z.pad_h - t.r * z.dilation_h;
    const int32_t left = w + z.pad_w - t.s * z.dilation_w;
    if (above < 0 || left < 0 || above % z.stride_h != 0 || left % z.stride_w != 0 ||
        above / z.stride_h >= z.oh || left / z.stride_w >= z.ow) {
        return 0.0f;
    }
    return to_float(*dy.at(n, above / z.stride_h, left / z.stride_w, channel));
}

__device__ __forceinline__ int64_t weight_index(const ym_weight &w, int32_t k, tap t,
                                                int32_t c)
{
    return k * w.stride_k + c * w.stride_c + t.r * w.stride_r + t.s * w.stride_s;
}

/* y (pixels, k) = x (pixels, taps c) w (taps c, k). Block z is the group. */
template <typename T> struct forward_product {
    static const bool ROWS_ARE_NEIGHBOURS = false; /* in memory, for the first factor */
    sizes z;
    cuda_values<T> x, y;
    ym_weight weight;
    const float *bias;

    __device__ int64_t rows() const
    {
        return (int64_t)z.n * z.oh * z.ow;
    }
    __device__ int64_t columns() const
    {
        return z.k;
    }
    __device__ int64_t first() const
    {
        return 0;
    }
    __device__ int64_t end() const
    {
        return (int64_t)z.r * z.s * z.c;
    }
    __device__ float left(int64_t row, int64_t i) const
    {
        const tap t = tap_of(z, i, z.c);
        return input_at(z, x, row, t, (int32_t)blockIdx.z * z.c + t.channel);
    }
    __device__ float right(int64_t i, int64_t column) const
    {
        const tap t = tap_of(z, i, z.c);
        const int32_t k = (int32_t)blockIdx.z * z.k + (int32_t)column;
        return weight.data[weight_index(weight, k, t, t.channel)];
    }
    __device__ void store_sum(int64_t row, int64_t column, float sum) const
    {
        const int32_t k = (int32_t)blockIdx.z * z.k + (int32_t)column;
        from_float(bias != nullptr ? sum + bias[k] : sum, y.at(row, k));
    }
};

/* dx (pixels, c) = dy (pixels, taps k) w (taps k, c). Block z is the group. */
template <typename T> struct data_product {
    static const bool ROWS_ARE_NEIGHBOURS = false;
    sizes z;
    cuda_values<T> dy, dx;
    ym_weight weight;
    bool accumulate;

    __device__ int64_t rows() const
    {
        return (int64_t)z.n * z.h * z.w;
    }
    __device__ int64_t columns() const
    {
        return z.c;
    }
    __device__ int64_t first() const
    {
        return 0;
    }
    __device__ int64_t end() const
    {
        return (int64_t)z.r * z.s * z.k;
    }
    __device__ float left(int64_t row, int64_t i) const
    {
        const tap t = tap_of(z, i, z.k);
        return output_at(z, dy, row, t, (int32_t)blockIdx.z * z.k + t.channel);
    }
    __device__ float right(int64_t i, int64_t column) const
    {
        const tap t = tap_of(z, i, z.k);
        const int32_t k = (int32_t)blockIdx.z * z.k + t.channel;
        return weight.data[weight_index(weight, k, t, (int32_t)column)];
    }
    __device__ void store_sum(int64_t row, int64_t column, float sum) const
    {
        T *to = dx.at(row, (int32_t)blockIdx.z * z.c + (int32_t)column);
        from_float(accumulate ? to_float(*to) + sum : sum, to);
    }
};

/* dw (k, taps c) = dy (pixels, k) x (pixels, taps c). Block z is the group and a part
 * of the pixels, whose sum goes to `partial` (parts, K, taps c). */
template <typename T> struct weight_product {
    static const bool ROWS_ARE_NEIGHBOURS = true;
    sizes z;
    cuda_values<T> x, dy;
    float *partial;
    int32_t parts;
    int64_t pixels; /* of a part */

    __device__ int32_t group() const
    {
        return (int32_t)blockIdx.z / parts;
    }
    __device__ int64_t rows() const
    {
        return z.k;
    }
    __device__ int64_t columns() const
    {
        return (int64_t)z.r * z.s * z.c;
    }
    __device__ int64_t first() const
    {
        return (int32_t)blockIdx.z % parts * pixels;
    }
    __device__ int64_t end() const
    {
        const int64_t all = (int64_t)z.n * z.oh * z.ow, end = first() + pixels;
        return end < all ? end : all;
    }
    __device__ float left(int64_t row, int64_t i) const
    {
        return to_float(*dy.at(i, group() * z.k + (int32_t)row));
    }
    __device__ float right(int64_t i, int64_t column) const
    {
        const tap t = tap_of(z, column, z.c);
        return input_at(z, x, i, t, group() * z.c + t.channel);
    }
    __device__ void store_sum(int64_t row, int64_t column, float sum) const
    {
        const int64_t of_group = z.k * columns(), groups = gridDim.z / parts;
        const int64_t part = (int32_t)blockIdx.z % parts;
        partial[(part * groups + group()) * of_group + row * columns() + column] = sum;
    }
};

/* One slice of both factors into shared memory, zeros beyond the edges. */
template <typename P>
__device__ __forceinline__ void load_slice(const P &product, int64_t depth,
                                           float (&left)[DEPTH][TILE + 1],
                                           float (&right)[DEPTH][TILE + 1])
{
    const int64_t first_row = (int64_t)blockIdx.x * TILE;
    const int64_t first_column = (int64_t)blockIdx.y * TILE;
    for (int e = (int)threadIdx.x; e < TILE * DEPTH; e += THREADS) {
        const int i = P::ROWS_ARE_NEIGHBOURS ? e / TILE : e % DEPTH;
        const int j = P::ROWS_ARE_NEIGHBOURS ? e % TILE : e / DEPTH;
        const bool inside = depth + i < product.end();
        left[i][j] = inside && first_row + j < product.rows()
                         ? product.left(first_row + j, depth + i)
                         : 0.0f;
        right[i][j] = inside && first_column + j < product.columns()
                          ? product.right(depth + i, first_column + j)
                          : 0.0f;
    }
}

template <typename P>
__global__ void __launch_bounds__(THREADS) product_kernel(P product)
{
    __shared__ float left[DEPTH][TILE + 1], right[DEPTH][TILE + 1];
    const int column = (int)threadIdx.x % 16, row = (int)threadIdx.x / 16;
    float sum[EACH * EACH] = {};
    for (int64_t depth = product.first(); depth < product.end(); depth += DEPTH) {
        load_slice(product, depth, left, right);
        __syncthreads();
        float slice[EACH * EACH] = {}; /* by itself: a long sum rounds more */
        for (int i = 0; i < DEPTH; i++) {
#pragma unroll
            for (int e = 0; e < EACH * EACH; e++) {
                slice[e] = fmaf(left[i][row + e / EACH * 16],
                                right[i][column + e % EACH * 16], slice[e]);
            }
        }
#pragma unroll
        for (int e = 0; e < EACH * EACH; e++) {
            sum[e] += slice[e];
        }
        __syncthreads();
    }
#pragma unroll
    for (int e = 0; e < EACH * EACH; e++) {
        const int64_t at_row = (int64_t)blockIdx.x * TILE + row + e / EACH * 16;
        const int64_t at_column = (int64_t)blockIdx.y * TILE + column + e % EACH * 16;
        if (at_row < product.rows() && at_column < product.columns()) {
            product.store_sum(at_row, at_column, sum[e]);
        }
    }
}

/* dw (+)= the sum of the parts, in their order. */
__global__ void __launch_bounds__(THREADS)
    weight_finish_kernel(const float *partial, int32_t parts, sizes z, int32_t all_k,
                         ym_weight dw, bool accumulate)
{
    const int64_t taps = (int64_t)z.r * z.s * z.c, count = all_k * taps;
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= count) {
        return;
    }
    double sum = 0;
    for (int32_t part = 0; part < parts; part++) {
        sum += partial[part * count + i];
    }
    const tap t = tap_of(z, i % taps, z.c);
    float *to = dw.data + weight_index(dw, (int32_t)(i / taps), t, t.channel);
    *to = accumulate ? *to + (float)sum : (float)sum;
}

int64_t tiles_of(int64_t size)
{
    return (size + TILE - 1) / TILE;
}

int64_t taps_of(const ym_conv *conv)
{
    return (int64_t)conv->r * conv->s * (conv->c / conv->groups);
}

int32_t weight_parts(const ym_conv *conv, int64_t pixels)
{
    const int64_t blocks = tiles_of(conv->k / conv->groups) * tiles_of(taps_of(conv)) *
                           conv->groups;
    const int64_t wanted = SPLIT_BLOCKS / blocks;
    const int64_t most = (pixels + SPLIT_PIXELS - 1) / SPLIT_PIXELS;
    const int64_t parts = wanted < most ? wanted : most;
    return (int32_t)(parts > 1 ? parts : 1);
}

size_t weight_scratch_bytes(const ym_conv *conv, const ym_tensor *dy)
{
    return (size_t)weight_parts(conv, ym_pixels(dy)) * (size_t)conv->k *
           (size_t)taps_of(conv) * sizeof(float);
}

template <typename P>
void launch_product(ym_context *context, const P &product, int64_t rows,
                    int64_t columns, int32_t blocks_z)
{
    const dim3 grid((unsigned)tiles_of(rows), (unsigned)tiles_of(columns),
                    (unsigned)blocks_z);
    YM_LAUNCH((product_kernel<P>), grid, dim3(THREADS), context, product);
}

ym_status weight_gradient(ym_context *context, const ym_conv *conv, const ym_tensor *x,
                          const ym_tensor *dy, const ym_weight *dw, bool accumulate)
{
    const sizes z = sizes_of(conv, x, dy);
    const int64_t pixels = ym_pixels(dy);
    const int32_t parts = weight_parts(conv, pixels);
    float *partial = static_cast<float *>(context->scratch);
    YM_WITH_TYPE(
        dy->dtype,
        const weight_product<T> product = {z, cuda_values<T>(*x), cuda_values<T>(*dy),
                                           partial, parts,
                                           (pixels + parts - 1) / parts};
        launch_product(context, product, z.k, taps_of(conv), conv->groups * parts));
    YM_TRY(cuda_launched(context, "product_kernel (weight gradient)"));
    const int64_t count = conv->k * taps_of(conv);
    YM_LAUNCH(weight_finish_kernel, dim3((unsigned)((count + THREADS - 1) / THREADS)),
              dim3(THREADS), context, partial, parts, z, conv->k, *dw, accumulate);
    return cuda_launched(context, "weight_finish_kernel");
}

} // namespace

size_t cuda_plain_conv_scratch_bytes(ym_conv_pass pass, const ym_conv *conv,
                                     const ym_tensor *x, const ym_tensor *y)
{
    (void)x;
    if (pass != YM_CONV_BACKWARD_WEIGHT) {
        return 0;
    }
    const size_t weight = weight_scratch_bytes(conv, y);
    const size_t bias = cuda_bias_scratch_bytes(y);
    return weight > bias ? weight : bias;
}

ym_status cuda_plain_conv_forward(ym_context *context, const ym_conv *conv,
                                  const ym_tensor *x, const ym_weight *w,
                                  const float *bias, ym_tensor *y)
{
    const cuda_device_guard guard(context);
    const sizes z = sizes_of(conv, x, y);
    YM_WITH_TYPE(x->dtype,
                 const forward_product<T> product = {z, cuda_values<T>(*x),
                                                     cuda_values<T>(*y), *w, bias};
                 launch_product(context, product, ym_pixels(y), z.k, conv->groups));
    return cuda_launched(context, "product_kernel (forward)");
}

ym_status cuda_plain_conv_backward_data(ym_context *context, const ym_conv *conv,
                                        const ym_tensor *dy, const ym_weight *w,
                                        ym_tensor *dx, bool accumulate)
{
    const cuda_device_guard guard(context);
    const sizes z = sizes_of(conv, dx, dy);
    YM_WITH_TYPE(dy->dtype,
                 const data_product<T> product = {z, cuda_values<T>(*dy),
                                                  cuda_values<T>(*dx), *w, accumulate};
                 launch_product(context, product, ym_pixels(dx), z.c, conv->groups));
    return cuda_launched(context, "product_kernel (data gradient)");
}

ym_status cuda_plain_conv_backward_weight(ym_context *context, const ym_conv *conv,
                                          const ym_tensor *x, const ym_tensor *dy,
                                          ym_weight *dw, bool accumulate_dw,
                                          float *dbias, bool accumulate_dbias)
{
    const cuda_device_guard guard(context);
    YM_TRY(cuda_require_scratch(
        context, "convolution weight gradient",
        cuda_plain_conv_scratch_bytes(YM_CONV_BACKWARD_WEIGHT, conv, x, dy)));
    if (dw->data != nullptr) {
        YM_TRY(weight_gradient(context, conv, x, dy, dw, accumulate_dw));
    }
    return dbias != nullptr ? cuda_bias_gradient(context, dy, dbias, accumulate_dbias)
                            : YM_OK;
}
