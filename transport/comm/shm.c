/* Links over shared memory: one ring of bytes for every ordered pair of ranks.
 *
 * A ring has one writer and one reader; each publishes its own counter with release and reads the
 * other's with acquire. Nobody locks. A rank that finds nothing to do spins briefly when there are
 * cores enough for all, then sleeps on its bell (futex); whoever moves bytes to or from it rings
 * the bell if it is asleep. Against the lost wake-up both sides write their word, fence, and read
 * the other's: the sleeper `asleep` and then the counters, the mover its counter and then `asleep`.
 *
 * The memory is sealed against shrinking, so that no peer can make an access fault; counters of
 * peers are checked before use. The life of a peer's process is seen at its pidfd, in slices. */
#include "shm.h"

#include <sluice/base/time.h>

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PIECE_BYTES   ((size_t)64 << 10) /* published at a time: the reader follows closely */
#define SPINS         500                /* some 10 us, with a core for every rank */
#define SPINS_CROWDED 20

/* --- layout --------------------------------------------------------------------------------------
 */

size_t shm_ring_bytes(uint32_t n)
{
    size_t bytes = (size_t)1 << 19;
    for (uint32_t i = 2; i < n && bytes > (size_t)1 << 16; i *= 2)
        bytes /= 2;
    return bytes;
}

static size_t front_bytes(uint32_t n)
{
    size_t raw = sizeof(struct shm_top) + n * sizeof(struct shm_rank) +
                 (size_t)n * n * sizeof(struct shm_ring);
    return (raw + 4095) / 4096 * 4096;
}

size_t shm_map_bytes(uint32_t n)
{
    return front_bytes(n) + (size_t)n * n * shm_ring_bytes(n);
}

static struct shm_net *self(struct comm_net *net)
{
    return (struct shm_net *)(void *)net;
}

static uint32_t ring_of(const struct shm_net *s, uint32_t from, uint32_t to)
{
    return from * s->base.n_ranks + to;
}

/* --- bells ---------------------------------------------------------------------------------------
 */

static void wake(struct shm_rank *r)
{
    atomic_fetch_add(&r->bell, 1);
    syscall(SYS_futex, &r->bell, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* After a counter was published. */
static void ring_bell(struct shm_rank *r)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&r->asleep, memory_order_relaxed) && atomic_exchange(&r->asleep, 0))
        wake(r);
}

/* --- streams -------------------------------------------------------------------------------------
 */

static enum sl_status torn(uint32_t peer, struct sl_err *err)
{
    return sl_fail(err, SL_FAILED, "comm: the shared counters of rank %u are corrupt", peer);
}

static void copy_in(uint8_t *ring, size_t size, uint64_t at, const void *data, size_t n)
{
    size_t off = at % size, first = n < size - off ? n : size - off;
    memcpy(ring + off, data, first);
    if (n > first)
        memcpy(ring, (const uint8_t *)data + first, n - first);
}

static void copy_out(const uint8_t *ring, size_t size, uint64_t at, void *data, size_t n)
{
    size_t off = at % size, first = n < size - off ? n : size - off;
    memcpy(data, ring + off, first);
    if (n > first)
        memcpy((uint8_t *)data + first, ring, n - first);
}

static enum sl_status push(struct comm_net *net, uint32_t peer, const struct comm_part part[2],
                           size_t *moved, struct sl_err *err)
{
    struct shm_net *s = self(net);
    uint32_t i = ring_of(s, net->rank, peer);
    uint8_t *ring = s->bytes + i * s->ring_bytes;
    uint64_t used = s->head[peer] - atomic_load_explicit(&s->rings[i].tail, memory_order_acquire);
    *moved = 0;
    if (used > s->ring_bytes)
        return torn(peer, err);
    size_t room = s->ring_bytes - used;
    room = room < PIECE_BYTES ? room : PIECE_BYTES;
    for (int k = 0; k < 2; k++) {
        size_t n = part[k].bytes < room - *moved ? part[k].bytes : room - *moved;
        if (n)
            copy_in(ring, s->ring_bytes, s->head[peer] + *moved, part[k].data, n);
        *moved += n;
    }
    if (!*moved)
        return SL_OK;
    s->head[peer] += *moved;
    atomic_store_explicit(&s->rings[i].head, s->head[peer], memory_order_release);
    ring_bell(&s->ranks[peer]);
    return SL_OK;
}

static bool flushed(struct comm_net *net, uint32_t peer)
{
    (void)net, (void)peer;
    return true;
}

static uint64_t waiting_bytes(const struct shm_net *s, uint32_t peer)
{
    uint32_t i = ring_of(s, peer, s->base.rank);
    return atomic_load_explicit(&s->rings[i].head, memory_order_acquire) - s->tail[peer];
}

static enum sl_status pull(struct comm_net *net, uint32_t peer, void *data, size_t bytes,
                           size_t *moved, struct sl_err *err)
{
    struct shm_net *s = self(net);
    uint32_t i = ring_of(s, peer, net->rank);
    uint64_t used = waiting_bytes(s, peer);
    *moved = 0;
    if (used > s->ring_bytes)
        return torn(peer, err);
    size_t n = used < bytes ? used : bytes;
    n = n < PIECE_BYTES ? n : PIECE_BYTES;
    if (!n)
        return SL_OK;
    copy_out(s->bytes + i * s->ring_bytes, s->ring_bytes, s->tail[peer], data, n);
    s->tail[peer] += n;
    *moved = n;
    atomic_store_explicit(&s->rings[i].tail, s->tail[peer], memory_order_release);
    ring_bell(&s->ranks[peer]);
    return SL_OK;
}

static bool readable(struct comm_net *net, uint32_t peer)
{
    return waiting_bytes(self(net), peer) > 0;
}

/* --- waiting -------------------------------------------------------------------------------------
 */

/* A writer is worth waking for a quarter of a ring: its reader drains what is there anyway. */
static bool may_move(const struct shm_net *s, uint64_t from, uint64_t to)
{
    uint64_t both = from | to;
    for (uint32_t p = 0; both; p++, both >>= 1) {
        if (!(both & 1))
            continue;
        uint32_t i = ring_of(s, s->base.rank, p);
        if ((from >> p & 1) && waiting_bytes(s, p))
            return true;
        if ((to >> p & 1) &&
            s->head[p] - atomic_load_explicit(&s->rings[i].tail, memory_order_acquire) <=
                s->ring_bytes - s->ring_bytes / 4)
            return true;
    }
    return atomic_load_explicit(&s->top->alert, memory_order_acquire) ||
           atomic_load_explicit(&s->base.failed, memory_order_acquire);
}

static void pause_core(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void look_at_lives(struct shm_net *s)
{
    struct pollfd fds[SL_COMM_RANKS_MAX];
    for (uint32_t p = 0; p < s->base.n_ranks; p++)
        fds[p] = (struct pollfd){s->dead[p] ? -1 : s->life[p], POLLIN, 0};
    if (poll(fds, s->base.n_ranks, 0) <= 0)
        return;
    for (uint32_t p = 0; p < s->base.n_ranks; p++)
        s->dead[p] |= fds[p].revents != 0;
}

static void wait_for(struct comm_net *net, uint64_t from, uint64_t to, uint64_t until_ns)
{
    struct shm_net *s = self(net);
    struct shm_rank *me = &s->ranks[net->rank];
    for (uint32_t i = 0; i < s->n_spins; i++) {
        if (may_move(s, from, to))
            return;
        pause_core();
    }
    uint32_t bell = atomic_load(&me->bell);
    atomic_store(&me->asleep, 1);
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t now = sl_now_ns();
    if (!may_move(s, from, to) && now < until_ns) {
        uint64_t left = until_ns - now;
        struct timespec t = {(time_t)(left / SL_S_NS), (long)(left % SL_S_NS)};
        syscall(SYS_futex, &me->bell, FUTEX_WAIT, bell, &t, NULL, 0);
    }
    atomic_store(&me->asleep, 0);
    if (!may_move(s, from, to))
        look_at_lives(s);
}

/* --- lives ---------------------------------------------------------------------------------------
 */

static void view(struct comm_net *net, uint32_t peer, struct comm_view *out)
{
    struct shm_net *s = self(net);
    struct shm_rank *r = &s->ranks[peer];
    uint64_t now = sl_now_ns();
    out->progress_ns = atomic_load(&r->progress_ns);
    out->waiting_ns = atomic_load(&r->waiting_ns);
    out->started = atomic_load(&r->started);
    out->progress_ns = out->progress_ns < now ? out->progress_ns : now;
    out->state = atomic_load(&r->left) ? COMM_LEFT : s->dead[peer] ? COMM_DEAD : COMM_HERE;
}

static void publish(struct comm_net *net, uint64_t progress_ns, bool waiting)
{
    struct shm_rank *me = &self(net)->ranks[net->rank];
    uint64_t now = waiting ? sl_now_ns() : 0;
    if (progress_ns > atomic_load_explicit(&me->progress_ns, memory_order_relaxed))
        atomic_store_explicit(&me->progress_ns, progress_ns, memory_order_relaxed);
    atomic_store_explicit(&me->waiting_ns, now, memory_order_relaxed);
    if (atomic_load(&net->started) && !atomic_load_explicit(&me->started, memory_order_relaxed))
        atomic_store(&me->started, 1);
}

static void wake_all(struct shm_net *s)
{
    for (uint32_t p = 0; p < s->base.n_ranks; p++)
        wake(&s->ranks[p]);
}

static void alert(struct comm_net *net, const struct wire_alert *why)
{
    struct shm_net *s = self(net);
    uint64_t none = 0;
    atomic_compare_exchange_strong(&s->top->alert, &none,
                                   SHM_ALERT_SET | (uint64_t)why->by << 32 | why->blamed);
    wake_all(s);
}

static bool alerted(struct comm_net *net, struct wire_alert *why)
{
    uint64_t a = atomic_load_explicit(&self(net)->top->alert, memory_order_acquire);
    why->by = (uint32_t)(a >> 32) & 0x7fffffff;
    why->blamed = (uint32_t)a;
    return a != 0;
}

/* --- opening and closing -------------------------------------------------------------------------
 */

static void shm_close(struct comm_net *net)
{
    struct shm_net *s = self(net);
    if (s->top) {
        atomic_store(&s->ranks[net->rank].left, 1);
        wake_all(s);
        munmap(s->top, s->map_bytes);
    }
    for (uint32_t p = 0; p < net->n_ranks; p++)
        if (s->life[p] >= 0)
            close(s->life[p]);
    if (s->own_life >= 0)
        close(s->own_life);
    free(s);
}

static const struct comm_ops shm_ops = {.kind = SL_COMM_SHM,
                                        .push = push,
                                        .flushed = flushed,
                                        .pull = pull,
                                        .readable = readable,
                                        .wait = wait_for,
                                        .view = view,
                                        .publish = publish,
                                        .alert = alert,
                                        .alerted = alerted,
                                        .close = shm_close};

static enum sl_status map(struct shm_net *s, int memory, struct sl_err *err)
{
    uint32_t n = s->base.n_ranks;
    uint8_t *p = mmap(NULL, s->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (p == MAP_FAILED)
        return sl_fail(err, SL_NO_MEMORY, "comm: cannot map %zu shared bytes: %s", s->map_bytes,
                       strerror(errno));
    s->top = (struct shm_top *)(void *)p;
    s->ranks = (struct shm_rank *)(void *)(p + sizeof *s->top);
    s->rings = (struct shm_ring *)(void *)(s->ranks + n);
    s->bytes = p + front_bytes(n);
    return SL_OK;
}

static uint32_t spins_for(uint32_t n_ranks)
{
    cpu_set_t cpus;
    bool crowded = sched_getaffinity(0, sizeof cpus, &cpus) || CPU_COUNT(&cpus) < (int)n_ranks;
    return crowded ? SPINS_CROWDED : SPINS;
}

enum sl_status shm_net_open(struct comm_join *j, struct comm_net **out, struct sl_err *err)
{
    uint32_t n = j->cfg->n_ranks;
    int memory = -1;
    struct shm_net *s = calloc(1, sizeof *s);
    if (!s)
        return sl_fail(err, SL_NO_MEMORY, "comm: no memory");
    s->base.n_ranks = n;
    s->ring_bytes = shm_ring_bytes(n);
    s->map_bytes = shm_map_bytes(n);
    s->n_spins = spins_for(n);
    s->own_life = -1;
    memset(s->life, -1, sizeof s->life);
    enum sl_status status = shm_share(j, s, &memory, err);
    /* Also after a failure: others may have the memory already and think that the group is up;
     * closing tells them that this rank has left. */
    if (memory >= 0) {
        struct sl_err late;
        enum sl_status mapped = map(s, memory, status ? &late : err);
        status = status ? status : mapped;
        close(memory);
    }
    if (status) {
        shm_close(&s->base);
        return status;
    }
    comm_net_init(&s->base, &shm_ops, j);
    for (uint32_t p = 0; p < n; p++) { /* whoever comes first; 0 would be ages ago */
        uint64_t none = 0;
        atomic_compare_exchange_strong(&s->ranks[p].progress_ns, &none, sl_now_ns());
    }
    *out = &s->base;
    return SL_OK;
}
