/* Fault points. A draw is a pure function of (seed, point, pass), so threads that pass one point in
 * another order only swap who is hit. */
#include <sluice/base/fault.h>

#include <sluice/base/time.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DELAY_MS_DEFAULT 100
#define SPEC_BYTES_MAX   1024

struct fault {
    const char *name;
    double probability;
    uint64_t ms, n_skip, n_most; /* n_most 0: no bound */
    _Atomic uint64_t n_passed, n_hit;
};

static struct fault faults[SL_N_FAULTS] = {
#define X(id, text, what) {.name = text},
    SL_FAULT_TABLE(X)
#undef X
};
static uint64_t fault_seed;
bool sl_faults_on;

static enum sl_status refuse(const char *item, const char *why, struct sl_err *err)
{
    return sl_fail_param(err, SL_USAGE, "inject", "--inject: '%.80s' %s", item, why);
}

static bool read_number(const char **at, uint64_t *out)
{
    char *end;
    if (**at < '0' || **at > '9')
        return false;
    *out = strtoull(*at, &end, 10);
    *at = end;
    return true;
}

static enum sl_status read_item(const char *item, struct sl_err *err)
{
    const char *eq = strchr(item, '=');
    size_t len = eq ? (size_t)(eq - item) : 0;
    const char *at = eq ? eq + 1 : "";
    if (len == 4 && !memcmp(item, "seed", 4))
        return read_number(&at, &fault_seed) && !*at ? SL_OK : refuse(item, "is no seed", err);
    struct fault *f = NULL;
    for (uint32_t i = 0; i < SL_N_FAULTS; i++)
        if (strlen(faults[i].name) == len && !memcmp(faults[i].name, item, len))
            f = &faults[i];
    if (!f)
        return refuse(item, "names no fault point", err);
    char *end;
    f->probability = strtod(at, &end);
    if (end == at || !(f->probability >= 0 && f->probability <= 1))
        return refuse(item, "has no probability from 0 to 1", err);
    at = end;
    if (*at == '@' && (at++, !read_number(&at, &f->ms)))
        return refuse(item, "has no milliseconds behind '@'", err);
    if (*at == '+' && (at++, !read_number(&at, &f->n_skip)))
        return refuse(item, "has no count behind '+'", err);
    if (*at == 'x' && (at++, !read_number(&at, &f->n_most)))
        return refuse(item, "has no count behind 'x'", err);
    return *at ? refuse(item, "is not NAME=PROBABILITY[@MS][+SKIP][xMOST]", err) : SL_OK;
}

static void all_off(void)
{
    sl_faults_on = false;
    fault_seed = 0;
    for (uint32_t i = 0; i < SL_N_FAULTS; i++) {
        faults[i].probability = 0;
        faults[i].ms = faults[i].n_skip = faults[i].n_most = 0;
        atomic_store(&faults[i].n_passed, 0);
        atomic_store(&faults[i].n_hit, 0);
    }
}

enum sl_status sl_faults_set(const char *spec, struct sl_err *err)
{
    char text[SPEC_BYTES_MAX], *rest = NULL;
    all_off();
    if (!spec || !*spec)
        return SL_OK;
    if (strlen(spec) >= sizeof text)
        return refuse(spec, "is too long", err);
    memcpy(text, spec, strlen(spec) + 1);
    for (char *item = strtok_r(text, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
        enum sl_status s = read_item(item, err);
        if (s) {
            all_off();
            return s;
        }
    }
    sl_faults_on = true;
    return SL_OK;
}

bool sl_fault_hit(enum sl_fault_point p)
{
    struct fault *f = &faults[p];
    if (f->probability <= 0)
        return false;
    uint64_t pass = atomic_fetch_add(&f->n_passed, 1);
    if (pass < f->n_skip)
        return false;
    bool hit = f->probability >= 1 ||
               (double)sl_random_unit(fault_seed, (uint32_t)p, (uint32_t)pass, 0) < f->probability;
    if (!hit)
        return false;
    if (atomic_fetch_add(&f->n_hit, 1) < f->n_most || !f->n_most)
        return true;
    atomic_fetch_sub(&f->n_hit, 1);
    return false;
}

void sl_fault_wait(enum sl_fault_point p)
{
    uint64_t ms = faults[p].ms ? faults[p].ms : DELAY_MS_DEFAULT;
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000 * 1000000)};
    while (nanosleep(&t, &t)) {
    }
}

uint64_t sl_fault_ms(enum sl_fault_point p)
{
    return faults[p].ms;
}

uint64_t sl_fault_count(enum sl_fault_point p)
{
    return atomic_load(&faults[p].n_hit);
}
