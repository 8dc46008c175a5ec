/* The rendezvous: every rank tells rank 0 who it is, rank 0 tells all who they are together.
 *
 * Rank 0 binds a ROUTER, the others send JOIN until they are answered, so that neither the order of
 * starting nor a restart on either side matters. Rank 0 keeps one place per rank and no more: a
 * later JOIN for a place replaces the earlier (a rank that was started again), and what is no JOIN
 * is dropped. The first JOIN that does not fit ends the meeting for everybody, with one message. */
#include "comm_priv.h"

#include "bus/bus_socket.h"

#include <sluice/base/containers.h>
#include <sluice/base/time.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <zmq.h>

#define AGAIN_MS        200 /* between two JOINs */
#define SLICE_MS        20
#define REFUSE_MS       1000 /* for everybody to hear why there is no group */
#define REFUSE_AGAIN_MS 10

struct place {
    struct wire_join join;
    uint8_t id[255]; /* the peer's name at our ROUTER */
    size_t id_bytes;
    bool taken;
};

struct rendezvous {
    void *ctx;
    struct bus_keys keys; /* ranks are workers, rank 0 among them */
    struct bus_socket socket;
    struct place places[SL_COMM_RANKS_MAX];
    bool met; /* the answers are out */
};

/* --- this rank ----------------------------------------------------------------------------------
 */

static size_t read_text(const char *path, char *out, size_t max)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, out, max) : -1;
    if (fd >= 0)
        close(fd);
    return n > 0 ? (size_t)n : 0;
}

void rendezvous_machine(uint8_t out[WIRE_KEY_BYTES])
{
    char text[256] = "";
    size_t n = read_text("/proc/sys/kernel/random/boot_id", text, 64);
    ssize_t link = readlink("/proc/self/ns/net", text + n, 64);
    if (n == 0 || link <= 0) { /* unknown: equal to nobody's */
        uint64_t random = sl_entropy_u64();
        memcpy(text, &random, sizeof random);
    }
    snprintf(text + 130, sizeof text - 130, "%u", (unsigned)geteuid());
    sl_sha256(text, sizeof text, out);
}

static void describe_self(const struct comm_join *j, struct wire_join *out)
{
    const struct sl_comm_config *cfg = j->cfg;
    *out = (struct wire_join){.rank = cfg->rank,
                              .n_ranks = cfg->n_ranks,
                              .config_hash = cfg->config_hash,
                              .nonce = sl_entropy_u64(),
                              .kind = cfg->kind,
                              .pid = (uint32_t)getpid()};
    rendezvous_machine(out->machine);
    snprintf(out->group, sizeof out->group, "%s", cfg->group);
    if (j->door)
        snprintf(out->address, sizeof out->address, "%s", secure_door_address(j->door));
}

static enum sl_status open_socket(struct comm_join *j, struct sl_err *err)
{
    char bound[BUS_ENDPOINT_BYTES];
    const struct sl_bus_config bus = {.endpoints = &j->cfg->rendezvous,
                                      .n_endpoints = 1,
                                      .is_router = j->cfg->rank == 0,
                                      .curve_dir = j->cfg->curve_dir};
    enum sl_status s = bus_check_config(&bus, err);
    if (s)
        return s;
    struct rendezvous *r = j->rendezvous = calloc(1, sizeof *r);
    if (!r || !(r->ctx = zmq_ctx_new()))
        return sl_fail(err, SL_NO_MEMORY, "comm: no memory for the rendezvous");
    bool keyed = bus_is_curve(&bus, j->cfg->rendezvous);
    r->keys.peers = SL_KEY_WORKER;
    if (keyed && (s = curve_open(r->ctx, bus.curve_dir, &r->keys.ring, err)))
        return s;
    if (!bus.is_router)
        return bus_open_dealer(r->ctx, &bus, 0, &r->keys, &r->socket, err);
    s = bus_open_router(r->ctx, &bus, keyed ? &r->keys : NULL, &r->socket, err);
    return s ? s : bus_bind(&r->socket, j->cfg->rendezvous, bound, err);
}

void rendezvous_close(struct comm_join *j)
{
    struct rendezvous *r = j->rendezvous;
    j->rendezvous = NULL;
    if (!r)
        return;
    bus_socket_close(&r->socket);
    curve_close(r->keys.ring);
    if (r->ctx)
        zmq_ctx_term(r->ctx);
    free(r);
}

/* One part into `out`; longer ones are cut, and their size tells. */
static int receive_part(void *zmq, void *out, size_t max, bool *more)
{
    int flag = 0;
    size_t size = sizeof flag;
    int n = zmq_recv(zmq, out, max, ZMQ_DONTWAIT);
    if (n < 0 || zmq_getsockopt(zmq, ZMQ_RCVMORE, &flag, &size))
        return -1;
    *more = flag;
    return n;
}

static void drop_parts(void *zmq, bool more)
{
    char unused[1];
    while (more && receive_part(zmq, unused, sizeof unused, &more) >= 0)
        ;
}

/* --- rank 0 -------------------------------------------------------------------------------------
 */

/* False when nothing waits; *good tells whether it was a JOIN. */
static bool receive_join(struct rendezvous *r, struct place *out, bool *good)
{
    uint8_t data[WIRE_JOIN_MAX];
    struct sl_err err;
    bool more = false;
    *good = false;
    int id = receive_part(r->socket.zmq, out->id, sizeof out->id, &more);
    if (id < 0)
        return false;
    int n = more ? receive_part(r->socket.zmq, data, sizeof data, &more) : -1;
    *good = id > 0 && n > 0 && n <= (int)sizeof data && !more &&
            wire_join_decode(data, (size_t)n, &out->join, &err) == SL_OK;
    out->id_bytes = (size_t)id;
    drop_parts(r->socket.zmq, more);
    return true;
}

/* False when that peer has gone. */
static bool answer(struct rendezvous *r, const struct place *p, struct wire_answer *a)
{
    uint8_t data[WIRE_ANSWER_MAX];
    a->nonce = p->join.nonce;
    size_t n = wire_answer_encode(a, data);
    bool sent = zmq_send(r->socket.zmq, p->id, p->id_bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0;
    bool gone = !sent && errno == EHOSTUNREACH;
    if (sent)
        zmq_send(r->socket.zmq, data, n, ZMQ_DONTWAIT);
    explicit_bzero(data, sizeof data);
    return !gone;
}

static void refusal(const struct sl_err *why, struct wire_answer *a)
{
    *a = (struct wire_answer){.status = why->status};
    snprintf(a->reason, sizeof a->reason, "%.*s", (int)sizeof a->reason - 1, why->msg);
    for (char *c = a->reason; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
}

/* Ranks of a larger or smaller group than the one that meets wait for theirs. */
static void refuse_one(struct rendezvous *r, const struct place *p, const struct sl_err *why)
{
    struct wire_answer a;
    if (p->join.n_ranks != r->places[0].join.n_ranks)
        return;
    refusal(why, &a);
    answer(r, p, &a);
}

/* Tells everybody who came, and `extra`, why there will be no group, until they have left: a
 * connection that we closed would take an answer along that was not read yet. */
static void refuse_all(struct rendezvous *r, struct place *extra, const struct sl_err *why)
{
    struct wire_answer a;
    uint64_t until = sl_now_ns() + REFUSE_MS * SL_MS_NS;
    uint32_t left = 1;
    refusal(why, &a);
    for (; left && sl_now_ns() < until; poll(NULL, 0, REFUSE_AGAIN_MS)) {
        left = 0;
        for (uint32_t i = 1; i < SL_COMM_RANKS_MAX; i++)
            if (r->places[i].taken)
                left += r->places[i].taken = answer(r, &r->places[i], &a);
        if (extra && extra->taken)
            left += extra->taken = answer(r, extra, &a);
    }
}

static const char *const kind_names[] = {"auto", "shm", "tcp"}; /* enum sl_comm_kind */

static enum sl_status check_fit(const struct wire_join *zero, const struct wire_join *j,
                                struct sl_err *err)
{
    if (strcmp(zero->group, j->group) != 0)
        return sl_fail(err, SL_CONFIG, "comm: rank %u is of group '%s', rank 0 of '%s'", j->rank,
                       j->group, zero->group);
    if (zero->n_ranks != j->n_ranks)
        return sl_fail(err, SL_CONFIG, "comm: rank %u counts %u ranks, rank 0 counts %u", j->rank,
                       j->n_ranks, zero->n_ranks);
    if (j->rank == 0)
        return sl_fail(err, SL_CONFIG, "comm: two processes say that they are rank 0");
    if (zero->config_hash != j->config_hash)
        return sl_fail(err, SL_CONFIG,
                       "comm: rank %u has configuration %016llx, rank 0 has %016llx", j->rank,
                       (unsigned long long)j->config_hash, (unsigned long long)zero->config_hash);
    if (zero->kind != j->kind)
        return sl_fail(err, SL_CONFIG, "comm: rank %u asks for %s links, rank 0 for %s", j->rank,
                       kind_names[j->kind], kind_names[zero->kind]);
    return SL_OK;
}

static uint32_t first_missing(const struct rendezvous *r, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && r->places[i].taken)
        i++;
    return i;
}

static enum sl_status take_joins(struct comm_join *j, struct sl_err *err)
{
    struct rendezvous *r = j->rendezvous;
    struct place p = {.taken = true};
    bool good;
    while (receive_join(r, &p, &good)) {
        if (!good)
            continue;
        enum sl_status s = check_fit(&r->places[0].join, &p.join, err);
        if (s && j->cfg->knows_misfits) {
            refuse_one(r, &p, err);
            continue;
        }
        if (s) {
            refuse_all(r, &p, err);
            return s;
        }
        r->places[p.join.rank] = p;
    }
    return SL_OK;
}

static bool on_loopback(const char *address)
{
    return !strncmp(address, "127.", 4) || !strncmp(address, "[::1]", 5);
}

/* Shared memory or TCP, for all. */
static enum sl_status choose_kind(struct comm_join *j, struct sl_err *err)
{
    const struct rendezvous *r = j->rendezvous;
    uint32_t far = 0;
    for (uint32_t i = 1; i < j->cfg->n_ranks && !far; i++)
        if (memcmp(r->places[0].join.machine, r->places[i].join.machine, WIRE_KEY_BYTES) != 0)
            far = i;
    if (j->cfg->kind == SL_COMM_SHM && far)
        return sl_fail(err, SL_CONFIG,
                       "comm: ranks 0 and %u do not run on one machine (same network namespace and "
                       "user), as shared memory needs",
                       far);
    j->answer.kind = j->cfg->kind == SL_COMM_TCP || far ? SL_COMM_TCP : SL_COMM_SHM;
    for (uint32_t i = 0; far && i < j->cfg->n_ranks; i++)
        if (on_loopback(r->places[i].join.address))
            return sl_fail(err, SL_CONFIG,
                           "comm: rank %u listens on %s, which rank %u elsewhere cannot reach; "
                           "give a host",
                           i, r->places[i].join.address, i ? 0 : far);
    return SL_OK;
}

static enum sl_status found_group(struct comm_join *j, struct sl_err *err)
{
    struct rendezvous *r = j->rendezvous;
    enum sl_status s = choose_kind(j, err);
    j->answer.n_ranks = j->cfg->n_ranks;
    for (size_t done = 0; done < sizeof j->answer.key && !s;) {
        ssize_t n = getrandom(j->answer.key + done, sizeof j->answer.key - done, 0);
        done += n > 0 ? (size_t)n : 0;
    }
    for (uint32_t i = 0; i < j->cfg->n_ranks; i++)
        memcpy(j->answer.address[i], r->places[i].join.address, WIRE_ADDRESS_BYTES);
    if (!s && j->answer.kind == SL_COMM_SHM)
        s = shm_listen(j, err);
    if (s) {
        refuse_all(r, NULL, err);
        return s;
    }
    for (uint32_t i = 1; i < j->cfg->n_ranks; i++)
        answer(r, &r->places[i], &j->answer);
    return SL_OK;
}

static enum sl_status host(struct comm_join *j, struct sl_err *err)
{
    struct rendezvous *r = j->rendezvous;
    zmq_pollitem_t item = {r->socket.zmq, 0, ZMQ_POLLIN, 0};
    char what[32];
    uint32_t missing;
    describe_self(j, &r->places[0].join);
    r->places[0].taken = true;
    while ((missing = first_missing(r, j->cfg->n_ranks)) < j->cfg->n_ranks) {
        snprintf(what, sizeof what, "rank %u", missing);
        enum sl_status s = comm_join_check(j, what, err);
        if (s) {
            refuse_all(r, NULL, err);
            return s;
        }
        zmq_poll(&item, 1, SLICE_MS);
        bus_tend(&j->rendezvous->socket, &j->rendezvous->keys, sl_now_ns());
        if ((s = take_joins(j, err)))
            return s;
    }
    return found_group(j, err);
}

/* --- the others ---------------------------------------------------------------------------------
 */

/* SL_OK with *got false: no answer to this JOIN yet. */
static enum sl_status read_answer(const struct comm_join *j, uint64_t nonce,
                                  struct wire_answer *out, bool *got, struct sl_err *err)
{
    void *zmq = j->rendezvous->socket.zmq;
    uint8_t data[WIRE_ANSWER_MAX];
    struct sl_err bad;
    bool more = false;
    *got = false;
    int n = receive_part(zmq, data, sizeof data, &more);
    if (n < 0)
        return SL_OK;
    bool good = n <= (int)sizeof data && !more &&
                wire_answer_decode(data, (size_t)n, out, &bad) == SL_OK && out->nonce == nonce;
    explicit_bzero(data, sizeof data);
    drop_parts(zmq, more);
    if (!good)
        return SL_OK;
    if (out->status)
        return sl_fail(err, (enum sl_status)out->status, "%s", out->reason);
    if (out->n_ranks != j->cfg->n_ranks)
        return sl_fail(err, SL_CONFIG, "comm: rank 0 counts %u ranks, rank %u counts %u",
                       out->n_ranks, j->cfg->rank, j->cfg->n_ranks);
    *got = true;
    return SL_OK;
}

static enum sl_status ask(struct comm_join *j, struct sl_err *err)
{
    void *zmq = j->rendezvous->socket.zmq;
    zmq_pollitem_t item = {zmq, 0, ZMQ_POLLIN, 0};
    uint8_t data[WIRE_JOIN_MAX];
    struct wire_join join;
    uint64_t again_ns = 0;
    bool got = false;
    describe_self(j, &join);
    size_t n = wire_join_encode(&join, data);
    while (!got) {
        enum sl_status s = comm_join_check(j, "the answer of rank 0", err);
        if (s)
            return s;
        if (sl_now_ns() >= again_ns && zmq_send(zmq, data, n, ZMQ_DONTWAIT) >= 0)
            again_ns = sl_now_ns() + AGAIN_MS * SL_MS_NS;
        zmq_poll(&item, 1, SLICE_MS);
        bus_tend(&j->rendezvous->socket, &j->rendezvous->keys, sl_now_ns());
        if ((s = read_answer(j, join.nonce, &j->answer, &got, err)))
            return s;
    }
    return SL_OK;
}

enum sl_status rendezvous_meet(struct comm_join *j, struct sl_err *err)
{
    enum sl_status s = open_socket(j, err);
    if (s)
        return s;
    s = j->cfg->rank == 0 ? host(j, err) : ask(j, err);
    j->rendezvous->met = s == SL_OK;
    return s;
}

/* --- while links are made ------------------------------------------------------------------------
 */

/* A rank that joins once more did not hear us, or is another process: then the group cannot be. */
static enum sl_status hear_joins(struct comm_join *j, struct sl_err *err)
{
    struct rendezvous *r = j->rendezvous;
    struct place p = {.taken = true};
    bool good;
    while (receive_join(r, &p, &good)) {
        struct place *known = good ? &r->places[p.join.rank] : NULL;
        if (!known || !known->taken || p.join.rank == 0)
            continue;
        if (p.join.nonce != known->join.nonce) {
            *known = p;
            return sl_fail(err, SL_PEER, "comm: rank %u was started again while joining",
                           p.join.rank);
        }
        answer(r, known, &j->answer);
    }
    return SL_OK;
}

enum sl_status rendezvous_hear(struct comm_join *j, struct sl_err *err)
{
    struct rendezvous *r = j->rendezvous;
    struct wire_answer again; /* does not change the one in force */
    bool got;
    if (!r || !r->met)
        return SL_OK;
    bus_tend(&r->socket, &r->keys, sl_now_ns());
    if (j->cfg->rank == 0)
        return hear_joins(j, err);
    enum sl_status s = read_answer(j, j->answer.nonce, &again, &got, err);
    explicit_bzero(again.key, sizeof again.key);
    return s;
}

void rendezvous_refuse(struct comm_join *j, const struct sl_err *why)
{
    if (j->rendezvous && j->rendezvous->met && j->cfg->rank == 0)
        refuse_all(j->rendezvous, NULL, why);
}

/* --- looking without meeting ---------------------------------------------------------------------
 */

struct sl_comm_lobby {
    struct sl_comm_config cfg;
    struct comm_join join; /* of cfg; it never goes on to make links */
    uint64_t asked_ns[SL_COMM_RANKS_MAX];
};

enum sl_status sl_comm_lobby_open(const struct sl_comm_config *cfg, struct sl_comm_lobby **out,
                                  struct sl_err *err)
{
    *out = NULL;
    if (cfg->rank != 0 || cfg->n_ranks < 2 || cfg->n_ranks > SL_COMM_RANKS_MAX)
        return sl_fail(err, SL_CONFIG, "comm: rank %u of %u looks for others", cfg->rank,
                       cfg->n_ranks);
    struct sl_comm_lobby *l = calloc(1, sizeof *l);
    if (!l)
        return sl_fail(err, SL_NO_MEMORY, "comm: no memory");
    l->cfg = *cfg;
    l->join.cfg = &l->cfg;
    enum sl_status s = open_socket(&l->join, err);
    if (s) {
        sl_comm_lobby_close(l);
        return s;
    }
    describe_self(&l->join, &l->join.rendezvous->places[0].join);
    *out = l;
    return SL_OK;
}

bool sl_comm_lobby_is_full(struct sl_comm_lobby *l, uint64_t now_ns)
{
    struct rendezvous *r = l->join.rendezvous;
    struct place p = {.taken = true};
    struct sl_err err;
    bool good, full = true;
    bus_tend(&r->socket, &r->keys, now_ns);
    while (receive_join(r, &p, &good))
        if (good && check_fit(&r->places[0].join, &p.join, &err) == SL_OK)
            l->asked_ns[p.join.rank] = now_ns;
    for (uint32_t i = 1; i < l->cfg.n_ranks; i++)
        full &= l->asked_ns[i] && now_ns - l->asked_ns[i] <= SL_COMM_LOBBY_MS * SL_MS_NS;
    return full;
}

void sl_comm_lobby_close(struct sl_comm_lobby *l)
{
    if (!l)
        return;
    rendezvous_close(&l->join);
    free(l);
}
