/* Promise: ranks on different nodes come together under CURVE with keys of their own, and a rank
 * whose key nobody allowed stays outside. */
#include "comm_group.h"
#include "curve_fixture.h"

#include <arpa/inet.h>
#include <sluice/base/log.h>
#include <sys/socket.h>

struct member {
    pthread_t thread;
    struct sl_comm_config cfg;
    char dir[PATH_MAX];
    enum sl_status status;
};

static void free_endpoint(char out[64])
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &size), 0);
    snprintf(out, 64, "tcp://127.0.0.1:%u", ntohs(a.sin_port));
    close(fd);
}

static void *join(void *arg)
{
    struct member *m = arg;
    struct sl_comm *c = NULL;
    struct sl_err why;
    float x[3] = {1.0f, 2.0f, (float)m->cfg.rank};
    m->status = sl_comm_open(&m->cfg, &c, &why);
    if (m->status != SL_OK)
        return NULL;
    OK(sl_comm_reduce_tree(c, x, 3, err));
    REQUIRE(x[0] == (float)m->cfg.n_ranks && x[2] == 1.0f, "rank %u", m->cfg.rank);
    sl_comm_close(c);
    return NULL;
}

/* Two ranks with the keys of two nodes; both statuses. */
static void meet(const struct keys *k, const char *zero, const char *one, uint32_t patience_ms,
                 enum sl_status out[2])
{
    static struct member m[2];
    const char *nodes[] = {zero, one};
    char endpoint[64];
    free_endpoint(endpoint);
    memset(m, 0, sizeof m);
    for (uint32_t r = 0; r < 2; r++) {
        m[r].cfg = (struct sl_comm_config){.rank = r,
                                           .n_ranks = 2,
                                           .rendezvous = endpoint,
                                           .curve_dir = key_dir(k, nodes[r], m[r].dir),
                                           .group = "g",
                                           .join_timeout_ms = patience_ms,
                                           .op_timeout_ms = PATIENT_MS};
        assert_int_equal(pthread_create(&m[r].thread, NULL, join, &m[r]), 0);
    }
    for (int r = 0; r < 2; r++) {
        pthread_join(m[r].thread, NULL);
        out[r] = m[r].status;
    }
}

static void ranks_meet(void **state)
{
    enum sl_status s[2];
    meet(*state, "w", "v", PATIENT_MS, s);
    assert_int_equal(s[0], SL_OK);
    assert_int_equal(s[1], SL_OK);
    meet(*state, "w", "w", PATIENT_MS, s); /* one node, one folder */
    assert_int_equal(s[0], SL_OK);
    assert_int_equal(s[1], SL_OK);
}

static void stranger_stays_outside(void **state)
{
    enum sl_status s[2];
    keys_admit(*state, "x", "w"); /* it knows whom to ask */
    meet(*state, "w", "x", 1000, s);
    assert_int_equal(s[0], SL_PEER);
    assert_int_equal(s[1], SL_PEER);
}

#define WITH_KEYS(test) cmocka_unit_test_setup_teardown(test, keys_set_up, keys_tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {WITH_KEYS(ranks_meet), WITH_KEYS(stranger_stays_outside)};
    sl_log_open(SL_LOG_TEXT, (enum sl_log_level)(SL_LOG_ERROR + 1), "test");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
