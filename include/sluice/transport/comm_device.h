/* A communicator's lane between devices: the same exchanges as comm.h's, on the memory of a device
 * and in the order of a stream, for ranks that already have a communicator on their hosts.
 *
 * The host's communicator carries everything else: it brings the ranks together, hands round the
 * lane's id, sees who lives, and its latch is the lane's, too: a failure of either ends both, an
 * abort of the communicator (from any thread) ends what the device waits for. An operation here
 * only enqueues. Its bytes are there when the stream gets there; `settle` waits until all have,
 * and never longer than peers make progress. Nothing else may wait for the stream while operations
 * are out, since a device that waits for a peer that is gone waits for ever.
 *
 * What moves bytes is a plug-in's (struct sl_comm_lane_ops), because it is linked with the device's
 * libraries and the program is not. Bytes only move: sums are the kernels'. */
#ifndef SLUICE_TRANSPORT_COMM_DEVICE_H
#define SLUICE_TRANSPORT_COMM_DEVICE_H

#include <sluice/transport/comm.h>

/* ---- what a plug-in gives ---- */

#define SL_COMM_LANE_ABI      1
#define SL_COMM_LANE_ENTRY    "sl_comm_lane_plugin"
#define SL_COMM_LANE_ID_BYTES 128

struct sl_comm_lane;

struct sl_comm_lane_config {
    uint32_t rank, n_ranks;
    uint32_t device;
    void *stream; /* of the device */
    uint8_t id[SL_COMM_LANE_ID_BYTES];
};
/* A run of bytes in the device's memory, from or to a rank, which may be this one. */
struct sl_comm_lane_run {
    uint32_t peer;
    bool is_recv;
    void *data; /* read only when sending */
    size_t bytes;
};
#define SL_COMM_LANE_RUNS_MAX (2 * SL_COMM_RANKS_MAX)
/* Marks that may be out. */
#define SL_COMM_LANE_MARKS 64

/* No call waits for a peer. SL_PEER: the lane says that a peer is lost. One thread at a time. */
struct sl_comm_lane_ops {
    uint32_t abi;
    const char *name;
    /* A number that must be equal at all ranks. Loads what is needed: SL_UNSUPPORTED without. */
    enum sl_status (*version)(uint32_t *out, struct sl_err *err);
    /* For one rank to make and all to be given. */
    enum sl_status (*make_id)(uint8_t id[SL_COMM_LANE_ID_BYTES], struct sl_err *err);
    /* Begins; the lane is there once it is not busy any more. */
    enum sl_status (*open)(const struct sl_comm_lane_config *cfg, struct sl_comm_lane **out,
                           struct sl_err *err);
    /* Whether the call before is still in progress. While it is, only abort and busy may follow. */
    enum sl_status (*busy)(struct sl_comm_lane *lane, bool *busy, struct sl_err *err);
    /* Enqueues runs that move side by side. Between two ranks they match in order. */
    enum sl_status (*move)(struct sl_comm_lane *lane, const struct sl_comm_lane_run *runs,
                           uint32_t n, struct sl_err *err);
    /* Enqueues a mark, and counts those that the stream has passed. */
    enum sl_status (*mark)(struct sl_comm_lane *lane, struct sl_err *err);
    enum sl_status (*passed)(struct sl_comm_lane *lane, uint64_t *n, struct sl_err *err);
    /* Begins to end in order, as all ranks do: busy until then. */
    enum sl_status (*finish)(struct sl_comm_lane *lane, struct sl_err *err);
    /* What the device waits for ends; its memory holds anything. Only close may follow. */
    void (*abort)(struct sl_comm_lane *lane);
    void (*close)(struct sl_comm_lane *lane);
};
typedef const struct sl_comm_lane_ops *sl_comm_lane_entry(void);

/* ---- what the engine uses ---- */

struct sl_comm_device;

struct sl_comm_device_config {
    const struct sl_comm_lane_ops *lane; /* NULL: this rank has none */
    uint32_t device;
    void *stream;
    const char *interface; /* NCCL_SOCKET_IFNAME: has to be given where ranks are on several
                              machines, as the lane's bytes are neither secret nor proven there */
};
/* Called by all ranks of `c`. *out is NULL when one of them has no lane, or another version, or no
 * interface: *why, which may be empty, tells what this rank lacks. A failure is one of `c`. */
enum sl_status sl_comm_device_open(struct sl_comm *c, const struct sl_comm_device_config *cfg,
                                   struct sl_comm_device **out, struct sl_err *why,
                                   struct sl_err *err);
/* Before `c`, and in an orderly end after a barrier of it: who goes before others have what they
 * wait for is lost to them. Settles, then waits a little for the others when all is well. Of
 * several lanes on one stream all are settled before the first is closed. */
void sl_comm_device_close(struct sl_comm_device *d);

/* As those of comm.h, with counts in bytes. */
enum sl_status sl_comm_device_all_gather(struct sl_comm_device *d, const void *mine, void *all,
                                         const size_t *counts, struct sl_err *err);
enum sl_status sl_comm_device_gather(struct sl_comm_device *d, uint32_t root, const void *mine,
                                     void *all, const size_t *counts, struct sl_err *err);
enum sl_status sl_comm_device_all_to_all(struct sl_comm_device *d, const void *send,
                                         const size_t *send_counts, void *recv,
                                         const size_t *recv_counts, struct sl_err *err);
enum sl_status sl_comm_device_send(struct sl_comm_device *d, uint32_t peer, const void *data,
                                   size_t bytes, struct sl_err *err);
enum sl_status sl_comm_device_recv(struct sl_comm_device *d, uint32_t peer, void *data,
                                   size_t bytes, struct sl_err *err);
/* Marks a place in the stream: that it was passed counts as progress. */
void sl_comm_device_progress(struct sl_comm_device *d);
/* Until the stream has passed everything enqueued here, or the group has failed and the stream
 * waits for nobody. */
enum sl_status sl_comm_device_settle(struct sl_comm_device *d, struct sl_err *err);

#endif
