/* Promised: what the writer writes the reader reads back; a file cut off at any byte, or with any
 * length, count, type, offset, dimension or alignment field (and any two of them) replaced by an
 * extreme value, gives a clean SL_MODEL error or a directory that lies wholly inside the file; each
 * fault of the table is named in its message. Run it with AddressSanitizer: every parse reads from
 * an allocation of exactly the file's size. */
#include <sluice/base/time.h>
#include <sluice/files/gguf.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

/* --- a raw builder: writes what it is told, right or wrong --- */

static void raw_le(struct sl_buf *b, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        sl_buf_putc(b, (char)(v >> 8 * i));
}

static void raw_str(struct sl_buf *b, const char *z)
{
    raw_le(b, strlen(z), 8);
    sl_buf_puts(b, z);
}

static void raw_head(struct sl_buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    sl_buf_puts(b, "GGUF");
    raw_le(b, version, 4);
    raw_le(b, n_tensors, 8);
    raw_le(b, n_keys, 8);
}

static void raw_u32_key(struct sl_buf *b, const char *name, uint32_t v)
{
    raw_str(b, name);
    raw_le(b, SL_GGUF_U32, 4);
    raw_le(b, v, 4);
}

static void raw_tensor(struct sl_buf *b, const char *name, uint32_t n_dims, uint64_t dim,
                       uint32_t type, uint64_t offset)
{
    raw_str(b, name);
    raw_le(b, n_dims, 4);
    for (uint32_t i = 0; i < n_dims && i < 8; i++)
        raw_le(b, i == 0 ? dim : 1, 8);
    raw_le(b, type, 4);
    raw_le(b, offset, 8);
}

static void raw_data(struct sl_buf *b, size_t n)
{
    while (b->len % 32 != 0)
        sl_buf_putc(b, 0);
    for (size_t i = 0; i < n; i++)
        sl_buf_putc(b, (char)i);
}

/* --- parsing from an exact allocation --- */

static volatile uint64_t sink; /* keeps the reads of walk() */

/* Touches every byte the directory promises. */
static void walk(const struct sl_gguf *g, const uint8_t *data, size_t size)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < sl_gguf_n_keys(g); i++) {
        const struct sl_gguf_key *k = sl_gguf_key_at(g, i);
        for (uint64_t j = 0; j < k->n; j++) {
            struct sl_str s = sl_gguf_array_str(k, j);
            for (size_t c = 0; c < s.len; c++)
                sum += (uint8_t)s.data[c];
            sum += (uint64_t)sl_gguf_array_int(k, j);
            sum += sl_gguf_array_f32(k, j) > 0.0f;
        }
    }
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const struct sl_gguf_tensor *t = sl_gguf_tensor_at(g, i);
        const uint8_t *p = t->data;
        assert_true(t->n_elems > 0 && t->dims[0] > 0);
        assert_true(p >= data && t->offset <= size && t->n_bytes <= size - t->offset);
        for (uint64_t j = 0; j < t->n_bytes; j++)
            sum += p[j];
    }
    assert_true(sl_gguf_meta(g).len <= size);
    sink += sum;
}

/* True when the bytes parse; otherwise *err is a clean SL_MODEL. */
static bool parses(const void *data, size_t size, struct sl_err *err)
{
    uint8_t *exact = malloc(size ? size : 1);
    assert_non_null(exact);
    memcpy(exact, data, size);
    struct sl_gguf *g = NULL;
    *err = (struct sl_err){0};
    enum sl_status status = sl_gguf_parse(exact, size, false, &g, err);
    if (status) {
        assert_int_equal(status, SL_MODEL);
        assert_null(g);
        assert_true(strncmp(err->msg, "gguf: ", 6) == 0);
        assert_null(strchr(err->msg, '\n'));
    } else {
        walk(g, exact, size);
        sl_gguf_close(g);
    }
    free(exact);
    return status == SL_OK;
}

/* --- a valid file with every kind of thing in it --- */

static const float vector_data[8] = {1, -2, 3, -4, 5, -6, 7, -8};
static const uint8_t block_data[2 * 34] = {1, 2, 3};

static void build_valid(struct sl_buf *out)
{
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    assert_non_null(w);
    struct sl_str words[] = {SL_STR("a"), SL_STR(""), SL_STR("\xc3\xa9t\xc3\xa9")};
    int32_t ints[] = {1, -2, 3};
    float reals[] = {0.5f, -1.5f};
    sl_gguf_put_str(w, "general.architecture", SL_STR("llama"));
    sl_gguf_put_u32(w, "general.alignment", 32);
    sl_gguf_put_u32(w, "a.u32", 4000000000u);
    sl_gguf_put_f32(w, "a.f32", 1.5f);
    sl_gguf_put_bool(w, "a.bool", true);
    sl_gguf_put_str_array(w, "a.words", words, 3);
    sl_gguf_put_i32_array(w, "a.ints", ints, 3);
    sl_gguf_put_f32_array(w, "a.reals", reals, 2);
    sl_gguf_put_i32_array(w, "a.none", NULL, 0);
    sl_gguf_put_str_array(w, "a.no_words", NULL, 0);
    uint64_t d1[] = {8}, d2[] = {32, 2};
    sl_gguf_put_tensor(w, "v.weight", 0, 1, d1, vector_data, sizeof vector_data);
    sl_gguf_put_tensor(w, "m.weight", 8, 2, d2, block_data, sizeof block_data);
    struct sl_err err = {0};
    assert_int_equal(sl_gguf_writer_finish_buf(w, out, &err), SL_OK);
}

static void check_keys(const struct sl_gguf *g)
{
    uint32_t u = 0;
    float f = 0;
    bool b = false;
    struct sl_str s = {0};
    assert_true(sl_gguf_u32(g, "a.u32", &u) && u == 4000000000u);
    assert_true(sl_gguf_f32(g, "a.f32", &f) && f == 1.5f);
    assert_true(sl_gguf_bool(g, "a.bool", &b) && b);
    assert_true(sl_gguf_str(g, "general.architecture", &s) && sl_str_eqz(s, "llama"));
    u = 7;
    assert_false(sl_gguf_u32(g, "a.f32", &u) || sl_gguf_u32(g, "a.bool", &u) ||
                 sl_gguf_u32(g, "a.ints", &u) || sl_gguf_u32(g, "absent", &u));
    assert_int_equal(u, 7);
    assert_false(sl_gguf_f32(g, "a.u32", &f) || sl_gguf_bool(g, "a.u32", &b) ||
                 sl_gguf_str(g, "a.words", &s));
    const struct sl_gguf_key *words = sl_gguf_find(g, "a.words");
    assert_non_null(words);
    assert_int_equal(words->n, 3);
    assert_true(sl_str_eqz(sl_gguf_array_str(words, 0), "a"));
    assert_int_equal(sl_gguf_array_str(words, 1).len, 0);
    assert_true(sl_str_eqz(sl_gguf_array_str(words, 2), "\xc3\xa9t\xc3\xa9"));
    assert_int_equal(sl_gguf_array_str(words, 3).len, 0);
    assert_int_equal(sl_gguf_array_int(sl_gguf_find(g, "a.ints"), 1), -2);
    assert_true(sl_gguf_array_f32(sl_gguf_find(g, "a.reals"), 1) == -1.5f);
    assert_int_equal(sl_gguf_find(g, "a.none")->n, 0);
    assert_int_equal(sl_gguf_find(g, "a.no_words")->n, 0);
}

static void check_tensors(const struct sl_gguf *g)
{
    const struct sl_gguf_tensor *v = sl_gguf_tensor(g, "v.weight");
    const struct sl_gguf_tensor *m = sl_gguf_tensor(g, "m.weight");
    assert_non_null(v);
    assert_non_null(m);
    assert_null(sl_gguf_tensor(g, "x.weight"));
    assert_string_equal(m->type_name, "Q8_0");
    assert_int_equal(m->n_elems, 64);
    assert_int_equal(m->dims[1], 2);
    assert_int_equal(m->dims[3], 1);
    assert_memory_equal(v->data, vector_data, sizeof vector_data);
    assert_memory_equal(m->data, block_data, sizeof block_data);
}

static void round_trip(void **state)
{
    (void)state;
    struct sl_buf file = {0}, again = {0};
    struct sl_gguf *g = NULL;
    struct sl_err err = {0};
    build_valid(&file);
    assert_int_equal(sl_gguf_parse(file.data, file.len, false, &g, &err), SL_OK);
    assert_int_equal(sl_gguf_version(g), 3);
    check_keys(g);
    check_tensors(g);
    /* Copying every key and tensor gives the same bytes. */
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    assert_non_null(w);
    for (size_t i = 0; i < sl_gguf_n_keys(g); i++)
        sl_gguf_put_key(w, sl_gguf_key_at(g, i));
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++) {
        const struct sl_gguf_tensor *t = sl_gguf_tensor_at(g, i);
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
        sl_gguf_put_tensor(w, name, t->ggml_type, t->n_dims, t->dims, t->data, t->n_bytes);
    }
    assert_int_equal(sl_gguf_writer_finish_buf(w, &again, &err), SL_OK);
    assert_int_equal(again.len, file.len);
    assert_memory_equal(again.data, file.data, file.len);
    sl_gguf_close(g);
    sl_buf_free(&file);
    sl_buf_free(&again);
}

static void metadata_alone(void **state)
{
    (void)state;
    struct sl_buf file = {0};
    struct sl_gguf *g = NULL, *meta = NULL;
    struct sl_err err = {0};
    build_valid(&file);
    assert_int_equal(sl_gguf_parse(file.data, file.len, false, &g, &err), SL_OK);
    struct sl_str bytes = sl_gguf_meta(g);
    assert_true(bytes.len < file.len);
    void *exact = malloc(bytes.len);
    assert_non_null(exact);
    memcpy(exact, bytes.data, bytes.len);
    assert_int_equal(sl_gguf_parse(exact, bytes.len, true, &meta, &err), SL_OK);
    check_keys(meta);
    const struct sl_gguf_tensor *m = sl_gguf_tensor(meta, "m.weight");
    assert_non_null(m);
    assert_null(m->data);
    assert_int_equal(m->n_bytes, 68);
    sl_gguf_close(meta);
    /* The same bytes as a whole file lack their tensors. */
    assert_false(parses(exact, bytes.len, &err));
    free(exact);
    sl_gguf_close(g);
    sl_buf_free(&file);
}

static void truncated_at_every_byte(void **state)
{
    (void)state;
    struct sl_buf file = {0};
    struct sl_err err;
    build_valid(&file);
    assert_true(parses(file.data, file.len, &err));
    size_t tail = (32 - sizeof block_data % 32) % 32; /* padding behind the last tensor */
    for (size_t n = 0; n < file.len - tail; n++)
        if (parses(file.data, n, &err))
            fail_msg("a file cut off at byte %zu of %zu parses", n, file.len);
    assert_true(parses(file.data, file.len - tail, &err));
    sl_buf_free(&file);
}

/* --- the structured mutator --- */

struct field {
    size_t at;
    int width;
};
struct fields {
    struct field f[256];
    size_t n;
    const uint8_t *data;
    size_t at;
};

static uint64_t note(struct fields *x, int width)
{
    uint64_t v = 0;
    for (int i = 0; i < width; i++)
        v |= (uint64_t)x->data[x->at + (size_t)i] << 8 * i;
    assert_true(x->n < 256);
    x->f[x->n++] = (struct field){x->at, width};
    x->at += (size_t)width;
    return v;
}

static void note_str(struct fields *x)
{
    x->at += (size_t)note(x, 8);
}

static void note_value(struct fields *x, uint64_t type)
{
    static const int widths[SL_GGUF_N_TYPE] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (type == SL_GGUF_STRING) {
        note_str(x);
    } else if (type == SL_GGUF_ARRAY) {
        uint64_t elem = note(x, 4);
        for (uint64_t n = note(x, 8); n > 0; n--)
            note_value(x, elem);
    } else {
        note(x, widths[type]);
    }
}

/* Every number of a valid file's header, keys and directory. */
static void note_all(struct fields *x)
{
    x->at = 4;
    note(x, 4);
    uint64_t n_tensors = note(x, 8), n_keys = note(x, 8);
    for (; n_keys > 0; n_keys--) {
        note_str(x);
        note_value(x, note(x, 4));
    }
    for (; n_tensors > 0; n_tensors--) {
        note_str(x);
        for (uint64_t d = note(x, 4); d > 0; d--)
            note(x, 8);
        note(x, 4);
        note(x, 8);
    }
}

static void poke(char *data, struct field f, uint64_t v)
{
    for (int i = 0; i < f.width; i++)
        data[f.at + (size_t)i] = (char)(v >> 8 * i);
}

#define N_VALUES 14
static void fill_values(uint64_t v[N_VALUES], size_t size)
{
    const uint64_t two31 = UINT64_C(1) << 31, two32 = UINT64_C(1) << 32;
    const uint64_t all[N_VALUES] = {0,         1,         UINT64_MAX, two31 - 1, two31,
                                    two31 + 1, two32 - 1, two32,      two32 + 1, INT64_MAX,
                                    size - 1,  size + 1,  3,          33};
    memcpy(v, all, sizeof all);
}

static void mutated_fields(void **state)
{
    (void)state;
    struct sl_buf file = {0};
    build_valid(&file);
    struct fields x = {.data = (const uint8_t *)file.data};
    note_all(&x);
    assert_true(x.n > 40);
    uint64_t v[N_VALUES];
    fill_values(v, file.len);
    char *copy = malloc(file.len);
    assert_non_null(copy);
    struct sl_err err;
    size_t n_valid = 0, n_bad = 0;
    for (size_t i = 0; i < x.n; i++)
        for (size_t a = 0; a < N_VALUES; a++) {
            memcpy(copy, file.data, file.len);
            poke(copy, x.f[i], v[a]);
            bool ok = parses(copy, file.len, &err);
            n_valid += ok;
            n_bad += !ok;
        }
    print_message("%zu fields: %zu bad, %zu valid\n", x.n, n_bad, n_valid);
    assert_true(n_bad > 300 && n_valid > 20);
    free(copy);
    sl_buf_free(&file);
}

/* All pairs of fields, the values of each pair drawn with a seed. */
static void mutated_pairs(void **state)
{
    (void)state;
    struct sl_buf file = {0};
    build_valid(&file);
    struct fields x = {.data = (const uint8_t *)file.data};
    note_all(&x);
    uint64_t v[N_VALUES];
    fill_values(v, file.len);
    char *copy = malloc(file.len);
    assert_non_null(copy);
    struct sl_err err;
    struct sl_rng rng = {.seed = 20};
    print_message("seed %" PRIu64 "\n", rng.seed);
    for (size_t i = 0; i < x.n; i++)
        for (size_t j = i + 1; j < x.n; j++)
            for (int draw = 0; draw < 4; draw++) {
                memcpy(copy, file.data, file.len);
                poke(copy, x.f[i], v[sl_rng_below(&rng, N_VALUES)]);
                poke(copy, x.f[j], v[sl_rng_below(&rng, N_VALUES)]);
                parses(copy, file.len, &err);
            }
    free(copy);
    sl_buf_free(&file);
}

/* --- faults by name --- */

static void bad_magic(struct sl_buf *b)
{
    sl_buf_puts(b, "GGML and more bytes than a header");
}
static void big_endian(struct sl_buf *b)
{
    raw_head(b, 0x03000000, 0, 0);
}
static void version_1(struct sl_buf *b)
{
    raw_head(b, 1, 0, 0);
}
static void version_4(struct sl_buf *b)
{
    raw_head(b, 4, 0, 0);
}
static void many_keys(struct sl_buf *b)
{
    raw_head(b, 3, 0, UINT64_C(1) << 40);
}
static void keys_beyond_bytes(struct sl_buf *b)
{
    raw_head(b, 3, 0, 60000); /* within the limit, not within the file */
    raw_data(b, 2000);
}
static void tensors_beyond_bytes(struct sl_buf *b)
{
    raw_head(b, 3, 60000, 0);
    raw_data(b, 2000);
}
static void many_tensors(struct sl_buf *b)
{
    raw_head(b, 3, UINT64_C(1) << 61, 0);
}
static void key_twice(struct sl_buf *b)
{
    raw_head(b, 3, 0, 2);
    raw_u32_key(b, "a", 1);
    raw_u32_key(b, "a", 2);
}
static void key_unnamed(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_u32_key(b, "", 1);
    raw_data(b, 8);
}
static void key_control(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_u32_key(b, "a\nb", 1);
}
static void key_type(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_str(b, "a");
    raw_le(b, 13, 4);
    raw_data(b, 8);
}
static void key_bool(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_str(b, "a");
    raw_le(b, SL_GGUF_BOOL, 4);
    raw_le(b, 2, 1);
}
static void nested(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_str(b, "a");
    raw_le(b, SL_GGUF_ARRAY, 4);
    raw_le(b, SL_GGUF_ARRAY, 4);
    raw_le(b, 1, 8);
    raw_data(b, 64);
}
static void long_array(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_str(b, "a");
    raw_le(b, SL_GGUF_ARRAY, 4);
    raw_le(b, SL_GGUF_U64, 4);
    raw_le(b, UINT64_C(1) << 61, 8); /* times eight is zero */
    raw_data(b, 64);
}
static void long_string(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_str(b, "a");
    raw_le(b, SL_GGUF_STRING, 4);
    raw_le(b, UINT64_MAX, 8);
}
static void alignment_0(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_u32_key(b, "general.alignment", 0);
}
static void alignment_48(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_u32_key(b, "general.alignment", 48);
}
static void alignment_big(struct sl_buf *b)
{
    raw_head(b, 3, 0, 1);
    raw_u32_key(b, "general.alignment", 1u << 21);
}
static void dims_0(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "t", 0, 0, 0, 0);
    raw_data(b, 64);
}
static void dims_5(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "t", 5, 8, 0, 0);
    raw_data(b, 64);
}
static void dim_zero(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "t", 2, 0, 0, 0);
    raw_data(b, 64);
}
static void elems_wrap(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_str(b, "t");
    raw_le(b, 2, 4);
    raw_le(b, UINT64_C(1) << 33, 8);
    raw_le(b, UINT64_C(1) << 33, 8);
    raw_le(b, 0, 4);
    raw_le(b, 0, 8);
    raw_data(b, 64);
}
static void bytes_wrap(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "t", 1, UINT64_C(1) << 62, 0, 0);
    raw_data(b, 64);
}
static void type_unknown(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "t", 1, 32, 31, 0);
    raw_data(b, 64);
}
static void part_block(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "t", 1, 33, 8, 0);
    raw_data(b, 256);
}
static void unaligned(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "t", 1, 8, 0, 4);
    raw_data(b, 256);
}
static void past_end(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "blk.0.attn_q.weight", 1, 1024 + 16, 0, 0);
    raw_data(b, 64);
}
static void begins_past(struct sl_buf *b)
{
    raw_head(b, 3, 1, 0);
    raw_tensor(b, "t", 1, 8, 0, UINT64_MAX - 31);
    raw_data(b, 64);
}
static void tensor_twice(struct sl_buf *b)
{
    raw_head(b, 3, 2, 0);
    raw_tensor(b, "t", 1, 8, 0, 0);
    raw_tensor(b, "t", 1, 8, 0, 32);
    raw_data(b, 64);
}
static void overlap(struct sl_buf *b)
{
    raw_head(b, 3, 2, 0);
    raw_tensor(b, "t", 1, 8, 0, 32);
    raw_tensor(b, "u", 1, 16, 0, 0);
    raw_data(b, 64);
}

static void faults_are_named(void **state)
{
    (void)state;
    static const struct {
        void (*build)(struct sl_buf *b);
        const char *says;
    } table[] = {
        {bad_magic, "not a GGUF file"},
        {big_endian, "big-endian"},
        {version_1, "version 1; 2 and 3"},
        {version_4, "version 4; 2 and 3"},
        {many_keys, "1099511627776 keys claimed"},
        {many_tensors, "2305843009213693952 tensors claimed"},
        {keys_beyond_bytes, "60000 keys claimed"},
        {tensors_beyond_bytes, "60000 tensors claimed"},
        {key_twice, "key 'a' twice"},
        {key_unnamed, "key 0: name ''"},
        {key_control, "key 0: name 'a?b'"},
        {key_type, "unknown value type 13"},
        {key_bool, "boolean 0 is 2"},
        {nested, "arrays of arrays"},
        {long_array, "2305843009213693952 elements of at least 8 bytes"},
        {long_string, "string of 18446744073709551615 bytes"},
        {alignment_0, "general.alignment is 0"},
        {alignment_48, "general.alignment is 48"},
        {alignment_big, "general.alignment is 2097152"},
        {dims_0, "tensor 't' has 0 dimensions"},
        {dims_5, "tensor 't' has 5 dimensions"},
        {dim_zero, "tensor 't': dimension 0 is 0"},
        {elems_wrap, "element count overflows"},
        {bytes_wrap, "size of 4611686018427387904 elements overflows"},
        {type_unknown, "unknown type 31"},
        {part_block, "rows of 33 elements are not whole Q8_0 blocks"},
        {unaligned, "offset 4 is no multiple of the alignment 32"},
        {past_end, "tensor 'blk.0.attn_q.weight' ends 4096 bytes past the file"},
        {begins_past, "tensor 't' begins at offset 18446744073709551584"},
        {tensor_twice, "tensor 't' twice"},
        {overlap, "tensors 'u' and 't' overlap by 32 bytes"},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        struct sl_buf b = {0};
        struct sl_err err;
        table[i].build(&b);
        assert_false(b.failed);
        if (parses(b.data, b.len, &err) || !strstr(err.msg, table[i].says))
            fail_msg("row %zu: \"%s\" does not say \"%s\"", i, err.msg, table[i].says);
        sl_buf_free(&b);
    }
}

static void version_2_and_no_tensors(void **state)
{
    (void)state;
    struct sl_buf b = {0};
    struct sl_err err;
    raw_head(&b, 2, 0, 1);
    raw_u32_key(&b, "a", 1);
    assert_true(parses(b.data, b.len, &err));
    sl_buf_free(&b);
}

static void every_name_is_found(void **state)
{
    (void)state;
    struct sl_buf file = {0};
    struct sl_gguf *g = NULL;
    struct sl_err err = {0};
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    assert_non_null(w);
    char name[32];
    for (uint32_t i = 0; i < 5000; i++) {
        snprintf(name, sizeof name, "key.%u", i);
        sl_gguf_put_u32(w, name, i * 7);
    }
    assert_int_equal(sl_gguf_writer_finish_buf(w, &file, &err), SL_OK);
    assert_int_equal(sl_gguf_parse(file.data, file.len, false, &g, &err), SL_OK);
    for (uint32_t i = 0; i < 5000; i++) {
        uint32_t v = 0;
        snprintf(name, sizeof name, "key.%u", i);
        assert_true(sl_gguf_u32(g, name, &v) && v == i * 7);
    }
    assert_null(sl_gguf_find(g, "key.5000"));
    sl_gguf_close(g);
    sl_buf_free(&file);
}

/* --- files on disk --- */

static char folder[] = "/tmp/sluice-gguf-000000";

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/sluice-gguf-%06u",
             (unsigned)(sl_entropy_u64() % 1000000));
    return mkdir(folder, 0700);
}

static int drop_folder(void **state)
{
    (void)state;
    return rmdir(folder); /* fails when a test, or the writer, left something behind */
}

static void path_in(char out[128], const char *name)
{
    snprintf(out, 128, "%s/%s", folder, name);
}

static void opens_what_it_wrote(void **state)
{
    (void)state;
    char path[128];
    path_in(path, "a.gguf");
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    assert_non_null(w);
    static float data[8192];
    for (int i = 0; i < 8192; i++)
        data[i] = (float)i;
    uint64_t dims[] = {8192};
    sl_gguf_put_tensor(w, "t", 0, 1, dims, data, sizeof data);
    struct sl_err err = {0};
    assert_int_equal(sl_gguf_writer_finish(w, path, &err), SL_OK);
    struct sl_gguf *g = NULL;
    assert_int_equal(sl_gguf_open(path, &g, &err), SL_OK);
    const struct sl_gguf_tensor *t = sl_gguf_tensor(g, "t");
    assert_memory_equal(t->data, data, sizeof data);
    sl_gguf_release(g, t->data, (size_t)t->n_bytes);
    assert_memory_equal(t->data, data, sizeof data); /* comes back from the file */
    sl_gguf_close(g);
    assert_int_equal(unlink(path), 0);
}

static void opens_only_files(void **state)
{
    (void)state;
    char path[128];
    struct sl_gguf *g = NULL;
    struct sl_err err = {0};
    assert_int_equal(sl_gguf_open(folder, &g, &err), SL_MODEL);
    assert_non_null(strstr(err.msg, "not a regular file"));
    path_in(path, "fifo");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(sl_gguf_open(path, &g, &err), SL_MODEL);
    assert_non_null(strstr(err.msg, "not a regular file"));
    unlink(path);
    path_in(path, "absent.gguf");
    assert_int_equal(sl_gguf_open(path, &g, &err), SL_MODEL);
    assert_non_null(strstr(err.msg, "absent.gguf"));
    path_in(path, "empty.gguf");
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(sl_gguf_open(path, &g, &err), SL_MODEL);
    assert_non_null(strstr(err.msg, "is empty"));
    unlink(path);
    assert_null(g);
}

static void failed_write_leaves_nothing(void **state)
{
    (void)state;
    struct sl_err err = {0};
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    assert_non_null(w);
    assert_int_equal(sl_gguf_writer_finish(w, folder, &err), SL_FAILED); /* a folder's name */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(metadata_alone),
        cmocka_unit_test(truncated_at_every_byte),
        cmocka_unit_test(mutated_fields),
        cmocka_unit_test(mutated_pairs),
        cmocka_unit_test(faults_are_named),
        cmocka_unit_test(version_2_and_no_tensors),
        cmocka_unit_test(every_name_is_found),
        cmocka_unit_test_setup_teardown(opens_what_it_wrote, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(opens_only_files, make_folder, drop_folder),
        cmocka_unit_test_setup_teardown(failed_write_leaves_nothing, make_folder, drop_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
