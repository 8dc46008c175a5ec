/* Bytes that ranks exchange, as values: the rendezvous' JOIN and ANSWER, the head of a message, the
 * notes between ranks. Pure, little-endian, every length and number checked; fuzzed
 * (tests/fuzz/fuzz_comm.c). */
#ifndef SLUICE_COMM_WIRE_H
#define SLUICE_COMM_WIRE_H

#include <sluice/base/err.h>
#include <sluice/transport/comm.h>

#define WIRE_GROUP_BYTES   64 /* names and addresses, the NUL counted */
#define WIRE_ADDRESS_BYTES 80
#define WIRE_REASON_BYTES  200
#define WIRE_KEY_BYTES     32
#define WIRE_JOIN_MAX      512
#define WIRE_ANSWER_MAX    (512 + SL_COMM_RANKS_MAX * WIRE_ADDRESS_BYTES)

/* A rank to rank 0. Sent again until it is answered. */
struct wire_join {
    uint32_t rank, n_ranks;
    uint64_t config_hash;
    uint64_t nonce; /* tells this attempt from an earlier one of the same rank */
    uint32_t kind;  /* enum sl_comm_kind as configured */
    uint32_t pid;
    uint8_t machine[WIRE_KEY_BYTES]; /* equal where shared memory can be shared */
    char group[WIRE_GROUP_BYTES];
    char address[WIRE_ADDRESS_BYTES]; /* of its TCP listener, "" without */
};

/* Rank 0 to each: the group, or why there is none. */
struct wire_answer {
    uint32_t status; /* enum sl_status; the rest is empty unless OK */
    char reason[WIRE_REASON_BYTES];
    uint64_t nonce; /* of the JOIN that is answered */
    uint32_t n_ranks;
    uint32_t kind; /* in force: SHM or TCP */
    uint8_t key[WIRE_KEY_BYTES];
    char shm_name[WIRE_ADDRESS_BYTES]; /* abstract unix socket, without its leading NUL */
    char address[SL_COMM_RANKS_MAX][WIRE_ADDRESS_BYTES];
};

/* Return the bytes written; `out` has WIRE_JOIN_MAX, WIRE_ANSWER_MAX bytes. */
size_t wire_join_encode(const struct wire_join *m, uint8_t *out);
size_t wire_answer_encode(const struct wire_answer *m, uint8_t *out);
/* SL_INVALID; *out is then not to be used. */
enum sl_status wire_join_decode(const void *data, size_t size, struct wire_join *out,
                                struct sl_err *err);
enum sl_status wire_answer_decode(const void *data, size_t size, struct wire_answer *out,
                                  struct sl_err *err);

/* In front of every message between two ranks: both ends must be in the same operation. */
#define WIRE_HEAD_BYTES 16
struct wire_head {
    uint32_t group; /* of the communicator or sub-group */
    uint32_t op;
    uint64_t bytes;
};
void wire_head_encode(const struct wire_head *h, uint8_t out[WIRE_HEAD_BYTES]);
void wire_head_decode(const uint8_t in[WIRE_HEAD_BYTES], struct wire_head *h);

/* A rank's notes over TCP, beside the messages. */
#define WIRE_BEAT_BYTES 8
struct wire_beat {
    uint32_t age_ms; /* since its last progress */
    bool waiting, started;
};
void wire_beat_encode(const struct wire_beat *b, uint8_t out[WIRE_BEAT_BYTES]);
enum sl_status wire_beat_decode(const uint8_t *in, size_t size, struct wire_beat *b,
                                struct sl_err *err);

/* Why a group ended, for everybody: who says so, and who is blamed (n_ranks: nobody). */
#define WIRE_ALERT_BYTES 8
struct wire_alert {
    uint32_t by, blamed;
};
void wire_alert_encode(const struct wire_alert *a, uint8_t out[WIRE_ALERT_BYTES]);
enum sl_status wire_alert_decode(const uint8_t *in, size_t size, uint32_t n_ranks,
                                 struct wire_alert *a, struct sl_err *err);

/* First words of a rank on the unix socket of rank 0: that it knows the group's key. */
#define WIRE_HAIL_BYTES 40
struct wire_hail {
    uint32_t rank;
    uint8_t proof[WIRE_KEY_BYTES];
};
void wire_hail_encode(const struct wire_hail *h, uint8_t out[WIRE_HAIL_BYTES]);
enum sl_status wire_hail_decode(const uint8_t *in, size_t size, struct wire_hail *h,
                                struct sl_err *err);

#endif
