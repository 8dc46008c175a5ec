/* The communicator's codec; see wire.h. A reader that ran past the end stays bad, and every decoder
 * refuses bytes left over. */
#include "wire.h"

#include <string.h>

#define MAGIC_JOIN   0x314a4c53u /* "SLJ1" */
#define MAGIC_ANSWER 0x31414c53u
#define MAGIC_HAIL   0x31484c53u
#define AGE_MAX_MS   3600000u

struct writer {
    uint8_t *at;
};

static void put(struct writer *w, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        *w->at++ = (uint8_t)(value >> (8 * i));
}

static void put_bytes(struct writer *w, const void *data, size_t n)
{
    memcpy(w->at, data, n);
    w->at += n;
}

static void put_text(struct writer *w, const char *text)
{
    size_t n = strlen(text);
    put(w, n, 1);
    put_bytes(w, text, n);
}

struct reader {
    const uint8_t *at;
    size_t left;
    bool bad;
};

static uint64_t take(struct reader *r, size_t bytes)
{
    uint64_t value = 0;
    if (r->bad || r->left < bytes) {
        r->bad = true;
        return 0;
    }
    for (size_t i = 0; i < bytes; i++)
        value |= (uint64_t)r->at[i] << (8 * i);
    r->at += bytes;
    r->left -= bytes;
    return value;
}

static void take_bytes(struct reader *r, void *out, size_t n)
{
    if (r->bad || r->left < n) {
        r->bad = true;
        memset(out, 0, n);
        return;
    }
    memcpy(out, r->at, n);
    r->at += n;
    r->left -= n;
}

/* Printable ASCII shorter than `max`: names end up in messages and in system calls. */
static void take_text(struct reader *r, char *out, size_t max)
{
    size_t n = take(r, 1);
    memset(out, 0, max);
    if (n >= max) {
        r->bad = true;
        return;
    }
    take_bytes(r, out, n);
    for (size_t i = 0; i < n; i++)
        if (out[i] < ' ' || out[i] > '~')
            r->bad = true;
}

static enum sl_status finish(const struct reader *r, const char *what, struct sl_err *err)
{
    if (r->bad || r->left)
        return sl_fail(err, SL_INVALID, "comm: %s is malformed", what);
    return SL_OK;
}

size_t wire_join_encode(const struct wire_join *m, uint8_t *out)
{
    struct writer w = {out};
    put(&w, MAGIC_JOIN, 4);
    put(&w, m->rank, 4);
    put(&w, m->n_ranks, 4);
    put(&w, m->config_hash, 8);
    put(&w, m->nonce, 8);
    put(&w, m->kind, 1);
    put(&w, m->pid, 4);
    put_bytes(&w, m->machine, sizeof m->machine);
    put_text(&w, m->group);
    put_text(&w, m->address);
    return (size_t)(w.at - out);
}

enum sl_status wire_join_decode(const void *data, size_t size, struct wire_join *out,
                                struct sl_err *err)
{
    struct reader r = {data, size, size > WIRE_JOIN_MAX};
    if (take(&r, 4) != MAGIC_JOIN)
        r.bad = true;
    out->rank = (uint32_t)take(&r, 4);
    out->n_ranks = (uint32_t)take(&r, 4);
    out->config_hash = take(&r, 8);
    out->nonce = take(&r, 8);
    out->kind = (uint32_t)take(&r, 1);
    out->pid = (uint32_t)take(&r, 4);
    take_bytes(&r, out->machine, sizeof out->machine);
    take_text(&r, out->group, sizeof out->group);
    take_text(&r, out->address, sizeof out->address);
    if (out->n_ranks > SL_COMM_RANKS_MAX || out->rank >= out->n_ranks || out->kind > SL_COMM_TCP)
        r.bad = true;
    return finish(&r, "JOIN", err);
}

size_t wire_answer_encode(const struct wire_answer *m, uint8_t *out)
{
    struct writer w = {out};
    put(&w, MAGIC_ANSWER, 4);
    put(&w, m->status, 2);
    put_text(&w, m->reason);
    put(&w, m->nonce, 8);
    put(&w, m->n_ranks, 4);
    put(&w, m->kind, 1);
    put_bytes(&w, m->key, sizeof m->key);
    put_text(&w, m->shm_name);
    for (uint32_t i = 0; i < m->n_ranks; i++)
        put_text(&w, m->address[i]);
    return (size_t)(w.at - out);
}

enum sl_status wire_answer_decode(const void *data, size_t size, struct wire_answer *out,
                                  struct sl_err *err)
{
    struct reader r = {data, size, size > WIRE_ANSWER_MAX};
    if (take(&r, 4) != MAGIC_ANSWER)
        r.bad = true;
    out->status = (uint32_t)take(&r, 2);
    take_text(&r, out->reason, sizeof out->reason);
    out->nonce = take(&r, 8);
    out->n_ranks = (uint32_t)take(&r, 4);
    out->kind = (uint32_t)take(&r, 1);
    take_bytes(&r, out->key, sizeof out->key);
    take_text(&r, out->shm_name, sizeof out->shm_name);
    if (out->n_ranks > SL_COMM_RANKS_MAX || out->status >= SL_N_STATUS || out->kind > SL_COMM_TCP ||
        (out->status == SL_OK && out->kind == SL_COMM_AUTO))
        r.bad = true;
    for (uint32_t i = 0; i < out->n_ranks && !r.bad; i++)
        take_text(&r, out->address[i], sizeof out->address[i]);
    return finish(&r, "ANSWER", err);
}

void wire_head_encode(const struct wire_head *h, uint8_t out[WIRE_HEAD_BYTES])
{
    struct writer w = {out};
    put(&w, h->group, 4);
    put(&w, h->op, 4);
    put(&w, h->bytes, 8);
}

void wire_head_decode(const uint8_t in[WIRE_HEAD_BYTES], struct wire_head *h)
{
    struct reader r = {in, WIRE_HEAD_BYTES, false};
    h->group = (uint32_t)take(&r, 4);
    h->op = (uint32_t)take(&r, 4);
    h->bytes = take(&r, 8);
}

void wire_beat_encode(const struct wire_beat *b, uint8_t out[WIRE_BEAT_BYTES])
{
    struct writer w = {out};
    put(&w, b->age_ms < AGE_MAX_MS ? b->age_ms : AGE_MAX_MS, 4);
    put(&w, (b->waiting ? 1u : 0u) | (b->started ? 2u : 0u), 4);
}

enum sl_status wire_beat_decode(const uint8_t *in, size_t size, struct wire_beat *b,
                                struct sl_err *err)
{
    struct reader r = {in, size, false};
    uint64_t flags;
    b->age_ms = (uint32_t)take(&r, 4);
    flags = take(&r, 4);
    b->waiting = flags & 1;
    b->started = flags & 2;
    if (b->age_ms > AGE_MAX_MS || flags > 3)
        r.bad = true;
    return finish(&r, "heartbeat", err);
}

void wire_alert_encode(const struct wire_alert *a, uint8_t out[WIRE_ALERT_BYTES])
{
    struct writer w = {out};
    put(&w, a->by, 4);
    put(&w, a->blamed, 4);
}

enum sl_status wire_alert_decode(const uint8_t *in, size_t size, uint32_t n_ranks,
                                 struct wire_alert *a, struct sl_err *err)
{
    struct reader r = {in, size, false};
    a->by = (uint32_t)take(&r, 4);
    a->blamed = (uint32_t)take(&r, 4);
    if (a->by >= n_ranks || a->blamed > n_ranks)
        r.bad = true;
    return finish(&r, "alert", err);
}

void wire_hail_encode(const struct wire_hail *h, uint8_t out[WIRE_HAIL_BYTES])
{
    struct writer w = {out};
    put(&w, MAGIC_HAIL, 4);
    put(&w, h->rank, 4);
    put_bytes(&w, h->proof, sizeof h->proof);
}

enum sl_status wire_hail_decode(const uint8_t *in, size_t size, struct wire_hail *h,
                                struct sl_err *err)
{
    struct reader r = {in, size, false};
    if (take(&r, 4) != MAGIC_HAIL)
        r.bad = true;
    h->rank = (uint32_t)take(&r, 4);
    take_bytes(&r, h->proof, sizeof h->proof);
    if (h->rank >= SL_COMM_RANKS_MAX)
        r.bad = true;
    return finish(&r, "hail", err);
}
