/* A batch of KV events comes back as it was, in either format; what is not exactly one is refused
 * by name. The bytes are those of msgspec (0.19) for vLLM's structs, made apart. */
#include <sluice/transport/kv_events.h>

#include <sluice/base/limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "bus/msgpack.h"

static const uint8_t keys[3][32] = {{1}, {2, 3}, {255, 255}};
static const uint32_t tokens[6] = {0, 127, 128, 256, 65536, UINT32_MAX};

static const struct sl_kv_wire_event events[] = {
    {SL_KV_WIRE_CLEARED, NULL, 0, false, {0}, NULL, 0},
    {SL_KV_WIRE_STORED, keys, 3, false, {0}, tokens, 2},
    {SL_KV_WIRE_STORED, keys + 1, 1, true, {9}, tokens, 6},
    {SL_KV_WIRE_REMOVED, keys, 2, false, {0}, NULL, 0},
    {SL_KV_WIRE_REMOVED, keys, 0, false, {0}, NULL, 0},
};
static const struct sl_kv_batch batch = {1.5, 7, events, 5};

static void assert_event(const struct sl_kv_wire_event *a, const struct sl_kv_wire_event *b)
{
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->n_keys, b->n_keys);
    if (a->n_keys)
        assert_memory_equal(a->keys, b->keys, a->n_keys * 32);
    assert_int_equal(a->has_parent, b->has_parent);
    assert_memory_equal(a->parent, b->parent, 32);
    assert_int_equal(a->page_size, b->page_size);
    if (a->tokens)
        assert_memory_equal(a->tokens, b->tokens, a->n_keys * a->page_size * sizeof *a->tokens);
}

static void test_round_trip(void **state)
{
    (void)state;
    for (int format = SL_KV_VLLM; format <= SL_KV_VLLM_ARRAY; format++) {
        struct sl_buf b = {0};
        struct sl_arena arena;
        struct sl_kv_batch got;
        struct sl_err err = {0};
        sl_arena_init(&arena, 1 << 20);
        assert_int_equal(sl_kv_batch_encode(&batch, (enum sl_kv_format)format, "CPU", &b, &err),
                         SL_OK);
        if (sl_kv_batch_decode(b.data, b.len, &arena, &got, &err))
            fail_msg("%s", err.msg);
        assert_true(got.unix_seconds == 1.5 && got.rank == 7 && got.n_events == 5);
        for (uint32_t i = 0; i < 5; i++)
            assert_event(&events[i], &got.events[i]);
        for (size_t cut = 0; cut < b.len; cut++) { /* in memory of its own: ASan sees the end */
            char *part = malloc(cut + !cut);
            memcpy(part, b.data, cut);
            sl_arena_reset(&arena);
            assert_int_equal(sl_kv_batch_decode(part, cut, &arena, &got, &err), SL_INVALID);
            free(part);
        }
        sl_buf_putc(&b, 0);
        assert_int_equal(sl_kv_batch_decode(b.data, b.len, &arena, &got, &err), SL_INVALID);
        sl_buf_free(&b);
        sl_arena_free(&arena);
    }
}

/* msgspec.msgpack.encode(KVEventBatch(ts=0.5, events=[...], data_parallel_rank=0)) with one event
 * BlockStored([b"\x01" * 32], None, [1, 300], 2, None, "GPU", None), then AllBlocksCleared(). */
static void test_bytes_of_vllm(void **state)
{
    (void)state;
    static const char maps[] =
        "\x93\xcb\x3f\xe0\0\0\0\0\0\0\x92\x88\xa4type\xab"
        "BlockStored\xac"
        "block_hashes\x91\xc4\x20"
        "11111111111111111111111111111111\xb1parent_block_hash\xc0\xa9token_ids\x92\x01\xcd\x01\x2c"
        "\xaa"
        "block_size\x02\xa7lora_id\xc0\xa6medium\xa3GPU\xa9lora_name\xc0\x81\xa4type\xb0"
        "AllBlocksCleared\x00";
    static const char arrays[] = "\x93\xcb\x3f\xe0\0\0\0\0\0\0\x92\x98\xab"
                                 "BlockStored\x91\xc4\x20"
                                 "11111111111111111111111111111111\xc0\x92\x01\xcd\x01\x2c\x02\xc0"
                                 "\xa3GPU\xc0\x91\xb0"
                                 "AllBlocksCleared\x00";
    uint8_t key[1][32];
    const uint32_t two[2] = {1, 300};
    memset(key, '1', sizeof key);
    const struct sl_kv_wire_event e[] = {
        {SL_KV_WIRE_STORED, (const uint8_t(*)[32])key, 1, false, {0}, two, 2},
        {SL_KV_WIRE_CLEARED, NULL, 0, false, {0}, NULL, 0}};
    const struct sl_kv_batch b = {0.5, 0, e, 2};
    struct sl_buf out = {0};
    assert_int_equal(sl_kv_batch_encode(&b, SL_KV_VLLM, "GPU", &out, NULL), SL_OK);
    assert_int_equal(out.len, sizeof maps - 1);
    assert_memory_equal(out.data, maps, out.len);
    sl_buf_clear(&out);
    assert_int_equal(sl_kv_batch_encode(&b, SL_KV_VLLM_ARRAY, "GPU", &out, NULL), SL_OK);
    assert_int_equal(out.len, sizeof arrays - 1);
    assert_memory_equal(out.data, arrays, out.len);
    sl_buf_free(&out);
}

struct row {
    const char *what, *param;
    void (*put)(struct sl_buf *b);
};

static void head(struct sl_buf *b, uint32_t n_events)
{
    mp_put_array(b, 2);
    mp_put_double(b, 1);
    mp_put_array(b, n_events);
}

/* "BlockRemoved" as a map of n more fields. */
static void removed(struct sl_buf *b, uint32_t n)
{
    head(b, 1);
    mp_put_map(b, n + 1);
    mp_put_text(b, "type");
    mp_put_text(b, "BlockRemoved");
}

static void put_number(struct sl_buf *b)
{
    mp_put_uint(b, 5);
}
static void put_nan(struct sl_buf *b)
{
    mp_put_array(b, 2);
    mp_put_double(b, strtod("nan", NULL));
    mp_put_array(b, 0);
}
static void put_events_number(struct sl_buf *b)
{
    mp_put_array(b, 2);
    mp_put_double(b, 1);
    mp_put_uint(b, 1);
}
static void put_many_events(struct sl_buf *b)
{
    head(b, SL_LIMIT_kv_batch_keys + 1);
    for (uint32_t i = 0; i <= SL_LIMIT_kv_batch_keys; i++)
        mp_put_nil(b);
}
static void put_claim(struct sl_buf *b) /* four billion events in no bytes */
{
    head(b, UINT32_MAX);
}
static void put_unknown_type(struct sl_buf *b)
{
    head(b, 1);
    mp_put_array(b, 1);
    mp_put_text(b, "BlockMoved");
}
static void put_type_later(struct sl_buf *b)
{
    head(b, 1);
    mp_put_map(b, 2);
    mp_put_text(b, "medium");
    mp_put_nil(b);
    mp_put_text(b, "type");
    mp_put_text(b, "AllBlocksCleared");
}
static void put_no_keys(struct sl_buf *b)
{
    removed(b, 0);
}
static void put_keys_twice(struct sl_buf *b)
{
    removed(b, 2);
    for (int i = 0; i < 2; i++) {
        mp_put_text(b, "block_hashes");
        mp_put_array(b, 0);
    }
}
static void put_number_key(struct sl_buf *b)
{
    removed(b, 1);
    mp_put_text(b, "block_hashes");
    mp_put_array(b, 1);
    mp_put_uint(b, 77);
}
static void put_short_key(struct sl_buf *b)
{
    removed(b, 1);
    mp_put_text(b, "block_hashes");
    mp_put_array(b, 1);
    mp_put_bytes(b, keys[0], 31);
}
static void put_deep(struct sl_buf *b)
{
    removed(b, 2);
    mp_put_text(b, "block_hashes");
    mp_put_array(b, 0);
    mp_put_text(b, "new");
    for (int i = 0; i < MP_DEPTH_MAX + 1; i++)
        mp_put_array(b, 1);
    mp_put_nil(b);
}
static void put_stored(struct sl_buf *b, uint32_t n_tokens, uint64_t token, uint64_t size)
{
    head(b, 1);
    mp_put_array(b, 5);
    mp_put_text(b, "BlockStored");
    mp_put_array(b, 1);
    mp_put_bytes(b, keys[0], 32);
    mp_put_nil(b);
    mp_put_array(b, n_tokens);
    for (uint32_t i = 0; i < n_tokens; i++)
        mp_put_uint(b, token);
    mp_put_uint(b, size);
}
static void put_few_tokens(struct sl_buf *b)
{
    put_stored(b, 3, 1, 4);
}
static void put_wide_token(struct sl_buf *b)
{
    put_stored(b, 1, (uint64_t)UINT32_MAX + 1, 1);
}
static void put_no_size(struct sl_buf *b)
{
    put_stored(b, 0, 1, 0);
}
static void put_rank(struct sl_buf *b)
{
    mp_put_array(b, 3);
    mp_put_double(b, 1);
    mp_put_array(b, 0);
    mp_put_text(b, "first");
}

static void test_refuses(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {"no array", "batch", put_number},
        {"time that is none", "ts", put_nan},
        {"events that are none", "events", put_events_number},
        {"too many events", "events", put_many_events},
        {"more events than bytes", "events", put_claim},
        {"an unknown type", "event", put_unknown_type},
        {"type not first", "event", put_type_later},
        {"a field missing", "event", put_no_keys},
        {"a field twice", "event", put_keys_twice},
        {"a key that is a number", "block_hashes", put_number_key},
        {"a key of 31 bytes", "block_hashes", put_short_key},
        {"too deep", "event", put_deep},
        {"fewer tokens than pages", "token_ids", put_few_tokens},
        {"a token of 33 bits", "token_ids", put_wide_token},
        {"pages of no token", "block_size", put_no_size},
        {"a rank that is none", "data_parallel_rank", put_rank},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_buf b = {0};
        struct sl_arena arena;
        struct sl_kv_batch got;
        struct sl_err err = {0};
        sl_arena_init(&arena, 1 << 20);
        rows[i].put(&b);
        if (sl_kv_batch_decode(b.data, b.len, &arena, &got, &err) != SL_INVALID ||
            strcmp(err.param, rows[i].param) != 0)
            fail_msg("%s: '%s' %s", rows[i].what, err.param, err.msg);
        sl_buf_free(&b);
        sl_arena_free(&arena);
    }
}

/* Every form of every kind of item, and each of them cut short. */
static void test_items(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t len;
        enum mp_kind kind;
        uint64_t number;
    } rows[] = {
        {"\x7f", 1, MP_UINT, 127},
        {"\xe0", 1, MP_INT, (uint64_t)-32},
        {"\xcc\xff", 2, MP_UINT, 255},
        {"\xcd\xff\xff", 3, MP_UINT, 65535},
        {"\xce\0\0\1\0", 5, MP_UINT, 256},
        {"\xcf\x80\0\0\0\0\0\0\0", 9, MP_UINT, (uint64_t)1 << 63},
        {"\xd0\x80", 2, MP_INT, (uint64_t)-128},
        {"\xd0\x7f", 2, MP_UINT, 127},
        {"\xd1\xff\xfe", 3, MP_INT, (uint64_t)-2},
        {"\xd2\x80\0\0\0", 5, MP_INT, (uint64_t)INT32_MIN},
        {"\xd3\xff\xff\xff\xff\xff\xff\xff\xff", 9, MP_INT, (uint64_t)-1},
        {"\xc2", 1, MP_BOOL, 0},
        {"\xc3", 1, MP_BOOL, 1},
        {"\xc0", 1, MP_NIL, 0},
        {"\xca\x3f\x80\0\0", 5, MP_REAL, 0},
        {"\xcb\x3f\xf0\0\0\0\0\0\0", 9, MP_REAL, 0},
        {"\xa1x", 2, MP_TEXT, 0},
        {"\xd9\1x", 3, MP_TEXT, 0},
        {"\xda\0\1x", 4, MP_TEXT, 0},
        {"\xdb\0\0\0\1x", 6, MP_TEXT, 0},
        {"\xc4\1x", 3, MP_BYTES, 0},
        {"\xc5\0\1x", 4, MP_BYTES, 0},
        {"\xc6\0\0\0\1x", 6, MP_BYTES, 0},
        {"\xd4\5x", 3, MP_EXT, 0},
        {"\xd8\5xxxxxxxxxxxxxxxx", 18, MP_EXT, 0},
        {"\xc7\1\5x", 4, MP_EXT, 0},
        {"\xc8\0\1\5x", 5, MP_EXT, 0},
        {"\xc9\0\0\0\1\5x", 7, MP_EXT, 0},
        {"\x91\xc0", 2, MP_ARRAY, 0},
        {"\xdc\0\1\xc0", 4, MP_ARRAY, 0},
        {"\xdd\0\0\0\1\xc0", 6, MP_ARRAY, 0},
        {"\x81\xc0\xc0", 3, MP_MAP, 0},
        {"\xde\0\1\xc0\xc0", 5, MP_MAP, 0},
        {"\xdf\0\0\0\1\xc0\xc0", 7, MP_MAP, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct mp_reader r = {(const uint8_t *)rows[i].bytes, rows[i].len, false};
        struct mp_item it = mp_next(&r);
        assert_false(r.bad);
        assert_int_equal(it.kind, rows[i].kind);
        assert_true(it.number == rows[i].number);
        assert_true(it.kind != MP_REAL || it.real == 1.0);
        r = (struct mp_reader){(const uint8_t *)rows[i].bytes, rows[i].len, false};
        mp_skip(&r);
        assert_true(!r.bad && !r.left);
        for (size_t cut = 0; cut < rows[i].len; cut++) {
            r = (struct mp_reader){(const uint8_t *)rows[i].bytes, cut, false};
            mp_skip(&r);
            assert_true(r.bad);
        }
    }
    struct mp_reader r = {(const uint8_t *)"\xc1", 1, false};
    mp_skip(&r);
    assert_true(r.bad);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_bytes_of_vllm),
        cmocka_unit_test(test_refuses),
        cmocka_unit_test(test_items),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
