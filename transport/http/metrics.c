/* The server's counters. */
#include "http_priv.h"
#include <sluice/base/metrics.h>

struct sl_metric http_m_connections = {
    .name = "sluice_http_connections", .help = "Open client connections.", .kind = SL_GAUGE};
struct sl_metric http_m_requests = {.name = "sluice_http_requests_total",
                                    .help = "Requests handed to a handler.",
                                    .kind = SL_COUNTER};
struct sl_metric http_m_slow = {.name = "sluice_http_slow_clients_total",
                                .help = "Connections cut for missing a deadline.",
                                .kind = SL_COUNTER};
struct sl_metric http_m_bad = {.name = "sluice_http_bad_requests_total",
                               .help = "Requests refused before a handler saw them.",
                               .kind = SL_COUNTER};

void http_metrics_register(void)
{
    sl_metric_register(&http_m_connections);
    sl_metric_register(&http_m_requests);
    sl_metric_register(&http_m_slow);
    sl_metric_register(&http_m_bad);
}
