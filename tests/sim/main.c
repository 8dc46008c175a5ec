/* sluice_sim [--seed N] [--seeds K] [--mode ordered|hostile|bare|all] [--shard I/N] [--trace]
 * [--twice]
 *            [--until-broken] [--mutant NAME]
 *
 * Runs seeds N, N+1, ... and prints the first that breaks an invariant; exit code 1 then. --trace
 * prints every event of the run; --twice runs each seed two times and compares the traces; with
 * --until-broken it is a failure that no seed breaks (a build with a known bug). */
#include "sim.h"

#include <sluice/base/mutant.h>

#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

struct options {
    uint64_t seed, n_seeds;
    uint32_t shard, n_shards;
    const char *mode, *mutant;
    bool trace, twice, until_broken;
};

static int usage(void)
{
    fprintf(stderr, "usage: sluice_sim [--seed N] [--seeds K] [--mode ordered|hostile|bare|all] "
                    "[--shard I/N] [--trace] [--twice] [--until-broken] [--mutant NAME]\n");
    return 2;
}

static bool read_options(int argc, char **argv, struct options *o)
{
    *o = (struct options){.seed = 1, .n_seeds = 1, .n_shards = 1, .mode = "all"};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--trace")) {
            o->trace = true;
        } else if (!strcmp(argv[i], "--twice")) {
            o->twice = true;
        } else if (!strcmp(argv[i], "--until-broken")) {
            o->until_broken = true;
        } else if (!strcmp(argv[i], "--seed")) {
            o->seed = strtoull(value, NULL, 10);
            i++;
        } else if (!strcmp(argv[i], "--seeds")) {
            o->n_seeds = strtoull(value, NULL, 10);
            i++;
        } else if (!strcmp(argv[i], "--shard")) {
            if (sscanf(value, "%u/%u", &o->shard, &o->n_shards) != 2 || !o->n_shards)
                return false;
            i++;
        } else if (!strcmp(argv[i], "--mode")) {
            o->mode = value;
            i++;
        } else if (!strcmp(argv[i], "--mutant")) {
            o->mutant = value;
            i++;
        } else {
            return false;
        }
    }
    return true;
}

static const char *const mode_names[] = {"ordered", "hostile", "bare"};

static struct {
    uint64_t n_runs, n_events, n_delivered, n_lost, n_doubled, n_flipped;
    uint64_t settled_ns[BARE + 1];
    struct sl_router_stats sum;
} total;

static void count(const struct sim *s)
{
    if (s->settled_ns > total.settled_ns[s->mode])
        total.settled_ns[s->mode] = s->settled_ns;
    total.n_runs++;
    total.n_events += s->n_events;
    total.n_delivered += s->n_delivered;
    total.n_lost += s->n_lost;
    total.n_doubled += s->n_doubled;
    total.n_flipped += s->n_flipped;
    total.sum.n_retried += s->sum.n_retried;
    total.sum.n_fenced += s->sum.n_fenced;
    total.sum.n_repeated += s->sum.n_repeated;
    total.sum.n_gaps += s->sum.n_gaps;
}

/* False when the seed broke an invariant, or did not run the same way twice. */
static bool run_seed(const struct options *o, uint64_t seed, enum mode mode)
{
    static struct sim s;
    struct sl_buf traces[2] = {{0}, {0}};
    bool good = sim_run(&s, seed, mode, o->trace || o->twice ? &traces[0] : NULL);
    uint64_t hash = s.trace_hash;
    count(&s);
    if (o->trace)
        fwrite(traces[0].data, 1, traces[0].len, stdout);
    if (!good)
        printf("seed %llu, %s, trace %016llx: %s\n", (unsigned long long)seed, mode_names[mode],
               (unsigned long long)hash, s.broken);
    if (o->trace && good)
        printf("seed %llu, %s, trace %016llx\n", (unsigned long long)seed, mode_names[mode],
               (unsigned long long)hash);
    if (o->twice) {
        sim_run(&s, seed, mode, &traces[1]);
        bool same = traces[0].len == traces[1].len && !traces[0].failed &&
                    !memcmp(traces[0].data, traces[1].data, traces[0].len);
        if (!same)
            printf("seed %llu, %s: two runs differ\n", (unsigned long long)seed, mode_names[mode]);
        good = good && same;
    }
    sl_buf_free(&traces[0]);
    sl_buf_free(&traces[1]);
    return good;
}

static void report(void)
{
    printf("%llu runs, %llu events, %llu tokens, %llu requests sent again; "
           "lost %llu, doubled %llu, flipped %llu; fenced %llu, repeated %llu, gaps %llu; "
           "settled %.1f s (ordered) and %.1f s (hostile) after healing; %.1f s of CPU\n",
           (unsigned long long)total.n_runs, (unsigned long long)total.n_events,
           (unsigned long long)total.n_delivered, (unsigned long long)total.sum.n_retried,
           (unsigned long long)total.n_lost, (unsigned long long)total.n_doubled,
           (unsigned long long)total.n_flipped, (unsigned long long)total.sum.n_fenced,
           (unsigned long long)total.sum.n_repeated, (unsigned long long)total.sum.n_gaps,
           (double)total.settled_ns[ORDERED] / 1e9, (double)total.settled_ns[HOSTILE] / 1e9,
           (double)clock() / CLOCKS_PER_SEC);
}

#ifdef SL_MUTANTS
enum sl_mutant sl_mutant;

static bool set_mutant(const char *name)
{
    static const char *const names[] = {"none",
#define X(id, what) #id,
                                        SL_MUTANT_TABLE(X)
#undef X
    };
    for (int i = 0; name && i < SL_N_MUTANTS; i++)
        if (!strcmp(name, names[i]))
            sl_mutant = (enum sl_mutant)i;
    return !name || sl_mutant;
}
#else
static bool set_mutant(const char *name)
{
    return !name; /* there are none in this build */
}
#endif

static bool until_broken;

/* An assertion of the product found the bug. */
static void on_abort(int signum)
{
    (void)signum;
    _exit(until_broken ? 0 : 1);
}

int main(int argc, char **argv)
{
    struct options o;
    if (!read_options(argc, argv, &o) || !set_mutant(o.mutant))
        return usage();
    until_broken = o.until_broken;
    signal(SIGABRT, on_abort);
    bool good = true;
    for (uint64_t i = o.shard; i < o.n_seeds && good; i += o.n_shards) {
        for (int mode = ORDERED; mode <= BARE && good; mode++)
            if (!strcmp(o.mode, "all") || !strcmp(o.mode, mode_names[mode]))
                good = run_seed(&o, o.seed + i, (enum mode)mode);
    }
    report();
    if (o.until_broken)
        return good; /* the bug was not found */
    return !good;
}
