/* SPDX-License-Identifier: MIT
 *
 * cuDNN 9 by dlopen: its functions, and the numbers of its binary interface that are
 * used here (they are fixed within a major version), so that building needs none of its
 * headers. Lower-case names, cudnn_open, are ours; cuDNN's own are in camel case,
 * cudnnCreate.
 */
#ifndef YM_CUDA_CUDNN_LIBRARY_H
#define YM_CUDA_CUDNN_LIBRARY_H

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct cudnnContext *cudnn_handle;
typedef void *cudnn_descriptor;

enum cudnn_descriptor_kind {
    CUDNN_CONVOLUTION_KIND = 1,
    CUDNN_ENGINE_KIND = 2,
    CUDNN_ENGINECFG_KIND = 3,
    CUDNN_ENGINEHEUR_KIND = 4,
    CUDNN_PLAN_KIND = 5,
    CUDNN_FORWARD_KIND = 10,
    CUDNN_BACKWARD_FILTER_KIND = 11,
    CUDNN_BACKWARD_DATA_KIND = 12,
    CUDNN_GRAPH_KIND = 15,
    CUDNN_VARIANT_PACK_KIND = 16,
    CUDNN_TENSOR_KIND = 17,
    CUDNN_DEVICEPROP_KIND = 38, /* from 9.8 on */
};

enum cudnn_type {
    CUDNN_TYPE_HANDLE = 0,
    CUDNN_TYPE_DATA_TYPE = 1,
    CUDNN_TYPE_INT64 = 3,
    CUDNN_TYPE_FLOAT = 4,
    CUDNN_TYPE_VOID_PTR = 6,
    CUDNN_TYPE_CONVOLUTION_MODE = 7,
    CUDNN_TYPE_HEUR_MODE = 8,
    CUDNN_TYPE_NUMERICAL_NOTE = 11,
    CUDNN_TYPE_DESCRIPTOR = 15,
    CUDNN_TYPE_BEHAVIOR_NOTE = 19,
    CUDNN_TYPE_CHAR = 24,
};

enum cudnn_attribute {
    CUDNN_CONVOLUTION_COMP_TYPE = 100,
    CUDNN_CONVOLUTION_MODE = 101,
    CUDNN_CONVOLUTION_DILATIONS = 102,
    CUDNN_CONVOLUTION_STRIDES = 103,
    CUDNN_CONVOLUTION_POST_PADDINGS = 104,
    CUDNN_CONVOLUTION_PRE_PADDINGS = 105,
    CUDNN_CONVOLUTION_SPATIAL_DIMS = 106,
    CUDNN_ENGINEHEUR_MODE = 200,
    CUDNN_ENGINEHEUR_GRAPH = 201,
    CUDNN_ENGINEHEUR_RESULTS = 202,
    CUDNN_ENGINEHEUR_DEVICEPROP = 204,
    CUDNN_ENGINECFG_ENGINE = 300,
    CUDNN_PLAN_HANDLE = 400,
    CUDNN_PLAN_ENGINE_CONFIG = 401,
    CUDNN_PLAN_WORKSPACE_SIZE = 402,
    CUDNN_PLAN_DEVICEPROP = 407,
    CUDNN_FORWARD_ALPHA = 700,
    CUDNN_FORWARD_BETA = 701,
    CUDNN_FORWARD_CONVOLUTION = 702,
    CUDNN_FORWARD_W = 703,
    CUDNN_FORWARD_X = 704,
    CUDNN_FORWARD_Y = 705,
    CUDNN_BACKWARD_DATA_ALPHA = 706,
    CUDNN_BACKWARD_DATA_BETA = 707,
    CUDNN_BACKWARD_DATA_CONVOLUTION = 708,
    CUDNN_BACKWARD_DATA_W = 709,
    CUDNN_BACKWARD_DATA_DX = 710,
    CUDNN_BACKWARD_DATA_DY = 711,
    CUDNN_BACKWARD_FILTER_ALPHA = 712,
    CUDNN_BACKWARD_FILTER_BETA = 713,
    CUDNN_BACKWARD_FILTER_CONVOLUTION = 714,
    CUDNN_BACKWARD_FILTER_DW = 715,
    CUDNN_BACKWARD_FILTER_X = 716,
    CUDNN_BACKWARD_FILTER_DY = 717,
    CUDNN_GRAPH_HANDLE = 800,
    CUDNN_GRAPH_OPS = 801,
    CUDNN_TENSOR_BYTE_ALIGNMENT = 900,
    CUDNN_TENSOR_DATA_TYPE = 901,
    CUDNN_TENSOR_DIMENSIONS = 902,
    CUDNN_TENSOR_STRIDES = 903,
    CUDNN_TENSOR_UNIQUE_ID = 906,
    CUDNN_VARIANT_PACK_UNIQUE_IDS = 1000,
    CUDNN_VARIANT_PACK_DATA_POINTERS = 1001,
    CUDNN_VARIANT_PACK_WORKSPACE = 1003,
    CUDNN_ENGINE_GLOBAL_INDEX = 1301,
    CUDNN_ENGINE_NUMERICAL_NOTE = 1303,
    CUDNN_ENGINE_BEHAVIOR_NOTE = 1305,
    CUDNN_DEVICEPROP_JSON = 2702,
};

enum {
    CUDNN_NOT_SUPPORTED = 3000, /* and what is more precise, below 4000 */
    CUDNN_DATA_FLOAT = 0,
    CUDNN_DATA_HALF = 2,
    CUDNN_DATA_BFLOAT16 = 9,
    CUDNN_CROSS_CORRELATION = 1,
    CUDNN_HEUR_MODE_FALLBACK = 2,
    CUDNN_HEUR_MODE_A = 3,
    CUDNN_NOTE_TENSOR_CORE = 0,
    CUDNN_NOTE_DOWN_CONVERT_INPUTS = 1,
    CUDNN_NOTE_NONDETERMINISTIC = 4,
    CUDNN_NOTE_RUNTIME_COMPILATION = 0, /* of behaviour */
};

typedef struct cudnn_library {
    size_t version; /* major * 10000 + minor * 100 + patch */
    char path[512];
    size_t (*get_version)(void);
    const char *(*error_string)(int status);
    void (*last_error)(char *text, size_t room); /* or NULL */
    int (*create)(cudnn_handle *handle);
    int (*set_stream)(cudnn_handle handle, void *stream);
    int (*create_descriptor)(int kind, cudnn_descriptor *made);
    int (*destroy_descriptor)(cudnn_descriptor d);
    int (*set_attribute)(cudnn_descriptor d, int name, int type, int64_t count,
                         const void *values);
    int (*get_attribute)(cudnn_descriptor d, int name, int type, int64_t room,
                         int64_t *count, void *values);
    int (*finalize)(cudnn_descriptor d);
    int (*execute)(cudnn_handle handle, cudnn_descriptor plan, cudnn_descriptor pack);
} cudnn_library;

/* The one library of the process: YOLOV9MEM_CUDNN, else what is loaded already, else
 * `path` (may be NULL), else what the loader finds, else the toolkit's. Never closed.
 */
ym_status cudnn_open(const char *path, const cudnn_library **library, ym_error *error);

/* YM_OK, or an error that names the call. */
ym_status cudnn_check(const cudnn_library *library, int status, const char *call,
                      ym_error *error);

#endif
