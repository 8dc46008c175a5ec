/* See session_ranks.h. A group that cannot stand any more ends the program: nobody is left to
 * compute what the verb waits for. */
#include "session_ranks.h"
#include "followers.h"

#include <pthread.h>
#include <sluice/base/time.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define TICK_MS 20

struct session_ranks {
    struct sl_arena arena;
    struct followers room;
    struct sl_ranks *ranks;
    struct sl_engine *engine;
    pthread_t watcher;
    bool watching;
    _Atomic bool stop;
};

static void pause_a_tick(void)
{
    const struct timespec t = {0, TICK_MS * 1000 * 1000};
    nanosleep(&t, NULL);
}

static enum sl_status look(struct session_ranks *r, bool *up, struct sl_err *err)
{
    struct sl_engine_group g;
    sl_engine_group(r->engine, &g);
    *up = g.state == SL_GROUP_UP;
    if (g.state == SL_GROUP_ENDED) {
        *err = g.why;
        return g.why.status ? g.why.status : SL_PEER;
    }
    return sl_ranks_tick(r->ranks, r->engine, sl_now_ns(), err);
}

static void *watch(void *arg)
{
    struct session_ranks *r = arg;
    struct sl_err err;
    bool up;
    while (!atomic_load(&r->stop)) {
        if (look(r, &up, &err))
            exit(sl_cli_fail(&err));
        pause_a_tick();
    }
    return NULL;
}

enum sl_status session_ranks_open(struct session *s, const struct engine_options *options,
                                  const char *model, struct sl_engine_config *cfg, char *const *env,
                                  struct sl_err *err)
{
    struct sl_ranks_config ranks;
    s->ranks = calloc(1, sizeof *s->ranks);
    if (!s->ranks)
        return sl_fail(err, SL_NO_MEMORY, "no memory for the ranks of a session");
    sl_arena_init(&s->ranks->arena, (size_t)1 << 20);
    enum sl_status st =
        followers_config(options, model, NULL, env, &s->ranks->arena, &s->ranks->room, &ranks, err);
    if (!st)
        st = sl_ranks_open(&ranks, &s->ranks->ranks, err);
    if (!st)
        cfg->place.rendezvous = sl_ranks_rendezvous(s->ranks->ranks);
    return st;
}

enum sl_status session_ranks_wait(struct session *s, struct sl_err *err)
{
    struct session_ranks *r = s->ranks;
    bool up = false;
    enum sl_status st = SL_OK;
    r->engine = s->engine;
    while (!up && !(st = look(r, &up, err)))
        pause_a_tick();
    if (st)
        return st;
    if (pthread_create(&r->watcher, NULL, watch, r))
        return sl_fail(err, SL_NO_MEMORY, "cannot start a thread that watches the ranks");
    r->watching = true;
    return SL_OK;
}

void session_ranks_stop(struct session *s)
{
    if (!s->ranks || !s->ranks->watching)
        return;
    atomic_store(&s->ranks->stop, true);
    pthread_join(s->ranks->watcher, NULL);
    s->ranks->watching = false;
}

void session_ranks_close(struct session *s)
{
    if (!s->ranks)
        return;
    sl_ranks_close(s->ranks->ranks);
    sl_arena_free(&s->ranks->arena);
    free(s->ranks);
}
