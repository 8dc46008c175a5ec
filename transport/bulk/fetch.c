/* The fetching side: asks, takes rows straight to their place, proves them, keeps book.
 *
 * With shared memory a row is copied to its place first and proven there, so that a peer that goes
 * on writing cannot change what was checked. */
#include "bulk/frame.h"
#include "bulk/link.h"

#include <sluice/base/limits.h>
#include <sluice/base/time.h>
#include <string.h>

struct fetch {
    const struct sl_bulk_fetch *f;
    struct bulk_link link;
    struct bulk_window window; /* fd -1: rows come in the stream */
    struct bulk_intake intake;
    struct sl_bulk_fetched *out;
    uint64_t end_ns; /* of the whole transfer */
    uint64_t silence_ns;
    uint32_t slot, generation, n_taken, row_bytes;
    bool accepted, done;
};

static uint64_t deadline(const struct fetch *x)
{
    uint64_t silent = sl_now_ns() + x->silence_ns;
    return silent < x->end_ns ? silent : x->end_ns;
}

static void set_patience(struct fetch *x)
{
    uint32_t total_ms = x->f->total_ms ? x->f->total_ms : SL_LIMIT_bulk_transfer_ms;
    uint32_t silence_ms = x->f->silence_ms ? x->f->silence_ms : SL_LIMIT_bulk_silence_ms;
    x->end_ns = sl_now_ns() + total_ms * SL_MS_NS;
    x->silence_ns = silence_ms * SL_MS_NS;
}

static enum sl_status ask(struct fetch *x, struct sl_err *err)
{
    uint8_t header[BULK_HEADER_BYTES], payload[BULK_ASK_BYTES];
    const struct sl_bulk_fetch *f = x->f;
    bool shared = x->window.fd >= 0;
    struct bulk_frame frame = {.kind = BULK_ASK,
                               .page = shared ? x->window.n_slots : 0,
                               .size = BULK_ASK_BYTES,
                               .value = f->ask.ticket};
    sl_bulk_ask_put(&f->ask, &f->layout, payload);
    sl_bulk_frame_put(&frame, f->layout.class_hash, payload, header);
    return sl_bulk_write(&x->link, header, sizeof header, payload, sizeof payload,
                         shared ? x->window.fd : -1, deadline(x), err);
}

static enum sl_status refuse(struct fetch *x, const char *what, const struct bulk_frame *f,
                             struct sl_err *err)
{
    x->out->n_bad++;
    return sl_fail(err, SL_FAILED, "bulk: %s of page %u, layer %u", what, f->page, f->layer);
}

static enum sl_status unexpected(const struct bulk_frame *f, struct sl_err *err)
{
    return sl_fail(err, SL_PEER, "bulk: unexpected frame of kind %d, page %u, layer %u",
                   (int)f->kind, f->page, f->layer);
}

static enum sl_status acknowledge(struct fetch *x, struct sl_err *err)
{
    uint8_t header[BULK_HEADER_BYTES];
    if (++x->n_taken % (x->window.n_slots / 2))
        return SL_OK;
    struct bulk_frame f = {
        .kind = BULK_ACK, .slot = x->slot, .generation = x->generation, .seq = x->n_taken};
    sl_bulk_frame_put(&f, x->f->layout.class_hash, NULL, header);
    enum sl_status s =
        sl_bulk_write(&x->link, header, sizeof header, NULL, 0, -1, deadline(x), err);
    return s == SL_PEER ? SL_OK : s; /* gone, but there may be more to read */
}

static enum sl_status take_row(struct fetch *x, const uint8_t *header, const struct bulk_frame *f,
                               struct sl_err *err)
{
    if (!sl_bulk_intake_wants(&x->intake, f) || f->seq != x->n_taken)
        return unexpected(f, err);
    void *at = x->f->row_at(x->f->ctx, f->page, f->layer);
    enum sl_status s = at ? SL_OK : sl_fail(err, SL_CANCELLED, "bulk: no place for the pages");
    if (s)
        return s;
    if (x->window.fd < 0)
        s = sl_bulk_read(&x->link, at, f->size, deadline(x), err);
    else
        memcpy(at, x->window.data + (size_t)(f->seq % x->window.n_slots) * f->size, f->size);
    if (s)
        return s;
    if (!sl_bulk_frame_proven(header, f, x->f->layout.class_hash, at))
        return refuse(x, "checksum", f, err);
    if (x->f->row_done)
        x->f->row_done(x->f->ctx, f->page, f->layer, at);
    sl_bulk_intake_row(&x->intake, f);
    x->out->n_bytes += f->size;
    if (x->window.fd >= 0)
        return acknowledge(x, err);
    x->n_taken++;
    return SL_OK;
}

static enum sl_status take_page(struct fetch *x, const uint8_t *header, const struct bulk_frame *f,
                                struct sl_err *err)
{
    uint8_t key[BULK_KEY_BYTES];
    enum sl_status s = sl_bulk_read(&x->link, key, sizeof key, deadline(x), err);
    if (s)
        return s;
    if (!sl_bulk_frame_proven(header, f, x->f->layout.class_hash, key) ||
        !sl_bulk_intake_page(&x->intake, f, key))
        return refuse(x, "end", f, err);
    x->out->n_complete = x->intake.n_complete;
    x->done = x->intake.n_complete == x->f->ask.n_pages - x->f->ask.first;
    return SL_OK;
}

static enum sl_status ended(const struct bulk_frame *f, struct sl_err *err)
{
    enum sl_status why = f->value < SL_N_STATUS && f->value ? (enum sl_status)f->value : SL_PEER;
    return sl_fail(err, why, "bulk: the peer ended the transfer: %s", sl_status_row(why)->text);
}

static enum sl_status take_frame(struct fetch *x, struct sl_err *err)
{
    uint8_t header[BULK_HEADER_BYTES];
    struct bulk_frame f;
    const struct sl_bulk_layout *l = &x->f->layout;
    enum sl_status s = sl_bulk_read(&x->link, header, sizeof header, deadline(x), err);
    if (s)
        return s;
    if (sl_bulk_frame_get(header, sizeof header, x->row_bytes, &f, err))
        return err ? err->status = SL_PEER : SL_PEER;
    if (f.kind != BULK_ROW && f.kind != BULK_PAGE &&
        !sl_bulk_frame_proven(header, &f, l->class_hash, NULL))
        return refuse(x, "header", &f, err);
    if (f.kind == BULK_ACCEPT && !x->accepted) {
        x->slot = f.slot;
        x->generation = f.generation;
        x->accepted = true;
        return SL_OK;
    }
    if (f.kind == BULK_END)
        return ended(&f, err);
    if (!x->accepted || f.slot != x->slot || f.generation != x->generation)
        return unexpected(&f, err);
    if (f.kind == BULK_ROW)
        return take_row(x, header, &f, err);
    if (f.kind == BULK_PAGE)
        return take_page(x, header, &f, err);
    return f.kind == BULK_KEEP ? SL_OK : unexpected(&f, err);
}

static enum sl_status transfer(struct fetch *x, struct sl_err *err)
{
    const struct sl_bulk_fetch *f = x->f;
    enum sl_status s = sl_bulk_connect(f->address, f->key, f->stop, deadline(x), &x->link, err);
    if (s)
        return s;
    x->out->via = x->link.is_unix ? SL_BULK_SHM : SL_BULK_TCP;
    if (x->link.is_unix && !sl_bulk_window_make(&x->window, x->row_bytes))
        return sl_fail(err, SL_NO_MEMORY, "bulk: no shared memory");
    s = ask(x, err);
    while (!s && !x->done)
        s = take_frame(x, err);
    return s;
}

enum sl_status sl_bulk_fetch(const struct sl_bulk_fetch *f, struct sl_bulk_fetched *out,
                             struct sl_err *err)
{
    struct fetch x = {
        .f = f, .out = out, .link = {.fd = -1, .passed_fd = -1}, .window = {.fd = -1}};
    struct sl_err own;
    *out = (struct sl_bulk_fetched){0};
    x.row_bytes = sl_bulk_row_bytes(&f->layout, &f->ask.part);
    if (f->ask.first >= f->ask.n_pages || f->ask.n_pages > SL_LIMIT_bulk_pages || !x.row_bytes)
        return sl_fail(err, SL_INVALID, "bulk: pages %u to %u of %u heads of %u bytes",
                       f->ask.first, f->ask.n_pages, f->ask.part.n_heads, f->layout.head_bytes);
    if (!sl_bulk_intake_open(&x.intake, &f->ask, f->keys))
        return sl_fail(err, SL_NO_MEMORY, "bulk: no memory for %u pages", f->ask.n_pages);
    set_patience(&x);
    enum sl_status s = transfer(&x, err ? err : &own);
    sl_bulk_link_close(&x.link);
    sl_bulk_window_close(&x.window);
    sl_bulk_intake_close(&x.intake);
    return s;
}

/* --- the map ---------------------------------------------------------------------------------- */

static enum sl_status hear_map(struct fetch *x, struct sl_bulk_rank *out, uint32_t *n,
                               struct sl_err *err)
{
    uint8_t header[BULK_HEADER_BYTES], payload[SL_BULK_RANKS_BYTES];
    const struct sl_bulk_layout *l = &x->f->layout;
    struct bulk_frame f;
    enum sl_status s = sl_bulk_read(&x->link, header, sizeof header, deadline(x), err);
    if (s || (s = sl_bulk_frame_get(header, sizeof header, 0, &f, err)))
        return s;
    if (f.kind == BULK_END && sl_bulk_frame_proven(header, &f, l->class_hash, NULL))
        return ended(&f, err);
    if (f.kind != BULK_MAP)
        return unexpected(&f, err);
    s = sl_bulk_read(&x->link, payload, f.size, deadline(x), err);
    if (s)
        return s;
    if (!sl_bulk_frame_proven(header, &f, l->class_hash, payload))
        return sl_fail(err, SL_FAILED, "bulk: a map of another class, or damaged");
    return sl_bulk_ranks_get(payload, f.size, l, out, n, err);
}

enum sl_status sl_bulk_map(const struct sl_bulk_fetch *f, struct sl_bulk_rank *out, uint32_t *n,
                           struct sl_err *err)
{
    struct fetch x = {.f = f, .link = {.fd = -1, .passed_fd = -1}, .window = {.fd = -1}};
    struct bulk_frame question = {.kind = BULK_MAP};
    uint8_t header[BULK_HEADER_BYTES];
    *n = 0;
    set_patience(&x);
    enum sl_status s = sl_bulk_connect(f->address, f->key, f->stop, deadline(&x), &x.link, err);
    sl_bulk_frame_put(&question, f->layout.class_hash, NULL, header);
    if (!s)
        s = sl_bulk_write(&x.link, header, sizeof header, NULL, 0, -1, deadline(&x), err);
    if (!s)
        s = hear_map(&x, out, n, err);
    sl_bulk_link_close(&x.link);
    return s;
}
