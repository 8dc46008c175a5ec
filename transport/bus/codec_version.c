/* What older peers know of a message. One table says how far version 1 went; every field numbered
 * higher came later, so a new field needs no line here. */
#include "codec.h"

#include "bus.pb-c.h"

#include <string.h>

struct extent {
    const ProtobufCMessageDescriptor *message;
    uint32_t last; /* number of its last field */
};

static const struct extent version_1[] = {
    {&sluice__bus__empty__descriptor, 0},   {&sluice__bus__load__descriptor, 12},
    {&sluice__bus__hello__descriptor, 22},  {&sluice__bus__welcome__descriptor, 3},
    {&sluice__bus__submit__descriptor, 27}, {&sluice__bus__cancel__descriptor, 2},
    {&sluice__bus__out__descriptor, 11},    {&sluice__bus__step__descriptor, 3},
    {&sluice__bus__meta__descriptor, 3},    {&sluice__bus__envelope__descriptor, 11},
};

/* 0 for a message that came later. */
static uint32_t last_field(const ProtobufCMessageDescriptor *d)
{
    for (size_t i = 0; i < sizeof version_1 / sizeof *version_1; i++)
        if (version_1[i].message == d)
            return version_1[i].last;
    return 0;
}

static size_t size_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return sizeof(uint64_t);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
        return sizeof(void *);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(size_t); /* its length, which stands first */
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
    case PROTOBUF_C_TYPE_BOOL:
    case PROTOBUF_C_TYPE_ENUM:
    default:
        return sizeof(uint32_t);
    }
}

/* Where a field tells whether it is there: its count, its case, or its value itself. */
static void *presence_of(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, size_t *size)
{
    bool counted = f->label == PROTOBUF_C_LABEL_REPEATED;
    bool cased = (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0;
    *size = counted ? sizeof(size_t) : cased ? sizeof(uint32_t) : size_of(f->type);
    return (char *)m + (counted || cased ? f->quantifier_offset : f->offset);
}

static bool is_there(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    static const uint8_t zero[sizeof(uint64_t)] = {0};
    size_t size;
    const void *at = presence_of(m, f, &size);
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
        return *(const uint32_t *)at == f->id;
    return memcmp(at, zero, size) != 0;
}

/* The messages within a field that is there. */
static size_t children_of(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
                          ProtobufCMessage ***out)
{
    void *at = (char *)m + f->offset;
    if (f->type != PROTOBUF_C_TYPE_MESSAGE)
        return 0;
    if (f->label != PROTOBUF_C_LABEL_REPEATED) {
        *out = at;
        return 1;
    }
    *out = *(ProtobufCMessage ***)at;
    return *(size_t *)(void *)((char *)m + f->quantifier_offset);
}

/* True when nothing newer than version 1 is in it, or when all of that could be taken out. Depth is
 * bounded by the schema, which has no cycle. */
static bool walk(ProtobufCMessage *m, bool strip)
{
    const ProtobufCMessageDescriptor *d = m->descriptor;
    uint32_t last = last_field(d);
    bool ok = true;
    for (unsigned i = 0; i < d->n_fields && ok; i++) {
        const ProtobufCFieldDescriptor *f = &d->fields[i];
        ProtobufCMessage **children;
        size_t size;
        if (!is_there(m, f))
            continue;
        if (f->id > last) {
            ok = strip && !(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF);
            void *at = presence_of(m, f, &size);
            if (ok)
                memset(at, 0, size);
            continue;
        }
        size_t n = children_of(m, f, &children);
        for (size_t k = 0; k < n && ok; k++)
            ok = walk(children[k], strip);
    }
    return ok;
}

bool sl_wire_strip(ProtobufCMessage *m)
{
    return walk(m, true);
}

bool sl_wire_is_old(ProtobufCMessage *m)
{
    return walk(m, false);
}
