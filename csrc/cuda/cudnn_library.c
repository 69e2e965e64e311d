/* SPDX-License-Identifier: MIT
 * Finding and opening cuDNN.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "cuda/cudnn_library.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SONAME "libcudnn.so.9"
#define OLDEST 90100

typedef struct symbol {
    const char *name;
    size_t offset; /* in cudnn_library */
} symbol;

static const symbol symbols[] = {
    {"cudnnGetVersion", offsetof(cudnn_library, get_version)},
    {"cudnnGetErrorString", offsetof(cudnn_library, error_string)},
    {"cudnnCreate", offsetof(cudnn_library, create)},
    {"cudnnSetStream", offsetof(cudnn_library, set_stream)},
    {"cudnnBackendCreateDescriptor", offsetof(cudnn_library, create_descriptor)},
    {"cudnnBackendDestroyDescriptor", offsetof(cudnn_library, destroy_descriptor)},
    {"cudnnBackendSetAttribute", offsetof(cudnn_library, set_attribute)},
    {"cudnnBackendGetAttribute", offsetof(cudnn_library, get_attribute)},
    {"cudnnBackendFinalize", offsetof(cudnn_library, finalize)},
    {"cudnnBackendExecute", offsetof(cudnn_library, execute)},
};

static void *open_in(const char *folder, const char *below)
{
    char path[512];
    if (folder == NULL || folder[0] == '\0') {
        return NULL;
    }
    snprintf(path, sizeof path, "%s%s/" SONAME, folder, below);
    return dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static void *open_any(const char *path)
{
    const char *wanted = getenv("YOLOV9MEM_CUDNN");
    if (wanted != NULL && wanted[0] != '\0') {
        return dlopen(wanted, RTLD_NOW | RTLD_LOCAL);
    }
    void *found = dlopen(SONAME, RTLD_NOW | RTLD_NOLOAD);
    if (found == NULL && path != NULL) {
        found = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    if (found == NULL) {
        found = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
    }
    if (found == NULL) {
        found = open_in(getenv("CUDA_HOME"), "/lib64");
    }
    return found != NULL ? found : open_in("/usr/local/cuda", "/lib64");
}

static ym_status refuse(ym_error *error)
{
    char reason[200];
    const char *text = dlerror();
    snprintf(reason, sizeof reason, "%s", text != NULL ? text : "not found");
    void *old = dlopen("libcudnn.so.8", RTLD_NOW | RTLD_LOCAL);
    if (old != NULL) {
        dlclose(old);
        return ym_fail(
            error, YM_ERR_BACKEND,
            "cuda: only cuDNN 8 is installed, 9.1 or newer is needed: install "
            "nvidia-cudnn-cu13, or use backend 'cuda:plain'");
    }
    return ym_fail(error, YM_ERR_BACKEND,
                   "cuda: " SONAME
                   " cannot be opened (%s): import torch first, install "
                   "nvidia-cudnn-cu13, set YOLOV9MEM_CUDNN to its path, or use backend "
                   "'cuda:plain'",
                   reason);
}

static ym_status load(const char *path, cudnn_library *library, ym_error *error)
{
    void *opened = open_any(path);
    if (opened == NULL) {
        return refuse(error);
    }
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *address = dlsym(opened, symbols[i].name);
        YM_CHECK(error, address != NULL, YM_ERR_BACKEND,
                 "cuda: cuDNN has no function %s", symbols[i].name);
        memcpy((char *)library + symbols[i].offset, &address, sizeof address);
    }
    void *last = dlsym(opened, "cudnnGetLastErrorString");
    memcpy(&library->last_error, &last, sizeof last);
    struct link_map *map = NULL;
    if (dlinfo(opened, RTLD_DI_LINKMAP, &map) == 0 && map != NULL) {
        snprintf(library->path, sizeof library->path, "%s", map->l_name);
    }
    size_t version = library->get_version();
    size_t unit = version < 10000 ? 1000
                                  : 10000; /* of a major version; up to 8: 1000 */
    YM_CHECK(error, version >= OLDEST && version / 10000 == 9, YM_ERR_BACKEND,
             "cuda: cuDNN at %s is version %zu.%zu.%zu, 9.1 or newer (below 10) is "
             "needed: install nvidia-cudnn-cu13, or use backend 'cuda:plain'",
             library->path, version / unit, version / 100 % (unit / 100),
             version % 100);
    library->version = version;
    return YM_OK;
}

ym_status cudnn_open(const char *path, const cudnn_library **library, ym_error *error)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static cudnn_library opened;
    pthread_mutex_lock(&lock);
    ym_status status = opened.version != 0 ? YM_OK : load(path, &opened, error);
    pthread_mutex_unlock(&lock);
    *library = &opened;
    return status;
}

ym_status cudnn_check(const cudnn_library *library, int status, const char *call,
                      ym_error *error)
{
    if (status == 0) {
        return YM_OK;
    }
    char more[200] = "";
    if (library->last_error != NULL) {
        library->last_error(more, sizeof more);
    }
    return ym_fail(error, YM_ERR_BACKEND, "cuda: cuDNN %zu.%zu.%zu: %s: %s%s%s",
                   library->version / 10000, library->version / 100 % 100,
                   library->version % 100, call, library->error_string(status),
                   more[0] != '\0' ? ": " : "", more);
}
