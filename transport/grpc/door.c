/* The gRPC door: server, completion queue, thread; see door.h for who may do what.
 *
 * Facts of the core that shape this: status and messages go out in order without our waiting;
 * RECV_CLOSE is asked for once a call; the queue is shut down last, when the server says that it is
 * down, and turned until it is empty. The core's threads start with all signals blocked. */
#include "door.h"

#include <errno.h>
#include <grpc/grpc_security.h>
#include <grpc/support/log.h>
#include <sluice/base/time.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TLS_FILE_MAX  ((size_t)1 << 20)
#define RETRY_MS      100  /* after memory ran out for the next call */
#define CLOSE_MS      1000 /* for answers still on their way */
#define STREAMS_MAX   1024 /* calls at once on one connection */
#define HANDSHAKE_MS  10000
#define IDENTITY_ONLY 1 /* bit set of compression algorithms: none */

/* --- the thread ------------------------------------------------------------------------------- */

static void on_accepted(struct call *c, bool ok);

static void accept_next(struct sl_grpc_door *d)
{
    struct call *c = call_new(d);
    if (!c)
        return;
    c->on_accepted = (struct tag){on_accepted, c};
    if (grpc_server_request_call(d->server, &c->core, &c->details, &c->metadata, d->queue, d->queue,
                                 &c->on_accepted) == GRPC_CALL_OK)
        d->waiting = c;
    else
        call_unref(c);
}

/* Without success the server is going down. */
static void on_accepted(struct call *c, bool ok)
{
    struct sl_grpc_door *d = c->door;
    d->waiting = NULL;
    if (!ok)
        return;
    accept_next(d);
    call_begin(c);
}

static bool is_stopping(struct sl_grpc_door *d)
{
    pthread_mutex_lock(&d->mutex);
    bool stopping = d->stopping;
    pthread_mutex_unlock(&d->mutex);
    return stopping;
}

static void say_down(struct sl_grpc_door *d)
{
    grpc_completion_queue_shutdown(d->queue);
    pthread_mutex_lock(&d->mutex);
    d->down = true;
    pthread_cond_signal(&d->went_down);
    pthread_mutex_unlock(&d->mutex);
}

static void *turn(void *arg)
{
    struct sl_grpc_door *d = arg;
    accept_next(d);
    for (;;) {
        gpr_timespec until = gpr_inf_future(GPR_CLOCK_MONOTONIC);
        if (!d->waiting)
            until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                 gpr_time_from_millis(RETRY_MS, GPR_TIMESPAN));
        grpc_event e = grpc_completion_queue_next(d->queue, until, NULL);
        if (e.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        if (e.type == GRPC_QUEUE_TIMEOUT) {
            if (!is_stopping(d))
                accept_next(d);
        } else if (e.tag == &d->on_down) {
            say_down(d);
        } else {
            struct tag *t = e.tag;
            struct call *c = t->call;
            t->fn(c, e.success != 0);
            call_unref(c);
        }
    }
}

/* --- open ------------------------------------------------------------------------------------- */

static void (*log_line)(const char *line);

static void on_core_log(gpr_log_func_args *args)
{
    log_line(args->message);
}

static enum sl_status read_pem(const char *path, struct sl_buf *out, struct sl_err *err)
{
    char piece[4096];
    FILE *f = fopen(path, "re");
    if (!f)
        return sl_fail(err, SL_CONFIG, "grpc: '%s' cannot be read", path);
    out->cap_bytes = TLS_FILE_MAX;
    for (size_t n; (n = fread(piece, 1, sizeof piece, f)) > 0;)
        sl_buf_append(out, piece, n);
    fclose(f);
    if (!out->len || out->failed)
        return sl_fail(err, SL_CONFIG, "grpc: '%s' is empty or larger than %zu bytes", path,
                       TLS_FILE_MAX);
    return SL_OK;
}

static enum sl_status tls_credentials(const struct sl_grpc_config *cfg,
                                      grpc_server_credentials **out, struct sl_err *err)
{
    struct sl_buf cert = {0}, key = {0};
    enum sl_status s = read_pem(cfg->tls_cert_file, &cert, err);
    if (!s)
        s = read_pem(cfg->tls_key_file, &key, err);
    if (!s) {
        grpc_ssl_pem_key_cert_pair pair = {key.data, cert.data};
        *out = grpc_ssl_server_credentials_create_ex(
            NULL, &pair, 1, GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE, NULL);
        if (!*out)
            s = sl_fail(err, SL_CONFIG, "grpc: '%s' and '%s' make no TLS identity",
                        cfg->tls_cert_file, cfg->tls_key_file);
        memset(key.data, 0, key.len);
    }
    sl_buf_free(&cert);
    sl_buf_free(&key);
    return s;
}

static enum sl_status listen_on(struct sl_grpc_door *d, struct sl_err *err)
{
    const struct sl_grpc_config *cfg = &d->cfg;
    struct sl_buf address = {0};
    grpc_server_credentials *credentials = NULL;
    if (!cfg->tls_cert_file)
        credentials = grpc_insecure_server_credentials_create();
    else if (tls_credentials(cfg, &credentials, err))
        return err->status;
    bool v6 = strchr(cfg->host, ':') != NULL;
    sl_buf_printf(&address, "%s%s%s:%u", v6 ? "[" : "", cfg->host, v6 ? "]" : "", cfg->port);
    int port =
        address.failed ? 0 : grpc_server_add_http2_port(d->server, address.data, credentials);
    sl_buf_free(&address);
    grpc_server_credentials_release(credentials);
    if (port)
        return SL_OK;
    return sl_fail_param(err, SL_PORT_IN_USE, "grpc-port", "grpc: %s:%u is already in use",
                         cfg->host, cfg->port);
}

static grpc_arg number_arg(const char *key, int value)
{
    return (grpc_arg){
        .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

static bool make_server(struct sl_grpc_door *d)
{
    grpc_arg args[] = {
        number_arg(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, SL_LIMIT_http_body_bytes),
        number_arg(GRPC_ARG_MAX_METADATA_SIZE, SL_LIMIT_http_header_bytes),
        number_arg(GRPC_ARG_MAX_CONCURRENT_STREAMS, STREAMS_MAX),
        number_arg(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, HANDSHAKE_MS),
        number_arg(GRPC_ARG_ALLOW_REUSEPORT, 0), /* a second server must not share the port */
        number_arg(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        number_arg(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, IDENTITY_ONLY),
    };
    grpc_channel_args all = {sizeof args / sizeof *args, args};
    d->queue = grpc_completion_queue_create_for_next(NULL);
    d->server = grpc_server_create(&all, NULL);
    if (!d->queue || !d->server)
        return false;
    grpc_server_register_completion_queue(d->server, d->queue, NULL);
    return true;
}

static void make_mutex(struct sl_grpc_door *d)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&d->went_down, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&d->mutex, NULL);
}

/* What is left once the thread is gone, or was never there. */
static void free_door(struct sl_grpc_door *d)
{
    if (d->server)
        grpc_server_destroy(d->server);
    if (d->queue)
        grpc_completion_queue_destroy(d->queue);
    grpc_shutdown_blocking(); /* no thread of the core outlives the door */
    pthread_cond_destroy(&d->went_down);
    pthread_mutex_destroy(&d->mutex);
    free(d);
}

/* A server may only be destroyed after its shutdown, also when it never started. */
static void drop_server(struct sl_grpc_door *d)
{
    gpr_timespec never = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (d->server && d->queue) {
        grpc_server_shutdown_and_notify(d->server, d->queue, &d->on_down);
        grpc_completion_queue_next(d->queue, never, NULL);
        grpc_completion_queue_shutdown(d->queue);
        grpc_completion_queue_next(d->queue, never, NULL);
    }
    free_door(d);
}

static enum sl_status start(struct sl_grpc_door *d, struct sl_err *err)
{
    if (!make_server(d))
        return sl_fail(err, SL_NO_MEMORY, "grpc: no memory for a server");
    enum sl_status s = listen_on(d, err);
    if (s)
        return s;
    grpc_server_start(d->server);
    int e = pthread_create(&d->thread, NULL, turn, d);
    if (e)
        return sl_fail(err, SL_NO_MEMORY, "grpc: no thread for the door: %s", strerror(e));
    return SL_OK;
}

static enum sl_status door_open(const struct sl_grpc_config *cfg, struct sl_grpc_door **out,
                                struct sl_err *err)
{
    struct sl_grpc_door *d = calloc(1, sizeof *d);
    sigset_t all, before;
    if (!d)
        return sl_fail(err, SL_NO_MEMORY, "grpc: no memory for a door");
    d->cfg = *cfg;
    sl_list_init(&d->watchers);
    atomic_init(&d->n_calls, 0);
    make_mutex(d);
    log_line = cfg->log;
    gpr_set_log_function(on_core_log);
    gpr_set_log_verbosity(GPR_LOG_SEVERITY_ERROR);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    grpc_init();
    enum sl_status s = start(d, err);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (s)
        drop_server(d);
    else
        *out = d;
    return s;
}

/* --- the owner's table ------------------------------------------------------------------------ */

static void door_set_serving(struct sl_grpc_door *d, bool serving)
{
    pthread_mutex_lock(&d->mutex);
    if (d->serving != serving) {
        d->serving = serving;
        health_tell_all(d);
    }
    pthread_mutex_unlock(&d->mutex);
}

static void door_stop(struct sl_grpc_door *d)
{
    pthread_mutex_lock(&d->mutex);
    d->stopping = true;
    health_tell_all(d);
    pthread_mutex_unlock(&d->mutex);
    grpc_server_shutdown_and_notify(d->server, d->queue, &d->on_down);
}

static bool wait_down(struct sl_grpc_door *d)
{
    uint64_t until = sl_now_ns() + CLOSE_MS * SL_MS_NS;
    struct timespec t = {(time_t)(until / SL_S_NS), (long)(until % SL_S_NS)};
    int e = 0;
    pthread_mutex_lock(&d->mutex);
    while (!d->down && e != ETIMEDOUT)
        e = pthread_cond_timedwait(&d->went_down, &d->mutex, &t);
    bool down = d->down;
    pthread_mutex_unlock(&d->mutex);
    return down;
}

static void door_close(struct sl_grpc_door *d)
{
    if (!wait_down(d))
        grpc_server_cancel_all_calls(d->server);
    pthread_join(d->thread, NULL);
    sl_assert(atomic_load(&d->n_calls) == 0);
    free_door(d);
}

extern const struct sl_grpc_ops sl_grpc_ops;
__attribute__((visibility("default"))) const struct sl_grpc_ops sl_grpc_ops = {
    .abi = SL_GRPC_ABI,
    .open = door_open,
    .set_serving = door_set_serving,
    .cancelled = call_cancelled,
    .answer = call_answer,
    .release = call_release,
    .stop = door_stop,
    .close = door_close,
};
