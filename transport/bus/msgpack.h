/* Private: the part of MessagePack that KV events use (github.com/msgpack/msgpack, spec.md). The
 * reader is pure over (data, size) with a sticky `bad`; nothing it returns was sized by the input
 * beyond what the input holds. */
#ifndef SLUICE_BUS_MSGPACK_H
#define SLUICE_BUS_MSGPACK_H

#include <sluice/base/mem.h>
#include <stdbool.h>
#include <stdint.h>

void mp_put_nil(struct sl_buf *b);
void mp_put_uint(struct sl_buf *b, uint64_t v);
void mp_put_double(struct sl_buf *b, double v);
void mp_put_text(struct sl_buf *b, const char *z);
void mp_put_bytes(struct sl_buf *b, const void *data, uint32_t len);
void mp_put_array(struct sl_buf *b, uint32_t n);
void mp_put_map(struct sl_buf *b, uint32_t n);

enum mp_kind {
    MP_NIL,
    MP_BOOL,
    MP_UINT, /* also a signed form that is not negative */
    MP_INT,  /* negative */
    MP_REAL,
    MP_TEXT,
    MP_BYTES,
    MP_ARRAY,
    MP_MAP,
    MP_EXT
};
struct mp_item {
    enum mp_kind kind;
    uint32_t n;      /* elements of an array, pairs of a map */
    uint64_t number; /* MP_UINT, MP_BOOL; the two's complement of an MP_INT */
    double real;
    struct sl_str str; /* MP_TEXT, MP_BYTES, MP_EXT: in the input */
};
struct mp_reader {
    const uint8_t *at;
    size_t left;
    bool bad;
};

/* The next item's head (arrays and maps: their elements follow). An array or map that claims more
 * elements than there are bytes left is bad. When bad: MP_NIL. */
struct mp_item mp_next(struct mp_reader *r);
/* Over the next item with all it contains; deeper than MP_DEPTH_MAX is bad. */
enum { MP_DEPTH_MAX = 16 };
void mp_skip(struct mp_reader *r);

#endif
