/* Promise: processes of version 1 and of this version work together on one bus, in both directions;
 * an older peer is sent nothing it does not know; a newer one may say more in its greeting and
 * nowhere else; two sides without a common version say so. */
#include "bus_samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <poll.h>
#include <sluice/base/containers.h>
#include <sluice/base/log.h>
#include <sluice/base/time.h>
#include <zmq.h>

#define ARENA_BYTES ((size_t)8 << 20)
#define PATIENCE_MS 20000 /* of a test that fails; one that passes never waits so long */

/* ---- the codec ---- */

static enum sl_status decode_as(const struct sl_buf *b, uint32_t version, struct sl_arena *arena,
                                struct sl_msg *m, struct sl_err *err)
{
    sl_arena_init(arena, ARENA_BYTES);
    return sl_msg_decode_as(b->data, b->len, version, arena, m, err);
}

/* One field's number and where its value lies; moves *at past it. */
static uint32_t next_field(const uint8_t *data, size_t *at, size_t *value, size_t *len)
{
    uint64_t v[2] = {0, 0};
    uint32_t type = 0;
    for (int k = 0; k < 2; k++) {
        for (int shift = 0;; shift += 7) {
            v[k] |= (uint64_t)(data[*at] & 0x7f) << shift;
            if (!(data[(*at)++] & 0x80))
                break;
        }
        type = v[0] & 7;
        if (type != 0 && type != 2)
            break;
    }
    *value = *at;
    *len = type == 2 ? (size_t)v[1] : type == 1 ? 8 : type == 5 ? 4 : 0;
    *at += *len;
    return (uint32_t)(v[0] >> 3);
}

/* As written down from version 1 itself: the last field of each body and of the parts in it. */
static void assert_old_fields(const struct sl_buf *b, enum sl_msg_kind kind)
{
    static const uint32_t last[] = {
        [SL_MSG_HELLO] = 22, [SL_MSG_WELCOME] = 3,  [SL_MSG_SUBMIT] = 27,    [SL_MSG_CANCEL] = 2,
        [SL_MSG_STEP] = 3,   [SL_MSG_META_GET] = 3, [SL_MSG_META_CHUNK] = 3, [SL_MSG_LOAD] = 12,
        [SL_MSG_PING] = 0,   [SL_MSG_DRAIN] = 0,    [SL_MSG_BYE] = 0};
    const uint8_t *data = (const uint8_t *)b->data;
    size_t at = 0, body, len, value, part;
    assert_true(next_field(data, &at, &body, &len) <= 11);
    assert_int_equal(at, b->len); /* and nothing behind the body */
    for (at = body; at < body + len;) {
        uint32_t n = next_field(data, &at, &value, &part);
        assert_true(n >= 1 && n <= last[kind]);
        bool is_load = (kind == SL_MSG_HELLO && n == 22) || (kind == SL_MSG_STEP && n == 3);
        bool is_out = kind == SL_MSG_STEP && n == 2;
        for (size_t in = value; (is_load || is_out) && in < value + part;) {
            size_t v, l;
            assert_true(next_field(data, &in, &v, &l) <= (is_load ? 12u : 11u));
        }
    }
}

/* What is encoded for version 1 a strict version 1 takes, and with no field of ours. */
static void old_form(void **state)
{
    (void)state;
    struct samples s;
    samples_fill(&s);
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sl_buf old = {0}, again = {0};
        struct sl_arena arena;
        struct sl_msg m;
        struct sl_err err = {0};
        s.m[i].tag = s.m[i].seq = 7;
        enum sl_status status = sl_msg_encode_for(&s.m[i], 1, &old, &err);
        if (s.m[i].kind > SL_MSG_BYE) {
            assert_int_equal(status, SL_UNSUPPORTED);
            continue;
        }
        assert_int_equal(status, SL_OK);
        assert_old_fields(&old, s.m[i].kind);
        if (decode_as(&old, 1, &arena, &m, &err) != SL_OK)
            fail_msg("sample %d: %s", i, err.msg);
        assert_int_equal(m.kind, s.m[i].kind);
        assert_int_equal(m.tag, 0);
        assert_int_equal(m.seq, 0);
        /* Nothing was lost but what is new: the same bytes come out again. */
        assert_int_equal(sl_msg_encode_for(&m, 1, &again, &err), SL_OK);
        assert_int_equal(again.len, old.len);
        assert_memory_equal(again.data, old.data, old.len);
        sl_arena_free(&arena);
        sl_buf_free(&old);
        sl_buf_free(&again);
    }
}

/* The present form is refused by version 1, whichever message it is. */
static void new_form(void **state)
{
    (void)state;
    struct samples s;
    samples_fill(&s);
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sl_buf b = {0};
        struct sl_arena arena;
        struct sl_msg m;
        struct sl_err err = {0};
        assert_int_equal(sl_msg_encode(&s.m[i], &b, &err), SL_OK);
        assert_int_equal(decode_as(&b, 1, &arena, &m, &err), SL_INVALID);
        sl_arena_free(&arena);
        sl_buf_free(&b);
    }
}

static void put_varint(struct sl_buf *b, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        sl_buf_putc(b, (char)(v | 0x80));
    sl_buf_putc(b, (char)v);
}

/* A field numbered 1000 inside the body and one in the envelope, as a later version would have. */
static void say_more(const struct sl_msg *m, struct sl_buf *out)
{
    struct sl_buf old = {0}, body = {0};
    struct sl_err err;
    assert_int_equal(sl_msg_encode_for(m, 1, &old, &err), SL_OK);
    size_t at = 1;
    while (old.data[at] & 0x80)
        at++;
    at++;
    sl_buf_append(&body, old.data + at, old.len - at);
    put_varint(&body, 1000u << 3);
    put_varint(&body, 42);
    sl_buf_putc(out, old.data[0]);
    put_varint(out, body.len);
    sl_buf_append(out, body.data, body.len);
    put_varint(out, 1001u << 3);
    put_varint(out, 42);
    uint64_t sum = sl_hash64(out->data, out->len, 0);
    put_varint(out, 29u << 3 | 1); /* the check, without which nothing new is believed */
    for (int i = 0; i < 8; i++)
        sl_buf_putc(out, (char)(sum >> 8 * i));
    sl_buf_free(&old);
    sl_buf_free(&body);
}

static void unknown_fields(void **state)
{
    (void)state;
    struct samples s;
    samples_fill(&s);
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sl_buf b = {0};
        struct sl_arena arena;
        struct sl_msg m;
        struct sl_err err = {0};
        if (s.m[i].kind > SL_MSG_BYE)
            continue;
        say_more(&s.m[i], &b);
        bool greets = s.m[i].kind == SL_MSG_HELLO || s.m[i].kind == SL_MSG_WELCOME;
        assert_int_equal(decode_as(&b, SL_BUS_VERSION, &arena, &m, &err),
                         greets ? SL_OK : SL_INVALID);
        sl_arena_free(&arena);
        assert_int_equal(decode_as(&b, 1, &arena, &m, &err), SL_INVALID);
        sl_arena_free(&arena);
        sl_buf_free(&b);
    }
}

/* ---- the bus ---- */

static struct sl_bus *open_bus(bool is_router, const char *endpoint, uint32_t version)
{
    struct sl_bus_config cfg = {.endpoints = &endpoint,
                                .n_endpoints = 1,
                                .is_router = is_router,
                                .version = version};
    struct sl_bus *b;
    struct sl_err err;
    if (sl_bus_open(&cfg, &b, &err) != SL_OK)
        fail_msg("%s", err.msg);
    return b;
}

/* A worker and a router as they really behave: HELLO, then LOAD until there is a WELCOME; HELLO
 * again when told so; a stranger's LOAD is answered. Returns the version that both took. */
static uint32_t meet(uint32_t router_version, uint32_t worker_version)
{
    struct sl_bus *router = open_bus(true, "tcp://127.0.0.1:*", router_version);
    struct sl_bus *worker = open_bus(false, sl_bus_endpoint(router, 0), worker_version);
    struct samples s;
    struct sl_msg m, load = {.kind = SL_MSG_LOAD}, welcome = {.kind = SL_MSG_WELCOME};
    struct sl_err err;
    uint64_t link = 0, from, until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
    bool greet = true, welcomed = false;
    samples_fill(&s);
    s.m[0].hello.greeting = 0;
    while (!welcomed) {
        assert_true(sl_now_ns() < until);
        s.m[0].hello.greeting += greet;
        if (greet)
            greet = sl_bus_send(worker, 0, &s.m[0], &err) != SL_OK;
        else
            sl_bus_send(worker, 0, &load, &err);
        struct pollfd p[] = {{.fd = sl_bus_fd(router), .events = POLLIN},
                             {.fd = sl_bus_fd(worker), .events = POLLIN}};
        poll(p, 2, 10);
        assert_int_equal(sl_bus_recv(router, &from, &m, &err), SL_OK);
        if (m.kind == SL_MSG_HELLO)
            link = from;
        welcome.welcome.status = link == from && link ? SL_OK : SL_PEER;
        if (m.kind != SL_MSG_NONE)
            sl_bus_send(router, from, &welcome, &err);
        if (m.kind != SL_MSG_NONE && welcome.welcome.status == SL_PEER)
            sl_bus_drop(router, from);
        assert_int_equal(sl_bus_recv(worker, &from, &m, &err), SL_OK);
        greet |= m.kind == SL_MSG_WELCOME && m.welcome.status == SL_PEER;
        welcomed = m.kind == SL_MSG_WELCOME && m.welcome.status == SL_OK;
    }
    uint32_t agreed = sl_bus_link_version(worker, 0);
    assert_int_equal(agreed, sl_bus_link_version(router, link));
    sl_bus_close(worker);
    sl_bus_close(router);
    return agreed;
}

static void versions_meet(void **state)
{
    (void)state;
    assert_int_equal(meet(0, 0), SL_BUS_VERSION);
    assert_int_equal(meet(1, 0), 1);
    assert_int_equal(meet(0, 1), 1);
    assert_int_equal(meet(1, 1), 1);
}

/* A HELLO of a worker from the future that does not speak our version any more. */
static void no_common_version(void **state)
{
    (void)state;
    struct sl_bus *router = open_bus(true, "tcp://127.0.0.1:*", 0);
    void *ctx = zmq_ctx_new(), *raw = zmq_socket(ctx, ZMQ_DEALER);
    const int linger = 0;
    struct samples s;
    struct sl_buf hello = {0};
    struct sl_arena arena;
    struct sl_msg m = {0};
    struct sl_err err;
    char answer[512];
    uint64_t link, until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
    samples_fill(&s);
    s.m[0].hello.version = s.m[0].hello.version_min = 9;
    assert_int_equal(sl_msg_encode(&s.m[0], &hello, &err), SL_OK);
    zmq_setsockopt(raw, ZMQ_LINGER, &linger, sizeof linger);
    assert_int_equal(zmq_connect(raw, sl_bus_endpoint(router, 0)), 0);
    assert_true(zmq_send(raw, hello.data, hello.len, 0) >= 0);
    int n = -1;
    while (n < 0 && sl_now_ns() < until) {
        struct pollfd p = {.fd = sl_bus_fd(router), .events = POLLIN};
        poll(&p, 1, 10);
        assert_int_equal(sl_bus_recv(router, &link, &m, &err), SL_OK);
        assert_int_equal(m.kind, SL_MSG_NONE);
        n = zmq_recv(raw, answer, sizeof answer, ZMQ_DONTWAIT);
    }
    assert_true(n > 0 && n < (int)sizeof answer);
    sl_arena_init(&arena, ARENA_BYTES);
    assert_int_equal(sl_msg_decode(answer, (size_t)n, &arena, &m, &err), SL_OK);
    assert_int_equal(m.welcome.status, SL_UNSUPPORTED);
    snprintf(answer, sizeof answer, "%.*s", (int)m.welcome.message.len, m.welcome.message.data);
    assert_non_null(strstr(answer, "1 to 2"));
    assert_non_null(strstr(answer, "9 to 9"));
    sl_arena_free(&arena);
    sl_buf_free(&hello);
    zmq_close(raw);
    zmq_ctx_term(ctx);
    sl_bus_close(router);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(old_form),          cmocka_unit_test(new_form),
        cmocka_unit_test(unknown_fields),    cmocka_unit_test(versions_meet),
        cmocka_unit_test(no_common_version),
    };
    sl_log_open(SL_LOG_TEXT, SL_LOG_ERROR, "test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
