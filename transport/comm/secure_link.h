/* A TLS 1.3 connection between two processes of ours that share a key, and frames on it.
 *
 * The key is an external pre-shared key (RFC 8446 section 4.2.11) with psk_dhe_ke: both ends prove
 * that they hold it, and recorded traffic stays secret when the key leaks later. There are no
 * certificates; a peer without the key fails the handshake. TLS_AES_128_GCM_SHA256 only; the
 * sending key is renewed every 2^23 records (AES-GCM is safe for 2^24.5, RFC 8446 section 5.5).
 *
 * Bytes travel in frames {u32 payload bytes, u8 kind, 3 zero bytes, payload}, one to a TLS record,
 * so that notes can go between the pieces of a long message. The kinds are the user's. A reader
 * never stores a payload: it is decrypted straight into the caller's memory, as fast as he takes
 * it.
 *
 * Nothing here blocks. Every call moves what can be moved now; poll(2) `secure_link_fd` for
 * `secure_link_events` (or POLLIN for a frame) tells when to call again. For a simple user,
 * secure_link_wait polls with a deadline. One thread at a time per link; the user locks.
 *
 *   client: secure_connect(addr, &fd) -> secure_link_client(fd, &psk, &l) -> handshake until done
 *   server: secure_listen(host, &fd, addr) -> secure_door (secure_door.h), which takes connections,
 *           shakes hands with many at once and hands over those that proved a key.
 *
 * Errors: SL_PEER when the connection ended or broke (also a refused key), SL_INVALID for bytes
 * that are no frame, SL_NO_MEMORY, SL_FAILED. After an error only secure_link_free is left. */
#ifndef SLUICE_SECURE_LINK_H
#define SLUICE_SECURE_LINK_H

#include <sluice/base/err.h>
#include <stdint.h>

#define SECURE_KEY_BYTES      32
#define SECURE_IDENTITY_BYTES 64 /* the NUL counted */
#define SECURE_ADDRESS_BYTES  80
#define SECURE_FRAME_HEAD     8
#define SECURE_FRAME_MAX      (16384 - SECURE_FRAME_HEAD) /* payload of a frame */

struct secure_psk {
    char identity[SECURE_IDENTITY_BYTES]; /* travels in clear */
    uint8_t key[SECURE_KEY_BYTES];
};
/* The server's: fills out->key for an identity that a client offers, false for an unknown one. */
typedef bool secure_find_key(void *ctx, const char *identity, struct secure_psk *out);

/* HMAC-SHA256 of `label` under `key`: keys of pairs from the key of a group. */
void secure_derive(const uint8_t key[SECURE_KEY_BYTES], const char *label,
                   uint8_t out[SECURE_KEY_BYTES]);

/* A listening socket on a free port of `host` (a name or number; NULL: 127.0.0.1), non-blocking;
 * `address` becomes "NUMBER:PORT" or "[NUMBER]:PORT". SL_CONFIG for hosts that cannot be bound,
 * also for the wildcard, which is no address to hand out. */
enum sl_status secure_listen(const char *host, int *fd, char address[SECURE_ADDRESS_BYTES],
                             struct sl_err *err);
/* Starts to connect to such an address. SL_INVALID, SL_PEER. */
enum sl_status secure_connect(const char *address, int *fd, struct sl_err *err);

struct secure_link;

/* Take over `fd`, also when they fail. */
enum sl_status secure_link_client(int fd, const struct secure_psk *psk, struct secure_link **out,
                                  struct sl_err *err);
enum sl_status secure_link_server(int fd, secure_find_key *find, void *ctx,
                                  struct secure_link **out, struct sl_err *err);
/* Closes at once; what was not flushed is lost. NULL is allowed. */
void secure_link_free(struct secure_link *l);
/* No more will be sent; the peer sees the end behind what was flushed. */
void secure_link_end(struct secure_link *l);

enum sl_status secure_link_handshake(struct secure_link *l, bool *done, struct sl_err *err);
/* The identity in force; "" as long as none was proved or offered. */
const char *secure_link_identity(const struct secure_link *l);

struct secure_span {
    const void *data;
    size_t bytes;
};
/* Takes some of the spans, one behind the other, as frames of `kind`; *taken may be 0 when the
 * connection is full. Taken bytes are on their way only after secure_link_flush said so. */
enum sl_status secure_link_push(struct secure_link *l, uint8_t kind,
                                const struct secure_span *spans, size_t n_spans, size_t *taken,
                                struct sl_err *err);
/* One whole frame or nothing: notes of at most SECURE_FRAME_MAX bytes. */
enum sl_status secure_link_note(struct secure_link *l, uint8_t kind, const void *data, size_t bytes,
                                bool *taken, struct sl_err *err);
enum sl_status secure_link_flush(struct secure_link *l, bool *flushed, struct sl_err *err);

struct secure_frame {
    uint8_t kind;
    uint32_t bytes; /* of payload, not yet pulled; a frame of 0 bytes is gone once it was seen */
};
/* The frame at the front; *have false when none has come yet. */
enum sl_status secure_link_front(struct secure_link *l, struct secure_frame *front, bool *have,
                                 struct sl_err *err);
/* Up to `bytes` of the front frame's payload. */
enum sl_status secure_link_pull(struct secure_link *l, void *data, size_t bytes, size_t *got,
                                struct sl_err *err);

int secure_link_fd(const struct secure_link *l);
/* What the link itself waits for: POLLIN, POLLOUT in a handshake, POLLOUT with bytes to flush. */
short secure_link_events(const struct secure_link *l);
/* Bytes came that no poll will tell of: they wait inside. Read until there is nothing before
 * polling, or ask this. It is true also for a piece of a record. */
bool secure_link_buffered(const struct secure_link *l);
/* Polls for `events` or those until `deadline_ns` of sl_now_ns; false when it passed. */
bool secure_link_wait(const struct secure_link *l, short events, uint64_t deadline_ns);

/* Pure, fuzzed: the head of a frame. SL_INVALID. */
enum sl_status secure_frame_decode(const uint8_t head[SECURE_FRAME_HEAD], struct secure_frame *out,
                                   struct sl_err *err);

#endif
