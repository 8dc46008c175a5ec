/* Very many altered bus messages through the decoder, in one process: frames N [SEED [THREADS]].
 *
 * Every run takes a good message, alters it one to four times (bits, bytes, extreme numbers, cuts,
 * pieces moved or doubled, two messages joined), in half of the runs repairs the check at its end,
 * so that the parser behind it is reached, and decodes it as either version. Refused messages name
 * a field and leave nothing; accepted ones encode again to something that is accepted again. Each
 * message ends where a page begins that nobody may read. A run is named by its seed and number. */
#include "transport/bus_samples.h"

#include <sluice/base/containers.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define ARENA_BYTES ((size_t)8 << 20)
#define FRAME_MAX   4096
#define CHECK_BYTES 10 /* field 29, fixed64: the last of a message */
#define THREADS_MAX 64

struct job {
    pthread_t thread;
    uint64_t seed, from, to;
    uint64_t n_accepted, n_refused;
    struct sl_buf good[N_SAMPLES * 2];
    uint32_t n_good;
    uint8_t *page_end;
    struct sl_arena arena;
    struct sl_buf again;
};

static uint64_t mix(uint64_t *x)
{
    uint64_t z = *x += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static size_t below(uint64_t *x, size_t n)
{
    return n ? mix(x) % n : 0;
}

/* ---- alterations, each within FRAME_MAX ---- */

static size_t put_number(uint64_t *x, uint8_t *f, size_t n)
{
    static const uint64_t extremes[] = {
        0,          1,          127,        128,        255,        65535, 65536,      0x7fffffff,
        0x80000000, 0xfffffffe, 0xffffffff, 1ull << 32, 1ull << 53, ~0ull, ~0ull >> 1, 1ull << 63};
    uint64_t v = extremes[below(x, sizeof extremes / sizeof *extremes)];
    size_t at = below(x, n);
    while (at < n && v >= 0x80) {
        f[at++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    if (at < n)
        f[at] = (uint8_t)v;
    return n;
}

/* A piece taken from one place and put before, or over, another. */
static size_t move_piece(uint64_t *x, uint8_t *f, size_t n, bool over)
{
    uint8_t piece[64];
    size_t from = below(x, n), len = 1 + below(x, sizeof piece), to = below(x, n + 1);
    len = len < n - from ? len : n - from;
    memcpy(piece, f + from, len);
    if (over) {
        len = len < n - to ? len : n - to;
        memcpy(f + to, piece, len);
        return n;
    }
    if (n + len > FRAME_MAX)
        return n;
    memmove(f + to + len, f + to, n - to);
    memcpy(f + to, piece, len);
    return n + len;
}

static size_t cut_piece(uint64_t *x, uint8_t *f, size_t n)
{
    size_t from = below(x, n), len = 1 + below(x, 16);
    len = len < n - from ? len : n - from;
    memmove(f + from, f + from + len, n - from - len);
    return n - len;
}

static size_t alter(uint64_t *x, uint8_t *f, size_t n)
{
    if (n == 0)
        return n;
    switch (mix(x) % 8) {
    case 0:
    case 1:
        f[below(x, n)] ^= (uint8_t)(1u << mix(x) % 8);
        return n;
    case 2:
        f[below(x, n)] = (uint8_t)mix(x);
        return n;
    case 3:
        return put_number(x, f, n);
    case 4:
        return below(x, n); /* cut short */
    case 5:
        return cut_piece(x, f, n);
    case 6:
        return move_piece(x, f, n, true);
    default:
        return move_piece(x, f, n, false);
    }
}

static void repair_check(uint8_t *f, size_t n)
{
    if (n < CHECK_BYTES)
        return;
    uint64_t sum = sl_hash64(f, n - CHECK_BYTES, 0);
    f[n - 10] = 0xe9; /* 29 << 3 | 1 as a varint */
    f[n - 9] = 0x01;
    for (size_t i = 0; i < 8; i++)
        f[n - 8 + i] = (uint8_t)(sum >> 8 * i);
}

static size_t make_frame(struct job *j, uint64_t *x, uint8_t *f)
{
    const struct sl_buf *a = &j->good[below(x, j->n_good)], *b = &j->good[below(x, j->n_good)];
    size_t n = a->len;
    memcpy(f, a->data, n);
    if (mix(x) % 16 == 0 && n + b->len <= FRAME_MAX) { /* its own check lies in the middle then */
        memcpy(f + n, b->data, b->len);
        n += b->len;
    }
    for (uint64_t k = 1 + mix(x) % 4; k > 0; k--)
        n = alter(x, f, n);
    if (mix(x) % 2)
        repair_check(f, n);
    return n;
}

/* ---- judgement ---- */

static void give_up(const struct job *j, uint64_t run, const char *why)
{
    fprintf(stderr, "seed %llu, run %llu: %s\n", (unsigned long long)j->seed,
            (unsigned long long)run, why);
    abort();
}

static void judge(struct job *j, uint64_t run, const uint8_t *data, size_t n, uint32_t version)
{
    struct sl_msg m;
    struct sl_err err = {0};
    sl_arena_reset(&j->arena);
    enum sl_status s = sl_msg_decode_as(data, n, version, &j->arena, &m, &err);
    if (j->arena.high_bytes > ARENA_BYTES)
        give_up(j, run, "more memory than its cap");
    if (s != SL_OK) {
        j->n_refused++;
        if (s != SL_INVALID || !err.param[0] || m.kind != SL_MSG_NONE)
            give_up(j, run, "refused without a field, or not wholly");
        return;
    }
    j->n_accepted++;
    sl_buf_clear(&j->again);
    if (sl_msg_encode_for(&m, version, &j->again, &err) != SL_OK)
        give_up(j, run, err.msg);
    sl_arena_reset(&j->arena);
    if (sl_msg_decode_as(j->again.data, j->again.len, version, &j->arena, &m, &err) != SL_OK)
        give_up(j, run, err.msg);
}

static void *work(void *arg)
{
    struct job *j = arg;
    uint8_t frame[FRAME_MAX];
    for (uint64_t run = j->from; run < j->to; run++) {
        uint64_t x = j->seed ^ run * 0xd1342543de82ef95u;
        size_t n = make_frame(j, &x, frame);
        memcpy(j->page_end - n, frame, n);
        judge(j, run, j->page_end - n, n, 1 + run % SL_BUS_VERSION);
    }
    return NULL;
}

/* ---- set-up ---- */

static void prepare(struct job *j)
{
    static struct samples s;
    struct sl_err err;
    samples_fill(&s);
    for (int i = 0; i < N_SAMPLES; i++)
        for (uint32_t version = 1; version <= SL_BUS_VERSION; version++) {
            struct sl_buf b = {0};
            if (sl_msg_encode_for(&s.m[i], version, &b, &err) == SL_OK && b.len <= FRAME_MAX)
                j->good[j->n_good++] = b;
            else
                sl_buf_free(&b);
        }
    uint8_t *pages =
        mmap(NULL, 3 * FRAME_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + 2 * FRAME_MAX, FRAME_MAX, PROT_NONE))
        abort();
    j->page_end = pages + 2 * FRAME_MAX;
    sl_arena_init(&j->arena, ARENA_BYTES);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    static struct job jobs[THREADS_MAX];
    uint64_t n = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000, accepted = 0, refused = 0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    uint64_t threads = argc > 3 ? strtoull(argv[3], NULL, 10) : 2;
    threads = threads < 1 ? 1 : threads > THREADS_MAX ? THREADS_MAX : threads;
    double start = seconds();
    for (uint64_t i = 0; i < threads; i++) {
        jobs[i].seed = seed;
        jobs[i].from = n * i / threads;
        jobs[i].to = n * (i + 1) / threads;
        prepare(&jobs[i]);
        if (pthread_create(&jobs[i].thread, NULL, work, &jobs[i]))
            abort();
    }
    for (uint64_t i = 0; i < threads; i++) {
        pthread_join(jobs[i].thread, NULL);
        accepted += jobs[i].n_accepted;
        refused += jobs[i].n_refused;
        sl_arena_free(&jobs[i].arena);
        sl_buf_free(&jobs[i].again);
        for (uint32_t k = 0; k < jobs[i].n_good; k++)
            sl_buf_free(&jobs[i].good[k]);
    }
    double took = seconds() - start;
    printf("%llu messages in %.1f s, %.2f million/s: %llu accepted, %llu refused, each once\n",
           (unsigned long long)n, took, (double)n / 1e6 / took, (unsigned long long)accepted,
           (unsigned long long)refused);
    return accepted + refused == n && accepted && refused ? 0 : 1;
}
