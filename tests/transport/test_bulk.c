/* Pages arrive as they were sent or not at all: over shared memory and TCP, whatever is flipped,
 * cut off or claimed on the way, whoever dies or falls silent; what was complete before stays good.
 */
#include "bulk_rig.h"

/* --- frames ----------------------------------------------------------------------------------- */

static void test_every_flip_is_seen(void **state)
{
    (void)state;
    enum { N_PAYLOAD = 64 };
    uint8_t header[BULK_HEADER_BYTES + N_PAYLOAD], *payload = header + BULK_HEADER_BYTES;
    for (size_t i = 0; i < N_PAYLOAD; i++)
        payload[i] = (uint8_t)(i * 7);
    struct bulk_frame f = {.kind = BULK_ROW,
                           .slot = 3,
                           .generation = 9,
                           .page = 5,
                           .layer = 2,
                           .size = N_PAYLOAD,
                           .seq = 11,
                           .value = 1};
    struct bulk_frame got;
    sl_bulk_frame_put(&f, 42, payload, header);
    assert_int_equal(sl_bulk_frame_get(header, BULK_HEADER_BYTES, N_PAYLOAD, &got, NULL), SL_OK);
    assert_true(sl_bulk_frame_proven(header, &got, 42, payload));
    assert_false(sl_bulk_frame_proven(header, &got, 43, payload));
    assert_true(got.kind == f.kind && got.slot == 3 && got.generation == 9 && got.page == 5 &&
                got.layer == 2 && got.seq == 11);
    for (size_t bit = 0; bit < 8 * sizeof header; bit++) {
        header[bit / 8] ^= (uint8_t)(1 << bit % 8);
        bool parsed = !sl_bulk_frame_get(header, BULK_HEADER_BYTES, 0, &got, NULL);
        if (parsed && got.size <= N_PAYLOAD && sl_bulk_frame_proven(header, &got, 42, payload))
            fail_msg("a flip of bit %zu is not seen", bit);
        header[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static void test_frame_bounds(void **state)
{
    (void)state;
    const struct bulk_frame rows[] = {
        {.kind = 0},
        {.kind = BULK_N_KIND},
        {.kind = BULK_ROW, .size = 0},
        {.kind = BULK_ROW, .size = SL_LIMIT_bulk_row_bytes + 1u},
        {.kind = BULK_ROW, .size = 8, .page = SL_LIMIT_bulk_pages},
        {.kind = BULK_ROW, .size = 8, .layer = SL_LIMIT_model_layers},
        {.kind = BULK_ASK, .size = BULK_ASK_BYTES - 1},
        {.kind = BULK_PAGE, .size = 33},
        {.kind = BULK_KEEP, .size = 1},
        {.kind = BULK_END, .size = UINT32_MAX},
    };
    static uint8_t payload[SL_LIMIT_bulk_row_bytes + 1u];
    uint8_t header[BULK_HEADER_BYTES];
    struct bulk_frame got;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct bulk_frame f = rows[i];
        if (f.size == UINT32_MAX)
            f.size = sizeof payload;
        sl_bulk_frame_put(&f, 1, payload, header);
        if (sl_bulk_frame_get(header, sizeof header, 0, &got, NULL) != SL_INVALID)
            fail_msg("row %zu passes", i);
    }
    for (size_t n = 0; n < sizeof header; n++)
        assert_int_equal(sl_bulk_frame_get(header, n, 0, &got, NULL), SL_INVALID);
}

static void test_ask_bounds(void **state)
{
    (void)state;
    struct sl_bulk_ask ask = {.first = 1, .n_pages = 4, .part = {1, 2, 0, 1}, .n_readers = 2}, got;
    uint8_t bytes[BULK_ASK_BYTES];
    sl_bulk_ask_put(&ask, &layout, bytes);
    assert_int_equal(sl_bulk_ask_get(bytes, 5, &layout, &got, NULL), SL_OK);
    assert_true(got.ticket == 5 && got.first == 1 && got.n_pages == 4);
    for (uint32_t i = 0; i < 4; i++) {
        struct sl_bulk_layout other = layout;
        other.page_size += i == 0;
        other.n_layers += i == 1;
        other.head_bytes += i == 2;
        other.n_heads += i == 3;
        assert_int_equal(sl_bulk_ask_get(bytes, 5, &other, &got, NULL), SL_INVALID);
    }
    const uint32_t bad[][2] = {{4, 4}, {5, 4}, {0, 0}, {0, SL_LIMIT_bulk_pages + 1u}, {~0u, ~0u}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ask.first = bad[i][0], ask.n_pages = bad[i][1];
        sl_bulk_ask_put(&ask, &layout, bytes);
        assert_int_equal(sl_bulk_ask_get(bytes, 5, &layout, &got, NULL), SL_INVALID);
    }
}

/* --- transfers -------------------------------------------------------------------------------- */

static void test_transfers(void **state)
{
    (void)state;
    for (size_t v = 0; v < 2; v++) {
        source_fill(&src, v);
        src.n_waits = 2;
        struct sl_bulk_server *s = serve(VIA(v), "key");
        for (uint32_t first = 0; first < N_PAGES; first += 2)
            for (uint32_t n = first + 1; n <= N_PAGES; n += 3) {
                struct sl_bulk_fetched got;
                struct sl_err err = {0};
                struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), first, n);
                if (run_fetch(&f, &got, &err))
                    fail_msg("via %u, pages %u to %u: %s", VIA(v), first, n, err.msg);
                assert_int_equal(got.n_complete, n - first);
                assert_int_equal(got.n_bytes, (uint64_t)(n - first) * N_LAYERS * ROW);
                assert_int_equal(got.via, VIA(v));
                assert_int_equal(got.n_bad, 0);
            }
        sl_bulk_server_close(s);
        assert_int_equal(src.n_open, src.n_closed);
    }
}

/* Far fewer slots than rows: the server waits for room. */
static void test_small_window(void **state)
{
    (void)state;
    struct bulk_window w;
    struct sl_bulk_fetched got;
    struct sl_err err = {0};
    assert_true(sl_bulk_window_make(&w, BIG_ROW));
    assert_int_equal(w.n_slots, 3);
    sl_bulk_window_close(&w);
    layout.head_bytes = BIG_ROW;
    source_fill(&src, 9);
    struct sl_bulk_server *s = serve(SL_BULK_SHM, "key");
    struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
    if (run_fetch(&f, &got, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(got.n_complete, N_PAGES);
    sl_bulk_server_close(s);
    layout.head_bytes = ROW;
    assert_true(sl_bulk_window_make(&w, SL_LIMIT_bulk_row_bytes));
    assert_int_equal(w.n_slots, 2);
    sl_bulk_window_close(&w);
}

static void test_shared_memory_is_checked(void **state)
{
    (void)state;
    struct bulk_window w;
    struct sl_err err;
    int fd = memfd_create("t", MFD_CLOEXEC | MFD_ALLOW_SEALING); /* may shrink: a trap */
    assert_true(fd >= 0 && ftruncate(fd, 8 * ROW) == 0);
    assert_int_equal(sl_bulk_window_map(&w, fd, 8, ROW, &err), SL_INVALID);
    assert_true(sl_bulk_window_make(&w, ROW));
    struct bulk_window other;
    assert_int_equal(sl_bulk_window_map(&other, dup(w.fd), w.n_slots + 1, ROW, &err), SL_INVALID);
    assert_int_equal(sl_bulk_window_map(&other, dup(w.fd), 0, ROW, &err), SL_INVALID);
    assert_int_equal(sl_bulk_window_map(&other, dup(w.fd), w.n_slots, ROW, &err), SL_OK);
    sl_bulk_window_close(&other);
    sl_bulk_window_close(&w);
    fd = dup(STDIN_FILENO); /* not shared memory at all */
    assert_int_equal(sl_bulk_window_map(&w, fd, 1, ROW, &err), SL_INVALID);
}

static void test_refusals(void **state)
{
    (void)state;
    for (size_t v = 0; v < 2; v++) {
        source_fill(&src, 3);
        struct sl_bulk_server *s = serve(VIA(v), "key");
        for (uint32_t i = 0; i < 7; i++) {
            struct sl_bulk_fetched got;
            struct sl_err err = {0};
            struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
            f.ask.ticket += i == 0;
            f.ask.last_key[31] ^= i == 1;
            f.layout.class_hash += i == 2;
            f.layout.page_size += i == 3;
            f.layout.n_layers -= i == 4;
            f.layout.head_bytes -= i == 5;
            if (i == 6)
                f.address = "tcp:127.0.0.1:1";
            assert_int_not_equal(run_fetch(&f, &got, &err), SL_OK);
            assert_int_equal(got.n_complete, 0);
        }
        sl_bulk_server_close(s);
        assert_int_equal(src.n_open, src.n_closed);
    }
}

/* A key of a page that is not what the client computed: complete pages before it stay. */
static void test_another_prefix(void **state)
{
    (void)state;
    source_fill(&src, 4);
    struct sl_bulk_server *s = serve(SL_BULK_SHM, "key");
    struct sl_bulk_fetched got;
    struct sl_err err;
    uint8_t keys[N_PAGES][32];
    memcpy(keys, src.keys, sizeof keys);
    keys[2][0] ^= 1;
    struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
    f.keys = (const uint8_t(*)[32])keys;
    assert_int_equal(run_fetch(&f, &got, &err), SL_FAILED);
    assert_int_equal(got.n_complete, 2);
    assert_int_equal(got.n_bad, 1);
    sl_bulk_server_close(s);
}

/* --- a hostile line: flips or cuts the server's bytes ------------------------------------------
 */

struct line {
    int listener, to_server_port, port;
    uint64_t flip_at, cut_at; /* byte of the server's stream */
    pthread_t thread;
};

static int tcp_socket(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    return fd;
}

static void relay(int client, int server, const struct line *l)
{
    struct pollfd fds[2] = {{.fd = client, .events = POLLIN}, {.fd = server, .events = POLLIN}};
    uint8_t buf[1500];
    uint64_t n_down = 0;
    for (;;) {
        poll(fds, 2, -1);
        int from = fds[1].revents ? 1 : 0;
        ssize_t n = recv(fds[from].fd, buf, sizeof buf, 0);
        if (n <= 0)
            return;
        for (ssize_t i = 0; from == 1 && i < n; i++, n_down++) {
            if (n_down == l->flip_at)
                buf[i] ^= 0x10;
            if (n_down == l->cut_at)
                n = i;
        }
        if (send(fds[!from].fd, buf, (size_t)n, MSG_NOSIGNAL) != n || n_down > l->cut_at)
            return;
    }
}

static void *line_thread(void *arg)
{
    struct line *l = arg;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)l->to_server_port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = accept(l->listener, NULL, NULL), server = tcp_socket();
    if (client >= 0 && connect(server, (struct sockaddr *)&to, sizeof to) == 0)
        relay(client, server, l);
    close(client);
    close(server);
    return NULL;
}

static void line_open(struct line *l, const char *server_address)
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    l->to_server_port = atoi(strrchr(server_address, ':') + 1);
    l->listener = tcp_socket();
    assert_int_equal(bind(l->listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(l->listener, 1), 0);
    assert_int_equal(getsockname(l->listener, (struct sockaddr *)&at, &len), 0);
    l->port = ntohs(at.sin_port);
    assert_int_equal(pthread_create(&l->thread, NULL, line_thread, l), 0);
}

static void line_close(struct line *l)
{
    pthread_join(l->thread, NULL);
    close(l->listener);
}

static void over_line(const char *address, uint64_t flip_at, uint64_t cut_at)
{
    struct line l = {.flip_at = flip_at, .cut_at = cut_at};
    struct sl_bulk_fetched got;
    struct sl_err err = {0};
    char via[64];
    line_open(&l, address);
    snprintf(via, sizeof via, "tcp:127.0.0.1:%d", l.port);
    struct sl_bulk_fetch f = fetch_of(via, 0, N_PAGES);
    if (run_fetch(&f, &got, &err) == SL_OK)
        fail_msg("flip at %llu, cut at %llu: not noticed", (unsigned long long)flip_at,
                 (unsigned long long)cut_at);
    assert_true(got.n_complete < N_PAGES);
    line_close(&l);
}

static void test_flips_and_cuts(void **state)
{
    (void)state;
    source_fill(&src, 5);
    struct sl_bulk_server *s = serve(SL_BULK_TCP, "key");
    uint64_t total = 48 + N_PAGES * (N_LAYERS * (48 + ROW) + 80);
    for (uint64_t at = 0; at < 400; at += 23) { /* the handshake and the first records */
        over_line(sl_bulk_server_address(s), at, UINT64_MAX);
        over_line(sl_bulk_server_address(s), UINT64_MAX, at);
    }
    for (uint64_t at = 400; at < total; at += 5003) {
        over_line(sl_bulk_server_address(s), at, UINT64_MAX);
        over_line(sl_bulk_server_address(s), UINT64_MAX, at);
    }
    sl_bulk_server_close(s);
    assert_int_equal(src.n_open, src.n_closed);
}

/* --- damage behind the encryption ----------------------------------------------------------------
 */

/* A bit of the n-th row flips after its checksum was made: that page and all after it are not
 * counted, whichever row it is. */
static void test_every_damaged_row(void **state)
{
    (void)state;
    for (size_t v = 0; v < 2; v++)
        for (uint32_t n = 0; n < N_PAGES * N_LAYERS; n += 2) {
            char spec[64];
            struct sl_bulk_fetched got;
            struct sl_err err;
            source_fill(&src, 10);
            struct sl_bulk_server *s = serve(VIA(v), "key");
            snprintf(spec, sizeof spec, "bulk.corrupt=1+%u", n);
            assert_int_equal(sl_faults_set(spec, &err), SL_OK);
            struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
            assert_int_equal(run_fetch(&f, &got, &err), SL_FAILED);
            assert_int_equal(got.n_bad, 1);
            assert_int_equal(got.n_complete, n / (CHUNK * N_LAYERS) * CHUNK);
            sl_bulk_server_close(s);
            assert_int_equal(sl_faults_set("", &err), SL_OK);
            assert_int_equal(src.n_open, src.n_closed);
        }
}

/* Only who has the server's key gets as far as asking. */
static void test_wrong_key(void **state)
{
    (void)state;
    source_fill(&src, 11);
    struct sl_bulk_server *s = serve(SL_BULK_TCP, "key");
    struct sl_bulk_stats stats = {0};
    struct sl_bulk_fetched got;
    struct sl_err err = {0};
    for (uint32_t i = 0; i < 3; i++) {
        struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
        f.key[i * 15] ^= 1;
        assert_int_equal(run_fetch(&f, &got, &err), SL_PEER);
        assert_int_equal(got.n_complete, 0);
    }
    while (stats.n_unproved < 3) { /* bounded by the test's time limit */
        poll(NULL, 0, 1);
        sl_bulk_server_stats(s, &stats);
    }
    assert_int_equal(src.n_open, 0);
    struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
    if (run_fetch(&f, &got, &err)) /* others are served as ever */
        fail_msg("%s", err.msg);
    sl_bulk_server_close(s);
}

/* More connections than there are places, none of them saying anything. */
static void test_squatters(void **state)
{
    (void)state;
    enum { N = 200 };
    int fds[N];
    source_fill(&src, 12);
    struct sl_bulk_server *s = serve(SL_BULK_TCP, "key");
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)atoi(strrchr(sl_bulk_server_address(s), ':') + 1));
    for (int i = 0; i < N; i++) {
        fds[i] = tcp_socket();
        assert_int_equal(connect(fds[i], (struct sockaddr *)&to, sizeof to), 0);
    }
    struct sl_bulk_fetched got;
    struct sl_err err = {0};
    struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
    if (run_fetch(&f, &got, &err))
        fail_msg("%s", err.msg);
    for (int i = 0; i < N; i++)
        close(fds[i]);
    sl_bulk_server_close(s);
}

/* --- time and death ----------------------------------------------------------------------------
 */

/* The source has nothing to say for long: the server still gives signs of life, and the transfer
 * ends when the client's patience does. */
static void test_stalled_source(void **state)
{
    (void)state;
    for (size_t v = 0; v < 2; v++) {
        source_fill(&src, 6);
        src.stall_at = CHUNK;
        struct sl_bulk_server *s = serve(VIA(v), "key");
        struct sl_bulk_fetched got;
        struct sl_err err;
        struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
        f.total_ms = 700;
        assert_int_equal(run_fetch(&f, &got, &err), SL_TIMEOUT);
        assert_true(got.n_complete <= CHUNK);
        sl_bulk_server_close(s); /* cuts what still waits */
        assert_int_equal(src.n_open, src.n_closed);
    }
}

/* No frame at all for longer than the client's patience, as from a process that was stopped. */
static void test_silence(void **state)
{
    (void)state;
    for (size_t v = 0; v < 2; v++) {
        source_fill(&src, 13);
        src.block_ms = 600;
        struct sl_bulk_server *s = serve(VIA(v), "key");
        struct sl_bulk_fetched got;
        struct sl_err err;
        struct sl_bulk_fetch f = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
        f.silence_ms = 200;
        assert_int_equal(run_fetch(&f, &got, &err), SL_TIMEOUT);
        sl_bulk_server_close(s);
        assert_int_equal(src.n_open, src.n_closed);
    }
}

/* A peer that accepts and is silent in the handshake. */
static void test_silent_peer(void **state)
{
    (void)state;
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    int listener = tcp_socket();
    char address[64];
    struct sl_bulk_fetched got;
    struct sl_err err;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&at, &len), 0);
    snprintf(address, sizeof address, "tcp:127.0.0.1:%d", ntohs(at.sin_port));
    struct sl_bulk_fetch f = fetch_of(address, 0, N_PAGES);
    f.silence_ms = 100;
    assert_int_equal(run_fetch(&f, &got, &err), SL_TIMEOUT);
    atomic_bool stop = true;
    f.stop = &stop;
    assert_int_equal(run_fetch(&f, &got, &err), SL_CANCELLED);
    close(listener);
}

static void *close_server(void *arg)
{
    while (src.n_open == 0)
        poll(NULL, 0, 1);
    sl_bulk_server_close(arg);
    return NULL;
}

static void test_server_dies(void **state)
{
    (void)state;
    for (size_t v = 0; v < 2; v++) {
        source_fill(&src, 7);
        src.stall_at = CHUNK;
        struct sl_bulk_server *s = serve(VIA(v), "key");
        char address[SL_BULK_ADDRESS_MAX];
        pthread_t closer;
        struct sl_bulk_fetched got;
        struct sl_err err;
        strcpy(address, sl_bulk_server_address(s));
        assert_int_equal(pthread_create(&closer, NULL, close_server, s), 0);
        struct sl_bulk_fetch f = fetch_of(address, 0, N_PAGES);
        assert_int_equal(run_fetch(&f, &got, &err), SL_PEER);
        pthread_join(closer, NULL);
        assert_int_equal(run_fetch(&f, &got, &err), SL_PEER); /* nobody is there now */
        assert_int_equal(src.n_open, src.n_closed);
    }
}

/* A client that asks and goes, or says nothing useful at all: the source is closed again. */
static void test_client_goes(void **state)
{
    (void)state;
    source_fill(&src, 8);
    struct sl_bulk_server *s = serve(SL_BULK_SHM, "key");
    struct bulk_link l;
    struct sl_err err;
    uint8_t header[BULK_HEADER_BYTES], payload[BULK_ASK_BYTES];
    struct bulk_frame f = {.kind = BULK_ASK, .size = sizeof payload, .value = TICKET};
    struct sl_bulk_fetch as = fetch_of(sl_bulk_server_address(s), 0, N_PAGES);
    struct sl_bulk_stats stats = {0};
    sl_bulk_ask_put(&as.ask, &layout, payload);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(sl_bulk_connect(as.address, as.key, NULL, sl_now_ns() + SL_S_NS, &l, &err),
                         SL_OK);
        f.kind = i == 1 ? BULK_KEEP : BULK_ASK;
        f.size = i == 1 ? 0 : sizeof payload;
        f.page = i == 2 ? 5 : 0; /* shared memory that does not come */
        sl_bulk_frame_put(&f, layout.class_hash, payload, header);
        header[0] ^= i == 3;
        assert_int_equal(sl_bulk_write(&l, header, sizeof header, payload, sizeof payload, -1,
                                       sl_now_ns() + SL_S_NS, &err),
                         SL_OK);
        sl_bulk_link_close(&l);
    }
    while (stats.n_refused < 3 || src.n_closed < 1) { /* bounded by the test's time limit */
        poll(NULL, 0, 1);
        sl_bulk_server_stats(s, &stats);
    }
    assert_int_equal(stats.n_refused, 3);
    sl_bulk_server_close(s);
}

static void test_local_address(void **state)
{
    (void)state;
    char out[64];
    struct sl_err err;
    assert_int_equal(sl_bulk_local_address("tcp://127.0.0.1:5555", out, &err), SL_OK);
    assert_string_equal(out, "127.0.0.1");
    const char *const bad[] = {"ipc:///tmp/x", "tcp://",   "tcp://host",
                               "127.0.0.1:5",  "tcp://:5", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (sl_bulk_local_address(bad[i], out, &err) != SL_INVALID)
            fail_msg("'%s' has an address", bad[i]);
    assert_int_equal(sl_bulk_local_address("tcp://127.0.0.1:http", out, &err), SL_PEER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_local_address),
        cmocka_unit_test(test_every_damaged_row),
        cmocka_unit_test(test_wrong_key),
        cmocka_unit_test(test_squatters),
        cmocka_unit_test(test_silence),
        cmocka_unit_test(test_every_flip_is_seen),
        cmocka_unit_test(test_frame_bounds),
        cmocka_unit_test(test_ask_bounds),
        cmocka_unit_test(test_transfers),
        cmocka_unit_test(test_small_window),
        cmocka_unit_test(test_shared_memory_is_checked),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_another_prefix),
        cmocka_unit_test(test_flips_and_cuts),
        cmocka_unit_test(test_stalled_source),
        cmocka_unit_test(test_silent_peer),
        cmocka_unit_test(test_server_dies),
        cmocka_unit_test(test_client_goes),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    free(src.rows);
    return rc;
}
