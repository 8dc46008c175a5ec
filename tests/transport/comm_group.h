/* Groups of ranks for tests: one thread or one forked process per rank. A check that fails in a
 * rank prints and aborts the program: cmocka's own must not leave a thread by longjmp. */
#ifndef COMM_GROUP_H
#define COMM_GROUP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <dirent.h>
#include <pthread.h>
#include <sluice/base/time.h>
#include <sluice/transport/bus.h>
#include <sluice/transport/comm.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENT_MS 60000 /* where nothing is to fail: the machine may be busy */

#define REQUIRE(cond, ...)                                                                         \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond);                             \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, "\n");                                                                 \
            abort();                                                                               \
        }                                                                                          \
    } while (0)
#define OK(call)                                                                                   \
    do {                                                                                           \
        struct sl_err e_ = {0};                                                                    \
        struct sl_err *err = &e_;                                                                  \
        enum sl_status s_ = (call);                                                                \
        REQUIRE(s_ == SL_OK, "%s", e_.msg);                                                        \
    } while (0)

struct group {
    uint32_t n;
    enum sl_comm_kind kind;
    uint32_t op_timeout_ms;
    char endpoint[128];
    void (*rank_main)(struct sl_comm *c, void *ctx);
    void *ctx;
};

static inline void group_meet(struct group *g)
{
    struct sl_buf b = {0};
    struct sl_err err;
    REQUIRE(sl_bus_ipc_make("/tmp", &b, &err) == SL_OK, "%s", err.msg);
    snprintf(g->endpoint, sizeof g->endpoint, "%s", b.data);
    sl_buf_free(&b);
}

static inline struct sl_comm_config group_config(const struct group *g, uint32_t rank)
{
    return (struct sl_comm_config){.rank = rank,
                                   .n_ranks = g->n,
                                   .rendezvous = g->endpoint,
                                   .group = "test",
                                   .config_hash = 7,
                                   .kind = g->kind,
                                   .join_timeout_ms = PATIENT_MS,
                                   .op_timeout_ms =
                                       g->op_timeout_ms ? g->op_timeout_ms : PATIENT_MS};
}

struct group_thread {
    const struct group *g;
    uint32_t rank;
    pthread_t id;
};

static inline void *group_thread_main(void *arg)
{
    struct group_thread *t = arg;
    struct sl_comm_config cfg = group_config(t->g, t->rank);
    struct sl_comm *c;
    OK(sl_comm_open(&cfg, &c, err));
    REQUIRE(sl_comm_rank(c) == t->rank && sl_comm_n_ranks(c) == t->g->n, "rank %u", t->rank);
    t->g->rank_main(c, t->g->ctx);
    sl_comm_close(c);
    return NULL;
}

/* Runs rank_main in a thread per rank. */
static inline void group_run(struct group *g)
{
    struct group_thread t[SL_COMM_RANKS_MAX];
    group_meet(g);
    for (uint32_t r = 0; r < g->n; r++) {
        t[r] = (struct group_thread){g, r, 0};
        REQUIRE(!pthread_create(&t[r].id, NULL, group_thread_main, &t[r]), "thread");
    }
    for (uint32_t r = 0; r < g->n; r++)
        pthread_join(t[r].id, NULL);
    sl_bus_ipc_remove(g->endpoint);
}

/* Forks rank_main; it has to return. The caller has no threads. */
static inline pid_t group_fork(const struct group *g, uint32_t rank)
{
    fflush(NULL);
    pid_t pid = fork();
    REQUIRE(pid >= 0, "fork");
    if (pid == 0) {
        struct group_thread t = {g, rank, 0};
        group_thread_main(&t);
        _exit(0);
    }
    return pid;
}

static inline void group_reap(pid_t pid)
{
    int status;
    REQUIRE(waitpid(pid, &status, 0) == pid, "waitpid");
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0, "rank ended with %x", (unsigned)status);
}

static inline size_t count_entries(const char *folder, const char *prefix)
{
    DIR *d = opendir(folder);
    struct dirent *e;
    size_t n = 0;
    while (d && (e = readdir(d)))
        n += e->d_name[0] != '.' && !strncmp(e->d_name, prefix, strlen(prefix));
    if (d)
        closedir(d);
    return n;
}

/* Byte i of what rank `from` has for rank `to` in step `step`. */
static inline uint8_t byte_of(uint64_t step, uint32_t from, uint32_t to, size_t i)
{
    uint64_t x = step * 0x9e3779b97f4a7c15u + from * 0xbf58476d1ce4e5b9u +
                 to * 0x94d049bb133111ebu + i * 0xd6e8feb86659fd93u;
    return (uint8_t)((x ^ x >> 29) >> 17);
}

static inline void fill(uint8_t *to, uint64_t step, uint32_t from, uint32_t peer, size_t n)
{
    for (size_t i = 0; i < n; i++)
        to[i] = byte_of(step, from, peer, i);
}

static inline void check(const uint8_t *got, uint64_t step, uint32_t from, uint32_t peer, size_t n)
{
    for (size_t i = 0; i < n; i++)
        REQUIRE(got[i] == byte_of(step, from, peer, i), "step %llu, from %u to %u, byte %zu of %zu",
                (unsigned long long)step, from, peer, i, n);
}

/* A size up to max: often small, sometimes zero, now and then beyond a ring. */
static inline size_t draw_size(struct sl_rng *rng, size_t max)
{
    static const uint32_t tops[] = {1, 16, 3000, 70000, 700000};
    size_t n = sl_rng_below(rng, tops[sl_rng_below(rng, sl_rng_below(rng, 4) ? 3 : 5)] + 1);
    return n < max ? n : max;
}

#endif
