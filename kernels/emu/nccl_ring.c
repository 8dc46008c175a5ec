/* The shared room of an emulated communicator. */
#include "emu/nccl_ring.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "emu/runtime.h"

enum { RING_BYTES = 1 << 16 };

#define MAGIC 0x6c63636e6c736c73ull

struct ring {
    _Atomic uint64_t n_put, n_taken;
    uint8_t data[RING_BYTES];
};
struct place {
    _Atomic int32_t pid; /* 0: not come */
    _Atomic uint64_t started;
};
struct shared {
    uint64_t magic, key;
    _Atomic uint32_t n_ranks, n_come;
    struct place places[NCCL_RANKS_MAX];
    struct ring
        rings[]; /* [from][to] of NCCL_RANKS_MAX each; pages that are not used are not there */
};
#define ROOM_BYTES (sizeof(struct shared) + sizeof(struct ring) * NCCL_RANKS_MAX * NCCL_RANKS_MAX)

struct nccl_room {
    struct shared *s;
    uint32_t rank, n_ranks;
};

/* An id: as the rest of its bytes, zero. */
struct name {
    uint64_t magic, key;
    int32_t pid, file;
    uint64_t started;
};
_Static_assert(sizeof(struct name) <= NCCL_UNIQUE_ID_BYTES, "fits");

bool nccl_room_name(ncclUniqueId *id)
{
    struct name n = {.magic = MAGIC, .pid = getpid()};
    n.file = memfd_create("sluice-nccl-emu", MFD_CLOEXEC);
    struct shared head = {.magic = MAGIC};
    bool ok = n.file >= 0 && process_started(n.pid, &n.started) &&
              getrandom(&n.key, sizeof n.key, 0) == sizeof n.key;
    head.key = n.key;
    ok = ok && !ftruncate(n.file, (off_t)ROOM_BYTES) &&
         pwrite(n.file, &head, sizeof head, 0) == sizeof head;
    if (!ok && n.file >= 0)
        close(n.file);
    memset(id, 0, sizeof *id);
    memcpy(id, &n, sizeof n);
    return ok;
}

static struct shared *map_room(const struct name *n)
{
    char path[64];
    struct stat st;
    uint64_t started;
    if (n->magic != MAGIC || n->pid <= 0 || n->file < 0 || !process_started(n->pid, &started) ||
        started != n->started)
        return NULL;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", n->pid, n->file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return NULL;
    struct shared *s = MAP_FAILED;
    if (!fstat(file, &st) && S_ISREG(st.st_mode) && (uint64_t)st.st_size == ROOM_BYTES)
        s = mmap(NULL, ROOM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    close(file);
    if (s == MAP_FAILED)
        return NULL;
    if (s->magic == MAGIC && s->key == n->key)
        return s;
    munmap(s, ROOM_BYTES);
    return NULL;
}

/* Ranks must agree on how many they are, and each comes once. */
static bool take_place(struct shared *s, uint32_t rank, uint32_t n_ranks)
{
    uint32_t none = 0;
    int32_t nobody = 0;
    uint64_t started;
    if (!process_started(getpid(), &started))
        return false;
    if (!atomic_compare_exchange_strong(&s->n_ranks, &none, n_ranks) && none != n_ranks)
        return false;
    if (!atomic_compare_exchange_strong(&s->places[rank].pid, &nobody, getpid()))
        return false;
    atomic_store(&s->places[rank].started, started);
    atomic_fetch_add(&s->n_come, 1);
    return true;
}

struct nccl_room *nccl_room_enter(const ncclUniqueId *id, uint32_t rank, uint32_t n_ranks,
                                  ncclResult_t *result)
{
    struct name n;
    memcpy(&n, id, sizeof n);
    *result = ncclSystemError;
    struct shared *s = map_room(&n);
    struct nccl_room *r = s ? calloc(1, sizeof *r) : NULL;
    bool entered = r && take_place(s, rank, n_ranks);
    if (!entered) {
        if (r)
            *result = ncclInvalidUsage;
        if (s)
            munmap(s, ROOM_BYTES);
        free(r);
        return NULL;
    }
    *r = (struct nccl_room){s, rank, n_ranks};
    *result = ncclSuccess;
    return r;
}

void nccl_room_leave(struct nccl_room *r)
{
    munmap(r->s, ROOM_BYTES);
    free(r);
}

bool nccl_room_full(const struct nccl_room *r)
{
    return atomic_load(&r->s->n_come) == r->n_ranks;
}

bool nccl_room_lost(const struct nccl_room *r, uint32_t rank)
{
    struct place *p = &r->s->places[rank];
    int32_t pid = atomic_load(&p->pid);
    uint64_t started;
    if (!pid || pid == getpid())
        return false;
    return !process_started(pid, &started) || started != atomic_load(&p->started);
}

static struct ring *ring_of(struct nccl_room *r, uint32_t from, uint32_t to)
{
    return &r->s->rings[from * NCCL_RANKS_MAX + to];
}

/* Of a ring that another process may have spoilt: never more than it holds. */
static uint64_t filled(uint64_t n_put, uint64_t n_taken)
{
    uint64_t n = n_put - n_taken;
    return n < RING_BYTES ? n : RING_BYTES;
}

size_t nccl_ring_put(struct nccl_room *r, uint32_t from, uint32_t to, const void *p, size_t n)
{
    struct ring *ring = ring_of(r, from, to);
    uint64_t at = atomic_load_explicit(&ring->n_put, memory_order_relaxed);
    uint64_t room = RING_BYTES - filled(at, atomic_load(&ring->n_taken));
    n = n < room ? n : room;
    size_t i = at % RING_BYTES, first = n < RING_BYTES - i ? n : RING_BYTES - i;
    memcpy(ring->data + i, p, first);
    memcpy(ring->data, (const uint8_t *)p + first, n - first);
    atomic_store(&ring->n_put, at + n);
    return n;
}

size_t nccl_ring_take(struct nccl_room *r, uint32_t from, uint32_t to, void *p, size_t n)
{
    struct ring *ring = ring_of(r, from, to);
    uint64_t at = atomic_load_explicit(&ring->n_taken, memory_order_relaxed);
    uint64_t there = filled(atomic_load(&ring->n_put), at);
    n = n < there ? n : there;
    size_t i = at % RING_BYTES, first = n < RING_BYTES - i ? n : RING_BYTES - i;
    memcpy(p, ring->data + i, first);
    memcpy((uint8_t *)p + first, ring->data, n - first);
    atomic_store(&ring->n_taken, at + n);
    return n;
}
