/* One connection of the bulk channel: blocking reads and writes that end at a deadline or when told
 * to stop, over a unix socket or TCP with TLS 1.3 (secure_link.h, keyed with the server's key); and
 * the shared memory that may come with the former. */
#ifndef SL_TRANSPORT_BULK_LINK_H
#define SL_TRANSPORT_BULK_LINK_H

#include "comm/secure_link.h"
#include <sluice/transport/bulk.h>
#include <stddef.h>

struct bulk_link {
    int fd;                  /* of a unix link, non-blocking; -1: none */
    struct secure_link *tls; /* of a TCP link; NULL: none */
    bool is_unix;
    int passed_fd;           /* came with the first bytes of a unix link; -1: none */
    const atomic_bool *stop; /* may be NULL */
};

/* To "shm:PATH" (where it exists, and its owner is ours) or else "tcp:HOST:PORT" of an address. */
enum sl_status sl_bulk_connect(const char *address, const uint8_t key[32], const atomic_bool *stop,
                               uint64_t deadline_ns, struct bulk_link *out, struct sl_err *err);
/* Takes over an accepted unix socket, or a secure link that proved its key. SL_UNAUTHORIZED for a
 * peer of another user. */
enum sl_status sl_bulk_accept(int fd, struct secure_link *tls, const atomic_bool *stop,
                              struct bulk_link *out, struct sl_err *err);
/* What both ends derive from a server's key. */
struct secure_psk sl_bulk_psk(const uint8_t key[32]);
void sl_bulk_link_close(struct bulk_link *l);

/* SL_TIMEOUT at the deadline, SL_CANCELLED when stopped, SL_PEER when the other side is gone. */
enum sl_status sl_bulk_read(struct bulk_link *l, void *data, size_t size, uint64_t deadline_ns,
                            struct sl_err *err);
/* Head and body one behind the other; with pass_fd >= 0 the descriptor goes along (unix links). */
enum sl_status sl_bulk_write(struct bulk_link *l, const void *head, size_t head_size,
                             const void *body, size_t body_size, int pass_fd, uint64_t deadline_ns,
                             struct sl_err *err);

/* Shared memory of n slots of row_bytes. */
struct bulk_window {
    int fd;
    uint8_t *data;
    size_t bytes;
    uint32_t n_slots;
};
/* The fetching side makes it, sealed against resizing. */
bool sl_bulk_window_make(struct bulk_window *w, uint32_t row_bytes);
/* The serving side maps what it was given; SL_INVALID unless size and seals are right. Takes over
 * the descriptor. */
enum sl_status sl_bulk_window_map(struct bulk_window *w, int fd, uint32_t n_slots,
                                  uint32_t row_bytes, struct sl_err *err);
void sl_bulk_window_close(struct bulk_window *w);

#endif
