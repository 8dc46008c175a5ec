/* A worker's life: opens the model, then waits on bus, engine and signals until it is to stop. */
#include "worker.h"

#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <sluice/files/gguf.h>
#include <sluice/text/tokenizer.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define DRAIN_MS_DEFAULT 30000
#define TICK_MS          50

/* ---- signals ---- */

/* What a handler passes on; a pipe write of this size is atomic. */
struct signal_note {
    int32_t signum, sender;
};

static int note_fd = -1; /* written by the handler; one worker per process */

static void on_signal(int signum, siginfo_t *info, void *ctx)
{
    (void)ctx;
    int saved = errno;
    struct signal_note note = {signum, info->si_code == SI_USER ? (int32_t)info->si_pid : 0};
    ssize_t n = write(note_fd, &note, sizeof note);
    (void)n; /* a full pipe holds more signals than anybody counts */
    errno = saved;
}

/* A handler and not a blocked mask: the engine's threads exist already and would be hit. */
static enum sl_status watch_signals(struct worker *w, struct sl_err *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK))
        return sl_fail(err, SL_FAILED, "worker: no pipe: %s", strerror(errno));
    w->signal_fd = fds[0];
    note_fd = fds[1];
    struct sigaction act = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&act.sa_mask);
    sigaction(SIGTERM, &act, NULL);
    if (!w->cfg->supervisor_pid)
        sigaction(SIGINT, &act, NULL);
    if (w->cfg->curve_dir)
        sigaction(SIGHUP, &act, NULL);
    return SL_OK;
}

static void unwatch_signals(struct worker *w)
{
    if (note_fd < 0)
        return;
    signal(SIGTERM, SIG_DFL);
    if (!w->cfg->supervisor_pid)
        signal(SIGINT, SIG_DFL);
    if (w->cfg->curve_dir)
        signal(SIGHUP, SIG_DFL);
    close(note_fd);
    close(w->signal_fd);
    note_fd = w->signal_fd = -1;
}

/* The group's SIGTERM reaches a supervised worker as well as its supervisor, who will tell it when
 * the streams are done; only a second one from elsewhere stops it. */
static void on_term(struct worker *w, int32_t sender)
{
    bool supervised = w->cfg->supervisor_pid != 0;
    bool from_above = supervised && sender == w->cfg->supervisor_pid;
    bool first = w->n_terms++ == 0;
    if (from_above && w->told) { /* one word, said twice */
        w->told = false;
    } else if (!first) {
        struct sl_err err;
        sl_fail(&err, SL_DRAIN_DEADLINE, "worker was stopped with %u requests running",
                w->n_requests);
        worker_stop(w, w->n_requests ? SL_DRAIN_DEADLINE : SL_OK, &err);
    } else if (supervised && !from_above) {
        sl_log(SL_LOG_INFO, "waiting for the supervisor's word to drain");
    } else {
        worker_drain(w, "a signal");
    }
}

static void read_signals(struct worker *w)
{
    struct signal_note note;
    while (read(w->signal_fd, &note, sizeof note) == (ssize_t)sizeof note)
        if (note.signum == SIGHUP)
            sl_bus_reload_keys(w->bus);
        else
            on_term(w, note.sender);
}

/* ---- stopping ---- */

void worker_drain(struct worker *w, const char *why)
{
    if (w->draining)
        return;
    uint64_t ms = w->cfg->drain_ms ? w->cfg->drain_ms : DRAIN_MS_DEFAULT;
    w->draining = true;
    w->drain_until_ns = sl_now_ns() + ms * SL_MS_NS;
    sl_log(SL_LOG_INFO, "draining on %s: %u requests running", why, w->n_requests);
}

void worker_stop(struct worker *w, enum sl_status status, const struct sl_err *err)
{
    if (w->stopping)
        return;
    w->stopping = true;
    w->result = status;
    if (err)
        w->result_err = *err;
}

static void check_drain(struct worker *w, uint64_t now)
{
    struct sl_err err;
    if (!w->draining)
        return;
    if (worker_is_follower(w)) { /* goes with rank 0, whose requests are its own */
        if (w->reforming || w->cfg->supervisor_pid || now >= w->drain_until_ns)
            worker_stop(w, SL_OK, NULL);
    } else if (w->n_requests == 0) {
        worker_stop(w, SL_OK, NULL);
    } else if (now >= w->drain_until_ns) {
        sl_fail(&err, SL_DRAIN_DEADLINE, "worker: %u requests were cut off by the drain deadline",
                w->n_requests);
        worker_stop(w, SL_DRAIN_DEADLINE, &err);
    }
}

/* ---- opening ---- */

/* Dies with its supervisor; the check closes the gap before the system was told so. */
static enum sl_status obey_supervisor(const struct sl_worker_config *cfg, struct sl_err *err)
{
    if (!cfg->supervisor_pid)
        return SL_OK;
    signal(SIGINT, SIG_IGN);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL))
        return sl_fail(err, SL_FAILED, "worker: no parent-death signal: %s", strerror(errno));
    if (getppid() != cfg->supervisor_pid)
        return sl_fail(err, SL_PEER, "worker: supervisor %d is gone", cfg->supervisor_pid);
    return SL_OK;
}

static void name_model(struct worker *w)
{
    const char *path = w->cfg->model_path, *slash = strrchr(path, '/');
    const char *base = slash ? slash + 1 : path;
    size_t len = strlen(base), tail = strlen(".gguf");
    if (len > tail && !strcmp(base + len - tail, ".gguf"))
        len -= tail;
    if (w->cfg->served_model_name)
        snprintf(w->model_name, sizeof w->model_name, "%s", w->cfg->served_model_name);
    else
        snprintf(w->model_name, sizeof w->model_name, "%.*s", (int)len, base);
}

static enum sl_status open_engine(struct worker *w, struct sl_err *err)
{
    struct sl_tokenizer *t;
    enum sl_status s = sl_tokenizer_open(w->gguf, &t, err);
    if (s != SL_OK)
        return s;
    struct sl_engine_config cfg = w->cfg->engine;
    size_t n_stops = 0;
    struct kv_charter charter;
    worker_kv_charter(w, &charter);
    cfg.charter = &charter;
    cfg.n_charter = sizeof charter;
    if (w->ranks)
        cfg.place.rendezvous = sl_ranks_rendezvous(w->ranks);
    cfg.gguf = w->gguf;
    cfg.stop_ids = sl_tokenizer_stops(t, &n_stops);
    cfg.n_stop_ids = (uint32_t)n_stops;
    s = sl_engine_open(&cfg, &w->engine, err);
    sl_tokenizer_close(t); /* the engine has copied the stop ids */
    if (s == SL_OK)
        sl_engine_info(w->engine, &w->info);
    return s;
}

static enum sl_status open_model(struct worker *w, struct sl_err *err)
{
    uint64_t start = sl_now_ns();
    enum sl_status s = sl_gguf_open(w->cfg->model_path, &w->gguf, err);
    if (s != SL_OK)
        return s;
    w->meta = sl_gguf_meta(w->gguf);
    if (w->meta.len > SL_LIMIT_model_meta_bytes)
        return sl_fail(err, SL_MODEL, "%s: metadata of %zu bytes, at most %d", w->cfg->model_path,
                       w->meta.len, SL_LIMIT_model_meta_bytes);
    sl_sha256(w->meta.data, w->meta.len, w->meta_sha256);
    name_model(w);
    s = open_engine(w, err);
    if (s == SL_OK)
        sl_log(SL_LOG_INFO, "model %s loaded in %.2f s: %s, %u threads, %u KV pages", w->model_name,
               (double)(sl_now_ns() - start) / (double)SL_S_NS, w->info.class_name,
               w->info.n_threads, w->info.n_pages);
    return s;
}

static enum sl_status open_bus(struct worker *w, struct sl_err *err)
{
    struct sl_bus_config cfg = {.endpoints = w->cfg->connect,
                                .n_endpoints = w->cfg->n_connect,
                                .is_router = false,
                                .curve_dir = w->cfg->curve_dir,
                                .version = w->cfg->bus_version};
    w->links = calloc(w->cfg->n_connect + 1u, sizeof *w->links);
    if (!w->links)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory for %u links", w->cfg->n_connect);
    for (uint32_t i = 0; i < w->cfg->n_connect; i++)
        sl_list_init(&w->links[i].requests);
    return sl_bus_open(&cfg, &w->bus, err);
}

/* The bus first, since its mistakes are found at once; a router waits for the HELLO anyway. */
static enum sl_status open_parts(struct worker *w, struct sl_err *err)
{
    enum sl_status s = obey_supervisor(w->cfg, err);
    if (s == SL_OK && !worker_is_follower(w))
        s = open_bus(w, err);
    if (s == SL_OK)
        s = worker_ranks_open(w, err);
    if (s == SL_OK)
        s = open_model(w, err);
    if (s == SL_OK)
        s = worker_kv_open(w, err);
    if (s == SL_OK)
        s = worker_events_open(w, err);
    return s == SL_OK ? watch_signals(w, err) : s;
}

static void close_parts(struct worker *w)
{
    unwatch_signals(w);
    worker_events_close(w);
    if (w->bus)
        sl_bus_close(w->bus);
    worker_kv_close(w);
    if (w->engine)
        sl_engine_close(w->engine);
    worker_ranks_close(w);
    worker_requests_close(w);
    if (w->gguf)
        sl_gguf_close(w->gguf);
    free(w->links);
}

/* ---- running ---- */

static void wait_for_work(struct worker *w)
{
    struct pollfd fds[] = {{.fd = sl_bus_fd(w->bus), .events = POLLIN},
                           {.fd = sl_engine_fd(w->engine), .events = POLLIN},
                           {.fd = worker_kv_fd(w), .events = POLLIN},
                           {.fd = w->signal_fd, .events = POLLIN},

                           {.fd = worker_events_fd(w), .events = POLLIN}};
    poll(fds, sizeof fds / sizeof *fds, TICK_MS);
}

static void check_supervisor(struct worker *w)
{
    struct sl_err err;
    if (!w->cfg->supervisor_pid || getppid() == w->cfg->supervisor_pid)
        return;
    sl_fail(&err, SL_PEER, "worker: supervisor %d is gone", w->cfg->supervisor_pid);
    worker_stop(w, SL_PEER, &err);
}

static void run_follower(struct worker *w)
{
    while (!w->stopping) {
        struct pollfd fds[] = {{.fd = w->signal_fd, .events = POLLIN},
                               {.fd = follower_kv_fd(w), .events = POLLIN}};
        poll(fds, 2, TICK_MS);
        uint64_t now = sl_now_ns();
        read_signals(w);
        follower_kv_run(w, now);
        worker_ranks_tick(w, now);
        check_drain(w, now);
        check_supervisor(w);
    }
}

static void run(struct worker *w)
{
    while (!w->stopping) {
        wait_for_work(w);
        read_signals(w);
        worker_links_receive(w);
        worker_kv_take(w);
        worker_take_steps(w);
        worker_events_run(w);
        uint64_t now = sl_now_ns();
        worker_ranks_tick(w, now);
        worker_kv_tick(w, now);
        worker_links_tick(w, now);
        check_drain(w, now);
        check_supervisor(w);
    }
    worker_links_bye(w);
}

enum sl_status sl_worker_run(const struct sl_worker_config *cfg, struct sl_err *err)
{
    struct worker *w = calloc(1, sizeof *w);
    if (!w)
        return sl_fail(err, SL_NO_MEMORY, "worker: no memory");
    w->cfg = cfg;
    w->signal_fd = -1;
    w->next_engine_id = 1;
    w->instance = sl_entropy_u64() | 1; /* 0 would mean none */
    sl_list_init(&w->orphans);
    sl_hash_init(&w->requests, w->buckets, WORKER_BUCKETS);
    enum sl_status s = open_parts(w, err);
    if (s == SL_OK) {
        if (worker_is_follower(w))
            run_follower(w);
        else
            run(w);
        s = w->result;
        if (s != SL_OK && err)
            *err = w->result_err;
    }
    close_parts(w);
    free(w);
    return s;
}
