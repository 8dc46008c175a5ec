/* Fuzz target: bytes between ranks; the first byte picks the decoder. What decodes must encode to the
 * same bytes again: there is one form of everything. */
#include "comm/secure_link.h"
#include "comm/wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool good)
{
    if (!good)
        abort();
}

static void check_status(enum sl_status s, const struct sl_err *err)
{
    require(s == SL_OK || (s == SL_INVALID && err->msg[0]));
}

static bool ended(const char *text, size_t max)
{
    return memchr(text, 0, max) != NULL;
}

static void try_join(const uint8_t *data, size_t size, struct sl_err *err)
{
    struct wire_join m;
    uint8_t again[WIRE_JOIN_MAX];
    enum sl_status s = wire_join_decode(data, size, &m, err);
    check_status(s, err);
    if (s)
        return;
    require(m.rank < m.n_ranks && m.n_ranks <= SL_COMM_RANKS_MAX && m.kind <= SL_COMM_TCP);
    require(ended(m.group, sizeof m.group) && ended(m.address, sizeof m.address));
    require(wire_join_encode(&m, again) == size && !memcmp(again, data, size));
}

static void try_answer(const uint8_t *data, size_t size, struct sl_err *err)
{
    static struct wire_answer m;
    static uint8_t again[WIRE_ANSWER_MAX];
    enum sl_status s = wire_answer_decode(data, size, &m, err);
    check_status(s, err);
    if (s)
        return;
    require(m.n_ranks <= SL_COMM_RANKS_MAX && m.status < SL_N_STATUS);
    require(ended(m.reason, sizeof m.reason) && ended(m.shm_name, sizeof m.shm_name));
    for (uint32_t i = 0; i < m.n_ranks; i++)
        require(ended(m.address[i], sizeof m.address[i]));
    require(wire_answer_encode(&m, again) == size && !memcmp(again, data, size));
}

static void try_notes(const uint8_t *data, size_t size, struct sl_err *err)
{
    struct wire_beat beat;
    struct wire_alert alert;
    struct wire_hail hail;
    uint8_t again[WIRE_HAIL_BYTES];
    enum sl_status s = wire_beat_decode(data, size, &beat, err);
    check_status(s, err);
    if (!s) {
        wire_beat_encode(&beat, again);
        require(size == WIRE_BEAT_BYTES && !memcmp(again, data, size));
    }
    s = wire_alert_decode(data, size, 5, &alert, err);
    check_status(s, err);
    require(s || (alert.by < 5 && alert.blamed <= 5));
    s = wire_hail_decode(data, size, &hail, err);
    check_status(s, err);
    if (!s) {
        wire_hail_encode(&hail, again);
        require(size == WIRE_HAIL_BYTES && !memcmp(again, data, size));
    }
}

static void try_heads(const uint8_t *data, size_t size, struct sl_err *err)
{
    struct secure_frame frame;
    struct wire_head head;
    uint8_t again[WIRE_HEAD_BYTES];
    if (size >= SECURE_FRAME_HEAD) {
        enum sl_status s = secure_frame_decode(data, &frame, err);
        check_status(s, err);
        require(s || frame.bytes <= SECURE_FRAME_MAX);
    }
    if (size < WIRE_HEAD_BYTES)
        return;
    wire_head_decode(data, &head);
    wire_head_encode(&head, again);
    require(!memcmp(again, data, sizeof again));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct sl_err err = {0};
    if (size == 0)
        return 0;
    switch (data[0] & 3) {
    case 0:
        try_join(data + 1, size - 1, &err);
        break;
    case 1:
        try_answer(data + 1, size - 1, &err);
        break;
    case 2:
        try_notes(data + 1, size - 1, &err);
        break;
    default:
        try_heads(data + 1, size - 1, &err);
    }
    return 0;
}
