/* Finds out which rank a process is, from options and launchers' environments. Pure. */
#include <sluice/serve/ranks.h>

#include <sluice/base/mem.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORT_DEFAULT   29500 /* torchrun's, and vLLM's */
#define PORTS_OF_SLURM 1000  /* jobs of one node do not meet: the port follows from the job's id */
#define HOST_MAX       256

/* What one launcher says; texts NULL where it is silent. */
struct word {
    const char *source, *rank, *size;
    const char *addr;
    uint32_t port;
};

static const char *lookup(char *const *env, const char *name)
{
    size_t len = strlen(name);
    for (; env && *env; env++)
        if (!strncmp(*env, name, len) && (*env)[len] == '=' && (*env)[len + 1])
            return *env + len + 1;
    return NULL;
}

static bool number(const char *text, uint32_t max, uint32_t *out)
{
    char *end;
    if (!text || *text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long v = strtoul(text, &end, 10);
    if (errno || *end || v > max)
        return false;
    *out = (uint32_t)v;
    return true;
}

/* First host of a Slurm node list: of "node[01-04,07],gpu3" node01. */
static void first_host(const char *list, char out[HOST_MAX])
{
    size_t n = 0;
    while (*list && *list != ',' && n + 1 < HOST_MAX) {
        if (*list != '[') {
            out[n++] = *list++;
            continue;
        }
        list++;
        while (*list && !strchr("-,]", *list) && n + 1 < HOST_MAX)
            out[n++] = *list++;
        list += strcspn(list, "]"); /* the rest of the range */
        list += *list == ']';
    }
    out[n] = 0;
}

/* --- launchers -------------------------------------------------------------------------------- */

/* torchrun's agent may keep its own store at MASTER_PORT: then the next one is ours. */
static bool from_torchrun(char *const *env, char host[HOST_MAX], struct word *w)
{
    (void)host;
    const char *agent = lookup(env, "TORCHELASTIC_USE_AGENT_STORE");
    *w = (struct word){.source = "torchrun",
                       .rank = lookup(env, "RANK"),
                       .size = lookup(env, "WORLD_SIZE"),
                       .addr = lookup(env, "MASTER_ADDR")};
    if (number(lookup(env, "MASTER_PORT"), 65534, &w->port) && agent && !strcmp(agent, "True"))
        w->port++;
    return w->rank && w->size;
}

static bool from_openmpi(char *const *env, char host[HOST_MAX], struct word *w)
{
    (void)host;
    const char *local = lookup(env, "OMPI_COMM_WORLD_LOCAL_SIZE");
    *w = (struct word){.source = "OpenMPI",
                       .rank = lookup(env, "OMPI_COMM_WORLD_RANK"),
                       .size = lookup(env, "OMPI_COMM_WORLD_SIZE"),
                       .addr = lookup(env, "MASTER_ADDR")};
    number(lookup(env, "MASTER_PORT"), 65535, &w->port);
    if (!w->addr && local && w->size && !strcmp(local, w->size))
        w->addr = "127.0.0.1"; /* all of them are here */
    return w->rank && w->size;
}

static bool from_slurm(char *const *env, char host[HOST_MAX], struct word *w)
{
    const char *nodes = lookup(env, "SLURM_STEP_NODELIST");
    uint32_t job = 0, n_nodes = 0;
    if (!nodes)
        nodes = lookup(env, "SLURM_JOB_NODELIST");
    *w = (struct word){.source = "Slurm",
                       .rank = lookup(env, "SLURM_PROCID"),
                       .size = lookup(env, "SLURM_NTASKS")};
    const char *of_step = lookup(env, "SLURM_STEP_NUM_TASKS");
    if (of_step)
        w->size = of_step; /* srun inside a larger allocation */
    number(lookup(env, "SLURM_JOB_ID"), UINT32_MAX, &job);
    w->port = PORT_DEFAULT + job % PORTS_OF_SLURM;
    if (number(lookup(env, "SLURM_NNODES"), UINT32_MAX, &n_nodes) && n_nodes == 1) {
        w->addr = "127.0.0.1";
    } else if (nodes) {
        first_host(nodes, host);
        w->addr = host;
    } else {
        w->addr = lookup(env, "SLURM_LAUNCH_NODE_IPADDR");
    }
    return w->rank && w->size;
}

static bool from_lws(char *const *env, char host[HOST_MAX], struct word *w)
{
    (void)host;
    *w = (struct word){.source = "LeaderWorkerSet",
                       .rank = lookup(env, "LWS_WORKER_INDEX"),
                       .size = lookup(env, "LWS_GROUP_SIZE"),
                       .addr = lookup(env, "LWS_LEADER_ADDRESS")};
    return w->rank && w->size;
}

/* --- the answer ------------------------------------------------------------------------------- */

static enum sl_status check_host(const char *host, struct sl_err *err)
{
    static const char good[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:";
    size_t n = strlen(host);
    if (!n || n >= HOST_MAX || strspn(host, good) != n)
        return sl_fail_param(err, SL_USAGE, "master-addr", "'%.64s' is not an address of rank 0",
                             host);
    return SL_OK;
}

static enum sl_status endpoint(const struct sl_rank_options *o, const struct word *w,
                               struct sl_rank_place *out, struct sl_err *err)
{
    const char *addr = o->master_addr ? o->master_addr : w->addr;
    uint32_t port = o->master_port > 0 ? (uint32_t)o->master_port : w->port;
    if (o->rendezvous) {
        if (strlen(o->rendezvous) >= sizeof out->rendezvous)
            return sl_fail_param(err, SL_USAGE, "rendezvous",
                                 "--rendezvous is longer than %d bytes",
                                 SL_RANK_ENDPOINT_BYTES - 1);
        snprintf(out->rendezvous, sizeof out->rendezvous, "%s", o->rendezvous);
        return SL_OK;
    }
    if (!addr && out->given)
        return sl_fail_param(err, SL_USAGE, "master-addr",
                             "%s names rank %u but not where rank 0 is: give --master-addr",
                             w->source, out->rank);
    if (!addr)
        return SL_OK;
    enum sl_status s = check_host(addr, err);
    bool v6 = strchr(addr, ':') != NULL && addr[0] != '[';
    snprintf(out->rendezvous, sizeof out->rendezvous, "tcp://%s%s%s:%u", v6 ? "[" : "", addr,
             v6 ? "]" : "", port ? port : PORT_DEFAULT);
    return s;
}

static enum sl_status take(const struct word *w, uint32_t n_ranks, struct sl_rank_place *out,
                           struct sl_err *err)
{
    uint32_t rank, size;
    if (!number(w->rank, UINT32_MAX, &rank) || !number(w->size, UINT32_MAX, &size))
        return sl_fail_param(err, SL_USAGE, "rank", "%s: rank '%.32s' of '%.32s' is not a number",
                             w->source, w->rank, w->size);
    if (size == 1)
        return SL_OK;
    if (size != n_ranks || rank >= size)
        return sl_fail_param(err, SL_USAGE, "world-size",
                             "%s: rank %u of %u processes; tensor-parallel-size x "
                             "pipeline-parallel-size is %u",
                             w->source, rank, size, n_ranks);
    out->given = true;
    out->rank = rank;
    out->source = w->source;
    return SL_OK;
}

static enum sl_status from_options(const struct sl_rank_options *o, uint32_t n_ranks,
                                   struct sl_rank_place *out, struct sl_err *err)
{
    if (o->world_size > 0 && o->world_size != (int64_t)n_ranks)
        return sl_fail_param(err, SL_USAGE, "world-size",
                             "--world-size %lld; tensor-parallel-size x pipeline-parallel-size "
                             "is %u",
                             (long long)o->world_size, n_ranks);
    if (o->rank >= (int64_t)n_ranks)
        return sl_fail_param(err, SL_USAGE, "rank", "--rank %lld of %u ranks", (long long)o->rank,
                             n_ranks);
    out->given = o->rank >= 0;
    out->rank = out->given ? (uint32_t)o->rank : 0;
    out->source = "options";
    return SL_OK;
}

enum sl_status sl_rank_discover(const struct sl_rank_options *o, char *const *env, uint32_t n_ranks,
                                struct sl_rank_place *out, struct sl_err *err)
{
    static bool (*const launchers[])(char *const *env, char host[HOST_MAX], struct word *w) = {
        from_torchrun, from_openmpi, from_slurm, from_lws};
    struct word w = {.source = "options", .addr = "127.0.0.1", .port = PORT_DEFAULT};
    char host[HOST_MAX];
    *out =
        (struct sl_rank_place){.source = "nobody", .interface = lookup(env, "NCCL_SOCKET_IFNAME")};
    enum sl_status s = from_options(o, n_ranks, out, err);
    if (s || n_ranks == 1)
        return s;
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers && !out->given; i++) {
        struct word said;
        if (!launchers[i](env, host, &said))
            continue;
        if ((s = take(&said, n_ranks, out, err)))
            return s;
        w = said;
        break; /* a launcher of one process: those around it count others */
    }
    if (!out->given)
        w.addr = NULL; /* followers of our own need no address */
    return endpoint(o, &w, out, err);
}
