/* Promise: a worker gives each router its own streams and no other's, exactly as if it were alone;
 * it answers every SUBMIT with one end, outlives garbage and vanished routers without keeping a
 * page, and leaves when it is told to, not before its streams are done.
 *
 * The test plays the routers over real sockets. Workers are real processes: this program again,
 * with "worker" as first argument. */
#include "worker_fixture.h"

/* ---- tests ---- */

static void announces_itself(void **state)
{
    (void)state;
    struct fixture f = start(0);
    const struct sl_msg_hello *h = &f.r->hello;
    assert_int_equal(h->version, SL_BUS_VERSION);
    assert_int_equal(h->pid, f.worker);
    assert_int_equal(h->n_vocab, tiny_model_n_vocab());
    assert_int_equal(h->max_len, 2048);
    assert_int_equal(h->max_seqs, 16);
    assert_int_equal(h->queue_max, 32);
    assert_true(h->weight_bytes > 0 && h->load.pages_total > 0);
    UNTIL(f.r, f.r->n_loads >= 3);
    assert_int_equal(f.r->load.last_step_age_ms, 0);
    finish(&f);
}

/* A router without a model file gets tokenizer and template this way. */
static void hands_out_metadata(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct sl_msg get = {.kind = SL_MSG_META_GET};
    uint8_t sum[32];
    struct sl_gguf *g;
    struct sl_tokenizer *t;
    struct sl_err err;
    memset(get.meta.sha256, 7, 32); /* of another model: no answer */
    tell(f.r, &get);
    memcpy(get.meta.sha256, f.r->hello.meta_sha256, 32);
    while (f.r->meta.len < f.r->hello.meta_bytes) {
        size_t before = f.r->meta.len;
        get.meta.offset = before;
        tell(f.r, &get);
        UNTIL(f.r, f.r->meta.len > before);
    }
    assert_int_equal(f.r->n_meta_wrong, 0);
    assert_int_equal(f.r->meta.len, f.r->hello.meta_bytes);
    sl_sha256(f.r->meta.data, f.r->meta.len, sum);
    assert_memory_equal(sum, f.r->hello.meta_sha256, 32);
    assert_int_equal(sl_gguf_parse(f.r->meta.data, f.r->meta.len, true, &g, &err), SL_OK);
    assert_int_equal(sl_tokenizer_open(g, &t, &err), SL_OK);
    sl_tokenizer_close(t);
    sl_gguf_close(g);
    finish(&f);
}

static void streams_tokens(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct stream *a = submit_a(f.r, 1, 40);
    UNTIL(f.r, a->end);
    assert_int_equal(a->end, SL_END_LENGTH);
    assert_int_equal(a->n, 40);
    struct stream *again = submit_a(f.r, 2, 40);
    UNTIL(f.r, again->end);
    assert_memory_equal(a->tokens, again->tokens, sizeof a->tokens);
    until_idle(f.r);
    finish(&f);
}

/* Many at once give each what it gets alone, and the rest of a stream can be had alone too. */
static void batch_and_resume_are_exact(void **state)
{
    (void)state;
    struct fixture f = start(0);
    enum { N = 20, LEN = 32, CUT = 11 };
    struct stream *alone = submit_a(f.r, 100, LEN);
    UNTIL(f.r, alone->end);
    struct stream *s[N];
    for (uint32_t i = 0; i < N; i++)
        s[i] = i % 2 ? submit_b(f.r, i, LEN + i) : submit_a(f.r, i, LEN);
    for (uint32_t i = 0; i < N; i++)
        UNTIL(f.r, s[i]->end);
    for (uint32_t i = 0; i < N; i += 2)
        assert_memory_equal(alone->tokens, s[i]->tokens, LEN * sizeof(uint32_t));

    enum { N_PROMPT = sizeof prompt_a / sizeof *prompt_a };
    uint32_t tokens[N_PROMPT + CUT];
    memcpy(tokens, prompt_a, sizeof prompt_a);
    memcpy(tokens + N_PROMPT, alone->tokens, CUT * sizeof *tokens);
    struct sl_msg m = submit_of(200, tokens, N_PROMPT + CUT, LEN);
    m.submit.n_prompt = N_PROMPT;
    struct stream *rest = submit(f.r, &m);
    UNTIL(f.r, rest->end);
    assert_int_equal(rest->n, LEN - CUT);
    assert_memory_equal(rest->tokens, alone->tokens + CUT, (LEN - CUT) * sizeof *tokens);
    until_idle(f.r);
    finish(&f);
}

static void cancel_frees(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct sl_msg cancel = {.kind = SL_MSG_CANCEL, .cancel = {.id = 1, .epoch = 1}};
    struct sl_msg stale = {.kind = SL_MSG_CANCEL, .cancel = {.id = 1, .epoch = 7}};
    struct sl_msg unknown = {.kind = SL_MSG_CANCEL, .cancel = {.id = 99, .epoch = 1}};
    struct stream *s = submit_a(f.r, 1, 2000);
    UNTIL(f.r, s->n >= 3);
    tell(f.r, &stale);
    tell(f.r, &unknown);
    uint32_t n = s->n;
    UNTIL(f.r, s->n >= n + 3);
    tell(f.r, &cancel);
    UNTIL(f.r, s->end);
    assert_int_equal(s->end, SL_END_CANCELLED);
    assert_true(s->n < 2000);
    until_idle(f.r);
    finish(&f);
}

/* A request that cannot be served ends with its reason; the worker goes on. */
static void bad_requests_are_answered(void **state)
{
    (void)state;
    struct fixture f = start(0);
    static uint32_t zeros[4096];
    struct sl_msg m[6];
    static const enum sl_status wanted[] = {SL_INVALID, SL_INVALID, SL_TOO_LONG,
                                            SL_INVALID, SL_INVALID, SL_INVALID};
    enum { N = sizeof m / sizeof *m };
    uint32_t outside = tiny_model_n_vocab();
    struct sl_msg_bias bias = {outside, 1.0f};
    for (uint32_t i = 0; i < N; i++)
        m[i] = submit_of(i, prompt_a, 4, 8);
    m[0].submit.tokens = &outside;
    m[0].submit.n_tokens = m[0].submit.n_prompt = 1;
    m[1].submit.temperature = -1.0f;
    m[2].submit.tokens = zeros;
    m[2].submit.n_tokens = m[2].submit.n_prompt = 4096;
    m[3].submit.tokens = zeros;
    m[3].submit.n_tokens = 12; /* 8 of 8 generated before: nothing left to do */
    m[4].submit.bias = &bias;
    m[4].submit.n_bias = 1;
    m[5].submit.top_p = 0.0f;
    for (uint32_t i = 0; i < N; i++) {
        struct stream *s = submit(f.r, &m[i]);
        UNTIL(f.r, s->end);
        if (s->end != SL_END_ERROR || s->status != wanted[i])
            fail_msg("request %u: end %u, status %u", i, s->end, s->status);
    }
    struct stream *good = submit_a(f.r, 50, 5);
    UNTIL(f.r, good->end);
    assert_int_equal(good->n, 5);
    finish(&f);
}

/* The queue has an end, and what does not fit is answered, not forgotten. */
static void full_queue_is_answered(void **state)
{
    (void)state;
    struct fixture f = start(0);
    uint32_t n_full = 0, n_done = 0;
    struct stream *s[STREAMS_MAX];
    struct sl_msg m = submit_of(0, prompt_a, 4, 150);
    for (uint32_t i = 0; i < STREAMS_MAX; i++) {
        m.submit.id = 1000 + i;
        s[i] = submit(f.r, &m);
    }
    for (uint32_t i = 0; i < STREAMS_MAX; i++) {
        UNTIL(f.r, s[i]->end);
        n_full += s[i]->end == SL_END_ERROR && s[i]->status == SL_QUEUE_FULL && s[i]->n == 0;
        n_done += s[i]->end == SL_END_LENGTH && s[i]->n == 150;
    }
    assert_true(n_full > 0);
    assert_true(n_done >= 32); /* queue_max */
    assert_int_equal(n_full + n_done, STREAMS_MAX);
    until_idle(f.r);
    finish(&f);
}

/* A newer epoch of the same id takes over; late words of the older one change nothing. */
static void epochs_are_fenced(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct stream *alone = submit_b(f.r, 9, 24);
    UNTIL(f.r, alone->end);
    struct stream *s = submit_a(f.r, 1, 2000);
    UNTIL(f.r, s->n >= 2);
    struct sl_msg newer = submit_of(1, prompt_b, sizeof prompt_b / sizeof *prompt_b, 24);
    struct sl_msg late = submit_of(1, prompt_a, 4, 100);
    struct sl_msg cancel = {.kind = SL_MSG_CANCEL, .cancel = {.id = 1, .epoch = 1}};
    newer.submit.epoch = 2;
    s = submit(f.r, &newer);
    tell(f.r, &late);
    tell(f.r, &cancel);
    UNTIL(f.r, s->end);
    assert_int_equal(s->end, SL_END_LENGTH);
    assert_int_equal(s->n, 24);
    assert_memory_equal(s->tokens, alone->tokens, 24 * sizeof *s->tokens);
    until_idle(f.r);
    finish(&f);
}

/* Two routers, the same ids: each gets its own, and the end of one is no matter to the other. */
static void two_routers(void **state)
{
    (void)state;
    struct router *a = router_new(), *b = router_new();
    const char *endpoints[] = {a->ipc.data, b->ipc.data};
    pid_t worker = start_worker(0, endpoints, 2);
    UNTIL(a, a->n_hellos == 1);
    UNTIL(b, b->n_hellos == 1);
    struct stream *alone_a = submit_a(a, 100, 30), *alone_b;
    UNTIL(a, alone_a->end);
    alone_b = submit_b(b, 100, 30);
    UNTIL(b, alone_b->end);
    struct stream *s[2][5];
    for (uint32_t i = 0; i < 5; i++) {
        s[0][i] = submit_a(a, i, 30);
        s[1][i] = submit_b(b, i, 30);
    }
    for (uint32_t i = 0; i < 5; i++) {
        UNTIL(a, s[0][i]->end);
        UNTIL(b, s[1][i]->end);
        assert_memory_equal(s[0][i]->tokens, alone_a->tokens, 30 * sizeof(uint32_t));
        assert_memory_equal(s[1][i]->tokens, alone_b->tokens, 30 * sizeof(uint32_t));
    }
    assert_int_equal(a->n_strange + b->n_strange, 0);

    struct stream *left = submit_a(a, 7, 2000), *right = submit_b(b, 7, 300);
    UNTIL(a, left->n > 0);
    UNTIL(b, right->n > 0);
    router_free(a); /* gone without a word */
    UNTIL(b, right->end);
    assert_int_equal(right->end, SL_END_LENGTH);
    assert_int_equal(right->n, 300);
    until_idle(b);
    assert_int_equal(b->n_strange, 0);
    struct fixture f = {b, worker};
    finish(&f);
}

/* A router that starts again is greeted again and owns nothing from before. */
static void router_comes_back(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct stream *s = submit_a(f.r, 1, 2000);
    UNTIL(f.r, s->n > 2);
    sl_bus_close(f.r->bus);
    router_bind(f.r);
    f.r->n_streams = 0;
    UNTIL(f.r, f.r->n_hellos == 2);
    until_idle(f.r);
    s = submit_a(f.r, 1, 10);
    UNTIL(f.r, s->end);
    assert_int_equal(s->n, 10);
    finish(&f);
}

/* A router that has forgotten the worker says so, and gets a new HELLO; old requests are dropped.
 */
static void unknown_worker_registers_again(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct sl_msg who = {.kind = SL_MSG_WELCOME,
                         .welcome = {SL_BUS_VERSION, SL_PEER, SL_STR("who are you?")}};
    struct stream *s = submit_a(f.r, 1, 2000);
    UNTIL(f.r, s->n > 2);
    tell(f.r, &who);
    UNTIL(f.r, f.r->n_hellos == 2);
    f.r->n_streams = 0;
    f.r->n_strange = 0;
    until_idle(f.r);
    finish(&f);
}

static void unwanted_worker_leaves(void **state)
{
    (void)state;
    struct router *r = router_new();
    const char *endpoint = r->ipc.data;
    struct sl_msg no = {.kind = SL_MSG_WELCOME,
                        .welcome = {SL_BUS_VERSION, SL_MODEL, SL_STR("another model")}};
    r->welcome = false;
    pid_t worker = start_worker(0, &endpoint, 1);
    UNTIL(r, r->n_hellos == 1);
    tell(r, &no);
    assert_int_equal(exit_code(worker), sl_status_row(SL_MODEL)->exit_code);
    router_free(r);
}

/* Messages that only a worker sends, or that make no sense now, change nothing. */
static void senseless_messages_are_ignored(void **state)
{
    (void)state;
    struct fixture f = start(0);
    static const enum sl_msg_kind kinds[] = {SL_MSG_BYE, SL_MSG_LOAD, SL_MSG_STEP, SL_MSG_PING};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct sl_msg m = {.kind = kinds[i]};
        tell(f.r, &m);
    }
    struct sl_msg hello = {.kind = SL_MSG_HELLO, .hello = f.r->hello};
    hello.hello.model = hello.hello.site = hello.hello.role = SL_STR("x");
    hello.hello.isa = hello.hello.backend = hello.hello.class_name = SL_STR("x");
    hello.hello.greeting = 0; /* which no worker says: it opens no numbering */
    tell(f.r, &hello);
    struct sl_msg get = {.kind = SL_MSG_META_GET};
    memcpy(get.meta.sha256, f.r->hello.meta_sha256, 32);
    get.meta.offset = f.r->hello.meta_bytes + 1; /* past the end */
    tell(f.r, &get);
    struct stream *s = submit_a(f.r, 1, 5);
    UNTIL(f.r, s->end);
    assert_int_equal(s->n, 5);
    finish(&f);
}

static void raw_answer(void *raw, const uint8_t *id, int id_len, const void *data, size_t len)
{
    assert_true(zmq_send(raw, id, (size_t)id_len, ZMQ_SNDMORE) >= 0);
    assert_true(zmq_send(raw, data, len, 0) >= 0);
}

/* A router that sends nonsense: the worker skips it and serves what makes sense in between. */
static void garbage_is_skipped(void **state)
{
    (void)state;
    struct sl_buf ipc = {0}, encoded = {0};
    struct sl_err err;
    struct sl_arena arena;
    void *ctx = zmq_ctx_new(), *raw = zmq_socket(ctx, ZMQ_ROUTER);
    const int linger = 0, patience = PATIENCE_MS, no_limit = 0;
    uint8_t id[255], data[65536];
    struct sl_msg submit_msg = submit_of(1, prompt_a, 4, 7), drain = {.kind = SL_MSG_DRAIN}, m;
    assert_int_equal(sl_bus_ipc_make("/tmp", &ipc, &err), SL_OK);
    zmq_setsockopt(raw, ZMQ_LINGER, &linger, sizeof linger);
    zmq_setsockopt(raw, ZMQ_RCVTIMEO, &patience, sizeof patience);
    zmq_setsockopt(raw, ZMQ_SNDHWM, &no_limit, sizeof no_limit); /* else it drops some */
    assert_int_equal(zmq_bind(raw, ipc.data), 0);
    const char *endpoint = ipc.data;
    pid_t worker = start_worker(0, &endpoint, 1);
    int id_len = zmq_recv(raw, id, sizeof id, 0);
    assert_int_equal(id_len, 16); /* a random name, too long to be guessed */
    assert_true(zmq_recv(raw, data, sizeof data, 0) > 0);

    struct sl_rng rng = {.seed = 42};
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t len = sl_rng_below(&rng, 64);
        for (uint32_t k = 0; k < len; k++)
            data[k] = (uint8_t)sl_rng_below(&rng, 256);
        raw_answer(raw, id, id_len, data, len);
    }
    raw_answer(raw, id, id_len, "", 0);
    assert_int_equal(sl_msg_encode(&submit_msg, &encoded, &err), SL_OK);
    raw_answer(raw, id, id_len, encoded.data, encoded.len);
    sl_arena_init(&arena, (size_t)1 << 20);
    uint32_t n = 0;
    uint64_t until = sl_now_ns() + PATIENCE_MS * SL_MS_NS;
    for (uint32_t end = 0; !end;) {
        assert_true(sl_now_ns() < until);
        assert_true(zmq_recv(raw, id, sizeof id, 0) > 0);
        int len = zmq_recv(raw, data, sizeof data, 0);
        assert_true(len > 0);
        sl_arena_reset(&arena);
        assert_int_equal(sl_msg_decode(data, (size_t)len, &arena, &m, &err), SL_OK);
        for (uint32_t i = 0; m.kind == SL_MSG_STEP && i < m.step.n_outs; i++) {
            n += m.step.outs[i].n_tokens;
            end = m.step.outs[i].end;
        }
    }
    assert_int_equal(n, 7);
    sl_buf_clear(&encoded);
    assert_int_equal(sl_msg_encode(&drain, &encoded, &err), SL_OK);
    raw_answer(raw, id, id_len, encoded.data, encoded.len);
    assert_int_equal(exit_code(worker), 0);
    zmq_close(raw);
    zmq_ctx_term(ctx);
    sl_bus_ipc_remove(ipc.data);
    sl_arena_free(&arena);
    sl_buf_free(&ipc);
    sl_buf_free(&encoded);
}

/* ---- leaving ---- */

static void drain_finishes_streams(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct sl_msg drain = {.kind = SL_MSG_DRAIN};
    struct stream *s = submit_a(f.r, 1, 2000);
    UNTIL(f.r, s->n > 0);
    tell(f.r, &drain);
    struct stream *late = submit_b(f.r, 2, 5);
    UNTIL(f.r, late->end);
    assert_int_equal(late->status, SL_DRAINING);
    UNTIL(f.r, s->end);
    assert_int_equal(s->n, 2000);
    UNTIL(f.r, f.r->n_byes == 1);
    assert_int_equal(exit_code(f.worker), 0);
    router_free(f.r);
}

static void sigterm_drains(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct stream *s = submit_a(f.r, 1, 2000);
    UNTIL(f.r, s->n > 0);
    kill(f.worker, SIGTERM);
    UNTIL(f.r, s->end && f.r->n_byes == 1);
    assert_int_equal(s->n, 2000);
    assert_int_equal(exit_code(f.worker), 0);
    router_free(f.r);
}

static void second_sigterm_stops(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct stream *s = submit_a(f.r, 1, 2000);
    UNTIL(f.r, s->n > 0);
    kill(f.worker, SIGTERM);
    struct stream *late = submit_b(f.r, 2, 5);
    UNTIL(f.r, late->end); /* the first one has been seen */
    kill(f.worker, SIGTERM);
    assert_int_equal(exit_code(f.worker), sl_status_row(SL_DRAIN_DEADLINE)->exit_code);
    router_free(f.r);
}

/* A router's DRAIN and one SIGTERM are still a polite request. */
static void sigterm_after_drain_is_the_first(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct sl_msg drain = {.kind = SL_MSG_DRAIN};
    struct stream *s = submit_a(f.r, 1, 300);
    UNTIL(f.r, s->n > 0);
    tell(f.r, &drain);
    struct stream *late = submit_b(f.r, 2, 5);
    UNTIL(f.r, late->end);
    kill(f.worker, SIGTERM);
    UNTIL(f.r, s->end && f.r->n_byes == 1);
    assert_int_equal(s->n, 300);
    assert_int_equal(exit_code(f.worker), 0);
    router_free(f.r);
}

/* A stream that does not end in time is cut, and the exit code says so. */
static void drain_has_a_deadline(void **state)
{
    (void)state;
    drain_ms = 20;
    struct fixture f = start(0);
    drain_ms = 0;
    struct stream *s = submit_a(f.r, 1, 2000);
    UNTIL(f.r, s->n > 0);
    kill(f.worker, SIGTERM);
    UNTIL(f.r, f.r->n_byes == 1);
    assert_int_equal(exit_code(f.worker), sl_status_row(SL_DRAIN_DEADLINE)->exit_code);
    assert_true(s->n < 2000);
    router_free(f.r);
}

/* A SIGTERM that does not come from this process. */
static void kill_from_elsewhere(pid_t worker, int signum)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(kill(worker, signum) ? 1 : 0);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* What hits the whole process group must not cut streams that the supervisor still wants. */
static void supervised_worker_waits_for_the_word(void **state)
{
    (void)state;
    struct fixture f = start(getpid());
    struct sl_msg drain = {.kind = SL_MSG_DRAIN};
    struct stream *s = submit_a(f.r, 1, 300);
    UNTIL(f.r, s->n > 0);
    kill_from_elsewhere(f.worker, SIGINT);
    kill(f.worker, SIGINT);
    kill_from_elsewhere(f.worker, SIGTERM);
    struct stream *later = submit_b(f.r, 2, 5);
    UNTIL(f.r, later->end && s->end);
    assert_int_equal(later->n, 5);
    assert_int_equal(s->n, 300);
    s = submit_a(f.r, 3, 300);
    UNTIL(f.r, s->n > 0);
    tell(f.r, &drain);
    later = submit_b(f.r, 4, 5);
    UNTIL(f.r, later->end);
    kill(f.worker, SIGTERM); /* the same word again */
    UNTIL(f.r, s->end && f.r->n_byes == 1);
    assert_int_equal(s->n, 300);
    assert_int_equal(exit_code(f.worker), 0);
    router_free(f.r);
}

/* The supervisor is killed: its worker goes at once, whatever it was doing. */
static void dies_with_its_supervisor(void **state)
{
    (void)state;
    struct router *r = router_new();
    const char *endpoint = r->ipc.data;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    pid_t supervisor = fork();
    assert_true(supervisor >= 0);
    if (supervisor == 0) {
        start_worker(getpid(), &endpoint, 1); /* it inherits the pipe's end */
        for (;;)
            pause();
    }
    close(fds[1]);
    UNTIL(r, r->n_hellos == 1);
    struct stream *s = submit_a(r, 1, 2000);
    UNTIL(r, s->n > 0);
    kill(supervisor, SIGKILL);
    assert_int_equal(exit_code(supervisor), -SIGKILL);
    struct pollfd p = {.fd = fds[0], .events = POLLIN};
    char c;
    assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
    assert_int_equal(read(fds[0], &c, 1), 0); /* nobody holds the other end any more */
    close(fds[0]);
    router_free(r);
}

static void refuses_a_false_supervisor(void **state)
{
    (void)state;
    const char *endpoint = "ipc:///tmp/nobody/bus";
    assert_int_equal(exit_code(start_worker(1, &endpoint, 1)), sl_status_row(SL_PEER)->exit_code);
}

static void missing_model(void **state)
{
    (void)state;
    char kept[sizeof model_path];
    const char *endpoint = "ipc:///tmp/nobody/bus", *open_to_all = "tcp://10.0.0.1:5555";
    memcpy(kept, model_path, sizeof kept);
    snprintf(model_path, sizeof model_path, "/nowhere/model.gguf");
    int code = exit_code(start_worker(0, &endpoint, 1));
    memcpy(model_path, kept, sizeof kept);
    assert_int_equal(code, sl_status_row(SL_MODEL)->exit_code);
    code = exit_code(start_worker(0, &open_to_all, 1));
    assert_int_equal(code, sl_status_row(SL_CONFIG)->exit_code);
}

int main(int argc, char **argv)
{
    if (argc > 5 && !strcmp(argv[1], "worker"))
        return worker_main(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(announces_itself),
        cmocka_unit_test(hands_out_metadata),
        cmocka_unit_test(streams_tokens),
        cmocka_unit_test(batch_and_resume_are_exact),
        cmocka_unit_test(cancel_frees),
        cmocka_unit_test(bad_requests_are_answered),
        cmocka_unit_test(full_queue_is_answered),
        cmocka_unit_test(epochs_are_fenced),
        cmocka_unit_test(two_routers),
        cmocka_unit_test(router_comes_back),
        cmocka_unit_test(unknown_worker_registers_again),
        cmocka_unit_test(unwanted_worker_leaves),
        cmocka_unit_test(senseless_messages_are_ignored),
        cmocka_unit_test(garbage_is_skipped),
        cmocka_unit_test(drain_finishes_streams),
        cmocka_unit_test(sigterm_drains),
        cmocka_unit_test(sigterm_after_drain_is_the_first),
        cmocka_unit_test(drain_has_a_deadline),
        cmocka_unit_test(second_sigterm_stops),
        cmocka_unit_test(supervised_worker_waits_for_the_word),
        cmocka_unit_test(dies_with_its_supervisor),
        cmocka_unit_test(refuses_a_false_supervisor),
        cmocka_unit_test(missing_model),
    };
    sl_log_open(SL_LOG_TEXT, SL_LOG_ERROR, "test");
    return cmocka_run_group_tests(tests, write_model, remove_model);
}
