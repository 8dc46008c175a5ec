/* Worker groups: where a process stands in its group, and the followers that a worker keeps.
 *
 * A model over tensor-parallel-size x pipeline-parallel-size ranks is served by as many processes:
 * rank 0 is the worker that routers know, the others follow it. One rule says who starts them: a
 * process that is told its rank (by options, or by the launcher's environment) is that rank and
 * nothing else; one that is not told is rank 0, starts the others as its children on this machine,
 * restarts those that die and ends those that hang. Where one cannot be started any more the group
 * goes on with fewer ranks, and all of them are tried again now and then. Rank = stage *
 * tensor-parallel-size + position within the stage. */
#ifndef SLUICE_SERVE_RANKS_H
#define SLUICE_SERVE_RANKS_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

struct sl_engine;

/* What the options say; unset: -1 and NULL. */
struct sl_rank_options {
    int64_t rank, world_size;
    const char *rendezvous; /* ipc://PATH or tcp://HOST:PORT */
    const char *master_addr;
    int64_t master_port;
};

#define SL_RANK_ENDPOINT_BYTES 320

struct sl_rank_place {
    bool given; /* false: nobody said; rank 0 with followers of its own */
    uint32_t rank;
    const char *source;                      /* who said it, for people */
    char rendezvous[SL_RANK_ENDPOINT_BYTES]; /* "" when not given and no option names one */
    const char *interface;                   /* NCCL_SOCKET_IFNAME of the environment, or NULL */
};

/* Pure. Looks at the options, then at the environment of torchrun (RANK, WORLD_SIZE, MASTER_ADDR,
 * MASTER_PORT), OpenMPI (OMPI_COMM_WORLD_RANK and _SIZE), Slurm (SLURM_PROCID, SLURM_NTASKS, first
 * host of SLURM_STEP_NODELIST or SLURM_JOB_NODELIST, or SLURM_LAUNCH_NODE_IPADDR) and
 * LeaderWorkerSet (LWS_WORKER_INDEX, LWS_GROUP_SIZE, LWS_LEADER_ADDRESS). The first that names a
 * rank counts; a launcher that started a single process says nothing, and with n_ranks 1 nobody is
 * asked. SL_USAGE when its size is not n_ranks, or a number or address is none. */
enum sl_status sl_rank_discover(const struct sl_rank_options *o, char *const *env, uint32_t n_ranks,
                                struct sl_rank_place *out, struct sl_err *err);

/* The followers that this process starts and watches. */
struct sl_ranks;
struct sl_ranks_config {
    const char *exe;
    const char *const *argv; /* of a follower: "sluice", "worker", MODEL, engine options; without
                                rank, rendezvous and supervisor, which are appended. Borrowed. */
    uint32_t n_argv;
    char *const *env;
    uint32_t n_ranks;       /* of the group: this process is rank 0 */
    uint32_t restarts_max;  /* of one rank in a row before its group forms; then the group goes on
                               with fewer ranks. 0: 5 */
    const char *rendezvous; /* NULL: in a new folder of mode 0700 below run_dir */
    const char *run_dir;    /* e.g. $XDG_RUNTIME_DIR or /tmp */
};

/* Starts them all. From the thread that lives as long as the process should: a follower dies with
 * the thread that started it. */
enum sl_status sl_ranks_open(const struct sl_ranks_config *cfg, struct sl_ranks **out,
                             struct sl_err *err);
const char *sl_ranks_rendezvous(const struct sl_ranks *r);
/* Now and then (ten times a second or so): reaps, restarts with a growing delay, ends followers
 * that the engine blames or waits for in vain. Fails, with the followers' reason, when they cannot
 * be started: the worker should give up. */
enum sl_status sl_ranks_tick(struct sl_ranks *r, struct sl_engine *e, uint64_t now_ns,
                             struct sl_err *err);
/* Ends the followers, by their process ids, waits for them and removes the folder. */
void sl_ranks_close(struct sl_ranks *r);

#endif
