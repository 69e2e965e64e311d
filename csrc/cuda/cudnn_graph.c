/* SPDX-License-Identifier: MIT
 * A convolution as an operation graph of cuDNN.
 */
#include "cuda/cudnn_graph.h"

void cudnn_destroy(const cudnn_library *library, cudnn_descriptor *d)
{
    if (*d != NULL) {
        library->destroy_descriptor(*d);
        *d = NULL;
    }
}

ym_status cudnn_create(cudnn_workbench *b, int kind, cudnn_descriptor *made)
{
    return cudnn_check(b->library, b->library->create_descriptor(kind, made),
                       "cudnnBackendCreateDescriptor", b->error);
}

ym_status cudnn_set(cudnn_workbench *b, cudnn_descriptor d, int name, int type,
                    int64_t count, const void *values)
{
    return cudnn_check(b->library,
                       b->library->set_attribute(d, name, type, count, values),
                       "cudnnBackendSetAttribute", b->error);
}

ym_status cudnn_finish(cudnn_workbench *b, cudnn_descriptor d, const char *what)
{
    return cudnn_check(b->library, b->library->finalize(d), what, b->error);
}

static int data_type(int32_t dtype)
{
    return dtype == YM_F32   ? CUDNN_DATA_FLOAT
           : dtype == YM_F16 ? CUDNN_DATA_HALF
                             : CUDNN_DATA_BFLOAT16;
}

/* Packed channels-last; cuDNN lists sizes and strides as N, C, H, W. */
static ym_status make_tensor(cudnn_workbench *b, int32_t dtype, int64_t number,
                             const int64_t size[4])
{
    cudnn_descriptor *made = &b->tensor[number - 1];
    const int type = data_type(dtype);
    const int64_t stride[4] = {size[1] * size[2] * size[3], 1, size[1] * size[3],
                               size[1]};
    const int64_t alignment = 16;
    YM_TRY(cudnn_create(b, CUDNN_TENSOR_KIND, made));
    YM_TRY(cudnn_set(b, *made, CUDNN_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type));
    YM_TRY(cudnn_set(b, *made, CUDNN_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, size));
    YM_TRY(cudnn_set(b, *made, CUDNN_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride));
    YM_TRY(cudnn_set(b, *made, CUDNN_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &number));
    YM_TRY(cudnn_set(b, *made, CUDNN_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1,
                     &alignment));
    return cudnn_finish(b, *made, "tensor");
}

static ym_status make_tensors(cudnn_workbench *b, const cudnn_problem *p)
{
    const ym_conv *c = &p->conv;
    const int64_t x[4] = {p->n, c->c, p->h, p->w}, y[4] = {p->n, c->k, p->oh, p->ow};
    const int64_t w[4] = {c->k, c->c / c->groups, c->r, c->s};
    YM_TRY(make_tensor(b, p->dtype, CUDNN_ID_X, x));
    YM_TRY(make_tensor(b, p->dtype, CUDNN_ID_W, w));
    return make_tensor(b, p->dtype, CUDNN_ID_Y, y);
}

static ym_status make_convolution(cudnn_workbench *b, const ym_conv *c)
{
    const int type = CUDNN_DATA_FLOAT, mode = CUDNN_CROSS_CORRELATION;
    const int64_t dims = 2, pad[2] = {c->pad_h, c->pad_w};
    const int64_t stride[2] = {c->stride_h, c->stride_w};
    const int64_t dilation[2] = {c->dilation_h, c->dilation_w};
    cudnn_descriptor *made = &b->convolution;
    YM_TRY(cudnn_create(b, CUDNN_CONVOLUTION_KIND, made));
    YM_TRY(cudnn_set(b, *made, CUDNN_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1,
                     &type));
    YM_TRY(cudnn_set(b, *made, CUDNN_CONVOLUTION_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1,
                     &mode));
    YM_TRY(cudnn_set(b, *made, CUDNN_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1,
                     &dims));
    YM_TRY(
        cudnn_set(b, *made, CUDNN_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad));
    YM_TRY(
        cudnn_set(b, *made, CUDNN_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad));
    YM_TRY(cudnn_set(b, *made, CUDNN_CONVOLUTION_STRIDES, CUDNN_TYPE_INT64, 2, stride));
    YM_TRY(cudnn_set(b, *made, CUDNN_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2,
                     dilation));
    return cudnn_finish(b, *made, "convolution");
}

/* The attributes' names of each pass. */
typedef struct operation_names {
    int kind, alpha, beta, convolution, x, w, y;
} operation_names;

static const operation_names names_of_pass[] = {
    [YM_CONV_FORWARD] = {CUDNN_FORWARD_KIND, CUDNN_FORWARD_ALPHA, CUDNN_FORWARD_BETA,
                         CUDNN_FORWARD_CONVOLUTION, CUDNN_FORWARD_X, CUDNN_FORWARD_W,
                         CUDNN_FORWARD_Y},
    [YM_CONV_BACKWARD_DATA] = {CUDNN_BACKWARD_DATA_KIND, CUDNN_BACKWARD_DATA_ALPHA,
                               CUDNN_BACKWARD_DATA_BETA,
                               CUDNN_BACKWARD_DATA_CONVOLUTION, CUDNN_BACKWARD_DATA_DX,
                               CUDNN_BACKWARD_DATA_W, CUDNN_BACKWARD_DATA_DY},
    [YM_CONV_BACKWARD_WEIGHT] = {CUDNN_BACKWARD_FILTER_KIND,
                                 CUDNN_BACKWARD_FILTER_ALPHA,
                                 CUDNN_BACKWARD_FILTER_BETA,
                                 CUDNN_BACKWARD_FILTER_CONVOLUTION,
                                 CUDNN_BACKWARD_FILTER_X, CUDNN_BACKWARD_FILTER_DW,
                                 CUDNN_BACKWARD_FILTER_DY},
};

static ym_status make_graph(cudnn_workbench *b, const cudnn_problem *p)
{
    const operation_names *name = &names_of_pass[p->pass];
    const float alpha = 1, beta = p->accumulate ? 1 : 0;
    cudnn_descriptor *op = &b->operation;
    YM_TRY(cudnn_create(b, name->kind, op));
    YM_TRY(cudnn_set(b, *op, name->x, CUDNN_TYPE_DESCRIPTOR, 1,
                     &b->tensor[CUDNN_ID_X - 1]));
    YM_TRY(cudnn_set(b, *op, name->w, CUDNN_TYPE_DESCRIPTOR, 1,
                     &b->tensor[CUDNN_ID_W - 1]));
    YM_TRY(cudnn_set(b, *op, name->y, CUDNN_TYPE_DESCRIPTOR, 1,
                     &b->tensor[CUDNN_ID_Y - 1]));
    YM_TRY(cudnn_set(b, *op, name->convolution, CUDNN_TYPE_DESCRIPTOR, 1,
                     &b->convolution));
    YM_TRY(cudnn_set(b, *op, name->alpha, CUDNN_TYPE_FLOAT, 1, &alpha));
    YM_TRY(cudnn_set(b, *op, name->beta, CUDNN_TYPE_FLOAT, 1, &beta));
    YM_TRY(cudnn_finish(b, *op, "operation"));
    YM_TRY(cudnn_create(b, CUDNN_GRAPH_KIND, &b->graph));
    if (b->target->handle != NULL) {
        YM_TRY(cudnn_set(b, b->graph, CUDNN_GRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1,
                         &b->target->handle));
    }
    YM_TRY(cudnn_set(b, b->graph, CUDNN_GRAPH_OPS, CUDNN_TYPE_DESCRIPTOR, 1, op));
    return cudnn_finish(b, b->graph, "graph");
}

ym_status cudnn_describe(cudnn_workbench *b, const cudnn_problem *p)
{
    YM_TRY(make_tensors(b, p));
    YM_TRY(make_convolution(b, &p->conv));
    return make_graph(b, p);
}

void cudnn_clear(cudnn_workbench *b)
{
    for (int i = 0; i < CUDNN_CONFIGS; i++) {
        cudnn_destroy(b->library, &b->config[i]);
    }
    cudnn_destroy(b->library, &b->heuristics);
    cudnn_destroy(b->library, &b->graph);
    cudnn_destroy(b->library, &b->operation);
    cudnn_destroy(b->library, &b->convolution);
    for (int i = 0; i < 3; i++) {
        cudnn_destroy(b->library, &b->tensor[i]);
    }
}
