/* A tiny model as an opened file in memory. */
#ifndef SLUICE_TESTS_TINY_FILE_H
#define SLUICE_TESTS_TINY_FILE_H

#include "rig.h"
#include "tiny_model.h"

struct opened {
    struct sl_buf file;
    struct sl_gguf *g;
};

static inline void open_tiny(struct opened *o, const struct tiny_model *m)
{
    struct sl_err err = {0};
    *o = (struct opened){0};
    rig_must(tiny_model_buf(m, &o->file, &err), &err);
    rig_must(sl_gguf_parse(o->file.data, o->file.len, false, &o->g, &err), &err);
}

static inline void close_tiny(struct opened *o)
{
    sl_gguf_close(o->g);
    sl_buf_free(&o->file);
}

#endif
