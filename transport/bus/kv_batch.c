/* A batch of KV events to MessagePack and back. */
#include <sluice/transport/kv_events.h>

#include "msgpack.h"

#include <sluice/base/limits.h>

#include <math.h>
#include <string.h>

#define PAGE_SIZE_MAX 65536u

/* --- writing ---------------------------------------------------------------------------------- */

struct writer {
    struct sl_buf *out;
    bool maps; /* named fields */
};

static void field(const struct writer *w, const char *name)
{
    if (w->maps)
        mp_put_text(w->out, name);
}

/* An event of n fields besides its name. */
static void begin(const struct writer *w, const char *type, uint32_t n)
{
    if (w->maps)
        mp_put_map(w->out, n + 1);
    else
        mp_put_array(w->out, n + 1);
    field(w, "type");
    mp_put_text(w->out, type);
}

static void put_keys(const struct writer *w, const struct sl_kv_wire_event *e)
{
    field(w, "block_hashes");
    mp_put_array(w->out, e->n_keys);
    for (uint32_t i = 0; i < e->n_keys; i++)
        mp_put_bytes(w->out, e->keys[i], 32);
}

static void put_stored(const struct writer *w, const struct sl_kv_wire_event *e, const char *medium)
{
    begin(w, "BlockStored", 7);
    put_keys(w, e);
    field(w, "parent_block_hash");
    if (e->has_parent)
        mp_put_bytes(w->out, e->parent, 32);
    else
        mp_put_nil(w->out);
    field(w, "token_ids");
    mp_put_array(w->out, e->n_keys * e->page_size);
    for (uint32_t i = 0; i < e->n_keys * e->page_size; i++)
        mp_put_uint(w->out, e->tokens[i]);
    field(w, "block_size");
    mp_put_uint(w->out, e->page_size);
    field(w, "lora_id");
    mp_put_nil(w->out);
    field(w, "medium");
    mp_put_text(w->out, medium);
    field(w, "lora_name");
    mp_put_nil(w->out);
}

static void put_event(const struct writer *w, const struct sl_kv_wire_event *e, const char *medium)
{
    if (e->kind == SL_KV_WIRE_STORED) {
        put_stored(w, e, medium);
    } else if (e->kind == SL_KV_WIRE_REMOVED) {
        begin(w, "BlockRemoved", 2);
        put_keys(w, e);
        field(w, "medium");
        mp_put_text(w->out, medium);
    } else {
        begin(w, "AllBlocksCleared", 0);
    }
}

static bool fits(const struct sl_kv_wire_event *e)
{
    return e->n_keys <= SL_LIMIT_kv_batch_keys && e->page_size <= PAGE_SIZE_MAX &&
           (uint64_t)e->n_keys * e->page_size <= SL_LIMIT_bus_message_bytes;
}

enum sl_status sl_kv_batch_encode(const struct sl_kv_batch *b, enum sl_kv_format format,
                                  const char *medium, struct sl_buf *out, struct sl_err *err)
{
    struct writer w = {out, format == SL_KV_VLLM};
    mp_put_array(out, 3);
    mp_put_double(out, b->unix_seconds);
    mp_put_array(out, b->n_events);
    for (uint32_t i = 0; i < b->n_events; i++) {
        if (!fits(&b->events[i]))
            return sl_fail(err, SL_INVALID, "kv events: event of %u pages of %u tokens",
                           b->events[i].n_keys, b->events[i].page_size);
        put_event(&w, &b->events[i], medium);
    }
    mp_put_uint(out, b->rank);
    if (out->failed || out->len > SL_LIMIT_bus_message_bytes)
        return sl_fail(err, SL_INVALID, "kv events: batch of %zu bytes, at most %d", out->len,
                       SL_LIMIT_bus_message_bytes);
    return SL_OK;
}

/* --- reading ---------------------------------------------------------------------------------- */

struct decoder {
    struct mp_reader r;
    struct sl_arena *arena;
    struct sl_err *err;
};

static enum sl_status refuse(struct decoder *d, const char *name, const char *why)
{
    return sl_fail_param(d->err, SL_INVALID, name, "kv events: %s %s", name, why);
}

static enum sl_status read_key(struct decoder *d, const char *name, uint8_t key[32])
{
    struct mp_item it = mp_next(&d->r);
    if (it.kind != MP_BYTES || it.str.len != 32)
        return refuse(d, name, "is not a key of 32 bytes");
    memcpy(key, it.str.data, 32);
    return SL_OK;
}

static enum sl_status read_keys(struct decoder *d, struct sl_kv_wire_event *e)
{
    struct mp_item it = mp_next(&d->r);
    if (it.kind != MP_ARRAY || it.n > SL_LIMIT_kv_batch_keys)
        return refuse(d, "block_hashes", "is not an array of allowed length");
    uint8_t(*keys)[32] = sl_arena_calloc(d->arena, it.n + 1u, sizeof *keys);
    if (!keys)
        return refuse(d, "block_hashes", "does not fit the decoder's memory");
    e->keys = (const uint8_t(*)[32])keys;
    e->n_keys = it.n;
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < it.n && s == SL_OK; i++)
        s = read_key(d, "block_hashes", keys[i]);
    return s;
}

static enum sl_status read_parent(struct decoder *d, struct sl_kv_wire_event *e)
{
    struct mp_reader ahead = d->r;
    e->has_parent = mp_next(&ahead).kind != MP_NIL || ahead.bad;
    if (e->has_parent)
        return read_key(d, "parent_block_hash", e->parent);
    d->r = ahead;
    return SL_OK;
}

static enum sl_status read_tokens(struct decoder *d, struct sl_kv_wire_event *e, uint32_t *n_tokens)
{
    struct mp_item it = mp_next(&d->r);
    if (it.kind != MP_ARRAY)
        return refuse(d, "token_ids", "is not an array");
    uint32_t *tokens = SL_ARENA_ARRAY(d->arena, uint32_t, it.n + 1u);
    if (!tokens)
        return refuse(d, "token_ids", "does not fit the decoder's memory");
    *n_tokens = it.n;
    e->tokens = tokens;
    for (uint32_t i = 0; i < *n_tokens; i++) {
        it = mp_next(&d->r);
        if (it.kind != MP_UINT || it.number > UINT32_MAX)
            return refuse(d, "token_ids", "has an element that is no token");
        tokens[i] = (uint32_t)it.number;
    }
    return SL_OK;
}

static enum sl_status read_page_size(struct decoder *d, struct sl_kv_wire_event *e)
{
    struct mp_item it = mp_next(&d->r);
    if (it.kind != MP_UINT || !it.number || it.number > PAGE_SIZE_MAX)
        return refuse(d, "block_size", "is out of range");
    e->page_size = (uint32_t)it.number;
    return SL_OK;
}

enum { HAS_KEYS = 1, HAS_PARENT = 2, HAS_TOKENS = 4, HAS_SIZE = 8 };
static const char *const names[] = {"block_hashes", "parent_block_hash", "token_ids", "block_size"};

static enum sl_status read_field(struct decoder *d, struct sl_kv_wire_event *e, uint32_t which,
                                 uint32_t *n_tokens)
{
    switch (which) {
    case HAS_KEYS:
        return read_keys(d, e);
    case HAS_PARENT:
        return read_parent(d, e);
    case HAS_TOKENS:
        return read_tokens(d, e, n_tokens);
    case HAS_SIZE:
        return read_page_size(d, e);
    default:
        mp_skip(&d->r);
        return SL_OK;
    }
}

/* The field of a name, or at a position of the older format; 0: none of ours. */
static uint32_t field_named(struct sl_str name)
{
    for (uint32_t i = 0; i < 4; i++)
        if (sl_str_eqz(name, names[i]))
            return 1u << i;
    return 0;
}

/* n fields, named or in order. */
static enum sl_status read_fields(struct decoder *d, struct sl_kv_wire_event *e, uint32_t n,
                                  bool named)
{
    uint32_t wanted = e->kind == SL_KV_WIRE_STORED ? HAS_KEYS | HAS_PARENT | HAS_TOKENS | HAS_SIZE
                      : e->kind == SL_KV_WIRE_REMOVED ? HAS_KEYS
                                                      : 0;
    uint32_t seen = 0, n_tokens = 0;
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < n && s == SL_OK && !d->r.bad; i++) {
        struct mp_item name = {0};
        if (named && (name = mp_next(&d->r)).kind != MP_TEXT)
            return refuse(d, "event", "has a field without a name");
        uint32_t which = (named ? field_named(name.str) : i < 4 ? 1u << i : 0) & wanted;
        if (seen & which)
            return refuse(d, "event", "has a field twice");
        seen |= which;
        s = read_field(d, e, which, &n_tokens);
    }
    if (s == SL_OK && (seen != wanted || d->r.bad))
        return refuse(d, "event", "is incomplete");
    if (s == SL_OK && e->kind == SL_KV_WIRE_STORED &&
        (uint64_t)e->n_keys * e->page_size != n_tokens)
        return refuse(d, "token_ids", "has another length than the pages");
    return s;
}

static bool kind_of(struct mp_item type, enum sl_kv_wire_kind *out)
{
    static const char *const types[] = {"BlockStored", "BlockRemoved", "AllBlocksCleared"};
    for (uint32_t i = 0; type.kind == MP_TEXT && i < 3; i++)
        if (sl_str_eqz(type.str, types[i])) {
            *out = (enum sl_kv_wire_kind)i;
            return true;
        }
    return false;
}

/* msgspec writes a map's "type" first, and so do we; nothing else is taken. */
static enum sl_status read_event(struct decoder *d, struct sl_kv_wire_event *e)
{
    struct mp_item head = mp_next(&d->r);
    bool named = head.kind == MP_MAP;
    if ((!named && head.kind != MP_ARRAY) || !head.n)
        return refuse(d, "event", "is neither a map nor an array");
    struct mp_item type = {0};
    if (named)
        type = mp_next(&d->r);
    if (named && (type.kind != MP_TEXT || !sl_str_eqz(type.str, "type")))
        return refuse(d, "event", "does not begin with its type");
    if (!kind_of(mp_next(&d->r), &e->kind))
        return refuse(d, "event", "has an unknown type");
    return read_fields(d, e, head.n - 1, named);
}

static enum sl_status read_events(struct decoder *d, struct sl_kv_batch *out)
{
    struct mp_item it = mp_next(&d->r);
    if (it.kind != MP_ARRAY || it.n > SL_LIMIT_kv_batch_keys)
        return refuse(d, "events", "is not an array of allowed length");
    struct sl_kv_wire_event *events = SL_ARENA_ARRAY(d->arena, struct sl_kv_wire_event, it.n + 1u);
    if (!events)
        return refuse(d, "events", "does not fit the decoder's memory");
    enum sl_status s = SL_OK;
    for (uint32_t i = 0; i < it.n && s == SL_OK; i++)
        s = read_event(d, &events[i]);
    out->events = events;
    out->n_events = it.n;
    return s;
}

enum sl_status sl_kv_batch_decode(const void *data, size_t size, struct sl_arena *arena,
                                  struct sl_kv_batch *out, struct sl_err *err)
{
    struct decoder d = {{data, size, false}, arena, err};
    memset(out, 0, sizeof *out);
    if (size > SL_LIMIT_bus_message_bytes)
        return refuse(&d, "size", "is above the limit of a bus message");
    struct mp_item it = mp_next(&d.r);
    if (it.kind != MP_ARRAY || it.n < 2)
        return refuse(&d, "batch", "is not an array of time and events");
    uint32_t n = it.n;
    it = mp_next(&d.r);
    if ((it.kind != MP_REAL && it.kind != MP_UINT) || (it.kind == MP_REAL && !isfinite(it.real)))
        return refuse(&d, "ts", "is not a time");
    out->unix_seconds = it.kind == MP_REAL ? it.real : (double)it.number;
    enum sl_status s = read_events(&d, out);
    if (s == SL_OK && n > 2) {
        it = mp_next(&d.r);
        if ((it.kind != MP_UINT && it.kind != MP_NIL) || it.number > UINT32_MAX)
            return refuse(&d, "data_parallel_rank", "is not a rank");
        out->rank = (uint32_t)it.number;
    }
    for (uint32_t i = 3; i < n && s == SL_OK; i++)
        mp_skip(&d.r);
    if (s == SL_OK && (d.r.bad || d.r.left))
        return refuse(&d, "batch", d.r.bad ? "ends too early" : "has bytes behind it");
    return s;
}
