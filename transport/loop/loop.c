/* The event loop over libuv.
 *
 * Every handle lives in an object of ours that is freed in its close callback. Objects left open
 * are closed by sl_loop_close, which runs libuv until nothing is left. The post queue is the only
 * state shared between threads; its mutex is held for a few instructions. */
#include "loop_priv.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

/* The common head of watches, timers and signals. */
struct handle {
    struct sl_list node; /* loop->handles */
    sl_loop_fn *fn;
    void *ctx;
    union {
        uv_handle_t any;
        uv_poll_t poll;
        uv_timer_t timer;
        uv_signal_t sig;
    } uv;
};
struct sl_watch {
    struct handle h;
};
struct sl_timer {
    struct handle h;
};
struct sl_signal {
    struct handle h;
};

struct post {
    sl_loop_fn *fn;
    void *ctx;
};
struct posts {
    struct post *items;
    size_t n, n_max;
};

struct hook {
    struct hook *next;
    sl_loop_fn *fn;
    void *ctx;
};

struct work {
    uv_work_t uv;
    sl_loop_fn *work, *done;
    void *ctx;
};

struct sl_loop {
    uv_loop_t uv;
    uv_async_t wake;
    uv_prepare_t prepare;
    uv_idle_t again; /* runs while a flush hook asked to be called again: the loop must not block */
    struct sl_list handles;
    struct sl_list flushes;
    struct hook *hooks;
    pthread_mutex_t mutex; /* guards `posted` alone */
    struct posts posted;
    struct posts running; /* the other half of the double buffer; loop thread only */
};

static void run_posts(uv_async_t *wake)
{
    struct sl_loop *l = wake->data;
    pthread_mutex_lock(&l->mutex);
    struct posts taken = l->posted;
    l->posted = l->running;
    pthread_mutex_unlock(&l->mutex);
    for (size_t i = 0; i < taken.n; i++)
        taken.items[i].fn(taken.items[i].ctx);
    taken.n = 0;
    l->running = taken;
}

static void keep_turning(uv_idle_t *idle)
{
    uv_idle_stop(idle);
}

static void before_block(uv_prepare_t *prepare)
{
    struct sl_loop *l = prepare->data;
    for (struct hook *h = l->hooks; h; h = h->next)
        h->fn(h->ctx);
    bool again = false;
    for (struct sl_list *n = l->flushes.next, *next; n != &l->flushes; n = next) {
        next = n->next;
        struct sl_flush *f = SL_ENTRY(n, struct sl_flush, node);
        again |= f->fn(f->ctx);
    }
    if (again)
        uv_idle_start(&l->again, keep_turning);
}

static void start_own_handles(struct sl_loop *l)
{
    uv_prepare_init(&l->uv, &l->prepare);
    uv_idle_init(&l->uv, &l->again);
    l->wake.data = l;
    l->prepare.data = l;
    uv_prepare_start(&l->prepare, before_block);
}

/* A peer that is gone shows as EPIPE, not as a signal that ends the process. */
static void ignore_sigpipe(void)
{
    struct sigaction now;
    if (sigaction(SIGPIPE, NULL, &now) || now.sa_handler != SIG_DFL)
        return;
    now = (struct sigaction){.sa_handler = SIG_IGN};
    sigaction(SIGPIPE, &now, NULL);
}

struct sl_loop *sl_loop_open(void)
{
    struct sl_loop *l = calloc(1, sizeof(*l));
    if (!l)
        return NULL;
    sl_list_init(&l->handles);
    sl_list_init(&l->flushes);
    if (uv_loop_init(&l->uv)) {
        free(l);
        return NULL;
    }
    if (pthread_mutex_init(&l->mutex, NULL)) {
        uv_loop_close(&l->uv);
        free(l);
        return NULL;
    }
    if (uv_async_init(&l->uv, &l->wake, run_posts)) {
        uv_loop_close(&l->uv);
        pthread_mutex_destroy(&l->mutex);
        free(l);
        return NULL;
    }
    start_own_handles(l);
    ignore_sigpipe();
    return l;
}

static void free_handle(uv_handle_t *uv)
{
    free(uv->data);
}

static void handle_close(struct handle *h)
{
    sl_list_remove(&h->node);
    uv_close(&h->uv.any, free_handle);
}

static void free_hooks(struct sl_loop *l)
{
    while (l->hooks) {
        struct hook *h = l->hooks;
        l->hooks = h->next;
        free(h);
    }
}

void sl_loop_close(struct sl_loop *l)
{
    if (!l)
        return;
    while (!sl_list_empty(&l->handles))
        handle_close(SL_ENTRY(l->handles.next, struct handle, node));
    free_hooks(l);
    uv_close((uv_handle_t *)&l->wake, NULL);
    uv_close((uv_handle_t *)&l->prepare, NULL);
    uv_close((uv_handle_t *)&l->again, NULL);
    uv_run(&l->uv, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&l->uv);
    sl_assert(rc == 0);
    pthread_mutex_destroy(&l->mutex);
    free(l->posted.items);
    free(l->running.items);
    free(l);
}

void sl_loop_run(struct sl_loop *l)
{
    uv_run(&l->uv, UV_RUN_DEFAULT);
}

void sl_loop_stop(struct sl_loop *l)
{
    uv_stop(&l->uv);
}

uv_loop_t *sl_loop_uv(struct sl_loop *l)
{
    return &l->uv;
}

void sl_loop_add_flush(struct sl_loop *l, struct sl_flush *f)
{
    sl_list_push_back(&l->flushes, &f->node);
}

void sl_loop_remove_flush(struct sl_flush *f)
{
    sl_list_remove(&f->node);
}

static void handle_add(struct sl_loop *l, struct handle *h, sl_loop_fn *fn, void *ctx)
{
    h->fn = fn;
    h->ctx = ctx;
    h->uv.any.data = h; /* the handle is the object's first member: freeing it frees the object */
    sl_list_push_back(&l->handles, &h->node);
}

static void on_readable(uv_poll_t *poll, int status, int events)
{
    struct handle *h = poll->data;
    (void)status; /* an error shows when the owner reads */
    (void)events;
    h->fn(h->ctx);
}

struct sl_watch *sl_loop_watch_fd(struct sl_loop *l, int fd, sl_loop_fn *fn, void *ctx)
{
    struct sl_watch *w = calloc(1, sizeof(*w));
    if (!w)
        return NULL;
    if (uv_poll_init(&l->uv, &w->h.uv.poll, fd)) {
        free(w);
        return NULL;
    }
    handle_add(l, &w->h, fn, ctx);
    if (uv_poll_start(&w->h.uv.poll, UV_READABLE, on_readable)) {
        handle_close(&w->h);
        return NULL;
    }
    return w;
}

void sl_loop_unwatch(struct sl_watch *w)
{
    if (w)
        handle_close(&w->h);
}

static void on_timer(uv_timer_t *timer)
{
    struct handle *h = timer->data;
    h->fn(h->ctx);
}

struct sl_timer *sl_timer_new(struct sl_loop *l, sl_loop_fn *fn, void *ctx)
{
    struct sl_timer *t = calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    uv_timer_init(&l->uv, &t->h.uv.timer);
    handle_add(l, &t->h, fn, ctx);
    return t;
}

void sl_timer_start(struct sl_timer *t, uint64_t delay_ms)
{
    uv_update_time(t->h.uv.timer.loop); /* a long callback must not shorten the delay */
    uv_timer_start(&t->h.uv.timer, on_timer, delay_ms, 0);
}

void sl_timer_stop(struct sl_timer *t)
{
    uv_timer_stop(&t->h.uv.timer);
}

void sl_timer_free(struct sl_timer *t)
{
    if (t)
        handle_close(&t->h);
}

static void on_signal(uv_signal_t *sig, int signum)
{
    struct handle *h = sig->data;
    (void)signum;
    h->fn(h->ctx);
}

struct sl_signal *sl_loop_on_signal(struct sl_loop *l, int signum, sl_loop_fn *fn, void *ctx)
{
    struct sl_signal *s = calloc(1, sizeof(*s));
    if (!s)
        return NULL;
    uv_signal_init(&l->uv, &s->h.uv.sig);
    handle_add(l, &s->h, fn, ctx);
    if (uv_signal_start(&s->h.uv.sig, on_signal, signum)) {
        handle_close(&s->h);
        return NULL;
    }
    return s;
}

void sl_signal_free(struct sl_signal *s)
{
    if (s)
        handle_close(&s->h);
}

static bool posts_add(struct posts *q, struct post p)
{
    if (q->n == q->n_max) {
        size_t n_max = q->n_max ? q->n_max * 2 : 64;
        struct post *items = realloc(q->items, n_max * sizeof(*items));
        if (!items)
            return false;
        q->items = items;
        q->n_max = n_max;
    }
    q->items[q->n++] = p;
    return true;
}

bool sl_loop_post(struct sl_loop *l, sl_loop_fn *fn, void *ctx)
{
    pthread_mutex_lock(&l->mutex);
    bool was_empty = l->posted.n == 0;
    bool ok = posts_add(&l->posted, (struct post){fn, ctx});
    pthread_mutex_unlock(&l->mutex);
    if (ok && was_empty)
        uv_async_send(&l->wake);
    return ok;
}

static void work_run(uv_work_t *uv)
{
    struct work *w = uv->data;
    w->work(w->ctx);
}

static void work_done(uv_work_t *uv, int status)
{
    struct work *w = uv->data;
    (void)status; /* never cancelled here */
    w->done(w->ctx);
    free(w);
}

bool sl_loop_work(struct sl_loop *l, sl_loop_fn *work, sl_loop_fn *done, void *ctx)
{
    struct work *w = calloc(1, sizeof(*w));
    if (!w)
        return false;
    *w = (struct work){.work = work, .done = done, .ctx = ctx};
    w->uv.data = w;
    if (uv_queue_work(&l->uv, &w->uv, work_run, work_done)) {
        free(w);
        return false;
    }
    return true;
}

bool sl_loop_on_idle(struct sl_loop *l, sl_loop_fn *fn, void *ctx)
{
    struct hook *h = calloc(1, sizeof(*h));
    if (!h)
        return false;
    *h = (struct hook){.fn = fn, .ctx = ctx};
    struct hook **end = &l->hooks;
    while (*end)
        end = &(*end)->next;
    *end = h;
    return true;
}
