/* Frames of the bulk channel: a fixed header of 48 bytes, little-endian, then a payload whose size
 * the kind fixes. Pure over (data, size): what comes from a socket is parsed here and nowhere else.
 *
 *   0 magic u32  4 kind u8  5 version u8  6 flags u16  8 slot u32  12 generation u32
 *  16 page u32  20 layer u32  24 size u32  28 seq u32  32 value u64  40 checksum u64
 *
 * checksum: XXH3-64 of the payload, seeded with the XXH3-64 of bytes 0..39, seeded with the class
 * hash; so a row in the wrong place, of another request or of another class does not match. */
#ifndef SL_TRANSPORT_BULK_FRAME_H
#define SL_TRANSPORT_BULK_FRAME_H

#include <sluice/transport/bulk.h>
#include <stddef.h>

enum { BULK_HEADER_BYTES = 48, BULK_ASK_BYTES = 80, BULK_KEY_BYTES = 32 };

enum bulk_kind {
    BULK_ASK = 1, /* client: page = slots of its shared memory or 0, value = ticket, payload: ask */
    BULK_ACCEPT,  /* server: slot and generation for all that follows */
    BULK_ROW,     /* server: value = first head << 32 | heads; payload in the stream or, with shared memory, in slot seq % slots */
    BULK_PAGE,    /* server: the page's rows are final; payload: its key */
    BULK_KEEP,    /* server: still there, nothing to send */
    BULK_END,     /* server: value = status */
    BULK_ACK,     /* client: seq = rows taken out of the shared memory so far */
    BULK_MAP,     /* client: empty, asks for it; server: sl_bulk_ranks_put */
    BULK_N_KIND
};

struct bulk_frame {
    enum bulk_kind kind;
    uint32_t slot, generation, page, layer, size, seq;
    uint64_t value, checksum;
};

/* Writes header and checksum. */
void sl_bulk_frame_put(const struct bulk_frame *f, uint64_t class_hash, const void *payload,
                       uint8_t out[BULK_HEADER_BYTES]);
/* SL_INVALID for what no peer of ours sends; `row_bytes` is what a ROW must carry (0: any up to the
 * limit). The payload is still to come. */
enum sl_status sl_bulk_frame_get(const uint8_t *data, size_t size, uint32_t row_bytes,
                                 struct bulk_frame *out, struct sl_err *err);
/* Whether payload (f->size bytes) and header are what was sent, by someone of the same class. */
bool sl_bulk_frame_proven(const uint8_t header[BULK_HEADER_BYTES], const struct bulk_frame *f,
                          uint64_t class_hash, const void *payload);

static inline uint64_t sl_bulk_heads(const struct sl_bulk_part *p)
{
    return (uint64_t)p->head_first << 32 | p->n_heads;
}
/* Bytes of a row of that part; 0 when that is not a row. */
uint32_t sl_bulk_row_bytes(const struct sl_bulk_layout *l, const struct sl_bulk_part *p);
/* Whether it is a part of a model of that layout, and not an empty one. */
bool sl_bulk_part_fits(const struct sl_bulk_part *p, const struct sl_bulk_layout *l);

/* The payload of an ASK. get checks it against `mine` and the limits. */
void sl_bulk_ask_put(const struct sl_bulk_ask *ask, const struct sl_bulk_layout *layout,
                     uint8_t out[BULK_ASK_BYTES]);
enum sl_status sl_bulk_ask_get(const uint8_t in[BULK_ASK_BYTES], uint64_t ticket,
                               const struct sl_bulk_layout *mine, struct sl_bulk_ask *out,
                               struct sl_err *err);

/* What a client has got so far: rows in order, pages complete. */
struct bulk_intake {
    struct sl_bulk_ask ask;
    const uint8_t (*keys)[32];
    uint16_t *n_rows;    /* [n_pages - first] rows proven; n_layers + 1: complete */
    uint32_t n_complete; /* in a run from `first` on */
};
bool sl_bulk_intake_open(struct bulk_intake *in, const struct sl_bulk_ask *ask,
                         const uint8_t (*keys)[32]);
void sl_bulk_intake_close(struct bulk_intake *in);
/* Whether this ROW is the next of its page. */
bool sl_bulk_intake_wants(const struct bulk_intake *in, const struct bulk_frame *f);
void sl_bulk_intake_row(struct bulk_intake *in, const struct bulk_frame *f);
/* A PAGE frame; false when rows are missing or the key is another. */
bool sl_bulk_intake_page(struct bulk_intake *in, const struct bulk_frame *f, const uint8_t key[32]);

#endif
