/* Membership: which workers a router has. Pure, no clock, no I/O, no locks.
 *
 * Inputs are calls (what links said, what became of them, the time); outputs are actions taken one
 * by one with sl_members_next_action. A worker exists from an accepted HELLO until it is LOST: by
 * its BYE, its silence, the end of its link or process, a newer registration, or a refusal. Nothing
 * that arrives under a lost link counts until the worker registers again: sl_members_heard says so.
 *
 * A member joins the router once the model's metadata (tokenizer, template) is known; the first to
 * come are asked for it, one at a time. Members of another model are refused.
 *
 * Detection, with the figures of SL_MEMBER_*: workers report every 100 ms, the router ticks every
 * 50 ms. One that falls silent is lost at most 800 + 50 ms after its last report, and 7 reports in
 * a row may be late or lost before. A closed connection is noticed by the next ping, at most 50 ms
 * and a tick later. When our own ticks are far apart we were paused, not they: that time is not
 * held against anyone. */
#ifndef SLUICE_CONTROL_MEMBERSHIP_H
#define SLUICE_CONTROL_MEMBERSHIP_H

#include <sluice/base/err.h>
#include <stdbool.h>
#include <stdint.h>

#define SL_MEMBER_SILENCE_NS 800000000ull
#define SL_MEMBER_PING_NS    50000000ull
#define SL_MEMBER_PAUSE_NS   200000000ull  /* between two ticks: we were paused */
#define SL_MEMBER_META_NS    1000000000ull /* without an answer: asked again, others first */

struct sl_members;

struct sl_members_config {
    uint32_t max_members;
    uint32_t version_min, version_max; /* of the bus protocol */
    uint64_t meta_bytes_max;
};

struct sl_member_hello {
    uint32_t version;
    uint64_t instance; /* random number of the worker process; 0: it has none */
    uint64_t greeting; /* counts the HELLOs of this instance; later ones are newer */
    uint64_t meta_bytes;
    uint8_t meta_sha256[32];
    void *user; /* the caller's; comes back with the actions, last with LOST */
};

/* A message for the worker unless said otherwise. */
enum sl_member_action_kind {
    SL_MEMBER_LOST,     /* for the router and the link: it exists no more, `user` is free again */
    SL_MEMBER_WELCOME,  /* with `status` */
    SL_MEMBER_JOIN,     /* for the router: it serves; sl_members_refuse when the router will not */
    SL_MEMBER_OPEN,     /* for the caller: the metadata is whole; answer with sl_members_model */
    SL_MEMBER_META_GET, /* the bytes from `offset` on */
    SL_MEMBER_DRAIN,    /* also for the router: no new work */
    SL_MEMBER_PING
};
enum sl_member_why {
    SL_LOST_BYE, /* it left on purpose */
    SL_LOST_SILENT,
    SL_LOST_GONE,     /* its link or its process ended */
    SL_LOST_REPLACED, /* it registered again */
    SL_LOST_GAP,      /* messages of its link were lost: it is told to register again */
    SL_LOST_REFUSED   /* model, metadata or the router's capacity */
};
/* Whether such a loss says that the worker is there: only its link is a new one. */
static inline bool sl_lost_lives(enum sl_member_why why)
{
    return why == SL_LOST_REPLACED || why == SL_LOST_GAP;
}
struct sl_member_action {
    enum sl_member_action_kind kind;
    uint64_t key;
    void *user;             /* NULL for a WELCOME of a link that is no member */
    enum sl_status status;  /* WELCOME */
    enum sl_member_why why; /* LOST */
    bool joined;            /* LOST: the router knows it */
    uint64_t offset;        /* META_GET */
};

struct sl_members_stats {
    uint32_t members, joined;
    uint64_t n_joined, n_lost[SL_LOST_REFUSED + 1], n_stale, n_refused;
};

enum sl_status sl_members_open(const struct sl_members_config *cfg, struct sl_members **out,
                               struct sl_err *err);
void sl_members_close(struct sl_members *m);

/* True: it is a member now and `user` belongs to it until LOST; a member of the same link or of the
 * same instance is lost first. False: refused, or stale (a HELLO not newer than one seen before).
 */
bool sl_members_hello(struct sl_members *m, uint64_t key, const struct sl_member_hello *h,
                      uint64_t now_ns);
/* Any other message came. True: from a member. False: drop it; where `asks`, its sender is told to
 * register again. */
bool sl_members_heard(struct sl_members *m, uint64_t key, bool asks, uint64_t now_ns);
/* A piece of metadata came. True: it is the next one, keep its bytes. */
bool sl_members_meta(struct sl_members *m, uint64_t key, uint64_t offset, uint64_t n_bytes,
                     uint64_t now_ns);
/* Answers SL_MEMBER_OPEN: the model of that metadata is in use from now on, or `status` says why
 * not and the worker is refused with it. */
void sl_members_model(struct sl_members *m, uint64_t key, enum sl_status status, uint64_t now_ns);
/* Answers SL_MEMBER_JOIN when the router cannot take it. */
void sl_members_refuse(struct sl_members *m, uint64_t key, enum sl_status status);
/* It left (BYE), or its link or process ended. */
void sl_members_leave(struct sl_members *m, uint64_t key, enum sl_member_why why);
/* Messages of its link were lost on the way. */
void sl_members_gap(struct sl_members *m, uint64_t key);
/* Tells one member, or all with key 0, to finish and leave. */
void sl_members_drain(struct sl_members *m, uint64_t key);

/* Silence, pings, metadata that does not come; call at least every SL_MEMBER_PING_NS, after reading
 * everything that waits. */
void sl_members_tick(struct sl_members *m, uint64_t now_ns);
/* All losses come first, then joins and the rest. Take them until false. */
bool sl_members_next_action(struct sl_members *m, struct sl_member_action *out);

bool sl_members_has_model(const struct sl_members *m);
void sl_members_stats(const struct sl_members *m, struct sl_members_stats *out);
enum sl_status sl_members_check(const struct sl_members *m, struct sl_err *err);

#endif
