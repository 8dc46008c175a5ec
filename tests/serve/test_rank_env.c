/* Which rank a process is: every launcher's words, what takes precedence, and what is refused. */
#include <sluice/serve/ranks.h>

#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define UNSET                                                                                      \
    {                                                                                              \
        -1, -1, NULL, NULL, -1                                                                     \
    }

struct row {
    const char *what;
    struct sl_rank_options o;
    const char *env[12];
    uint32_t n_ranks;
    enum sl_status status;
    bool given;
    uint32_t rank;
    const char *rendezvous;
};

static const struct row rows[] = {
    {"nobody says anything", UNSET, {NULL}, 2, SL_OK, false, 0, ""},
    {"own followers at an endpoint",
     {-1, -1, "ipc:///run/x/r", NULL, -1},
     {NULL},
     2,
     SL_OK,
     false,
     0,
     "ipc:///run/x/r"},
    {"options", {1, 2, NULL, "10.0.0.1", 4000}, {NULL}, 2, SL_OK, true, 1, "tcp://10.0.0.1:4000"},
    {"options without an address",
     {1, -1, NULL, NULL, -1},
     {NULL},
     2,
     SL_OK,
     true,
     1,
     "tcp://127.0.0.1:29500"},
    {"rank 0 by option", {0, -1, "tcp://h:1", NULL, -1}, {NULL}, 2, SL_OK, true, 0, "tcp://h:1"},
    {"IPv6", {1, -1, NULL, "fe80::1", 7}, {NULL}, 2, SL_OK, true, 1, "tcp://[fe80::1]:7"},
    {"rank too high", {2, -1, NULL, NULL, -1}, {NULL}, 2, SL_USAGE, false, 0, NULL},
    {"another size", {1, 3, NULL, NULL, -1}, {NULL}, 2, SL_USAGE, false, 0, NULL},
    {"no address at all", {1, -1, NULL, "a b", -1}, {NULL}, 2, SL_USAGE, false, 0, NULL},
    {"torchrun",
     UNSET,
     {"RANK=3", "WORLD_SIZE=4", "MASTER_ADDR=node7", "MASTER_PORT=1234"},
     4,
     SL_OK,
     true,
     3,
     "tcp://node7:1234"},
    {"torchrun's agent keeps its port",
     UNSET,
     {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=localhost", "MASTER_PORT=29500",
      "TORCHELASTIC_USE_AGENT_STORE=True"},
     2,
     SL_OK,
     true,
     0,
     "tcp://localhost:29501"},
    {"options before torchrun",
     {1, -1, "ipc:///a/b", NULL, -1},
     {"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=x"},
     2,
     SL_OK,
     true,
     1,
     "ipc:///a/b"},
    {"torchrun of another size",
     UNSET,
     {"RANK=0", "WORLD_SIZE=8", "MASTER_ADDR=x"},
     2,
     SL_USAGE,
     false,
     0,
     NULL},
    {"one rank asks nobody", UNSET, {"RANK=5", "WORLD_SIZE=8"}, 1, SL_OK, false, 0, ""},
    {"a rank that is no number",
     UNSET,
     {"RANK=one", "WORLD_SIZE=2", "MASTER_ADDR=x"},
     2,
     SL_USAGE,
     false,
     0,
     NULL},
    {"a rank beyond the size",
     UNSET,
     {"RANK=2", "WORLD_SIZE=2", "MASTER_ADDR=x"},
     2,
     SL_USAGE,
     false,
     0,
     NULL},
    {"a single process of torchrun",
     UNSET,
     {"RANK=0", "WORLD_SIZE=1", "MASTER_ADDR=x"},
     2,
     SL_OK,
     false,
     0,
     ""},
    {"OpenMPI on one machine",
     UNSET,
     {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2"},
     2,
     SL_OK,
     true,
     1,
     "tcp://127.0.0.1:29500"},
    {"OpenMPI over machines",
     UNSET,
     {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=1"},
     2,
     SL_USAGE,
     false,
     0,
     NULL},
    {"OpenMPI with an address",
     {-1, -1, NULL, "10.1.1.1", -1},
     {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=1"},
     2,
     SL_OK,
     true,
     1,
     "tcp://10.1.1.1:29500"},
    {"Slurm",
     UNSET,
     {"SLURM_PROCID=5", "SLURM_NTASKS=6", "SLURM_JOB_NODELIST=node[007-009,12],gpu3",
      "SLURM_JOB_ID=4711", "SLURM_NNODES=3"},
     6,
     SL_OK,
     true,
     5,
     "tcp://node007:30211"},
    {"Slurm: a step within the job",
     UNSET,
     {"SLURM_PROCID=1", "SLURM_NTASKS=6", "SLURM_STEP_NUM_TASKS=2", "SLURM_STEP_NODELIST=b[2]c,d",
      "SLURM_JOB_NODELIST=a1"},
     2,
     SL_OK,
     true,
     1,
     "tcp://b2c:29500"},
    {"Slurm: plain names",
     UNSET,
     {"SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=alpha-1,beta"},
     2,
     SL_OK,
     true,
     1,
     "tcp://alpha-1:29500"},
    {"Slurm: two dimensions",
     UNSET,
     {"SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=r[1-2]n[3,4]"},
     2,
     SL_OK,
     true,
     1,
     "tcp://r1n3:29500"},
    {"Slurm on one machine",
     UNSET,
     {"SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_NNODES=1", "SLURM_JOB_NODELIST=z"},
     2,
     SL_OK,
     true,
     1,
     "tcp://127.0.0.1:29500"},
    {"Slurm without a node list",
     UNSET,
     {"SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_LAUNCH_NODE_IPADDR=10.2.3.4"},
     2,
     SL_OK,
     true,
     1,
     "tcp://10.2.3.4:29500"},
    {"Slurm: an open bracket",
     UNSET,
     {"SLURM_PROCID=1", "SLURM_NTASKS=2", "SLURM_JOB_NODELIST=["},
     2,
     SL_USAGE,
     false,
     0,
     NULL},
    {"LeaderWorkerSet",
     UNSET,
     {"LWS_WORKER_INDEX=1", "LWS_GROUP_SIZE=2", "LWS_LEADER_ADDRESS=m-0.m.ns"},
     2,
     SL_OK,
     true,
     1,
     "tcp://m-0.m.ns:29500"},
    {"torchrun inside Slurm",
     UNSET,
     {"SLURM_PROCID=0", "SLURM_NTASKS=2", "RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=q",
      "MASTER_PORT=9"},
     2,
     SL_OK,
     true,
     1,
     "tcp://q:9"},
    {"OpenMPI inside Slurm",
     UNSET,
     {"SLURM_PROCID=0", "SLURM_NTASKS=1", "OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2",
      "OMPI_COMM_WORLD_LOCAL_SIZE=2"},
     2,
     SL_OK,
     true,
     1,
     "tcp://127.0.0.1:29500"},
};

static void launchers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *r = &rows[i];
        struct sl_rank_place p;
        struct sl_err err = {0};
        enum sl_status s =
            sl_rank_discover(&r->o, (char *const *)(const void *)r->env, r->n_ranks, &p, &err);
        if (s != r->status)
            fail_msg("%s: %d %s", r->what, s, err.msg);
        if (s == SL_OK &&
            (p.given != r->given || p.rank != r->rank || strcmp(p.rendezvous, r->rendezvous) != 0))
            fail_msg("%s: given %d, rank %u, '%s'", r->what, p.given, p.rank, p.rendezvous);
        if (s != SL_OK && !err.msg[0])
            fail_msg("%s: no message", r->what);
    }
}

static void interface(void **state)
{
    (void)state;
    const struct sl_rank_options o = {0, 2, NULL, "10.0.0.1", -1};
    char *const envs[][3] = {{"A=b", "NCCL_SOCKET_IFNAME=eth7"}, {"NCCL_SOCKET_IFNAME="}, {NULL}};
    for (size_t i = 0; i < sizeof envs / sizeof *envs; i++) {
        struct sl_rank_place p;
        struct sl_err err;
        assert_int_equal(sl_rank_discover(&o, envs[i], 2, &p, &err), SL_OK);
        if (i == 0)
            assert_string_equal(p.interface, "eth7");
        else
            assert_null(p.interface);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(launchers), cmocka_unit_test(interface)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
