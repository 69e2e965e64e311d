/* SPDX-License-Identifier: MIT
 *
 * A launch costs the host some 4 us, a detector's step some 3000 of them. What was
 * queued for a key once is captured when the key comes again, on a stream of our own,
 * and from then on launched as one graph. torch's allocator gives a loop the same few
 * addresses in turn, so a part keeps several; but graphs take memory of the driver's,
 * so all plans together have so many, and those longest unused go. Whatever goes wrong
 * with a graph, the work can still be queued; after a few recordings in a row that
 * failed, or one launch, there are no more graphs for this plan.
 */
#include "cuda/replay.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda/cudnn_cache.h"

#define KEYS_OF_A_PART 4
#define GRAPHS_OF_ALL 128
#define DEVICES 64
/* To record costs more than to launch: where addresses hardly come back, it ends. */
#define RECORDS_ON_TRUST 64
#define REPEATS_OF_A_RECORD 8
/* Another thread that waits for the whole device meanwhile ends a recording. */
#define FAILURES_IN_A_ROW 3

typedef struct memory {
    struct memory *next;
    const void *part;
    int32_t first_step;
    cudnn_settings settings;
    uint64_t *word;
    size_t words;
    uint64_t used;         /* when last */
    cudaGraphExec_t graph; /* NULL: the key has come once */
    bool starts;           /* a thread starts it now, without the lock */
} memory;

typedef struct replayer {
    ym_replayer base;
    struct replayer *next; /* of all there are */
    memory *first;
    int32_t failures; /* to record, in a row */
    int32_t device;   /* of its graphs; -1: there was none yet */
    pid_t process;
} replayer;

/* What follows belongs to the thread that has the lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static replayer *replayers;
static int32_t graphs; /* alive */
static memory *left;   /* of plans that went in a thread on another device */
static uint64_t clock_now;
/* Where work is recorded; never destroyed, as cuDNN's handle may still name it. */
static cudaStream_t own_streams[DEVICES];

static bool is_of_part(const memory *m, const ym_replay_key *key)
{
    return m->part == key->part && m->first_step == key->first;
}

static memory *find(const replayer *r, const ym_replay_key *key,
                    cudnn_settings settings)
{
    for (memory *m = r->first; m != NULL; m = m->next) {
        if (is_of_part(m, key) && m->words == key->words &&
            m->settings.tf32 == settings.tf32 &&
            m->settings.trials == settings.trials &&
            memcmp(m->word, key->word, key->words * sizeof *key->word) == 0) {
            return m;
        }
    }
    return NULL;
}

static void drop_graph(memory *m)
{
    if (m->graph != NULL) {
        cudaGraphExecDestroy(m->graph); /* after its last launch has ended */
        m->graph = NULL;
        graphs--;
    }
}

static void forget(memory *m)
{
    drop_graph(m);
    free(m->word);
    free(m);
}

static void forget_left(void)
{
    while (left != NULL) {
        memory *gone = left;
        left = gone->next;
        forget(gone);
    }
}

/* The key that was not used for longest goes, where the part has too many. */
static void make_room(replayer *r, const ym_replay_key *key)
{
    memory **oldest = NULL;
    int32_t count = 0;
    for (memory **at = &r->first; *at != NULL; at = &(*at)->next) {
        if (is_of_part(*at, key) && !(*at)->starts) {
            count++;
            oldest = oldest == NULL || (*at)->used < (*oldest)->used ? at : oldest;
        }
    }
    if (count >= KEYS_OF_A_PART) {
        memory *gone = *oldest;
        *oldest = gone->next;
        forget(gone);
    }
}

/* The graph of any plan that was not used for longest goes, where there are too many.
 */
static void make_room_for_a_graph(void)
{
    memory *oldest = NULL;
    for (replayer *r = replayers; graphs >= GRAPHS_OF_ALL && r != NULL; r = r->next) {
        for (memory *m = r->first; m != NULL; m = m->next) {
            if (m->graph != NULL && !m->starts &&
                (oldest == NULL || m->used < oldest->used)) {
                oldest = m;
            }
        }
    }
    if (oldest != NULL) {
        drop_graph(oldest);
    }
}

/* Without memory for it the key is not remembered, and nothing is lost. */
static void remember(replayer *r, const ym_replay_key *key, cudnn_settings settings)
{
    make_room(r, key);
    memory *m = calloc(1, sizeof *m);
    uint64_t *word = malloc(key->words * sizeof *word);
    if (m == NULL || word == NULL) {
        free(m);
        free(word);
        return;
    }
    memcpy(word, key->word, key->words * sizeof *word);
    *m = (memory){.next = r->first,
                  .part = key->part,
                  .first_step = key->first,
                  .settings = settings,
                  .word = word,
                  .words = key->words,
                  .used = ++clock_now};
    r->first = m;
}

static int32_t device_of(const ym_context *context)
{
    return context->device < 0 ? 0 : context->device;
}

static cudaError_t own_stream(const ym_context *context, cudaStream_t *stream)
{
    const int device = device_of(context);
    if (device >= DEVICES) {
        return cudaErrorInvalidDevice;
    }
    cudaError_t result = cudaSuccess;
    if (own_streams[device] == NULL) {
        result = cudaStreamCreateWithFlags(&own_streams[device], cudaStreamNonBlocking);
    }
    *stream = own_streams[device];
    return result;
}

/* Queues the work on a stream that records it. */
static cudaError_t capture(ym_context *context, ym_queue_work queue, const void *what,
                           cudaGraph_t *graph)
{
    cudaStream_t own;
    cudaError_t result = own_stream(context, &own);
    if (result == cudaSuccess) {
        result = cudaStreamBeginCapture(own, cudaStreamCaptureModeRelaxed);
    }
    if (result != cudaSuccess) {
        return result;
    }
    void *const stream = context->stream;
    context->stream = own;
    const ym_status status = queue(context, what);
    context->stream = stream;
    result = cudaStreamEndCapture(own, graph);
    const bool lost = status != YM_OK && result == cudaSuccess;
    return lost ? cudaErrorStreamCaptureUnsupported : result;
}

/* Leaves m->graph NULL if it can't be made. */
static void make_graph(memory *m, ym_context *context, ym_queue_work queue,
                       const void *what)
{
    cudaGraph_t graph = NULL;
    cudaError_t result = capture(context, queue, what, &graph);
    if (result == cudaSuccess) {
        result = cudaGraphInstantiateWithFlags(&m->graph, graph, 0);
    }
    if (graph != NULL) {
        cudaGraphDestroy(graph);
    }
    if (result != cudaSuccess) {
        m->graph = NULL;
        cudaGetLastError(); /* so that the next call starts clean */
    }
    graphs += m->graph != NULL;
}

static bool pays(const ym_replayer *base)
{
    return base->recorded < RECORDS_ON_TRUST + base->repeated / REPEATS_OF_A_RECORD;
}

/* Whether m has a graph now. */
static bool record(replayer *r, memory *m, ym_context *context, ym_queue_work queue,
                   const void *what)
{
    if (!pays(&r->base)) {
        return false;
    }
    make_room_for_a_graph();
    r->device = device_of(context);
    make_graph(m, context, queue, what);
    const bool made = m->graph != NULL;
    r->failures = made ? 0 : r->failures + 1;
    r->base.gave_up = r->failures >= FAILURES_IN_A_ROW;
    r->base.recorded += made;
    return made;
}

/* What has a graph for the key, which now is this thread's to start; NULL: nothing. */
static memory *take(replayer *r, ym_context *context, const ym_replay_key *key,
                    ym_queue_work queue, const void *what)
{
    forget_left();
    if (r->base.gave_up) {
        return NULL;
    }
    const cudnn_settings settings = cudnn_used();
    memory *m = find(r, key, settings);
    if (m == NULL) {
        remember(r, key, settings);
        return NULL;
    }
    m->used = ++clock_now;
    if (m->starts || (m->graph == NULL && !record(r, m, context, queue, what))) {
        return NULL;
    }
    m->starts = true;
    return m;
}

/* Whether the work is on the stream now. A start may last, where the stream has no
 * place left; the threads of other GPUs do not wait for that. */
static bool repeat(replayer *r, ym_context *context, const ym_replay_key *key,
                   ym_queue_work queue, const void *what)
{
    pthread_mutex_lock(&lock);
    memory *m = take(r, context, key, queue, what);
    pthread_mutex_unlock(&lock);
    if (m == NULL) {
        return false;
    }
    const bool started = cudaGraphLaunch(m->graph, (cudaStream_t)context->stream) ==
                         cudaSuccess;
    if (!started) {
        cudaGetLastError();
    }
    pthread_mutex_lock(&lock);
    m->starts = false;
    r->base.repeated += started;
    r->base.gave_up |= !started;
    pthread_mutex_unlock(&lock);
    return started;
}

/* Making and freeing a graph must not end the captures of other streams. */
static void exchange_capture_mode(enum cudaStreamCaptureMode *mode)
{
    if (cudaThreadExchangeStreamCaptureMode(mode) != cudaSuccess) {
        cudaGetLastError();
    }
}

static ym_status run(ym_replayer *self, ym_context *context, const ym_replay_key *key,
                     ym_queue_work queue, const void *what)
{
    replayer *r = (replayer *)self;
    bool done = false;
    const int previous = cuda_enter_device(context);
    if (!cuda_is_captured(context)) { /* whoever captures gets the work itself */
        enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
        exchange_capture_mode(&mode);
        done = repeat(r, context, key, queue, what);
        exchange_capture_mode(&mode);
    }
    cuda_leave_device(previous);
    return done ? YM_OK : queue(context, what);
}

static bool is_current(int32_t device)
{
    int current = -1;
    if (cudaGetDevice(&current) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    return current == device;
}

/* A collection comes at any time, in any thread. In one that is on another device, a
 * call would open a context there, of hundreds of megabytes: then the graphs are left
 * for the next run. */
static void free_replayer(ym_replayer *self)
{
    replayer *r = (replayer *)self;
    if (r->process != getpid()) {
        return; /* a forked child has no graphs, and the lock may be held for good */
    }
    const bool here = r->device >= 0 && is_current(r->device);
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    if (here) {
        exchange_capture_mode(&mode);
    }
    pthread_mutex_lock(&lock);
    while (r->first != NULL) {
        memory *gone = r->first;
        r->first = gone->next;
        if (here || gone->graph == NULL) {
            forget(gone);
        } else {
            gone->next = left;
            left = gone;
        }
    }
    replayer **at = &replayers;
    while (*at != r) {
        at = &(*at)->next;
    }
    *at = r->next;
    pthread_mutex_unlock(&lock);
    if (here) {
        exchange_capture_mode(&mode);
    }
    free(r);
}

ym_replayer *cuda_make_replayer(void)
{
    replayer *r = calloc(1, sizeof *r);
    if (r == NULL) {
        return NULL;
    }
    r->device = -1;
    r->base.run = run;
    r->base.free = free_replayer;
    r->process = getpid();
    pthread_mutex_lock(&lock);
    r->next = replayers;
    replayers = r;
    pthread_mutex_unlock(&lock);
    return &r->base;
}
