/* Promise: a bus message comes back as it was sent; whatever else arrives is refused with the field
 * at fault or is within all bounds; and no few bytes make the receiver take much memory. */
#include "bus_samples.h"

#include <sluice/base/containers.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <math.h>

#define ARENA_BYTES ((size_t)8 << 20)

static void encode(const struct sl_msg *m, struct sl_buf *out)
{
    struct sl_err err = {0};
    if (sl_msg_encode(m, out, &err) != SL_OK)
        fail_msg("kind %d does not encode: %s", (int)m->kind, err.msg);
}

static void assert_str(struct sl_str a, struct sl_str b)
{
    assert_int_equal(a.len, b.len);
    if (a.len)
        assert_memory_equal(a.data, b.data, a.len);
}

static void assert_load(const struct sl_msg_load *a, const struct sl_msg_load *b)
{
    assert_memory_equal(a, b, offsetof(struct sl_msg_load, reforming));
    assert_int_equal(a->reforming, b->reforming);
}

static void assert_hello(const struct sl_msg_hello *a, const struct sl_msg_hello *b)
{
    assert_memory_equal(a, b, offsetof(struct sl_msg_hello, model));
    assert_str(a->model, b->model);
    assert_str(a->site, b->site);
    assert_str(a->role, b->role);
    assert_str(a->isa, b->isa);
    assert_str(a->backend, b->backend);
    assert_str(a->class_name, b->class_name);
    assert_str(a->kv_address, b->kv_address);
    assert_str(a->events_endpoint, b->events_endpoint);
    assert_str(a->events_replay, b->events_replay);
    assert_str(a->events_topic, b->events_topic);
    assert_str(a->events_key, b->events_key);
    assert_load(&a->load, &b->load);
}

/* Everything but the pointers lies in plain fields: compare them by a copy without pointers. */
static void assert_submit(const struct sl_msg_submit *a, const struct sl_msg_submit *b)
{
    assert_true(a->id == b->id && a->epoch == b->epoch && a->n_prompt == b->n_prompt);
    assert_true(a->choice == b->choice && a->priority == b->priority && a->tenant == b->tenant);
    assert_true(a->seed == b->seed && a->deadline_ms == b->deadline_ms && a->top_k == b->top_k);
    assert_memory_equal(a->salt, b->salt, 32);
    assert_memory_equal(&a->temperature, &b->temperature, 7 * sizeof(float));
    assert_true(a->n_logprobs == b->n_logprobs && a->min_tokens == b->min_tokens);
    assert_true(a->max_tokens == b->max_tokens && a->want_logprob == b->want_logprob);
    assert_true(a->ignore_eos == b->ignore_eos && a->no_prefix_cache == b->no_prefix_cache);
    assert_true(a->prefill_only == b->prefill_only && a->kv_ticket == b->kv_ticket);
    assert_str(a->kv_address, b->kv_address);
    assert_memory_equal(a->kv_key, b->kv_key, 32);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens);
    assert_int_equal(a->n_bias, b->n_bias);
    if (a->n_bias)
        assert_memory_equal(a->bias, b->bias, a->n_bias * sizeof *a->bias);
    assert_int_equal(a->n_stop_ids, b->n_stop_ids);
    if (a->n_stop_ids)
        assert_memory_equal(a->stop_ids, b->stop_ids, a->n_stop_ids * sizeof *a->stop_ids);
}

static void assert_out(const struct sl_msg_out *a, const struct sl_msg_out *b)
{
    size_t n_top = (size_t)a->n_tokens * a->n_top;
    assert_true(a->id == b->id && a->epoch == b->epoch && a->n_tokens == b->n_tokens);
    assert_true(a->n_top == b->n_top && a->end == b->end && a->status == b->status);
    assert_int_equal(a->n_cached, b->n_cached);
    assert_str(a->message, b->message);
    assert_true((a->logprobs == NULL) == (b->logprobs == NULL));
    if (a->n_tokens)
        assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens);
    if (a->logprobs)
        assert_memory_equal(a->logprobs, b->logprobs, a->n_tokens * sizeof *a->logprobs);
    if (n_top) {
        assert_memory_equal(a->top_tokens, b->top_tokens, n_top * sizeof *a->top_tokens);
        assert_memory_equal(a->top_logprobs, b->top_logprobs, n_top * sizeof *a->top_logprobs);
    }
}

static void assert_msg(const struct sl_msg *a, const struct sl_msg *b)
{
    assert_int_equal(a->kind, b->kind);
    if (a->kind == SL_MSG_HELLO)
        assert_hello(&a->hello, &b->hello);
    if (a->kind == SL_MSG_WELCOME) {
        assert_true(a->welcome.version == b->welcome.version);
        assert_true(a->welcome.status == b->welcome.status);
        assert_str(a->welcome.message, b->welcome.message);
    }
    if (a->kind == SL_MSG_SUBMIT)
        assert_submit(&a->submit, &b->submit);
    if (a->kind == SL_MSG_CANCEL)
        assert_true(a->cancel.id == b->cancel.id && a->cancel.epoch == b->cancel.epoch);
    if (a->kind == SL_MSG_STEP) {
        assert_true(a->step.step == b->step.step && a->step.n_outs == b->step.n_outs);
        for (uint32_t i = 0; i < a->step.n_outs; i++)
            assert_out(&a->step.outs[i], &b->step.outs[i]);
        assert_load(&a->step.load, &b->step.load);
    }
    if (a->kind == SL_MSG_META_GET || a->kind == SL_MSG_META_CHUNK) {
        assert_memory_equal(a->meta.sha256, b->meta.sha256, 32);
        assert_true(a->meta.offset == b->meta.offset);
        assert_str(a->meta.bytes, b->meta.bytes);
    }
    if (a->kind == SL_MSG_LOAD)
        assert_load(&a->load, &b->load);
    if (a->kind == SL_MSG_RANKS) {
        assert_int_equal(a->ranks.n_ranks, b->ranks.n_ranks);
        assert_true(a->ranks.tp == b->ranks.tp && a->ranks.pp == b->ranks.pp);
        for (uint32_t i = 0; i < a->ranks.n_ranks; i++) {
            assert_memory_equal(&a->ranks.ranks[i], &b->ranks.ranks[i],
                                offsetof(struct sl_msg_rank, isa));
            assert_str(a->ranks.ranks[i].isa, b->ranks.ranks[i].isa);
            assert_int_equal(a->ranks.ranks[i].n_kernels, b->ranks.ranks[i].n_kernels);
            for (uint32_t k = 0; k < a->ranks.ranks[i].n_kernels; k++) {
                const struct sl_msg_kernel *x = &a->ranks.ranks[i].kernels[k];
                const struct sl_msg_kernel *y = &b->ranks.ranks[i].kernels[k];
                assert_str(x->name, y->name);
                assert_true(x->launches == y->launches);
            }
        }
    }
}

static void round_trip(void **state)
{
    (void)state;
    struct samples s;
    samples_fill(&s);
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sl_arena arena;
        struct sl_buf buf = {0};
        struct sl_msg back;
        struct sl_err err = {0};
        sl_arena_init(&arena, ARENA_BYTES);
        encode(&s.m[i], &buf);
        if (sl_msg_decode(buf.data, buf.len, &arena, &back, &err) != SL_OK)
            fail_msg("sample %d: %s", i, err.msg);
        assert_msg(&s.m[i], &back);
        sl_buf_free(&buf);
        sl_arena_free(&arena);
    }
}

static void round_trip_large(void **state)
{
    (void)state;
    struct sl_msg m = {.kind = SL_MSG_SUBMIT}, back;
    uint32_t *tokens = calloc(SL_BUS_TOKENS_MAX, sizeof *tokens);
    char *bytes = calloc(SL_BUS_META_CHUNK, 1);
    struct sl_buf buf = {0};
    struct sl_arena arena;
    struct sl_err err;
    assert_non_null(tokens);
    assert_non_null(bytes);
    sl_arena_init(&arena, (size_t)32 << 20);
    for (uint32_t i = 0; i < SL_BUS_TOKENS_MAX; i++)
        tokens[i] = i;
    m.submit.tokens = tokens;
    m.submit.n_tokens = m.submit.n_prompt = SL_BUS_TOKENS_MAX;
    encode(&m, &buf);
    assert_int_equal(sl_msg_decode(buf.data, buf.len, &arena, &back, &err), SL_OK);
    assert_msg(&m, &back);

    sl_buf_clear(&buf);
    sl_arena_reset(&arena);
    m = (struct sl_msg){.kind = SL_MSG_META_CHUNK};
    m.meta.bytes = (struct sl_str){bytes, SL_BUS_META_CHUNK};
    encode(&m, &buf);
    assert_int_equal(sl_msg_decode(buf.data, buf.len, &arena, &back, &err), SL_OK);
    assert_msg(&m, &back);
    m.meta.bytes.len++;
    sl_buf_clear(&buf);
    assert_int_equal(sl_msg_encode(&m, &buf, &err), SL_INVALID);
    sl_arena_free(&arena);
    sl_buf_free(&buf);
    free(tokens);
    free(bytes);
}

/* Refused with a field named, or good enough to be sent on: encoding reads all of it again. */
static void judge(const uint8_t *data, size_t size)
{
    struct sl_arena arena;
    struct sl_msg m;
    struct sl_err err = {0};
    uint8_t *exact = malloc(size ? size : 1); /* nothing behind it to read by mistake */
    assert_non_null(exact);
    memcpy(exact, data, size);
    sl_arena_init(&arena, ARENA_BYTES);
    enum sl_status status = sl_msg_decode(exact, size, &arena, &m, &err);
    if (status == SL_OK) {
        struct sl_buf again = {0};
        encode(&m, &again);
        sl_buf_free(&again);
    } else {
        assert_int_equal(status, SL_INVALID);
        assert_int_equal(m.kind, SL_MSG_NONE);
        assert_true(err.param[0] != '\0' && err.msg[0] != '\0');
    }
    assert_true(arena.high_bytes <= ARENA_BYTES);
    sl_arena_free(&arena);
    free(exact);
}

static void truncations(void **state)
{
    (void)state;
    struct samples s;
    samples_fill(&s);
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sl_buf buf = {0};
        encode(&s.m[i], &buf);
        for (size_t n = 0; n < buf.len; n++)
            judge((const uint8_t *)buf.data, n);
        sl_buf_free(&buf);
    }
}

static void bit_flips(void **state)
{
    (void)state;
    struct samples s;
    samples_fill(&s);
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sl_buf buf = {0};
        encode(&s.m[i], &buf);
        for (size_t bit = 0; bit < buf.len * 8; bit++) {
            buf.data[bit / 8] = (char)(buf.data[bit / 8] ^ (1 << bit % 8));
            judge((const uint8_t *)buf.data, buf.len);
            buf.data[bit / 8] = (char)(buf.data[bit / 8] ^ (1 << bit % 8));
        }
        sl_buf_free(&buf);
    }
}

/* A check that is wrong or gone: nothing newer than version 1 is believed without one. */
static void checks(void **state)
{
    (void)state;
    struct samples s;
    samples_fill(&s);
    struct sl_arena arena;
    struct sl_msg m;
    struct sl_err err;
    sl_arena_init(&arena, ARENA_BYTES);
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sl_buf buf = {0};
        s.m[i].tag = 5;
        s.m[i].seq = 1;
        encode(&s.m[i], &buf);
        assert_int_equal(sl_msg_decode(buf.data, buf.len, &arena, &m, &err), SL_OK);
        assert_true(m.tag == 5 && m.seq == 1);
        assert_int_equal(sl_msg_decode(buf.data, buf.len - 10, &arena, &m, &err), SL_INVALID);
        assert_string_equal(err.param, "check");
        for (size_t at = 0; at < buf.len; at++) {
            buf.data[at] = (char)(buf.data[at] ^ 0x20);
            assert_int_equal(sl_msg_decode(buf.data, buf.len, &arena, &m, &err), SL_INVALID);
            buf.data[at] = (char)(buf.data[at] ^ 0x20);
        }
        sl_buf_free(&buf);
        sl_arena_reset(&arena);
    }
    sl_arena_free(&arena);
}

/* ---- messages written by hand, as no honest encoder would ---- */

static void put_varint(struct sl_buf *b, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        sl_buf_putc(b, (char)(v | 0x80));
    sl_buf_putc(b, (char)v);
}

/* The check that ends a message newer than version 1: field 29, XXH3 of what stands before. */
static void put_check(struct sl_buf *b)
{
    uint64_t sum = sl_hash64(b->data, b->len, 0);
    put_varint(b, 29 << 3 | 1);
    for (int i = 0; i < 8; i++)
        sl_buf_putc(b, (char)(sum >> 8 * i));
}

static void put_number(struct sl_buf *b, uint32_t field, uint64_t v)
{
    put_varint(b, field << 3);
    put_varint(b, v);
}

static void put_bytes(struct sl_buf *b, uint32_t field, const void *data, size_t len)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, len);
    sl_buf_append(b, data, len);
}

static void put_float(struct sl_buf *b, uint32_t field, float v)
{
    put_varint(b, field << 3 | 5);
    sl_buf_append(b, &v, sizeof v);
}

static void put_salt(struct sl_buf *b, size_t len)
{
    char zeros[64] = {0};
    put_bytes(b, 9, zeros, len);
}

static void put_prompt(struct sl_buf *b, uint64_t n_prompt, size_t n_tokens)
{
    char zeros[64] = {0};
    put_number(b, 3, n_prompt);
    put_bytes(b, 4, zeros, n_tokens);
    put_salt(b, 32);
}

enum {
    ENV_HELLO = 1,
    ENV_WELCOME,
    ENV_SUBMIT,
    ENV_CANCEL,
    ENV_STEP,
    ENV_META,
    ENV_LOAD = 8,
    ENV_RANKS = 12
};

static void no_tokens(struct sl_buf *b)
{
    put_prompt(b, 1, 0);
}
static void no_prompt(struct sl_buf *b)
{
    put_prompt(b, 0, 3);
}
static void prompt_longer_than_tokens(struct sl_buf *b)
{
    put_prompt(b, 4, 3);
}
static void token_outside(struct sl_buf *b)
{
    put_prompt(b, 1, 3);
    put_number(b, 4, SL_LIMIT_vocab_tokens);
}
static void salt_short(struct sl_buf *b)
{
    char token = 1;
    put_number(b, 3, 1);
    put_bytes(b, 4, &token, 1);
    put_salt(b, 31);
}
static void salt_missing(struct sl_buf *b)
{
    char token = 1;
    put_number(b, 3, 1);
    put_bytes(b, 4, &token, 1);
}
static void kv_key_short(struct sl_buf *b)
{
    put_prompt(b, 1, 1);
    put_bytes(b, 30, "tcp:1.2.3.4:5", 13);
    put_bytes(b, 31, "key", 3);
}
static void kv_key_alone(struct sl_buf *b)
{
    char zeros[32] = {0};
    put_prompt(b, 1, 1);
    put_bytes(b, 31, zeros, 32);
}
static void kv_address_long(struct sl_buf *b)
{
    char a[256];
    memset(a, 'a', sizeof a);
    put_prompt(b, 1, 1);
    put_bytes(b, 30, a, sizeof a);
    put_bytes(b, 31, a, 32);
}
static void prefill_from_elsewhere(struct sl_buf *b)
{
    char a[32] = "tcp:1.2.3.4:5";
    put_prompt(b, 1, 1);
    put_bytes(b, 30, a, 13);
    put_bytes(b, 31, a, 32);
    put_number(b, 28, 1);
}
static void bias_unequal(struct sl_buf *b)
{
    put_prompt(b, 1, 1);
    put_number(b, 25, 3);
}
static void bias_infinite(struct sl_buf *b)
{
    put_prompt(b, 1, 1);
    put_number(b, 25, 3);
    put_float(b, 26, INFINITY);
}
static void temperature_nan(struct sl_buf *b)
{
    put_prompt(b, 1, 1);
    put_float(b, 11, NAN);
}
static void too_many_stops(struct sl_buf *b)
{
    char zeros[SL_LIMIT_stop_token_ids + 1] = {0};
    put_prompt(b, 1, 1);
    put_bytes(b, 27, zeros, sizeof zeros);
}
static void logprobs_too_many(struct sl_buf *b)
{
    put_prompt(b, 1, 1);
    put_number(b, 19, SL_LIMIT_top_logprobs + 1);
}
static void unknown_field(struct sl_buf *b)
{
    put_prompt(b, 1, 1);
    put_number(b, 1000, 1);
}
static void status_unknown(struct sl_buf *b)
{
    put_number(b, 2, SL_N_STATUS);
}
static void message_not_utf8(struct sl_buf *b)
{
    put_bytes(b, 3, "a\xed\xa0\x80", 4); /* a lone surrogate */
}
static void message_with_nul(struct sl_buf *b)
{
    put_bytes(b, 3, "a\0b", 3);
}
static void message_too_long(struct sl_buf *b)
{
    char text[256];
    memset(text, 'x', sizeof text);
    put_bytes(b, 3, text, sizeof text);
}
static void load_missing(struct sl_buf *b)
{
    put_number(b, 1, 1);
}
static void more_free_than_total(struct sl_buf *b)
{
    put_number(b, 3, 2);
    put_number(b, 4, 1);
}

/* A step with one stream whose share is written by `part`. */
static void put_out(struct sl_buf *b, void (*part)(struct sl_buf *))
{
    struct sl_buf out = {0};
    part(&out);
    put_bytes(b, 2, out.data, out.len);
    put_bytes(b, 3, "", 0);
    sl_buf_free(&out);
}
static void part_end(struct sl_buf *b)
{
    put_number(b, 8, 6);
}
static void part_error_without_status(struct sl_buf *b)
{
    put_number(b, 8, 5);
}
static void part_logprobs(struct sl_buf *b)
{
    put_number(b, 3, 1);
    put_float(b, 4, 0);
    put_float(b, 4, 0);
}
static void part_tops(struct sl_buf *b)
{
    put_number(b, 3, 1);
    put_number(b, 5, 2);
    put_number(b, 6, 1);
    put_float(b, 7, 0);
}
static void part_many_tops(struct sl_buf *b)
{
    put_number(b, 5, UINT32_MAX);
}
static void out_end_unknown(struct sl_buf *b)
{
    put_out(b, part_end);
}
static void out_error_without_status(struct sl_buf *b)
{
    put_out(b, part_error_without_status);
}
static void out_logprobs_unequal(struct sl_buf *b)
{
    put_out(b, part_logprobs);
}
static void out_tops_unequal(struct sl_buf *b)
{
    put_out(b, part_tops);
}
static void out_many_tops(struct sl_buf *b)
{
    put_out(b, part_many_tops);
}
static void meta_past_the_end(struct sl_buf *b)
{
    char zeros[32] = {0};
    put_bytes(b, 1, zeros, 32);
    put_number(b, 2, SL_LIMIT_model_meta_bytes + 1);
}
static void nothing(struct sl_buf *b)
{
    (void)b;
}

static void rank_beyond_the_group(struct sl_buf *b)
{
    struct sl_buf rank = {0};
    put_number(&rank, 1, SL_LIMIT_ranks);
    put_bytes(b, 1, rank.data, rank.len);
    put_number(b, 2, 1);
    put_number(b, 3, 1);
    sl_buf_free(&rank);
}
static void too_many_ranks(struct sl_buf *b)
{
    for (int i = 0; i <= SL_LIMIT_ranks; i++)
        put_bytes(b, 1, "", 0);
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        uint32_t envelope;
        void (*body)(struct sl_buf *b);
        const char *param;
    } rows[] = {
        {ENV_SUBMIT, no_tokens, "submit.tokens"},
        {ENV_SUBMIT, no_prompt, "submit.n_prompt"},
        {ENV_SUBMIT, prompt_longer_than_tokens, "submit.n_prompt"},
        {ENV_SUBMIT, token_outside, "submit.tokens"},
        {ENV_SUBMIT, salt_short, "submit.salt"},
        {ENV_SUBMIT, salt_missing, "submit.salt"},
        {ENV_SUBMIT, kv_key_short, "submit.kv_key"},
        {ENV_SUBMIT, kv_key_alone, "submit.kv_key"},
        {ENV_SUBMIT, kv_address_long, "submit.kv_address"},
        {ENV_SUBMIT, prefill_from_elsewhere, "submit.kv_address"},
        {ENV_SUBMIT, bias_unequal, "submit.bias"},
        {ENV_SUBMIT, bias_infinite, "submit.bias"},
        {ENV_SUBMIT, temperature_nan, "submit.temperature"},
        {ENV_SUBMIT, too_many_stops, "submit.stop_ids"},
        {ENV_SUBMIT, logprobs_too_many, "submit.n_logprobs"},
        {ENV_SUBMIT, unknown_field, "submit"},
        {ENV_WELCOME, status_unknown, "welcome.status"},
        {ENV_WELCOME, message_not_utf8, "welcome.message"},
        {ENV_WELCOME, message_with_nul, "welcome.message"},
        {ENV_WELCOME, message_too_long, "welcome.message"},
        {ENV_STEP, load_missing, "load"},
        {ENV_STEP, out_end_unknown, "out.end"},
        {ENV_STEP, out_error_without_status, "out.status"},
        {ENV_STEP, out_logprobs_unequal, "out.logprobs"},
        {ENV_STEP, out_tops_unequal, "out.top_tokens"},
        {ENV_STEP, out_many_tops, "out.n_top"},
        {ENV_META, meta_past_the_end, "meta.offset"},
        {ENV_LOAD, more_free_than_total, "load.pages_free"},
        {ENV_HELLO, nothing, "hello.meta_sha256"},
        {ENV_RANKS, rank_beyond_the_group, "rank.rank"},
        {ENV_RANKS, too_many_ranks, "ranks"},
        {100, nothing, "message"}, /* a kind of a later version */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sl_buf body = {0}, buf = {0};
        struct sl_arena arena;
        struct sl_msg m;
        struct sl_err err = {0};
        sl_arena_init(&arena, ARENA_BYTES);
        rows[i].body(&body);
        put_bytes(&buf, rows[i].envelope, body.data ? body.data : "", body.len);
        put_check(&buf);
        if (sl_msg_decode(buf.data, buf.len, &arena, &m, &err) != SL_INVALID)
            fail_msg("row %zu is not refused", i);
        if (strcmp(err.param, rows[i].param) != 0)
            fail_msg("row %zu names '%s', wanted '%s'", i, err.param, rows[i].param);
        sl_arena_free(&arena);
        sl_buf_free(&body);
        sl_buf_free(&buf);
    }
}

/* Two bytes on the wire can stand for a whole struct: the arena's cap bounds what that costs. */
static void memory_is_capped(void **state)
{
    (void)state;
    static const size_t caps[] = {4096, 65536, ARENA_BYTES};
    struct sl_buf body = {0}, buf = {0};
    for (int i = 0; i < 1000000; i++)
        put_bytes(&body, 2, "", 0);
    put_bytes(&buf, ENV_STEP, body.data, body.len);
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++) {
        struct sl_arena arena;
        struct sl_msg m;
        struct sl_err err = {0};
        sl_arena_init(&arena, caps[i]);
        assert_int_equal(sl_msg_decode(buf.data, buf.len, &arena, &m, &err), SL_INVALID);
        assert_string_equal(err.param, "size");
        assert_true(arena.high_bytes <= caps[i]);
        sl_arena_free(&arena);
    }
    sl_buf_free(&body);
    sl_buf_free(&buf);
}

/* A length that the bytes do not hold costs nothing. */
static void lengths_are_not_believed(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {2, 0x7fffffff, 0xffffffff, UINT64_MAX / 2, UINT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct sl_buf buf = {0};
        struct sl_arena arena;
        struct sl_msg m;
        struct sl_err err;
        sl_arena_init(&arena, ARENA_BYTES);
        put_varint(&buf, ENV_SUBMIT << 3 | 2);
        put_varint(&buf, lengths[i]);
        sl_buf_putc(&buf, 0);
        assert_int_equal(sl_msg_decode(buf.data, buf.len, &arena, &m, &err), SL_INVALID);
        assert_true(arena.high_bytes < 65536);
        sl_arena_free(&arena);
        sl_buf_free(&buf);
    }
}

static void size_is_bounded(void **state)
{
    (void)state;
    size_t size = SL_LIMIT_bus_message_bytes + 1;
    char *zeros = calloc(size, 1);
    struct sl_arena arena;
    struct sl_msg m;
    struct sl_err err = {0};
    assert_non_null(zeros);
    sl_arena_init(&arena, ARENA_BYTES);
    assert_int_equal(sl_msg_decode(zeros, size, &arena, &m, &err), SL_INVALID);
    assert_string_equal(err.param, "size");
    assert_int_equal(sl_msg_decode(zeros, 0, &arena, &m, &err), SL_INVALID);
    assert_int_equal(arena.high_bytes, 0);
    sl_arena_free(&arena);
    free(zeros);
}

/* The sender is held to the same bounds. */
static void encoder_refuses(void **state)
{
    (void)state;
    struct sl_buf buf = {0};
    struct sl_err err = {0};
    struct samples s;
    samples_fill(&s);
    struct sl_msg none = {.kind = SL_MSG_NONE};
    assert_int_equal(sl_msg_encode(&none, &buf, &err), SL_INVALID);
    s.m[2].submit.top_p = NAN;
    assert_int_equal(sl_msg_encode(&s.m[2], &buf, &err), SL_INVALID);
    assert_string_equal(err.param, "submit.top_p");
    s.outs[1].end = 6;
    assert_int_equal(sl_msg_encode(&s.m[5], &buf, &err), SL_INVALID);
    assert_string_equal(err.param, "out.end");
    assert_int_equal(buf.len, 0);
    sl_buf_free(&buf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(round_trip_large),
        cmocka_unit_test(truncations),
        cmocka_unit_test(bit_flips),
        cmocka_unit_test(checks),
        cmocka_unit_test(refusals),
        cmocka_unit_test(memory_is_capped),
        cmocka_unit_test(size_is_bounded),
        cmocka_unit_test(lengths_are_not_believed),
        cmocka_unit_test(encoder_refuses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
