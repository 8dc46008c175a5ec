/* MessagePack, as far as KV events go. */
#include "msgpack.h"

#include <string.h>

/* --- writing ---------------------------------------------------------------------------------- */

static void put_head(struct sl_buf *b, uint8_t tag, uint64_t v, uint32_t n_bytes)
{
    uint8_t head[9] = {tag};
    for (uint32_t i = 0; i < n_bytes; i++)
        head[1 + i] = (uint8_t)(v >> 8 * (n_bytes - 1 - i));
    sl_buf_append(b, head, 1 + n_bytes);
}

void mp_put_nil(struct sl_buf *b)
{
    put_head(b, 0xc0, 0, 0);
}

void mp_put_uint(struct sl_buf *b, uint64_t v)
{
    if (v < 0x80)
        put_head(b, (uint8_t)v, 0, 0);
    else if (v <= UINT8_MAX)
        put_head(b, 0xcc, v, 1);
    else if (v <= UINT16_MAX)
        put_head(b, 0xcd, v, 2);
    else if (v <= UINT32_MAX)
        put_head(b, 0xce, v, 4);
    else
        put_head(b, 0xcf, v, 8);
}

void mp_put_double(struct sl_buf *b, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_head(b, 0xcb, bits, 8);
}

void mp_put_text(struct sl_buf *b, const char *z)
{
    size_t len = strlen(z);
    if (len < 32)
        put_head(b, (uint8_t)(0xa0 | len), 0, 0);
    else
        put_head(b, 0xdb, len, 4);
    sl_buf_append(b, z, len);
}

void mp_put_bytes(struct sl_buf *b, const void *data, uint32_t len)
{
    if (len <= UINT8_MAX)
        put_head(b, 0xc4, len, 1);
    else
        put_head(b, 0xc6, len, 4);
    sl_buf_append(b, data, len);
}

static void put_count(struct sl_buf *b, uint32_t n, uint8_t fix, uint8_t tag16)
{
    if (n < 16)
        put_head(b, (uint8_t)(fix | n), 0, 0);
    else if (n <= UINT16_MAX)
        put_head(b, tag16, n, 2);
    else
        put_head(b, tag16 + 1, n, 4);
}

void mp_put_array(struct sl_buf *b, uint32_t n)
{
    put_count(b, n, 0x90, 0xdc);
}

void mp_put_map(struct sl_buf *b, uint32_t n)
{
    put_count(b, n, 0x80, 0xde);
}

/* --- reading ---------------------------------------------------------------------------------- */

static uint64_t take(struct mp_reader *r, uint32_t n_bytes)
{
    uint64_t v = 0;
    if (r->bad || n_bytes > r->left) {
        r->bad = true;
        return 0;
    }
    for (uint32_t i = 0; i < n_bytes; i++)
        v = v << 8 | r->at[i];
    r->at += n_bytes;
    r->left -= n_bytes;
    return v;
}

static struct mp_item counted(struct mp_reader *r, enum mp_kind kind, uint64_t n)
{
    uint64_t least_bytes = kind == MP_MAP ? 2 * n : n; /* n has at most 32 bits */
    if (least_bytes > r->left)
        r->bad = true;
    return (struct mp_item){.kind = kind, .n = (uint32_t)n};
}

static struct mp_item string(struct mp_reader *r, enum mp_kind kind, uint64_t len)
{
    if (r->bad || len > r->left) {
        r->bad = true;
        return (struct mp_item){0};
    }
    struct mp_item it = {.kind = kind, .str = {(const char *)r->at, (size_t)len}};
    r->at += len;
    r->left -= (size_t)len;
    return it;
}

static struct mp_item integer(struct mp_reader *r, uint32_t n_bytes)
{
    uint64_t v = take(r, n_bytes), sign = (uint64_t)1 << (8 * n_bytes - 1);
    if (!(v & sign))
        return (struct mp_item){.kind = MP_UINT, .number = v};
    return (struct mp_item){.kind = MP_INT, .number = (v ^ sign) - sign};
}

static struct mp_item real(struct mp_reader *r, uint32_t n_bytes)
{
    uint64_t bits = take(r, n_bytes);
    uint32_t low = (uint32_t)bits;
    struct mp_item it = {.kind = MP_REAL};
    float f;
    memcpy(&it.real, &bits, sizeof bits);
    memcpy(&f, &low, sizeof f);
    if (n_bytes == 4)
        it.real = (double)f;
    return it;
}

/* Tags from 0xc0 to 0xdf. */
static struct mp_item tagged(struct mp_reader *r, uint8_t tag)
{
    if (tag == 0xc2 || tag == 0xc3)
        return (struct mp_item){.kind = MP_BOOL, .number = tag & 1};
    if (tag >= 0xc4 && tag <= 0xc6)
        return string(r, MP_BYTES, take(r, 1u << (tag - 0xc4)));
    if (tag >= 0xc7 && tag <= 0xc9)
        return string(r, MP_EXT, take(r, 1u << (tag - 0xc7)) + 1);
    if (tag == 0xca || tag == 0xcb)
        return real(r, tag == 0xca ? 4 : 8);
    if (tag >= 0xcc && tag <= 0xcf)
        return (struct mp_item){.kind = MP_UINT, .number = take(r, 1u << (tag - 0xcc))};
    if (tag >= 0xd0 && tag <= 0xd3)
        return integer(r, 1u << (tag - 0xd0));
    if (tag >= 0xd4 && tag <= 0xd8)
        return string(r, MP_EXT, ((uint64_t)1 << (tag - 0xd4)) + 1);
    if (tag >= 0xd9 && tag <= 0xdb)
        return string(r, MP_TEXT, take(r, 1u << (tag - 0xd9)));
    if (tag == 0xdc || tag == 0xdd)
        return counted(r, MP_ARRAY, take(r, tag == 0xdc ? 2 : 4));
    if (tag == 0xde || tag == 0xdf)
        return counted(r, MP_MAP, take(r, tag == 0xde ? 2 : 4));
    r->bad |= tag != 0xc0; /* 0xc1 is never used */
    return (struct mp_item){.kind = MP_NIL};
}

struct mp_item mp_next(struct mp_reader *r)
{
    uint8_t tag = (uint8_t)take(r, 1);
    struct mp_item it;
    if (r->bad)
        return (struct mp_item){0};
    if (tag < 0x80)
        it = (struct mp_item){.kind = MP_UINT, .number = tag};
    else if (tag < 0x90)
        it = counted(r, MP_MAP, tag & 0x0f);
    else if (tag < 0xa0)
        it = counted(r, MP_ARRAY, tag & 0x0f);
    else if (tag < 0xc0)
        it = string(r, MP_TEXT, tag & 0x1f);
    else if (tag < 0xe0)
        it = tagged(r, tag);
    else
        it = (struct mp_item){.kind = MP_INT, .number = (uint64_t)tag | ~(uint64_t)0xff};
    return r->bad ? (struct mp_item){0} : it;
}

void mp_skip(struct mp_reader *r)
{
    uint64_t left[MP_DEPTH_MAX + 1] = {1}; /* items to skip at each depth */
    uint32_t depth = 0;
    while (!r->bad) {
        while (!left[depth])
            if (depth-- == 0)
                return;
        left[depth]--;
        struct mp_item it = mp_next(r);
        if (it.kind != MP_ARRAY && it.kind != MP_MAP)
            continue;
        if (depth == MP_DEPTH_MAX) {
            r->bad = true;
            return;
        }
        left[++depth] = it.kind == MP_MAP ? 2 * (uint64_t)it.n : it.n;
    }
}
