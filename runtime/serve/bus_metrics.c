/* What the bus refused, and whom: every reject has a counter. */
#include "node.h"

#include <sluice/base/metrics.h>

/* X(field of sl_bus_stats, name, kind, help) */
#define BUS_TABLE(X)                                                                               \
    X(n_received, "received_total", SL_COUNTER, "Bus messages taken")                              \
    X(n_sent, "sent_total", SL_COUNTER, "Bus messages sent")                                       \
    X(n_malformed, "malformed_total", SL_COUNTER, "Bus messages that were refused")                \
    X(n_repeated, "repeated_total", SL_COUNTER, "Bus messages that came again or too late")        \
    X(n_gaps, "gaps_total", SL_COUNTER, "Gaps in the numbering of a link's messages")              \
    X(n_refused, "refused_total", SL_COUNTER, "Peers refused: too many links, no common version")  \
    X(n_denied, "denied_total", SL_COUNTER, "Peers and messages without an allowed key")           \
    X(n_revoked, "revoked_total", SL_COUNTER, "Links cut because their key was removed")           \
    X(n_broken, "broken_total", SL_COUNTER, "CURVE frames altered, replayed or for another key")   \
    X(n_handshakes, "handshakes_total", SL_COUNTER, "Completed CURVE handshakes")                  \
    X(n_handshakes_failed, "handshakes_failed_total", SL_COUNTER,                                  \
      "CURVE connections that ended before they became a link")                               \
    X(n_connections, "connections", SL_GAUGE, "Connections open on CURVE endpoints")               \
    X(n_cut, "connections_cut_total", SL_COUNTER, "Connections ended for being too many")          \
    X(n_key_reloads, "key_reloads_total", SL_COUNTER, "Times the key folder was read again")

static struct sl_metric table[] = {
#define X(field, n, k, h) {.name = "sluice_zmq_" n, .help = h, .kind = k},
    BUS_TABLE(X)
#undef X
};

void bus_metrics_open(void)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        sl_metric_register(&table[i]);
}

void bus_metrics_set(const struct sl_bus *bus)
{
    struct sl_bus_stats s;
    size_t i = 0;
    sl_bus_stats(bus, &s);
#define X(field, n, k, h) sl_metric_set(&table[i++], (double)s.field);
    BUS_TABLE(X)
#undef X
}
