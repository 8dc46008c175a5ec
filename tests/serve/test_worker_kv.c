/* A worker that is told where a prompt's pages are gives the stream that it gives without, whether
 * they come, come too late, are somebody else's, or nobody is there; and it keeps no page for those
 * who do not ask, nor for requests that are cancelled while their pages come. */
#include "worker_fixture.h"

#include <arpa/inet.h>
#include <sys/socket.h>

enum { N_PROMPT = 200, N_NEW = 12, PAGES = (N_PROMPT - 1) / 16 };

static uint32_t prompt[N_PROMPT];
static struct stream expected;

/* A prefill worker and a decode worker, each with a router of its own. */
struct pair {
    struct fixture p, d;
};

static struct pair start_pair(void)
{
    struct pair x = {start(0), start(0)};
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = 40 + i * 7 % 90;
    return x;
}

/* Both routers speak, so that no worker misses one. */
#define UNTIL_BOTH(x, condition)                                                                   \
    do {                                                                                           \
        uint64_t end_ = sl_now_ns() + PATIENCE_MS * SL_MS_NS;                                      \
        while (!(condition)) {                                                                     \
            router_turn((x)->p.r);                                                                 \
            router_turn((x)->d.r);                                                                 \
            if (sl_now_ns() > end_)                                                                \
                fail_msg("never came true: %s", #condition);                                       \
        }                                                                                          \
    } while (0)

static void finish_pair(struct pair *x)
{
    until_idle(x->d.r);
    finish(&x->d);
    until_idle(x->p.r); /* unfetched pages are kept for SL_LIMIT_bulk_ticket_ms */
    finish(&x->p);
}

static struct stream *prefill(struct pair *x, uint64_t id, uint64_t ticket)
{
    struct sl_msg m = submit_of(id, prompt, N_PROMPT, N_NEW);
    m.submit.prefill_only = true;
    m.submit.kv_ticket = ticket;
    return submit(x->p.r, &m);
}

static struct sl_msg decode_of(const struct pair *x, uint64_t id, uint64_t ticket,
                               const char *address)
{
    struct sl_msg m = submit_of(id, prompt, N_PROMPT, N_NEW);
    m.submit.kv_ticket = ticket;
    m.submit.kv_address = sl_str_of(address);
    memcpy(m.submit.kv_key, x->p.r->hello.kv_key, sizeof m.submit.kv_key);
    return m;
}

static void check_answer(const struct stream *s)
{
    assert_int_equal(s->end, SL_END_LENGTH);
    assert_int_equal(s->n, N_NEW);
    assert_memory_equal(s->tokens, expected.tokens, N_NEW * sizeof *s->tokens);
}

static void learn_answer(void **state)
{
    (void)state;
    struct pair x = start_pair();
    struct sl_msg m = submit_of(1, prompt, N_PROMPT, N_NEW);
    struct stream *s = submit(x.d.r, &m);
    UNTIL_BOTH(&x, s->end);
    expected = *s;
    check_answer(s);
    assert_int_equal(x.p.r->hello.kv_layout, x.d.r->hello.kv_layout);
    assert_true(x.p.r->hello.kv_layout && x.p.r->kv_address[0]);
    assert_memory_not_equal(x.p.r->hello.kv_key, x.d.r->hello.kv_key, 32);
    finish_pair(&x);
}

static void pages_move(void **state)
{
    (void)state;
    struct pair x = start_pair();
    for (uint32_t via = 0; via < 2; via++) { /* shared memory is tried first */
        const char *address = via ? strstr(x.p.r->kv_address, "tcp:") : x.p.r->kv_address;
        assert_non_null(address);
        for (uint32_t i = 0; i < N_PROMPT; i++)
            prompt[i] += via; /* another prompt: nothing of it is cached */
        struct stream *a = prefill(&x, 10 + via, 5 + via);
        struct sl_msg m = decode_of(&x, 20 + via, 5 + via, address);
        struct stream *b = submit(x.d.r, &m);
        UNTIL_BOTH(&x, a->end && b->end);
        assert_int_equal(a->end, SL_END_LENGTH);
        assert_int_equal(a->n, 0);
        if (!via)
            check_answer(b);
        UNTIL_BOTH(&x, x.d.r->load.kv_pages_received == (via + 1) * PAGES);
        UNTIL_BOTH(&x, x.p.r->load.kv_pages_sent == (via + 1) * PAGES);
    }
    UNTIL_BOTH(&x, x.d.r->load.prefill_tokens == 2 * (N_PROMPT - 16 * PAGES)); /* by a later report */
    assert_int_equal(x.d.r->load.kv_fallbacks, 0);
    finish_pair(&x);
}

/* Whatever is wrong with the source, the stream is the one that the other worker gives, and one
 * fallback is counted. */
static void wrong_sources(void **state)
{
    (void)state;
    struct pair x = start_pair();
    const char *address = strstr(x.p.r->kv_address, "tcp:");
    for (uint32_t i = 0; i < 5; i++) {
        for (uint32_t k = 0; k < N_PROMPT; k++)
            prompt[k] = 40 + (k * 7 + i) % 90;
        struct sl_msg plain = submit_of(100 + i, prompt, N_PROMPT, N_NEW);
        struct sl_msg m = decode_of(&x, 20 + i, 5 + i, address);
        struct stream *a = i < 4 ? prefill(&x, 10 + i, 5 + i) : NULL; /* 4: nobody computed it */
        if (i == 0)
            m.submit.kv_ticket += 100;
        m.submit.kv_key[3] ^= i == 1;
        if (i == 2)
            m.submit.kv_address = SL_STR("tcp:127.0.0.1:1"); /* nobody is there */
        m.submit.salt[0] = i == 3; /* a ticket for pages of somebody else */
        struct stream *b = submit(x.d.r, &m), *c = submit(x.p.r, &plain);
        UNTIL_BOTH(&x, b->end && c->end && (!a || a->end));
        assert_int_equal(b->end, SL_END_LENGTH);
        assert_memory_equal(b->tokens, c->tokens, N_NEW * sizeof *b->tokens);
        UNTIL_BOTH(&x, x.d.r->load.kv_fallbacks > i);
    }
    assert_int_equal(x.d.r->load.kv_fallbacks, 5);
    assert_int_equal(x.d.r->load.kv_pages_received, 0);
    finish_pair(&x);
}

/* A socket that takes connections and says nothing. */
static int silent_peer(char address[64])
{
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    snprintf(address, 64, "tcp:127.0.0.1:%u", ntohs(at.sin_port));
    return fd;
}

/* While pages do not come: a cancel ends the request at once, a later epoch takes its place,
 * silence ends the waiting. */
static void while_nothing_comes(void **state)
{
    (void)state;
    struct pair x = start_pair();
    char address[64];
    int fd = silent_peer(address);
    struct sl_msg m = decode_of(&x, 20, 5, address);
    struct sl_msg cancel = {.kind = SL_MSG_CANCEL, .cancel = {.id = 20, .epoch = 1}};
    struct stream *s = submit(x.d.r, &m);
    UNTIL_BOTH(&x, x.d.r->load.waiting == 1);
    tell(x.d.r, &cancel);
    UNTIL_BOTH(&x, s->end);
    assert_int_equal(s->end, SL_END_CANCELLED);

    m.submit.id = 21;
    submit(x.d.r, &m);
    m.submit.epoch = 2;
    m.submit.kv_address.len = 0;
    struct stream *again = submit(x.d.r, &m);
    UNTIL_BOTH(&x, again->end);
    check_answer(again);

    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = 40 + (i * 7 + 1) % 90; /* not cached */
    m = decode_of(&x, 22, 5, address);
    struct stream *late = submit(x.d.r, &m);
    UNTIL_BOTH(&x, late->end);
    assert_int_equal(late->end, SL_END_LENGTH);
    UNTIL_BOTH(&x, x.d.r->load.kv_fallbacks == 1);
    finish_pair(&x);
    close(fd);
}

/* It leaves when told to, after the stream, and at once when its router is gone. */
static void leaves_while_nothing_comes(void **state)
{
    (void)state;
    struct pair x = start_pair();
    char address[64];
    int fd = silent_peer(address);
    struct sl_msg m = decode_of(&x, 20, 5, address);
    struct stream *s = submit(x.d.r, &m);
    struct sl_msg drain = {.kind = SL_MSG_DRAIN};
    UNTIL_BOTH(&x, x.d.r->load.waiting == 1);
    tell(x.d.r, &drain);
    UNTIL_BOTH(&x, x.d.r->n_byes == 1);
    check_answer(s);
    assert_int_equal(exit_code(x.d.worker), 0);
    router_free(x.d.r);

    m.submit.id = 30; /* the other one as owner, killed by its second signal */
    submit(x.p.r, &m);
    UNTIL(x.p.r, x.p.r->load.waiting == 1);
    kill(x.p.worker, SIGTERM);
    kill(x.p.worker, SIGTERM);
    UNTIL(x.p.r, x.p.r->n_byes == 1);
    exit_code(x.p.worker);
    router_free(x.p.r);
    close(fd);
}

static void refused_prefills(void **state)
{
    (void)state;
    struct fixture f = start(0);
    struct sl_msg m = submit_of(1, prompt_a, 12, 4); /* less than a page */
    m.submit.prefill_only = true;
    struct stream *s = submit(f.r, &m);
    UNTIL(f.r, s->end);
    assert_int_equal(s->end, SL_END_ERROR);
    assert_int_equal(s->status, SL_INVALID);
    until_idle(f.r);
    finish(&f);
}

int main(int argc, char **argv)
{
    if (argc > 5 && !strcmp(argv[1], "worker"))
        return worker_main(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(learn_answer),
        cmocka_unit_test(pages_move),
        cmocka_unit_test(wrong_sources),
        cmocka_unit_test(while_nothing_comes),
        cmocka_unit_test(leaves_while_nothing_comes),
        cmocka_unit_test(refused_prefills),
    };
    sl_log_open(SL_LOG_TEXT, SL_LOG_ERROR, "test");
    return cmocka_run_group_tests(tests, write_model, remove_model);
}
