/* Promise: a secure link carries frames exactly, between two that hold the same key and nobody
 * else; whatever else comes to its door neither gets in nor keeps others out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "comm/secure_door.h"

#include <poll.h>
#include <sluice/base/time.h>
#include <sys/socket.h>
#include <unistd.h>

#define PATIENCE_NS (60 * SL_S_NS)
#define KIND        7

static const struct secure_psk good = {"pair 1", "0123456789abcdef0123456789abcde"};

static bool find_key(void *ctx, const char *identity, struct secure_psk *out)
{
    (void)ctx;
    if (strcmp(identity, good.identity) != 0)
        return false;
    *out = good;
    return true;
}

static struct secure_door *open_door(void)
{
    struct secure_door *d;
    struct sl_err err;
    if (secure_door_open(NULL, find_key, NULL, &d, &err))
        fail_msg("%s", err.msg);
    return d;
}

static struct secure_link *dial(const struct secure_door *d, const struct secure_psk *psk)
{
    struct secure_link *l = NULL;
    struct sl_err err;
    int fd = -1;
    if (secure_connect(secure_door_address(d), &fd, &err) || secure_link_client(fd, psk, &l, &err))
        fail_msg("%s", err.msg);
    return l;
}

/* Moves both ends until the server's is there; the status is the client's. */
static enum sl_status shake(struct secure_door *d, struct secure_link *client,
                            struct secure_link **server, struct sl_err *err)
{
    uint64_t until = sl_now_ns() + PATIENCE_NS;
    bool done = false;
    *server = NULL;
    while ((!done || !*server) && sl_now_ns() < until) {
        struct pollfd fds[SECURE_DOOR_FDS + 1];
        enum sl_status s = secure_link_handshake(client, &done, err);
        if (s)
            return s;
        if (!*server)
            assert_int_equal(secure_door_take(d, server, err), SL_OK);
        size_t n = secure_door_fds(d, fds);
        fds[n] = (struct pollfd){secure_link_fd(client), secure_link_events(client), 0};
        poll(fds, n + 1, 10);
    }
    assert_true(done && *server);
    return SL_OK;
}

static void meet(struct secure_door *d, struct secure_link **client, struct secure_link **server)
{
    struct sl_err err;
    *client = dial(d, &good);
    if (shake(d, *client, server, &err))
        fail_msg("%s", err.msg);
    assert_string_equal(secure_link_identity(*server), good.identity);
}

static void test_frames_arrive_as_they_were_sent(void **state)
{
    enum { BYTES = 1000003 };
    static uint8_t out[BYTES], in[BYTES];
    (void)state;
    struct secure_link *a, *b;
    struct secure_door *d = open_door();
    struct sl_err err;
    struct secure_frame f;
    size_t sent = 0, got, at = 0;
    bool have, taken = false;
    meet(d, &a, &b);
    for (size_t i = 0; i < BYTES; i++)
        out[i] = (uint8_t)(i * 2654435761u >> 13);
    assert_int_equal(secure_link_note(a, 1, NULL, 0, &taken, &err), SL_OK);
    assert_true(taken);
    uint64_t until = sl_now_ns() + PATIENCE_NS;
    bool saw_note = false;
    while (at < BYTES && sl_now_ns() < until) {
        const struct secure_span spans[2] = {{out, 333}, {out + 333, BYTES - 333}};
        struct secure_span rest[2] = {spans[0], spans[1]};
        size_t skip = sent < 333 ? sent : 333;
        rest[0].data = out + skip, rest[0].bytes -= skip;
        rest[1].data = out + 333 + (sent - skip), rest[1].bytes -= sent - skip;
        assert_int_equal(secure_link_push(a, KIND, rest, 2, &got, &err), SL_OK);
        sent += got;
        assert_int_equal(secure_link_front(b, &f, &have, &err), SL_OK);
        if (!have)
            continue;
        if (f.bytes == 0) {
            assert_int_equal(f.kind, 1);
            saw_note = true;
            continue;
        }
        assert_int_equal(f.kind, KIND);
        assert_true(f.bytes <= SECURE_FRAME_MAX);
        assert_int_equal(secure_link_pull(b, in + at, BYTES - at, &got, &err), SL_OK);
        at += got;
    }
    assert_true(saw_note);
    assert_int_equal(at, BYTES);
    assert_memory_equal(in, out, BYTES);
    secure_link_free(a);
    enum sl_status s; /* the end is an error, not silence */
    while ((s = secure_link_front(b, &f, &have, &err)) == SL_OK)
        secure_link_wait(b, POLLIN, until);
    assert_int_equal(s, SL_PEER);
    secure_link_free(b);
    secure_door_close(d);
}

static void test_other_keys_are_refused(void **state)
{
    (void)state;
    const struct secure_psk bad[] = {{"pair 1", "another key of thirty-two bytes"},
                                     {"pair 2", "0123456789abcdef0123456789abcde"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct secure_door *d = open_door();
        struct secure_link *a = dial(d, &bad[i]), *b;
        struct sl_err err;
        assert_int_equal(shake(d, a, &b, &err), SL_PEER);
        assert_null(b);
        assert_int_equal(secure_door_n_refused(d), 1);
        secure_link_free(a);
        secure_door_close(d);
    }
}

static void test_squatters_and_garbage_keep_nobody_out(void **state)
{
    (void)state;
    enum { SQUATTERS = 2 * SECURE_DOOR_PENDING };
    struct secure_door *d = open_door();
    struct secure_link *a, *b;
    struct sl_err err;
    uint8_t garbage[512];
    int fds[SQUATTERS];
    for (size_t i = 0; i < sizeof garbage; i++)
        garbage[i] = (uint8_t)(sl_rng_u64(&(struct sl_rng){1, i}));
    for (int i = 0; i < SQUATTERS; i++) {
        if (secure_connect(secure_door_address(d), &fds[i], &err))
            fail_msg("%s", err.msg);
        struct pollfd p = {fds[i], POLLOUT, 0};
        poll(&p, 1, 10000);
        if (i % 3 == 0)
            send(fds[i], garbage, (size_t)i, MSG_NOSIGNAL);
        assert_int_equal(secure_door_take(d, &b, &err), SL_OK);
        assert_null(b);
    }
    meet(d, &a, &b);
    for (int i = 0; i < SQUATTERS; i++)
        close(fds[i]);
    assert_true(secure_door_n_refused(d) >= SQUATTERS - SECURE_DOOR_PENDING);
    secure_link_free(a);
    secure_link_free(b);
    secure_door_close(d);
}

static void test_addresses_are_checked(void **state)
{
    (void)state;
    static const char *const bad[] = {"",       ":",     "127.0.0.1",    "127.0.0.1:",
                                      ":80",    "[]:80", "localhost:80", "127.0.0.1:99999999",
                                      "[::1:80"};
    char address[SECURE_ADDRESS_BYTES];
    struct sl_err err;
    int fd;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(secure_connect(bad[i], &fd, &err), SL_INVALID);
    assert_int_equal(secure_listen("0.0.0.0", &fd, address, &err), SL_CONFIG);
    assert_int_equal(secure_listen("192.0.2.1", &fd, address, &err), SL_CONFIG);
    assert_int_equal(secure_listen("127.0.0.7", &fd, address, &err), SL_OK);
    assert_memory_equal(address, "127.0.0.7:", 10);
    close(fd);
}

static void test_frame_heads_are_checked(void **state)
{
    (void)state;
    static const struct {
        uint8_t head[SECURE_FRAME_HEAD];
        enum sl_status status;
    } rows[] = {
        {{0, 0, 0, 0, 9}, SL_OK},
        {{0xf8, 0x3f, 0, 0, 1}, SL_OK},
        {{0xf9, 0x3f, 0, 0, 1}, SL_INVALID},
        {{0xff, 0xff, 0xff, 0xff, 1}, SL_INVALID},
        {{1, 0, 0, 0, 1, 1}, SL_INVALID},
        {{1, 0, 0, 0, 1, 0, 0, 0x80}, SL_INVALID},
    };
    struct secure_frame f;
    struct sl_err err;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(secure_frame_decode(rows[i].head, &f, &err), rows[i].status);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames_arrive_as_they_were_sent),
        cmocka_unit_test(test_other_keys_are_refused),
        cmocka_unit_test(test_squatters_and_garbage_keep_nobody_out),
        cmocka_unit_test(test_addresses_are_checked),
        cmocka_unit_test(test_frame_heads_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
