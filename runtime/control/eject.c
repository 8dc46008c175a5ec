/* The state machine of slow workers. */
#include <sluice/control/eject.h>

#include <stdlib.h>
#include <string.h>

enum { N_SIZES = 24 };  /* rows of a step: 1, 2-3, 4-7, ... */
#define AVERAGE_SHIFT 3 /* a new window counts an eighth */
#define BUSY_MAX_NS   3600000000000ull

/* What is compared, each among its like and with a count of its own. */
enum { STEPS, FIRSTS, N_SIGNALS };
struct signal {
    uint64_t mean_ns[N_SIZES];         /* moving averages; 0: unknown */
    uint64_t n, n_rows, ns, window_ns; /* of the window under way, and when it began */
    uint32_t last_size;
    uint32_t n_slow; /* observations in a row */
    uint64_t slow_since_ns;
};

struct watched {
    bool joined;
    enum sl_eject_state state;
    struct signal signals[N_SIGNALS];
    uint32_t n_good;     /* observations of first tokens in a row, none slow of any kind */
    uint64_t until_ns;   /* SL_EJECT_OUT */
    uint64_t trouble_ns; /* end of the last ejection */
    uint32_t n_doublings;
};

struct sl_eject {
    uint32_t n_slots, n_joined, n_out; /* n_out: not SL_EJECT_OK */
    uint64_t n_ejected;
    struct watched *workers; /* [n_slots] */
    uint64_t *sorted;        /* [n_slots] scratch of a median */
};

enum sl_status sl_eject_open(uint32_t n_slots, struct sl_eject **out, struct sl_err *err)
{
    struct sl_eject *e = calloc(1, sizeof *e);
    if (!e)
        return sl_fail(err, SL_NO_MEMORY, "eject: no memory");
    e->n_slots = n_slots;
    e->workers = calloc(n_slots, sizeof *e->workers);
    e->sorted = calloc(n_slots, sizeof *e->sorted);
    if (!e->workers || !e->sorted) {
        sl_eject_close(e);
        return sl_fail(err, SL_NO_MEMORY, "eject: no memory for %u workers", n_slots);
    }
    *out = e;
    return SL_OK;
}

void sl_eject_close(struct sl_eject *e)
{
    if (!e)
        return;
    free(e->workers);
    free(e->sorted);
    free(e);
}

/* --- the pool --------------------------------------------------------------------------------- */

static void set_state(struct sl_eject *e, struct watched *w, enum sl_eject_state state)
{
    e->n_out -= w->state != SL_EJECT_OK;
    e->n_out += state != SL_EJECT_OK;
    w->state = state;
    w->n_good = w->signals[STEPS].n_slow = w->signals[FIRSTS].n_slow = 0;
}

/* A pool that shrank has too many out: whoever would be back first is back now. */
static void keep_half(struct sl_eject *e)
{
    while (e->n_out > e->n_joined / 2) {
        struct watched *first = NULL;
        for (uint32_t i = 0; i < e->n_slots; i++) {
            struct watched *w = &e->workers[i];
            if (w->joined && w->state != SL_EJECT_OK && (!first || w->until_ns < first->until_ns))
                first = w;
        }
        set_state(e, first, SL_EJECT_OK);
    }
}

void sl_eject_join(struct sl_eject *e, uint32_t slot, uint64_t now_ns)
{
    sl_eject_leave(e, slot);
    e->workers[slot] = (struct watched){.joined = true, .trouble_ns = now_ns};
    e->n_joined++;
}

void sl_eject_leave(struct sl_eject *e, uint32_t slot)
{
    struct watched *w = &e->workers[slot];
    if (!w->joined)
        return;
    set_state(e, w, SL_EJECT_OK);
    w->joined = false;
    e->n_joined--;
    keep_half(e);
}

/* --- what is slow ----------------------------------------------------------------------------- */

static uint32_t size_of(uint64_t n_rows)
{
    uint32_t s = 0;
    while (n_rows > 1 && s < N_SIZES - 1) {
        n_rows /= 2;
        s++;
    }
    return s;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Lower median of what it takes the others at this size; 0: nobody knows. */
static uint64_t median_at(const struct sl_eject *e, const struct watched *but, uint32_t kind,
                          uint32_t size)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < e->n_slots; i++) {
        const struct watched *w = &e->workers[i];
        if (w != but && w->joined && w->state == SL_EJECT_OK && w->signals[kind].mean_ns[size])
            e->sorted[n++] = w->signals[kind].mean_ns[size];
    }
    if (!n)
        return 0;
    qsort(e->sorted, n, sizeof *e->sorted, compare_u64);
    return e->sorted[(n - 1) / 2];
}

static uint64_t reference(const struct sl_eject *e, const struct watched *but, uint32_t kind,
                          uint32_t size)
{
    uint64_t ns = 0;
    for (; size < N_SIZES && !ns; size++)
        ns = median_at(e, but, kind, size);
    return ns;
}

/* What any step may take: the reference of the largest steps known. */
static uint64_t longest_reference(const struct sl_eject *e, const struct watched *but)
{
    uint64_t longest = 0;
    for (uint32_t size = 0; size < N_SIZES; size++) {
        uint64_t ns = median_at(e, but, STEPS, size);
        longest = ns > longest ? ns : longest;
    }
    return longest;
}

static bool is_slow(uint64_t ns, uint64_t reference_ns, uint32_t kind)
{
    uint64_t slack_ns = kind == STEPS ? SL_EJECT_SLACK_NS : SL_EJECT_FIRST_SLACK_NS;
    return reference_ns && ns > SL_EJECT_FACTOR * reference_ns && ns - reference_ns > slack_ns;
}

/* --- states ----------------------------------------------------------------------------------- */

static void eject(struct sl_eject *e, struct watched *w, uint64_t now_ns)
{
    set_state(e, w, SL_EJECT_OUT);
    w->until_ns = now_ns + (SL_EJECT_BASE_NS << w->n_doublings);
    w->trouble_ns = w->until_ns;
    w->n_doublings += w->n_doublings < SL_EJECT_DOUBLINGS;
    e->n_ejected++;
}

static bool note_slow(struct sl_eject *e, struct watched *w, struct signal *s, uint64_t now_ns)
{
    if (s->n_slow++ == 0)
        s->slow_since_ns = now_ns;
    w->n_good = 0;
    bool may_go = w->state == SL_EJECT_PROBE || e->n_out + 1 <= e->n_joined / 2;
    if (w->state == SL_EJECT_OUT || s->n_slow < SL_EJECT_EVIDENCE || !may_go ||
        now_ns - s->slow_since_ns < SL_EJECT_SUSTAIN_NS)
        return false;
    eject(e, w, now_ns);
    return true;
}

static bool note_good(struct sl_eject *e, struct watched *w, struct signal *s, uint64_t now_ns)
{
    s->n_slow = 0;
    w->n_good += s == &w->signals[FIRSTS]; /* what a request sees, and steps are a part of that */
    if (w->n_doublings && w->state == SL_EJECT_OK && now_ns > w->trouble_ns &&
        now_ns - w->trouble_ns > SL_EJECT_CALM_NS) {
        w->n_doublings--;
        w->trouble_ns = now_ns;
    }
    if (w->state != SL_EJECT_PROBE || w->n_good < SL_EJECT_PROBES)
        return false;
    set_state(e, w, SL_EJECT_OK);
    w->trouble_ns = now_ns;
    return true;
}

/* The window is over: one observation. */
static bool observe(struct sl_eject *e, struct watched *w, uint32_t kind, uint64_t now_ns)
{
    struct signal *s = &w->signals[kind];
    uint32_t size = size_of(s->n_rows / s->n);
    uint64_t ns = s->ns / s->n, *average = &s->mean_ns[size];
    bool slow = is_slow(ns, reference(e, w, kind, size), kind);
    *average = *average ? *average - (*average >> AVERAGE_SHIFT) + (ns >> AVERAGE_SHIFT) : ns;
    *average += !*average;
    s->last_size = size;
    s->n = s->n_rows = s->ns = 0;
    return slow ? note_slow(e, w, s, now_ns) : note_good(e, w, s, now_ns);
}

static bool add(struct sl_eject *e, uint32_t slot, uint32_t kind, const uint64_t n_rows_ns[3],
                uint64_t now_ns)
{
    struct watched *w = &e->workers[slot];
    struct signal *s = &w->signals[kind];
    uint64_t n = n_rows_ns[0], n_rows = n_rows_ns[1], ns = n_rows_ns[2];
    if (!w->joined || !n || n_rows < n || n_rows > UINT32_MAX || ns > BUSY_MAX_NS)
        return false; /* counters that jumped say nothing */
    if (!s->n)
        s->window_ns = now_ns;
    s->n += n;
    s->n_rows += n_rows;
    s->ns += ns;
    if (s->ns < SL_EJECT_WINDOW_NS && now_ns - s->window_ns < SL_EJECT_WINDOW_NS)
        return false;
    return observe(e, w, kind, now_ns);
}

bool sl_eject_steps(struct sl_eject *e, uint32_t slot, uint64_t n_steps, uint64_t n_rows,
                    uint64_t busy_ns, uint64_t now_ns)
{
    return add(e, slot, STEPS, (const uint64_t[]){n_steps, n_rows, busy_ns}, now_ns);
}

bool sl_eject_first(struct sl_eject *e, uint32_t slot, uint32_t n_tokens, uint64_t wait_ns,
                    uint64_t now_ns)
{
    return add(e, slot, FIRSTS, (const uint64_t[]){1, n_tokens ? n_tokens : 1, wait_ns}, now_ns);
}

bool sl_eject_age(struct sl_eject *e, uint32_t slot, uint64_t age_ns, uint64_t now_ns)
{
    struct watched *w = &e->workers[slot];
    if (!w->joined || !is_slow(age_ns, longest_reference(e, w), STEPS))
        return false;
    return note_slow(e, w, &w->signals[STEPS], now_ns);
}

bool sl_eject_tick(struct sl_eject *e, uint64_t now_ns)
{
    bool changed = false;
    for (uint32_t i = 0; i < e->n_slots; i++) {
        struct watched *w = &e->workers[i];
        if (!w->joined || w->state != SL_EJECT_OUT || now_ns < w->until_ns)
            continue;
        set_state(e, w, SL_EJECT_PROBE);
        memset(w->signals, 0, sizeof w->signals); /* what it was is no guide to what it is */
        changed = true;
    }
    return changed;
}

uint64_t sl_eject_next_deadline(const struct sl_eject *e)
{
    uint64_t first = UINT64_MAX;
    for (uint32_t i = 0; i < e->n_slots && e->n_out; i++) {
        const struct watched *w = &e->workers[i];
        if (w->joined && w->state == SL_EJECT_OUT && w->until_ns < first)
            first = w->until_ns;
    }
    return first;
}

/* --- questions -------------------------------------------------------------------------------- */

enum sl_eject_state sl_eject_state(const struct sl_eject *e, uint32_t slot)
{
    return e->workers[slot].state;
}

/* The pool's time per row in its largest known steps, which are prefills. */
static uint64_t prefill_row_ns(const struct sl_eject *e, const struct watched *but)
{
    for (uint32_t size = N_SIZES; size-- > 0;) {
        uint64_t ns = median_at(e, but, STEPS, size);
        if (ns)
            return (ns >> size) + 1;
    }
    return UINT64_MAX;
}

bool sl_eject_worth_moving(const struct sl_eject *e, uint32_t slot, uint64_t n_tokens)
{
    const struct watched *w = &e->workers[slot];
    const struct signal *s = &w->signals[STEPS];
    uint64_t here = s->mean_ns[s->last_size], there = reference(e, w, STEPS, s->last_size);
    uint64_t row_ns = prefill_row_ns(e, w);
    if (!there || here <= there || n_tokens > UINT64_MAX / row_ns)
        return false;
    return n_tokens * row_ns < SL_EJECT_WORTH_TOKENS * (here - there);
}

uint64_t sl_eject_count(const struct sl_eject *e, uint32_t *n_out)
{
    *n_out = e->n_out;
    return e->n_ejected;
}
