/* Membership as flags on members: an input sets what is due, next_action hands it out and clears
 * it. Lost members keep their slot until LOST was taken. Answers to links that are no members wait
 * in a small ring; when it is full they are left out, since whoever asked will ask again.
 *
 * A lost instance is remembered for a while, so that a HELLO which was under way all the time (or
 * came twice) cannot bring back what is gone: its sender must greet anew. */
#include <sluice/control/membership.h>

#include <sluice/base/containers.h>
#include <sluice/base/mutant.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWERS_MAX = 64, MEMORY_MAX = 256 };

struct member {
    struct sl_list link; /* members, lost or free */
    uint64_t key, instance, greeting, meta_bytes, seen_ns;
    uint8_t meta_sha256[32];
    void *user;
    uint32_t n_asked; /* for metadata */
    bool joined, draining;
    bool due_welcome, due_join, due_drain, due_ping;
    enum sl_member_why why; /* once lost */
};

struct answer {
    uint64_t key;
    enum sl_status status;
};
struct known {
    uint64_t instance, greeting;
};

enum meta_state { META_NONE, META_ASK, META_ASKED, META_OPEN, META_OPENING, META_HAVE };

struct sl_members {
    struct sl_members_config cfg;
    struct member *slots; /* [2 * max_members]: as many may be lost as are there */
    struct sl_list members, lost, free;
    uint32_t n_members;
    struct answer answers[ANSWERS_MAX];
    uint32_t answer_head, n_answers;
    struct known known[MEMORY_MAX]; /* of lost instances, a ring */
    uint32_t next_known;

    enum meta_state meta;
    uint64_t meta_key, meta_len, meta_bytes, meta_ns;
    uint8_t meta_sha256[32];

    uint64_t tick_ns, ping_ns;
    uint64_t n_joined, n_lost[SL_LOST_REFUSED + 1], n_stale, n_refused;
};

enum sl_status sl_members_open(const struct sl_members_config *cfg, struct sl_members **out,
                               struct sl_err *err)
{
    if (!cfg->max_members || cfg->max_members > 1u << 16 || cfg->version_min > cfg->version_max)
        return sl_fail(err, SL_INVALID, "membership: %u members, versions %u to %u",
                       cfg->max_members, cfg->version_min, cfg->version_max);
    struct sl_members *m = calloc(1, sizeof *m);
    if (m)
        m->slots = calloc(2 * (size_t)cfg->max_members, sizeof *m->slots);
    if (!m || !m->slots) {
        free(m);
        return sl_fail(err, SL_NO_MEMORY, "membership: no memory for %u members", cfg->max_members);
    }
    m->cfg = *cfg;
    sl_list_init(&m->members);
    sl_list_init(&m->lost);
    sl_list_init(&m->free);
    for (uint32_t i = 0; i < 2 * cfg->max_members; i++)
        sl_list_push_back(&m->free, &m->slots[i].link);
    *out = m;
    return SL_OK;
}

void sl_members_close(struct sl_members *m)
{
    if (!m)
        return;
    free(m->slots);
    free(m);
}

/* ---- members ---- */

static struct member *member_of(struct sl_list *l)
{
    return SL_ENTRY(l, struct member, link);
}

static struct member *find(const struct sl_members *m, uint64_t key)
{
    for (struct sl_list *l = m->members.next; l != &m->members; l = l->next)
        if (member_of(l)->key == key)
            return member_of(l);
    return NULL;
}

static struct member *find_instance(const struct sl_members *m, uint64_t instance)
{
    for (struct sl_list *l = m->members.next; instance && l != &m->members; l = l->next)
        if (member_of(l)->instance == instance)
            return member_of(l);
    return NULL;
}

static bool same_model(const struct sl_members *m, const uint8_t sha256[32])
{
    return !memcmp(m->meta_sha256, sha256, 32);
}

static void answer(struct sl_members *m, uint64_t key, enum sl_status status)
{
    if (m->n_answers == ANSWERS_MAX)
        return;
    m->answers[(m->answer_head + m->n_answers++) % ANSWERS_MAX] = (struct answer){key, status};
}

static void remember(struct sl_members *m, const struct member *p)
{
    if (!p->instance)
        return;
    m->known[m->next_known++ % MEMORY_MAX] = (struct known){p->instance, p->greeting};
}

static void lose(struct sl_members *m, struct member *p, enum sl_member_why why)
{
    p->why = why;
    m->n_lost[why]++;
    m->n_members--;
    remember(m, p);
    sl_list_remove(&p->link);
    sl_list_push_back(&m->lost, &p->link);
    if (m->meta_key == p->key && m->meta != META_HAVE)
        m->meta = META_NONE;
}

/* ---- the model's metadata ---- */

/* Asks the member that was asked least, from the beginning. */
static void meta_start(struct sl_members *m, uint64_t now_ns)
{
    struct member *best = NULL;
    if (m->meta != META_NONE)
        return;
    for (struct sl_list *l = m->members.next; l != &m->members; l = l->next)
        if (!best || member_of(l)->n_asked < best->n_asked)
            best = member_of(l);
    if (!best)
        return;
    best->n_asked++;
    m->meta = META_ASK;
    m->meta_key = best->key;
    m->meta_bytes = best->meta_bytes;
    m->meta_len = 0;
    m->meta_ns = now_ns;
    memcpy(m->meta_sha256, best->meta_sha256, 32);
}

bool sl_members_meta(struct sl_members *m, uint64_t key, uint64_t offset, uint64_t n_bytes,
                     uint64_t now_ns)
{
    if (m->meta != META_ASKED || key != m->meta_key || offset != m->meta_len || !n_bytes ||
        n_bytes > m->meta_bytes - m->meta_len)
        return false;
    m->meta_len += n_bytes;
    m->meta_ns = now_ns;
    m->meta = m->meta_len == m->meta_bytes ? META_OPEN : META_ASK;
    return true;
}

void sl_members_model(struct sl_members *m, uint64_t key, enum sl_status status, uint64_t now_ns)
{
    if (m->meta != META_OPENING || key != m->meta_key)
        return;
    if (status) {
        sl_members_refuse(m, key, status);
        meta_start(m, now_ns);
        return;
    }
    m->meta = META_HAVE;
    struct sl_list *next;
    for (struct sl_list *l = m->members.next; l != &m->members; l = next) {
        next = l->next;
        struct member *p = member_of(l);
        if (same_model(m, p->meta_sha256))
            p->due_join = true;
        else
            sl_members_refuse(m, p->key, SL_MODEL);
    }
}

/* ---- what links say ---- */

/* Whether an instance has greeted as late as this before. */
static bool is_stale(const struct sl_members *m, const struct sl_member_hello *h)
{
    const struct member *p = find_instance(m, h->instance);
    if (SL_MUTANT(STALE_HELLO))
        return false;
    if (p && h->greeting <= p->greeting)
        return true;
    for (uint32_t i = 0; h->instance && i < MEMORY_MAX; i++)
        if (m->known[i].instance == h->instance && h->greeting <= m->known[i].greeting)
            return true;
    return false;
}

static enum sl_status reason_against(const struct sl_members *m, const struct sl_member_hello *h)
{
    if (h->version < m->cfg.version_min || h->version > m->cfg.version_max)
        return SL_UNSUPPORTED;
    if (!h->meta_bytes || h->meta_bytes > m->cfg.meta_bytes_max)
        return SL_TOO_LARGE;
    if (m->meta == META_HAVE && !same_model(m, h->meta_sha256))
        return SL_MODEL;
    if (m->n_members == m->cfg.max_members || sl_list_empty(&m->free))
        return SL_QUEUE_FULL;
    return SL_OK;
}

static void member_new(struct sl_members *m, uint64_t key, const struct sl_member_hello *h,
                       uint64_t now_ns)
{
    struct member *p = member_of(m->free.next);
    sl_list_remove(&p->link);
    *p = (struct member){.key = key,
                         .instance = h->instance,
                         .greeting = h->greeting,
                         .meta_bytes = h->meta_bytes,
                         .seen_ns = now_ns,
                         .user = h->user,
                         .due_join = m->meta == META_HAVE};
    memcpy(p->meta_sha256, h->meta_sha256, 32);
    sl_list_push_back(&m->members, &p->link);
    m->n_members++;
}

bool sl_members_hello(struct sl_members *m, uint64_t key, const struct sl_member_hello *h,
                      uint64_t now_ns)
{
    struct member *p = find(m, key), *other = find_instance(m, h->instance);
    if (is_stale(m, h)) {
        m->n_stale++;
        if (!p)
            answer(m, key, SL_PEER); /* a living sender greets anew */
        return false;
    }
    if (p)
        lose(m, p, p->instance == h->instance ? SL_LOST_REPLACED : SL_LOST_GONE);
    if (other && other != p)
        lose(m, other, SL_LOST_REPLACED);
    enum sl_status status = reason_against(m, h);
    if (status) {
        m->n_refused++;
        answer(m, key, status);
    } else {
        member_new(m, key, h, now_ns);
    }
    meta_start(m, now_ns);
    return !status;
}

bool sl_members_heard(struct sl_members *m, uint64_t key, bool asks, uint64_t now_ns)
{
    struct member *p = find(m, key);
    if (p) {
        p->seen_ns = now_ns;
        return true;
    }
    m->n_stale++;
    if (asks)
        answer(m, key, SL_PEER);
    return false;
}

void sl_members_refuse(struct sl_members *m, uint64_t key, enum sl_status status)
{
    struct member *p = find(m, key);
    if (!p)
        return;
    p->joined = p->due_join = false;
    m->n_refused++;
    answer(m, key, status);
    lose(m, p, SL_LOST_REFUSED);
}

void sl_members_leave(struct sl_members *m, uint64_t key, enum sl_member_why why)
{
    struct member *p = find(m, key);
    if (!p)
        return;
    lose(m, p, why);
    meta_start(m, m->tick_ns);
}

void sl_members_gap(struct sl_members *m, uint64_t key)
{
    if (!find(m, key))
        return;
    answer(m, key, SL_PEER);
    sl_members_leave(m, key, SL_LOST_GAP);
}

void sl_members_drain(struct sl_members *m, uint64_t key)
{
    for (struct sl_list *l = m->members.next; l != &m->members; l = l->next)
        if (!key || member_of(l)->key == key)
            member_of(l)->draining = member_of(l)->due_drain = true;
}

/* ---- time ---- */

/* The time we did not listen is not theirs. */
static void forgive_pause(struct sl_members *m, uint64_t now_ns)
{
    uint64_t gap = now_ns - m->tick_ns;
    if (!m->tick_ns || gap <= SL_MEMBER_PAUSE_NS)
        return;
    for (struct sl_list *l = m->members.next; l != &m->members; l = l->next) {
        struct member *p = member_of(l);
        p->seen_ns = now_ns - p->seen_ns > gap ? p->seen_ns + gap : now_ns;
    }
    m->meta_ns = now_ns;
}

static void drop_silent(struct sl_members *m, uint64_t now_ns)
{
    struct sl_list *next;
    for (struct sl_list *l = m->members.next; l != &m->members; l = next) {
        next = l->next;
        struct member *p = member_of(l);
        if (!SL_MUTANT(SILENCE_IGNORED) && now_ns > p->seen_ns &&
            now_ns - p->seen_ns >= SL_MEMBER_SILENCE_NS)
            lose(m, p, SL_LOST_SILENT);
    }
}

void sl_members_tick(struct sl_members *m, uint64_t now_ns)
{
    if (now_ns < m->tick_ns)
        return; /* not a clock that runs backwards: a caller's old reading */
    forgive_pause(m, now_ns);
    m->tick_ns = now_ns;
    drop_silent(m, now_ns);
    if (m->meta == META_ASKED && now_ns - m->meta_ns >= SL_MEMBER_META_NS)
        m->meta = META_NONE;
    meta_start(m, now_ns);
    if (now_ns - m->ping_ns < SL_MEMBER_PING_NS)
        return;
    m->ping_ns = now_ns;
    for (struct sl_list *l = m->members.next; l != &m->members; l = l->next)
        member_of(l)->due_ping = true;
}

/* ---- actions ---- */

static void act(struct sl_member_action *out, enum sl_member_action_kind kind,
                const struct member *p)
{
    *out = (struct sl_member_action){
        .kind = kind, .key = p->key, .user = p->user, .joined = p->joined};
}

static bool take_lost(struct sl_members *m, struct sl_member_action *out)
{
    if (sl_list_empty(&m->lost))
        return false;
    struct member *p = member_of(m->lost.next);
    act(out, SL_MEMBER_LOST, p);
    out->why = p->why;
    sl_list_remove(&p->link);
    sl_list_push_back(&m->free, &p->link);
    return true;
}

static bool take_answer(struct sl_members *m, struct sl_member_action *out)
{
    if (!m->n_answers)
        return false;
    const struct answer *a = &m->answers[m->answer_head];
    *out = (struct sl_member_action){.kind = SL_MEMBER_WELCOME, .key = a->key, .status = a->status};
    m->answer_head = (m->answer_head + 1) % ANSWERS_MAX;
    m->n_answers--;
    return true;
}

static bool take_meta(struct sl_members *m, struct sl_member_action *out)
{
    if (m->meta != META_ASK && m->meta != META_OPEN)
        return false;
    bool whole = m->meta == META_OPEN;
    act(out, whole ? SL_MEMBER_OPEN : SL_MEMBER_META_GET, find(m, m->meta_key));
    out->offset = m->meta_len;
    m->meta = whole ? META_OPENING : META_ASKED;
    return true;
}

/* One word for this member, clearing what it was due. */
static bool take_due(struct sl_members *m, struct member *p, struct sl_member_action *out)
{
    if (p->due_join) {
        p->due_join = false;
        p->joined = p->due_welcome = true;
        m->n_joined++;
        act(out, SL_MEMBER_JOIN, p);
    } else if (p->due_welcome) {
        p->due_welcome = false;
        act(out, SL_MEMBER_WELCOME, p);
    } else if (p->due_drain) {
        p->due_drain = false;
        act(out, SL_MEMBER_DRAIN, p);
    } else if (p->due_ping) {
        p->due_ping = false;
        act(out, SL_MEMBER_PING, p);
    } else {
        return false;
    }
    return true;
}

bool sl_members_next_action(struct sl_members *m, struct sl_member_action *out)
{
    if (take_lost(m, out) || take_answer(m, out) || take_meta(m, out))
        return true;
    for (struct sl_list *l = m->members.next; l != &m->members; l = l->next)
        if (take_due(m, member_of(l), out))
            return true;
    return false;
}

/* ---- figures and invariants ---- */

bool sl_members_has_model(const struct sl_members *m)
{
    return m->meta == META_HAVE;
}

void sl_members_stats(const struct sl_members *m, struct sl_members_stats *out)
{
    *out = (struct sl_members_stats){.members = m->n_members,
                                     .n_joined = m->n_joined,
                                     .n_stale = m->n_stale,
                                     .n_refused = m->n_refused};
    memcpy(out->n_lost, m->n_lost, sizeof out->n_lost);
    for (struct sl_list *l = m->members.next; l != &m->members; l = l->next)
        out->joined += member_of(l)->joined;
}

#define BROKEN(...) sl_fail(err, SL_FAILED, "membership: " __VA_ARGS__)

static enum sl_status check_member(const struct sl_members *m, const struct member *p,
                                   struct sl_err *err)
{
    unsigned long long key = p->key;
    if (p->joined && (m->meta != META_HAVE || !same_model(m, p->meta_sha256)))
        return BROKEN("link %llu joined with another model", key);
    if (m->meta == META_HAVE && !p->joined && !p->due_join)
        return BROKEN("link %llu waits though the model is known", key);
    if (find(m, p->key) != p)
        return BROKEN("link %llu is there twice", key);
    if (p->instance && find_instance(m, p->instance) != p)
        return BROKEN("the instance of link %llu is there twice", key);
    return SL_OK;
}

enum sl_status sl_members_check(const struct sl_members *m, struct sl_err *err)
{
    uint32_t n = 0, n_all = 0;
    for (struct sl_list *l = m->members.next; l != &m->members; l = l->next, n++) {
        enum sl_status s = check_member(m, member_of(l), err);
        if (s)
            return s;
    }
    n_all = n;
    for (struct sl_list *l = m->lost.next; l != &m->lost; l = l->next)
        n_all++;
    for (struct sl_list *l = m->free.next; l != &m->free; l = l->next)
        n_all++;
    if (n != m->n_members || n_all != 2 * m->cfg.max_members)
        return BROKEN("%u members and %u slots, counted %u and %u", m->n_members,
                      2 * m->cfg.max_members, n, n_all);
    bool fetching = m->meta != META_NONE && m->meta != META_HAVE;
    if (fetching && !find(m, m->meta_key))
        return BROKEN("metadata is awaited from link %llu, which is gone",
                      (unsigned long long)m->meta_key);
    if (m->meta == META_NONE && n)
        return BROKEN("%u members and nobody is asked for metadata", n);
    return SL_OK;
}
