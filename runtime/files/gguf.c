/* GGUF reader: header, keys and tensor directory, pure over (data, size).
 *
 * A cursor walks the bytes; every take() is checked by subtraction against what is left, and after
 * the first failure the cursor stays bad. A count is first compared with what the remaining bytes
 * could hold at most, then with its limit; only then memory is asked for. What a value points to
 * stays in the caller's bytes. Format: the GGUF page of the ggml project's documentation. */
#include "gguf_priv.h"

#include <sluice/base/containers.h>
#include <sluice/base/limits.h>
#include <sluice/base/time.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Least bytes of one entry: name length and one letter, then type and one byte of value, or
 * dimension count, one dimension, type and offset. */
#define KEY_BYTES_MIN    (8 + 1 + 4 + 1)
#define TENSOR_BYTES_MIN (8 + 1 + 4 + 8 + 4 + 8)

struct cursor {
    const uint8_t *data;
    uint64_t size, at;
    uint64_t need; /* what the take that failed asked for */
    bool bad;
};

static const uint8_t *take(struct cursor *c, uint64_t n)
{
    if (c->bad)
        return NULL;
    if (n > c->size - c->at) {
        c->need = n;
        c->bad = true;
        return NULL;
    }
    const uint8_t *p = c->data + c->at;
    c->at += n;
    return p;
}

static uint32_t take_u32(struct cursor *c)
{
    const uint8_t *p = take(c, 4);
    return p ? gguf_le32(p) : 0;
}

static uint64_t take_u64(struct cursor *c)
{
    const uint8_t *p = take(c, 8);
    return p ? gguf_le64(p) : 0;
}

static struct sl_str take_str(struct cursor *c)
{
    uint64_t len = take_u64(c);
    const uint8_t *p = take(c, len);
    return p ? (struct sl_str){(const char *)p, len} : (struct sl_str){"", 0};
}

/* A name from the file, fit for a message: clipped, nothing but printable ASCII. */
struct shown {
    char z[72];
};

static struct shown show(struct sl_str s)
{
    struct shown out;
    size_t n = s.len < sizeof out.z - 1 ? s.len : sizeof out.z - 1;
    for (size_t i = 0; i < n; i++)
        out.z[i] = s.data[i] >= 0x20 && s.data[i] < 0x7f ? s.data[i] : '?';
    out.z[n] = '\0';
    return out;
}

static enum sl_status fail_short(const struct cursor *c, const char *what, uint64_t i,
                                 struct sl_err *err)
{
    return sl_fail(err, SL_MODEL,
                   "gguf: file ends inside %s %" PRIu64 ": needs %" PRIu64
                   " bytes at offset %" PRIu64 ", has %" PRIu64,
                   what, i, c->need, c->at, c->size - c->at);
}

static bool name_ok(struct sl_str name, size_t len_max)
{
    if (name.len == 0 || name.len > len_max)
        return false;
    for (size_t i = 0; i < name.len; i++)
        if ((unsigned char)name.data[i] < 0x20 || name.data[i] == 0x7f)
            return false;
    return true;
}

static bool index_init(struct gguf_index *x, size_t n)
{
    size_t n_slots = 2;
    while (n_slots < 2 * n)
        n_slots *= 2;
    x->slots = calloc(n_slots, sizeof *x->slots);
    x->mask = n_slots - 1;
    x->seed = sl_entropy_u64();
    return x->slots != NULL;
}

/* The slot of `name`, or the empty one where it belongs. name_at gives an entry's name. */
static uint32_t *index_slot(const struct gguf_index *x, struct sl_str name,
                            struct sl_str (*name_at)(const struct sl_gguf *, size_t),
                            const struct sl_gguf *g)
{
    size_t i = (size_t)sl_hash64(name.data, name.len, x->seed) & x->mask;
    while (x->slots[i] && !sl_str_eq(name_at(g, x->slots[i] - 1), name))
        i = (i + 1) & x->mask;
    return &x->slots[i];
}

static struct sl_str key_name(const struct sl_gguf *g, size_t i)
{
    return g->keys[i].name;
}

static struct sl_str tensor_name(const struct sl_gguf *g, size_t i)
{
    return g->tensors[i].name;
}

const struct sl_gguf_key *sl_gguf_find(const struct sl_gguf *g, const char *name)
{
    uint32_t at = *index_slot(&g->key_index, sl_str_of(name), key_name, g);
    return at ? &g->keys[at - 1] : NULL;
}

const struct sl_gguf_tensor *sl_gguf_tensor(const struct sl_gguf *g, const char *name)
{
    uint32_t at = *index_slot(&g->tensor_index, sl_str_of(name), tensor_name, g);
    return at ? &g->tensors[at - 1] : NULL;
}

static enum sl_status check_bools(const uint8_t *p, uint64_t n, struct sl_str name,
                                  struct sl_err *err)
{
    for (uint64_t i = 0; i < n; i++)
        if (p[i] > 1)
            return sl_fail(err, SL_MODEL, "gguf: key '%s': boolean %" PRIu64 " is %u, not 0 or 1",
                           show(name).z, i, p[i]);
    return SL_OK;
}

static enum sl_status fail_string(struct sl_str name, uint64_t len, struct sl_err *err)
{
    return sl_fail(err, SL_MODEL, "gguf: key '%s': string of %" PRIu64 " bytes, limit %d",
                   show(name).z, len, SL_LIMIT_gguf_string_bytes);
}

/* Walks the strings of an array once to prove them inside the file, then once more to note where
 * they are: memory is asked for only after the bytes were seen. */
static enum sl_status read_strings(struct cursor *c, struct sl_gguf_key *k, uint64_t key_no,
                                   struct sl_err *err)
{
    struct cursor start = *c;
    for (uint64_t i = 0; i < k->n; i++) {
        uint64_t len = take_u64(c);
        if (!c->bad && len > SL_LIMIT_gguf_string_bytes)
            return fail_string(k->name, len, err);
        if (!take(c, len) || c->bad)
            return fail_short(c, "key", key_no, err);
    }
    if (k->n == 0)
        return SL_OK;
    uint64_t *at = malloc((size_t)k->n * sizeof *at);
    if (!at)
        return sl_fail(err, SL_NO_MEMORY, "gguf: no memory for %" PRIu64 " strings", k->n);
    k->str_at = at;
    for (uint64_t i = 0; i < k->n; i++) {
        at[i] = start.at - (uint64_t)(k->data - start.data);
        start.at += 8 + gguf_le64(start.data + start.at);
    }
    return SL_OK;
}

static enum sl_status read_array(struct cursor *c, struct sl_gguf_key *k, uint64_t key_no,
                                 struct sl_err *err)
{
    uint32_t elem = take_u32(c);
    k->n = take_u64(c);
    if (c->bad)
        return fail_short(c, "key", key_no, err);
    if (elem >= SL_GGUF_N_TYPE)
        return sl_fail(err, SL_MODEL, "gguf: key '%s': unknown element type %u", show(k->name).z,
                       elem);
    if (elem == SL_GGUF_ARRAY)
        return sl_fail(err, SL_MODEL, "gguf: key '%s': arrays of arrays are not supported",
                       show(k->name).z);
    k->elem = (enum sl_gguf_type)elem;
    uint32_t least = k->elem == SL_GGUF_STRING ? 8 : gguf_scalar_bytes(k->elem);
    uint64_t left = c->size - c->at;
    if (k->n > left / least)
        return sl_fail(err, SL_MODEL,
                       "gguf: key '%s': %" PRIu64 " elements of at least %u bytes, %" PRIu64
                       " bytes left in the file",
                       show(k->name).z, k->n, least, left);
    k->data = c->data + c->at;
    if (k->elem == SL_GGUF_STRING)
        return read_strings(c, k, key_no, err);
    take(c, k->n * least);
    return k->elem == SL_GGUF_BOOL ? check_bools(k->data, k->n, k->name, err) : SL_OK;
}

static enum sl_status read_value(struct cursor *c, struct sl_gguf_key *k, uint64_t key_no,
                                 struct sl_err *err)
{
    uint32_t type = take_u32(c);
    if (c->bad)
        return fail_short(c, "key", key_no, err);
    if (type >= SL_GGUF_N_TYPE)
        return sl_fail(err, SL_MODEL, "gguf: key '%s': unknown value type %u", show(k->name).z,
                       type);
    k->type = k->elem = (enum sl_gguf_type)type;
    k->n = 1;
    if (k->type == SL_GGUF_ARRAY)
        return read_array(c, k, key_no, err);
    k->data = c->data + c->at;
    if (k->type == SL_GGUF_STRING) {
        uint64_t len = take_u64(c);
        if (!c->bad && len > SL_LIMIT_gguf_string_bytes)
            return fail_string(k->name, len, err);
        take(c, len);
    } else {
        take(c, gguf_scalar_bytes(k->type));
    }
    if (c->bad)
        return fail_short(c, "key", key_no, err);
    return k->type == SL_GGUF_BOOL ? check_bools(k->data, 1, k->name, err) : SL_OK;
}

static enum sl_status read_keys(struct sl_gguf *g, struct cursor *c, uint64_t n, struct sl_err *err)
{
    g->keys = calloc((size_t)n + 1, sizeof *g->keys);
    if (!g->keys || !index_init(&g->key_index, (size_t)n))
        return sl_fail(err, SL_NO_MEMORY, "gguf: no memory for %" PRIu64 " keys", n);
    for (uint64_t i = 0; i < n; i++) {
        struct sl_gguf_key *k = &g->keys[i];
        k->name = take_str(c);
        if (c->bad)
            return fail_short(c, "key", i, err);
        if (!name_ok(k->name, GGUF_KEY_NAME_MAX))
            return sl_fail(err, SL_MODEL,
                           "gguf: key %" PRIu64 ": name '%s' of %zu bytes: must have 1 to %u bytes "
                           "and no control characters",
                           i, show(k->name).z, k->name.len, GGUF_KEY_NAME_MAX);
        uint32_t *slot = index_slot(&g->key_index, k->name, key_name, g);
        if (*slot)
            return sl_fail(err, SL_MODEL, "gguf: key '%s' twice: entries %u and %" PRIu64,
                           show(k->name).z, *slot - 1, i);
        enum sl_status status = read_value(c, k, i, err);
        g->n_keys = (size_t)i + 1; /* counts a half-read one too: its memory must be freed */
        if (status)
            return status;
        *slot = (uint32_t)i + 1;
    }
    return SL_OK;
}

static enum sl_status read_alignment(struct sl_gguf *g, struct sl_err *err)
{
    g->alignment = GGUF_ALIGN_DEFAULT;
    const struct sl_gguf_key *k = sl_gguf_find(g, "general.alignment");
    if (!k)
        return SL_OK;
    if (k->type != SL_GGUF_U32)
        return sl_fail(err, SL_MODEL, "gguf: general.alignment has value type %d, must be %d",
                       (int)k->type, (int)SL_GGUF_U32);
    uint32_t a = gguf_le32(k->data);
    if (a < GGUF_ALIGN_MIN || (a & (a - 1)) != 0 || a > GGUF_ALIGN_MAX)
        return sl_fail(err, SL_MODEL,
                       "gguf: general.alignment is %u, must be a power of two from %u to %u", a,
                       GGUF_ALIGN_MIN, GGUF_ALIGN_MAX);
    g->alignment = a;
    return SL_OK;
}

static enum sl_status read_shape(struct cursor *c, struct sl_gguf_tensor *t, struct sl_err *err)
{
    t->n_dims = take_u32(c);
    if (!c->bad && (t->n_dims == 0 || t->n_dims > SL_GGUF_DIMS_MAX))
        return sl_fail(err, SL_MODEL, "gguf: tensor '%s' has %u dimensions, must have 1 to %d",
                       show(t->name).z, t->n_dims, SL_GGUF_DIMS_MAX);
    t->n_elems = 1;
    for (uint32_t d = 0; d < SL_GGUF_DIMS_MAX; d++) {
        t->dims[d] = d < t->n_dims ? take_u64(c) : 1;
        if (c->bad)
            return SL_OK;
        if (t->dims[d] == 0)
            return sl_fail(err, SL_MODEL, "gguf: tensor '%s': dimension %u is 0", show(t->name).z,
                           d);
        if (__builtin_mul_overflow(t->n_elems, t->dims[d], &t->n_elems) || t->n_elems > INT64_MAX)
            return sl_fail(err, SL_MODEL,
                           "gguf: tensor '%s': element count overflows at dimension %u (%" PRIu64
                           ")",
                           show(t->name).z, d, t->dims[d]);
    }
    return SL_OK;
}

static enum sl_status read_type(struct cursor *c, struct sl_gguf_tensor *t, struct sl_err *err)
{
    t->ggml_type = take_u32(c);
    t->offset = take_u64(c); /* relative to the data until the directory is placed */
    if (c->bad)
        return SL_OK;
    const struct gguf_type_row *row = gguf_type_row(t->ggml_type);
    if (!row)
        return sl_fail(err, SL_MODEL, "gguf: tensor '%s' has unknown type %u", show(t->name).z,
                       t->ggml_type);
    t->type_name = row->name;
    if (t->dims[0] % row->block_elems != 0)
        return sl_fail(err, SL_MODEL,
                       "gguf: tensor '%s': rows of %" PRIu64 " elements are not whole %s blocks "
                       "of %u",
                       show(t->name).z, t->dims[0], row->name, row->block_elems);
    if (__builtin_mul_overflow(t->n_elems / row->block_elems, (uint64_t)row->block_bytes,
                               &t->n_bytes) ||
        t->n_bytes > INT64_MAX)
        return sl_fail(err, SL_MODEL, "gguf: tensor '%s': size of %" PRIu64 " elements overflows",
                       show(t->name).z, t->n_elems);
    return SL_OK;
}

static enum sl_status read_tensors(struct sl_gguf *g, struct cursor *c, uint64_t n,
                                   struct sl_err *err)
{
    g->tensors = calloc((size_t)n + 1, sizeof *g->tensors);
    if (!g->tensors || !index_init(&g->tensor_index, (size_t)n))
        return sl_fail(err, SL_NO_MEMORY, "gguf: no memory for %" PRIu64 " tensors", n);
    for (uint64_t i = 0; i < n; i++) {
        struct sl_gguf_tensor *t = &g->tensors[i];
        t->name = take_str(c);
        if (!c->bad && !name_ok(t->name, GGUF_TENSOR_NAME_MAX))
            return sl_fail(err, SL_MODEL,
                           "gguf: tensor %" PRIu64 ": name '%s' of %zu bytes: must have 1 to %u "
                           "bytes and no control characters",
                           i, show(t->name).z, t->name.len, GGUF_TENSOR_NAME_MAX);
        enum sl_status status = read_shape(c, t, err);
        if (!status)
            status = read_type(c, t, err);
        if (status)
            return status;
        if (c->bad)
            return fail_short(c, "tensor entry", i, err);
        uint32_t *slot = index_slot(&g->tensor_index, t->name, tensor_name, g);
        if (*slot)
            return sl_fail(err, SL_MODEL, "gguf: tensor '%s' twice: entries %u and %" PRIu64,
                           show(t->name).z, *slot - 1, i);
        *slot = (uint32_t)i + 1;
        g->n_tensors = (size_t)i + 1;
    }
    return SL_OK;
}

/* Turns the offsets into offsets from the start of the file, each range inside it. */
static enum sl_status place_tensors(struct sl_gguf *g, uint64_t meta_end, struct sl_err *err)
{
    uint64_t mask = g->alignment - 1;
    g->data_start = (meta_end + mask) & ~mask; /* meta_end <= size < 2^63: cannot wrap */
    uint64_t limit = g->meta_only ? INT64_MAX : g->size;
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct sl_gguf_tensor *t = &g->tensors[i];
        if (t->offset & mask)
            return sl_fail(err, SL_MODEL,
                           "gguf: tensor '%s': offset %" PRIu64 " is no multiple of the alignment "
                           "%u",
                           show(t->name).z, t->offset, g->alignment);
        if (g->data_start > limit || t->offset > limit - g->data_start)
            return sl_fail(err, SL_MODEL,
                           "gguf: tensor '%s' begins at offset %" PRIu64 " of the data, past the "
                           "file of %" PRIu64 " bytes",
                           show(t->name).z, t->offset, limit);
        uint64_t left = limit - g->data_start - t->offset;
        if (t->n_bytes > left)
            return sl_fail(err, SL_MODEL, "gguf: tensor '%s' ends %" PRIu64 " bytes past the file",
                           show(t->name).z, t->n_bytes - left);
        t->offset += g->data_start;
        t->data = g->meta_only ? NULL : g->data + t->offset;
    }
    return SL_OK;
}

static int by_offset(const void *a, const void *b)
{
    const struct sl_gguf_tensor *x = *(const struct sl_gguf_tensor *const *)a;
    const struct sl_gguf_tensor *y = *(const struct sl_gguf_tensor *const *)b;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static enum sl_status check_overlap(const struct sl_gguf *g, struct sl_err *err)
{
    const struct sl_gguf_tensor **sorted = malloc((g->n_tensors + 1) * sizeof(void *));
    if (!sorted)
        return sl_fail(err, SL_NO_MEMORY, "gguf: no memory for %zu tensors", g->n_tensors);
    for (size_t i = 0; i < g->n_tensors; i++)
        sorted[i] = &g->tensors[i];
    qsort(sorted, g->n_tensors, sizeof *sorted, by_offset);
    enum sl_status status = SL_OK;
    for (size_t i = 1; i < g->n_tensors && !status; i++) {
        const struct sl_gguf_tensor *a = sorted[i - 1], *b = sorted[i];
        if (b->offset - a->offset < a->n_bytes)
            status =
                sl_fail(err, SL_MODEL, "gguf: tensors '%s' and '%s' overlap by %" PRIu64 " bytes",
                        show(a->name).z, show(b->name).z, a->n_bytes - (b->offset - a->offset));
    }
    free(sorted);
    return status;
}

static enum sl_status check_version(uint32_t version, struct sl_err *err)
{
    if (version != 0 && (version & 0xffff) == 0)
        return sl_fail(err, SL_MODEL,
                       "gguf: big-endian file; only little-endian ones are supported");
    if (version != 2 && version != 3)
        return sl_fail(err, SL_MODEL, "gguf: version %u; 2 and 3 are supported", version);
    return SL_OK;
}

static enum sl_status read_header(struct cursor *c, struct sl_gguf *g, uint64_t *n_keys,
                                  uint64_t *n_tensors, struct sl_err *err)
{
    const uint8_t *magic = take(c, 4);
    if (magic && memcmp(magic, "FUGG", 4) == 0)
        return sl_fail(err, SL_MODEL,
                       "gguf: big-endian file; only little-endian ones are supported");
    if (magic && gguf_le32(magic) != GGUF_MAGIC)
        return sl_fail(err, SL_MODEL, "gguf: not a GGUF file: begins with %02x %02x %02x %02x",
                       magic[0], magic[1], magic[2], magic[3]);
    g->version = take_u32(c);
    if (!c->bad && check_version(g->version, err))
        return SL_MODEL;
    *n_tensors = take_u64(c);
    *n_keys = take_u64(c);
    if (c->bad)
        return sl_fail(err, SL_MODEL, "gguf: file of %" PRIu64 " bytes is shorter than its header",
                       c->size);
    uint64_t left = c->size - c->at;
    if (*n_keys > left / KEY_BYTES_MIN || *n_keys > SL_LIMIT_gguf_keys)
        return sl_fail(err, SL_MODEL,
                       "gguf: %" PRIu64 " keys claimed; %" PRIu64 " bytes left, limit %d keys",
                       *n_keys, left, SL_LIMIT_gguf_keys);
    left -= *n_keys * KEY_BYTES_MIN;
    if (*n_tensors > left / TENSOR_BYTES_MIN || *n_tensors > SL_LIMIT_gguf_tensors)
        return sl_fail(err, SL_MODEL,
                       "gguf: %" PRIu64 " tensors claimed; %" PRIu64 " bytes left, limit %d "
                       "tensors",
                       *n_tensors, left, SL_LIMIT_gguf_tensors);
    return SL_OK;
}

static enum sl_status read_all(struct sl_gguf *g, struct sl_err *err)
{
    struct cursor c = {.data = g->data, .size = g->size};
    uint64_t n_keys = 0, n_tensors = 0;
    enum sl_status status = read_header(&c, g, &n_keys, &n_tensors, err);
    if (!status)
        status = read_keys(g, &c, n_keys, err);
    if (!status)
        status = read_alignment(g, err);
    if (!status)
        status = read_tensors(g, &c, n_tensors, err);
    if (!status)
        status = place_tensors(g, c.at, err);
    if (!status)
        status = check_overlap(g, err);
    return status;
}

enum sl_status sl_gguf_parse(const void *data, size_t size, bool meta_only, struct sl_gguf **out,
                             struct sl_err *err)
{
    *out = NULL;
    if (size > INT64_MAX - GGUF_ALIGN_MAX)
        return sl_fail(err, SL_MODEL, "gguf: %zu bytes are too many", size);
    struct sl_gguf *g = calloc(1, sizeof *g);
    if (!g)
        return sl_fail(err, SL_NO_MEMORY, "gguf: no memory for a directory");
    g->data = data;
    g->size = size;
    g->meta_only = meta_only;
    enum sl_status status = read_all(g, err);
    if (status) {
        sl_gguf_close(g);
        return status;
    }
    *out = g;
    return SL_OK;
}
