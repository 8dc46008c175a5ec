/* Numbers on a link's messages; see sluice/transport/bus.h. */
#include <sluice/transport/bus.h>

#include <sluice/base/mutant.h>

void sl_bus_order_stamp(const struct sl_bus_order *o, struct sl_msg *m)
{
    bool starts = m->kind == SL_MSG_HELLO;
    m->tag = starts ? m->hello.greeting : o->tag;
    m->seq = !m->tag ? 0 : starts ? 1 : o->n_sent + 1;
}

void sl_bus_order_sent(struct sl_bus_order *o, const struct sl_msg *m)
{
    if (!m->seq)
        return;
    if (m->kind == SL_MSG_HELLO)
        *o = (struct sl_bus_order){.tag = m->tag};
    o->n_sent = m->seq;
}

/* A HELLO opens the numbering of both directions. */
static bool hello_heard(struct sl_bus_order *o, const struct sl_msg *m)
{
    if (m->tag != m->hello.greeting || m->seq != 1 || (o->tag && m->tag <= o->tag))
        return false;
    *o = (struct sl_bus_order){.tag = m->tag, .n_heard = 1};
    return true;
}

bool sl_bus_order_heard(struct sl_bus_order *o, struct sl_msg *m)
{
    m->gap = false;
    if (!m->seq)
        return true;
    if (m->kind == SL_MSG_HELLO)
        return hello_heard(o, m);
    if (!o->tag)
        return true; /* a stranger: it is told to say HELLO */
    if (m->tag != o->tag || m->seq <= o->n_heard)
        return false;
    m->gap = m->seq != o->n_heard + 1 && !SL_MUTANT(LINK_GAP_IGNORED);
    o->n_heard = m->seq;
    return true;
}
