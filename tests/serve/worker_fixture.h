/* A router played by a test, and real worker processes: the test program again, with "worker" as
 * its first argument. */
#ifndef SLUICE_TESTS_WORKER_FIXTURE_H
#define SLUICE_TESTS_WORKER_FIXTURE_H

#include "tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sluice/base/containers.h>
#include <sluice/base/limits.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/files/gguf.h>
#include <sluice/serve/worker.h>
#include <sluice/text/tokenizer.h>
#include <sluice/transport/bulk.h>
#include <sluice/transport/bus.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define PATIENCE_MS 60000 /* of a test that fails; one that passes never waits so long */
#define TOKENS_MAX  2048
#define STREAMS_MAX 128

extern char **environ; /* sanitizers read their options from it */

static char model_path[64];
static uint32_t drain_ms; /* of the next worker; 0: the default */

/* ---- the worker process ---- */

/* argv: worker SUPERVISOR DRAIN_MS MODEL ENDPOINT... */
static inline int worker_main(int argc, char **argv)
{
    struct sl_err err = {0};
    sl_log_open(SL_LOG_TEXT, SL_LOG_ERROR, "worker");
    struct sl_worker_config cfg = {.model_path = argv[4],
                                   .connect = (const char *const *)(void *)&argv[5],
                                   .n_connect = (uint32_t)(argc - 5),
                                   .drain_ms = (uint32_t)atoi(argv[3]),
                                   .supervisor_pid = atoi(argv[2]),
                                   .engine = {.backend = "cpu",
                                              .n_threads = 1,
                                              .max_seqs = 16,
                                              .queue_max = 32,
                                              .kv_dtype = SL_F16,
                                              .prefix_cache = true}};
    enum sl_status s = sl_worker_run(&cfg, &err);
    return sl_status_row(s)->exit_code;
}

static inline pid_t start_worker(pid_t supervisor, const char *const *endpoints, uint32_t n)
{
    char pid_text[16], drain_text[16];
    const char *argv[16] = {"test", "worker", pid_text, drain_text, model_path};
    pid_t pid;
    snprintf(pid_text, sizeof pid_text, "%d", (int)supervisor);
    snprintf(drain_text, sizeof drain_text, "%u", drain_ms);
    for (uint32_t i = 0; i < n; i++)
        argv[5 + i] = endpoints[i];
    char *const *args = (char *const *)(const void *)argv;
    assert_int_equal(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, args, environ), 0);
    return pid;
}

static inline int exit_code(pid_t pid)
{
    int status = 0;
    uint64_t until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        if (sl_now_ns() > until) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            fail_msg("the worker does not leave");
        }
        poll(NULL, 0, 5);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* ---- a router played by the test ---- */

struct stream {
    uint64_t id;
    uint32_t epoch, n, end, status;
    uint32_t tokens[TOKENS_MAX];
};

struct router {
    struct sl_buf ipc;
    struct sl_bus *bus;
    uint64_t link; /* of the worker; 0: not yet */
    uint64_t pinged_ns, last_step;
    uint32_t n_hellos, n_byes, n_strange, n_loads;
    struct sl_msg_hello hello; /* strings are gone */
    char kv_address[SL_BULK_ADDRESS_MAX];
    struct sl_msg_load load;
    uint32_t n_meta_wrong;
    struct sl_buf meta;
    struct stream streams[STREAMS_MAX];
    uint32_t n_streams;
    bool welcome; /* answer HELLO */
};

static inline void router_bind(struct router *r)
{
    struct sl_err err;
    const char *endpoint = r->ipc.data;
    struct sl_bus_config cfg = {
        .endpoints = &endpoint, .n_endpoints = 1, .is_router = true};
    if (sl_bus_open(&cfg, &r->bus, &err) != SL_OK)
        fail_msg("%s", err.msg);
    r->link = 0;
}

static inline struct router *router_new(void)
{
    struct router *r = calloc(1, sizeof *r);
    struct sl_err err;
    assert_non_null(r);
    r->welcome = true;
    if (sl_bus_ipc_make("/tmp", &r->ipc, &err) != SL_OK)
        fail_msg("%s", err.msg);
    router_bind(r);
    return r;
}

static inline void router_free(struct router *r)
{
    sl_bus_close(r->bus);
    sl_bus_ipc_remove(r->ipc.data);
    sl_buf_free(&r->ipc);
    sl_buf_free(&r->meta);
    free(r);
}

static inline void tell(struct router *r, const struct sl_msg *m)
{
    struct sl_err err;
    if (sl_bus_send(r->bus, r->link, m, &err) != SL_OK)
        fail_msg("%s", err.msg);
}

static inline struct stream *stream_of(struct router *r, uint64_t id)
{
    for (uint32_t i = 0; i < r->n_streams; i++)
        if (r->streams[i].id == id)
            return &r->streams[i];
    return NULL;
}

static inline void on_out(struct router *r, const struct sl_msg_out *o)
{
    struct stream *s = stream_of(r, o->id);
    if (!s || s->end || o->epoch > s->epoch) {
        r->n_strange++;
        return;
    }
    if (o->epoch < s->epoch)
        return; /* the shares of an earlier submit, fenced */
    for (uint32_t i = 0; i < o->n_tokens && s->n < TOKENS_MAX; i++)
        s->tokens[s->n++] = o->tokens[i];
    s->end = o->end;
    s->status = o->status;
}

/* Tokens of one engine step come in one message: their numbers rise. */
static inline void on_step(struct router *r, const struct sl_msg_step *m)
{
    bool has_token = false;
    for (uint32_t i = 0; i < m->n_outs; i++) {
        has_token |= m->outs[i].n_tokens > 0;
        for (uint32_t k = 0; k < i; k++)
            r->n_strange += m->outs[i].id == m->outs[k].id;
        on_out(r, &m->outs[i]);
    }
    if (!has_token)
        return;
    r->n_strange += m->step <= r->last_step;
    r->last_step = m->step;
}

static inline void on_hello(struct router *r, uint64_t link, const struct sl_msg_hello *h)
{
    struct sl_msg m = {.kind = SL_MSG_WELCOME, .welcome = {.version = SL_BUS_VERSION}};
    r->hello = *h;
    snprintf(r->kv_address, sizeof r->kv_address, "%.*s", (int)h->kv_address.len,
             h->kv_address.len ? h->kv_address.data : "");
    r->link = link;
    r->n_hellos++;
    r->last_step = 0;
    if (r->welcome)
        tell(r, &m);
}

static inline void on_message(struct router *r, uint64_t link, const struct sl_msg *m)
{
    if (m->kind == SL_MSG_HELLO)
        on_hello(r, link, &m->hello);
    if (link != r->link)
        return;
    if (m->kind == SL_MSG_STEP)
        on_step(r, &m->step);
    if (m->kind == SL_MSG_LOAD)
        r->n_loads++;
    if (m->kind == SL_MSG_LOAD)
        r->load = m->load;
    if (m->kind == SL_MSG_BYE)
        r->n_byes++;
    if (m->kind == SL_MSG_META_CHUNK) {
        r->n_meta_wrong += m->meta.offset != r->meta.len;
        sl_buf_append(&r->meta, m->meta.bytes.data, m->meta.bytes.len);
    }
}

/* Takes what waits, then waits a little for more. */
static inline void router_turn(struct router *r)
{
    struct pollfd p = {.fd = sl_bus_fd(r->bus), .events = POLLIN};
    struct sl_msg m, ping = {.kind = SL_MSG_PING};
    struct sl_err err;
    uint64_t link;
    poll(&p, 1, 10);
    while (sl_bus_recv(r->bus, &link, &m, &err) == SL_OK && m.kind != SL_MSG_NONE)
        on_message(r, link, &m);
    if (r->link && sl_now_ns() - r->pinged_ns > 100 * SL_MS_NS) {
        sl_bus_send(r->bus, r->link, &ping, NULL);
        r->pinged_ns = sl_now_ns();
    }
}

#define UNTIL(r, condition)                                                                        \
    do {                                                                                           \
        uint64_t until_ = sl_now_ns() + PATIENCE_MS * SL_MS_NS;                                    \
        while (!(condition)) {                                                                     \
            router_turn(r);                                                                        \
            if (sl_now_ns() > until_)                                                              \
                fail_msg("never came true: %s", #condition);                                       \
        }                                                                                          \
    } while (0)

/* ---- requests ---- */

static const uint32_t prompt_a[] = {72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 108, 100};
static const uint32_t prompt_b[] = {84, 119, 111, 32, 114, 111, 117, 116, 101, 114, 115};

static inline struct sl_msg submit_of(uint64_t id, const uint32_t *tokens, uint32_t n,
                                      uint32_t max_tokens)
{
    struct sl_msg m = {.kind = SL_MSG_SUBMIT};
    m.submit = (struct sl_msg_submit){.id = id,
                                      .epoch = 1,
                                      .n_prompt = n,
                                      .tokens = tokens,
                                      .n_tokens = n,
                                      .seed = 1234,
                                      .temperature = 1.0f,
                                      .top_p = 1.0f,
                                      .typical_p = 1.0f,
                                      .repetition_penalty = 1.0f,
                                      .top_k = -1,
                                      .max_tokens = max_tokens,
                                      .ignore_eos = true};
    return m;
}

static inline struct stream *submit(struct router *r, const struct sl_msg *m)
{
    struct stream *s = stream_of(r, m->submit.id);
    if (!s) {
        assert_true(r->n_streams < STREAMS_MAX);
        s = &r->streams[r->n_streams++];
    }
    memset(s, 0, sizeof *s);
    s->id = m->submit.id;
    s->epoch = m->submit.epoch;
    tell(r, m);
    return s;
}

static inline struct stream *submit_a(struct router *r, uint64_t id, uint32_t max_tokens)
{
    struct sl_msg m = submit_of(id, prompt_a, sizeof prompt_a / sizeof *prompt_a, max_tokens);
    return submit(r, &m);
}

static inline struct stream *submit_b(struct router *r, uint64_t id, uint32_t max_tokens)
{
    struct sl_msg m = submit_of(id, prompt_b, sizeof prompt_b / sizeof *prompt_b, max_tokens);
    return submit(r, &m);
}

static inline void until_idle(struct router *r)
{
    uint32_t n = r->n_loads;
    UNTIL(r, r->n_loads > n && r->load.running + r->load.waiting == 0 &&
                 r->load.pages_free == r->load.pages_total);
}

/* ---- fixture: one router, one worker ---- */

struct fixture {
    struct router *r;
    pid_t worker;
};

static inline struct fixture start(pid_t supervisor)
{
    struct fixture f = {.r = router_new()};
    const char *endpoint = f.r->ipc.data;
    f.worker = start_worker(supervisor, &endpoint, 1);
    UNTIL(f.r, f.r->n_hellos == 1);
    return f;
}

/* Ends the worker as a router does and expects it to go in peace. */
static inline void finish(struct fixture *f)
{
    struct sl_msg drain = {.kind = SL_MSG_DRAIN};
    assert_int_equal(f->r->n_strange, 0);
    tell(f->r, &drain);
    UNTIL(f->r, f->r->n_byes == 1);
    assert_int_equal(exit_code(f->worker), 0);
    router_free(f->r);
}

static inline int write_model(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct sl_err err;
    snprintf(model_path, sizeof model_path, "/tmp/sluice-test-worker-%d.gguf", (int)getpid());
    return tiny_model_write(&m, model_path, &err) == SL_OK ? 0 : -1;
}

static inline int remove_model(void **state)
{
    (void)state;
    return unlink(model_path);
}

#endif
