/* The lanes between the devices of a group: opened with its communicators, or not at all, and then
 * the exchange goes through the host. A group whose lanes do not open is not up, and forms again;
 * after FAILURES_MAX times it does without. A device that has failed is found by its next step. */
#include "group.h"

#include <sluice/base/log.h>
#include <stdio.h>

#define FAILURES_MAX 3

static enum sl_status open_one(struct group *g, struct sl_comm *c, struct sl_comm_device **out,
                               struct sl_err *err)
{
    struct sl_comm_device_config cfg = {.lane = g->lane_failures < FAILURES_MAX ? g->lane : NULL,
                                        .device = g->backend->device,
                                        .stream = g->backend->stream,
                                        .interface = g->interface};
    struct sl_err why;
    enum sl_status s = sl_comm_device_open(c, &cfg, out, &why, err);
    if (!s && why.status)
        sl_log(SL_LOG_WARN, "rank %u exchanges through the host: %s", g->rank, why.msg);
    return s;
}

enum sl_status sl_lanes_open(struct group *g, struct sl_comm *comm, struct sl_comm *stage,
                             struct sl_err *err)
{
    enum sl_status s = SL_OK;
    char msg[sizeof err->msg];
    if (!g->backend->on_device)
        return SL_OK;
    if (g->pp > 1)
        s = open_one(g, comm, &g->comm_lane, err);
    if (!s && stage && (g->pp == 1 || g->comm_lane))
        s = open_one(g, stage, &g->stage_lane, err);
    if (!s) {
        bool have = g->stage_lane || g->comm_lane;
        g->lane_failures = have ? 0 : g->lane_failures;
        if (g->rank == 0)
            sl_log(SL_LOG_INFO, "%u ranks exchange %s", g->n_ranks,
                   have ? "between devices" : "through the host");
        return SL_OK;
    }
    snprintf(msg, sizeof msg, "%s", err->msg);
    sl_lanes_close(g);
    if (++g->lane_failures == FAILURES_MAX)
        sl_log(SL_LOG_WARN, "rank %u: no lane between devices after %d attempts: %s", g->rank,
               FAILURES_MAX, msg);
    return s == SL_CANCELLED ? s : sl_fail(err, SL_PEER, "%s", msg);
}

void sl_lanes_close(struct group *g)
{
    if (!g->stage_lane && !g->comm_lane)
        return;
    sl_exchange_settle(g, NULL);
    g->backend->ops->finish(g->backend, NULL); /* of a step that was cut off; a failure stays */
    sl_comm_device_close(g->stage_lane);
    sl_comm_device_close(g->comm_lane);
    g->stage_lane = g->comm_lane = NULL;
}
