/* Promise: whatever number, length or count stands in whichever field of whichever message, the
 * decoder refuses it with a field named or gives out something within its bounds. The fields are
 * taken from the schema itself, so that a new one is tested without a line here. */
#include "bus_samples.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include <sluice/base/containers.h>

#include "bus.pb-c.h"

#define ARENA_BYTES ((size_t)32 << 20)
#define MANY        70000u

static struct {
    uint64_t n_tried, n_accepted, n_refused;
    uint8_t zeros[MANY * 8], ones[MANY * 8];
    ProtobufCMessage *same[MANY];
    struct sl_arena arena;
} t;

/* Accepted messages are within all bounds exactly if the encoder's check agrees. */
static void judge(const Sluice__Bus__Envelope *e, const char *field, uint64_t value)
{
    size_t size = sluice__bus__envelope__get_packed_size(e);
    uint8_t *bytes = malloc(size ? size : 1);
    struct sl_msg m;
    struct sl_err err = {0};
    struct sl_buf again = {0};
    assert_non_null(bytes);
    sluice__bus__envelope__pack(e, bytes);
    if (size > 10 && e->check) { /* the last field, of ten bytes; a stranger can compute it, too */
        uint64_t sum = sl_hash64(bytes, size - 10, 0);
        for (size_t i = 0; i < 8; i++)
            bytes[size - 8 + i] = (uint8_t)(sum >> 8 * i);
    }
    sl_arena_reset(&t.arena);
    enum sl_status s = sl_msg_decode(bytes, size, &t.arena, &m, &err);
    t.n_tried++;
    if (s == SL_OK) {
        t.n_accepted++;
        if (sl_msg_encode(&m, &again, &err) != SL_OK && err.status != SL_TOO_LARGE)
            fail_msg("%s = %llu was accepted: %s", field, (unsigned long long)value, err.msg);
    } else {
        t.n_refused++;
        if (s != SL_INVALID || !err.param[0] || m.kind != SL_MSG_NONE)
            fail_msg("%s = %llu: %s", field, (unsigned long long)value, err.msg);
    }
    sl_buf_free(&again);
    free(bytes);
}

static void try_numbers(Sluice__Bus__Envelope *e, const ProtobufCFieldDescriptor *f, void *at,
                        size_t size)
{
    static const uint64_t extremes[] = {
        0,          1,          2,           255,         256,         65535,      65536,
        65537,      0x7fffffff, 0x80000000u, 0xfffffffeu, 0xffffffffu, 1ull << 32, 1ull << 53,
        1ull << 62, 1ull << 63, ~0ull >> 1,  ~0ull - 1,   ~0ull,       0x7f800000, 0x7fc00000,
        0xff800000, 1048575,    1048576,     1048577,     604800001,   0x3f800000, 4194305};
    uint8_t was[8];
    memcpy(was, at, size);
    for (size_t i = 0; i < sizeof extremes / sizeof *extremes; i++) {
        memcpy(at, &extremes[i], size); /* little-endian: the low half for 32 bits */
        judge(e, f->name, extremes[i]);
    }
    memcpy(at, was, size);
}

static void try_bytes(Sluice__Bus__Envelope *e, const ProtobufCFieldDescriptor *f,
                      ProtobufCBinaryData *b)
{
    static const size_t lens[] = {0, 1, 2, 31, 32, 33, 63, 64, 65, 255, 256, 257, 65536, MANY};
    ProtobufCBinaryData was = *b;
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++)
        for (int k = 0; k < 2; k++) {
            *b = (ProtobufCBinaryData){lens[i], k ? t.ones : t.zeros};
            judge(e, f->name, lens[i]);
        }
    *b = was;
}

static void try_counts(Sluice__Bus__Envelope *e, const ProtobufCFieldDescriptor *f, size_t *n,
                       void **array)
{
    static const size_t counts[] = {0, 1, 2, 3, 63, 64, 65, 1024, 1025, 4096, 4097, MANY};
    size_t was_n = *n;
    void *was = *array;
    ProtobufCMessage *child = was_n && f->type == PROTOBUF_C_TYPE_MESSAGE ? *(void **)was : NULL;
    for (size_t i = 0; i < MANY; i++)
        t.same[i] = child;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        for (int k = 0; k < 2; k++) {
            bool message = f->type == PROTOBUF_C_TYPE_MESSAGE;
            *n = message && !child ? 0 : counts[i];
            *array = message ? (void *)t.same : k ? t.ones : t.zeros;
            judge(e, f->name, counts[i]);
        }
    *n = was_n;
    *array = was;
}

static bool is_wide(ProtobufCType type)
{
    return type == PROTOBUF_C_TYPE_UINT64 || type == PROTOBUF_C_TYPE_FIXED64 ||
           type == PROTOBUF_C_TYPE_INT64 || type == PROTOBUF_C_TYPE_SINT64 ||
           type == PROTOBUF_C_TYPE_SFIXED64 || type == PROTOBUF_C_TYPE_DOUBLE;
}

static void try_message(Sluice__Bus__Envelope *e, ProtobufCMessage *m);

static void try_field(Sluice__Bus__Envelope *e, ProtobufCMessage *m,
                      const ProtobufCFieldDescriptor *f)
{
    void *at = (char *)m + f->offset;
    size_t *n = (void *)((char *)m + f->quantifier_offset);
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        if (*(uint32_t *)(void *)n == f->id)
            try_message(e, *(ProtobufCMessage **)at);
    } else if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        try_counts(e, f, n, at);
        for (size_t i = 0; f->type == PROTOBUF_C_TYPE_MESSAGE && i < *n; i++)
            try_message(e, (*(ProtobufCMessage ***)at)[i]);
    } else if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
        ProtobufCMessage *was = *(ProtobufCMessage **)at;
        *(ProtobufCMessage **)at = NULL;
        judge(e, f->name, 0);
        *(ProtobufCMessage **)at = was;
        if (was)
            try_message(e, was);
    } else if (f->type == PROTOBUF_C_TYPE_BYTES) {
        try_bytes(e, f, at);
    } else {
        try_numbers(e, f, at, is_wide(f->type) ? 8 : 4);
    }
}

static void try_message(Sluice__Bus__Envelope *e, ProtobufCMessage *m)
{
    for (unsigned i = 0; i < m->descriptor->n_fields; i++)
        try_field(e, m, &m->descriptor->fields[i]);
}

static void every_field(void **state)
{
    (void)state;
    struct samples s;
    samples_fill(&s);
    memset(t.ones, 0xff, sizeof t.ones);
    sl_arena_init(&t.arena, ARENA_BYTES);
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sl_buf b = {0};
        struct sl_err err;
        assert_int_equal(sl_msg_encode(&s.m[i], &b, &err), SL_OK);
        Sluice__Bus__Envelope *e =
            sluice__bus__envelope__unpack(NULL, b.len, (const uint8_t *)b.data);
        assert_non_null(e);
        uint64_t accepted = t.n_accepted;
        judge(e, "as it was", 0);
        assert_int_equal(t.n_accepted, accepted + 1);
        try_message(e, &e->base);
        judge(e, "as it was", 0);
        sluice__bus__envelope__free_unpacked(e, NULL);
        sl_buf_free(&b);
    }
    sl_arena_free(&t.arena);
    print_message("%llu messages: %llu accepted, %llu refused\n", (unsigned long long)t.n_tried,
                  (unsigned long long)t.n_accepted, (unsigned long long)t.n_refused);
    assert_true(t.n_refused > 500 && t.n_accepted > 500);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_field)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
