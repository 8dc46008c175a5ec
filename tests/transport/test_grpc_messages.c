/* The gRPC door's messages: what is well formed comes out whole, what contradicts itself is refused
 * by name, and no bytes, however few, make the decoder take more than its arena's cap. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "grpc/messages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- a writer of the wire format -------------------------------------------------------------- */

static void put_varint(struct sl_buf *b, uint64_t x)
{
    for (; x >= 128; x >>= 7)
        sl_buf_putc(b, (char)(x | 128));
    sl_buf_putc(b, (char)x);
}

static void put_bytes(struct sl_buf *b, unsigned field, const void *data, size_t len)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, len);
    sl_buf_append(b, data, len);
}

static void put_text(struct sl_buf *b, unsigned field, const char *z)
{
    put_bytes(b, field, z, strlen(z));
}

/* An input of shape [dims...]; contents NULL: none. */
static void put_input(struct sl_buf *b, const char *name, const char *type, size_t n_dims,
                      const char *contents)
{
    struct sl_buf t = {0}, c = {0};
    put_text(&t, 1, name);
    put_text(&t, 2, type);
    for (size_t i = 0; i < n_dims; i++) {
        put_varint(&t, 3 << 3);
        put_varint(&t, 1);
    }
    if (contents) {
        put_text(&c, 8, contents);
        put_bytes(&t, 5, c.data, c.len);
    }
    put_bytes(b, 5, t.data, t.len);
    sl_buf_free(&t);
    sl_buf_free(&c);
}

static void put_int_param(struct sl_buf *b, const char *name, int64_t value)
{
    struct sl_buf e = {0}, v = {0};
    put_varint(&v, 2 << 3);
    put_varint(&v, (uint64_t)value);
    put_text(&e, 1, name);
    put_bytes(&e, 2, v.data, v.len);
    put_bytes(b, 4, e.data, e.len);
    sl_buf_free(&e);
    sl_buf_free(&v);
}

static enum sl_status decode(const struct sl_buf *b, struct sl_arena *mem,
                             struct sl_grpc_request *q, struct sl_err *err)
{
    *q = (struct sl_grpc_request){0};
    return grpc_decode(SL_GRPC_MODEL_INFER, b->data, b->len, mem, q, err);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void test_whole(void **state)
{
    (void)state;
    struct sl_buf b = {0};
    struct sl_arena mem;
    struct sl_grpc_request q;
    struct sl_err err;
    sl_arena_init(&mem, GRPC_CALL_MEM_MAX);
    put_bytes(&b, 1, "ti\0ny", 5);
    put_text(&b, 2, "1");
    put_text(&b, 3, "id");
    put_int_param(&b, "seed", -7);
    put_input(&b, "text_input", "BYTES", 1, "hello");
    assert_int_equal(decode(&b, &mem, &q, &err), SL_OK);
    assert_int_equal(q.model.len, 5); /* a NUL does not end a name */
    assert_true(sl_str_eqz(q.version, "1") && sl_str_eqz(q.id, "id"));
    assert_int_equal(q.n_params, 1);
    assert_int_equal(q.params[0].kind, SL_GRPC_INT);
    assert_int_equal(q.params[0].i, -7);
    assert_int_equal(q.n_inputs, 1);
    assert_true(sl_str_eqz(q.inputs[0].datatype, "BYTES"));
    assert_true(q.inputs[0].n_shape == 1 && q.inputs[0].shape[0] == 1);
    assert_true(q.inputs[0].n_bytes == 1 && sl_str_eqz(q.inputs[0].bytes[0], "hello"));
    assert_false(q.is_raw);
    sl_buf_free(&b);
    sl_arena_free(&mem);
}

/* Raw contents: each row's bytes, and how many elements they are; -1: refused. */
static void test_raw(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
        int n;
    } rows[] = {
        {"", 0, 0},
        {"\0\0\0\0", 4, 1},
        {"\5\0\0\0hello", 9, 1},
        {"\1\0\0\0a\2\0\0\0bc", 11, 2},
        {"\5\0\0\0hell", 8, -1},
        {"\5\0\0\0hello!", 10, -1},
        {"\1\0\0", 3, -1},
        {"\xff\xff\xff\xffx", 5, -1},
        {"\0\0\0\x80x", 5, -1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_buf b = {0};
        struct sl_arena mem;
        struct sl_grpc_request q;
        struct sl_err err;
        sl_arena_init(&mem, GRPC_CALL_MEM_MAX);
        put_input(&b, "text_input", "BYTES", 1, NULL);
        put_bytes(&b, 7, rows[i].bytes, rows[i].len);
        enum sl_status s = decode(&b, &mem, &q, &err);
        if (rows[i].n < 0) {
            assert_int_equal(s, SL_INVALID);
            assert_string_equal(err.param, "text_input");
        } else {
            assert_int_equal(s, SL_OK);
            assert_true(q.is_raw);
            assert_int_equal(q.inputs[0].n_bytes, rows[i].n);
        }
        sl_buf_free(&b);
        sl_arena_free(&mem);
    }
}

static void make_both_contents(struct sl_buf *b)
{
    put_input(b, "text_input", "BYTES", 1, "x");
    put_bytes(b, 7, "\1\0\0\0x", 5);
}
static void make_raw_mismatch(struct sl_buf *b)
{
    put_input(b, "text_input", "BYTES", 1, NULL);
    put_bytes(b, 7, "", 0);
    put_bytes(b, 7, "", 0);
}
static void make_many_inputs(struct sl_buf *b)
{
    for (int i = 0; i <= GRPC_TENSORS_MAX; i++)
        put_input(b, "text_input", "BYTES", 1, "x");
}
static void make_many_dims(struct sl_buf *b)
{
    put_input(b, "text_input", "BYTES", GRPC_DIMS_MAX + 1, "x");
}
static void make_many_params(struct sl_buf *b)
{
    for (int i = 0; i <= GRPC_PARAMS_MAX; i++)
        put_int_param(b, "seed", i);
}
static void make_many_outputs(struct sl_buf *b)
{
    for (int i = 0; i <= GRPC_TENSORS_MAX; i++)
        put_bytes(b, 6, "", 0);
}
static void make_garbage(struct sl_buf *b)
{
    sl_buf_append(b, "\x2a\xff", 2);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        void (*make)(struct sl_buf *b);
        const char *param;
    } rows[] = {
        {make_both_contents, "raw_input_contents"},
        {make_raw_mismatch, "raw_input_contents"},
        {make_many_inputs, "inputs"},
        {make_many_dims, "text_input"},
        {make_many_params, "parameters"},
        {make_many_outputs, "outputs"},
        {make_garbage, ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_buf b = {0};
        struct sl_arena mem;
        struct sl_grpc_request q;
        struct sl_err err;
        sl_arena_init(&mem, GRPC_CALL_MEM_MAX);
        rows[i].make(&b);
        assert_int_equal(decode(&b, &mem, &q, &err), SL_INVALID);
        assert_string_equal(err.param, rows[i].param);
        sl_buf_free(&b);
        sl_arena_free(&mem);
    }
}

/* Empty sub-messages cost two bytes on the wire and far more once decoded. */
static void test_memory_is_capped(void **state)
{
    (void)state;
    static const unsigned fields[] = {4, 5, 6, 7};
    for (size_t f = 0; f < sizeof fields / sizeof *fields; f++) {
        struct sl_buf b = {.cap_bytes = SL_LIMIT_http_body_bytes + 16};
        struct sl_arena mem;
        struct sl_grpc_request q;
        struct sl_err err;
        sl_arena_init(&mem, GRPC_CALL_MEM_MAX);
        while (b.len + 2 <= SL_LIMIT_http_body_bytes)
            put_bytes(&b, fields[f], "", 0);
        enum sl_status s = decode(&b, &mem, &q, &err);
        assert_true(s == SL_TOO_LARGE || s == SL_INVALID);
        assert_true(mem.high_bytes <= GRPC_CALL_MEM_MAX);
        sl_buf_free(&b);
        sl_arena_free(&mem);
    }
}

/* In a block of its own, so that a sanitizer sees one byte too far. */
static void decodes_or_is_refused(const char *data, size_t len, size_t flip_bit)
{
    struct sl_grpc_request q = {0};
    struct sl_arena mem;
    struct sl_err err;
    char *copy = malloc(len ? len : 1);
    assert_non_null(copy);
    memcpy(copy, data, len);
    if (flip_bit / 8 < len)
        copy[flip_bit / 8] ^= (char)(1 << flip_bit % 8);
    sl_arena_init(&mem, 1 << 16);
    enum sl_status s = grpc_decode(SL_GRPC_MODEL_INFER, copy, len, &mem, &q, &err);
    if (s != SL_OK && s != SL_INVALID && s != SL_TOO_LARGE)
        fail_msg("status %d for %zu bytes with bit %zu flipped", (int)s, len, flip_bit);
    sl_arena_free(&mem);
    free(copy);
}

static void test_mutations(void **state)
{
    (void)state;
    struct sl_buf b = {0};
    put_text(&b, 1, "tiny");
    put_int_param(&b, "seed", 5);
    put_input(&b, "text_input", "BYTES", 1, NULL);
    put_bytes(&b, 7, "\5\0\0\0hello", 9);
    for (size_t len = 0; len <= b.len; len++)
        decodes_or_is_refused(b.data, len, SIZE_MAX);
    for (size_t bit = 0; bit < b.len * 8; bit++)
        decodes_or_is_refused(b.data, b.len, bit);
    sl_buf_free(&b);
}

/* What an answer holds is found in its bytes, in both forms of contents. */
static void test_answer(void **state)
{
    (void)state;
    static const int64_t one = 1;
    struct sl_str text = SL_STR("hello");
    struct sl_grpc_param p = {.name = SL_STR("n"), .kind = SL_GRPC_INT, .i = 3};
    struct sl_grpc_tensor out = {.name = SL_STR("text_output"),
                                 .datatype = SL_STR("BYTES"),
                                 .shape = &one,
                                 .n_shape = 1,
                                 .bytes = &text,
                                 .n_bytes = 1};
    struct sl_grpc_answer a = {.name = SL_STR("m"),
                               .version = SL_STR("1"),
                               .params = &p,
                               .n_params = 1,
                               .outputs = &out,
                               .n_outputs = 1};
    static const char plain[] = "\x0a\1m\x12\1"
                                "1\x22\7\x0a\1n\x12\2\x10\3"
                                "\x2a\x20\x0a\x0btext_output\x12\5BYTES\x1a\1\1\x2a\7\x42\5hello";
    static const char raw[] = "\x0a\1m\x12\1"
                              "1\x22\7\x0a\1n\x12\2\x10\3"
                              "\x2a\x17\x0a\x0btext_output\x12\5BYTES\x1a\1\1\x32\x09\5\0\0\0hello";
    struct sl_arena mem;
    struct sl_str bytes;
    sl_arena_init(&mem, 1 << 16);
    assert_true(grpc_encode(SL_GRPC_MODEL_INFER, false, &a, &mem, &bytes));
    assert_int_equal(bytes.len, sizeof plain - 1);
    assert_memory_equal(bytes.data, plain, bytes.len);
    assert_true(grpc_encode(SL_GRPC_MODEL_INFER, true, &a, &mem, &bytes));
    assert_int_equal(bytes.len, sizeof raw - 1);
    assert_memory_equal(bytes.data, raw, bytes.len);
    assert_true(grpc_encode(SL_GRPC_SERVER_LIVE, false, &(struct sl_grpc_answer){.yes = true}, &mem,
                            &bytes));
    assert_int_equal(bytes.len, 2);
    sl_arena_free(&mem);
    sl_arena_init(&mem, 64);
    assert_false(grpc_encode(SL_GRPC_MODEL_INFER, false, &a, &mem, &bytes));
    sl_arena_free(&mem);
}

static void test_health(void **state)
{
    (void)state;
    struct sl_arena mem;
    struct sl_str service, bytes;
    struct sl_err err;
    sl_arena_init(&mem, 1 << 16);
    assert_int_equal(grpc_decode_health("\x0a\3abc", 5, &mem, &service, &err), SL_OK);
    assert_true(sl_str_eqz(service, "abc"));
    assert_int_equal(grpc_decode_health("", 0, &mem, &service, &err), SL_OK);
    assert_int_equal(service.len, 0);
    assert_int_equal(grpc_decode_health("\x0a\4abc", 5, &mem, &service, &err), SL_INVALID);
    assert_true(grpc_encode_health(GRPC_NOT_SERVING, &mem, &bytes));
    assert_int_equal(bytes.len, 2);
    assert_memory_equal(bytes.data, "\x08\2", 2);
    sl_arena_free(&mem);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),     cmocka_unit_test(test_raw),
        cmocka_unit_test(test_refused),   cmocka_unit_test(test_memory_is_capped),
        cmocka_unit_test(test_mutations), cmocka_unit_test(test_answer),
        cmocka_unit_test(test_health),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
