/* GGUF writer, version 3: keys and tensors in the order they were put, data aligned to 32 bytes.
 * Failures while putting are sticky and reported by finish. */
#include "gguf_priv.h"

#include <sluice/base/time.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct piece {
    const void *data;
    uint64_t n_bytes;
};

struct sl_gguf_writer {
    struct sl_buf keys, entries; /* as they stand in the file */
    uint64_t n_keys, n_tensors;
    struct piece *pieces;
    size_t pieces_alloc;
    uint64_t data_bytes; /* with padding after each tensor */
    bool failed;
};

static const uint8_t zeros[GGUF_ALIGN_DEFAULT];

static uint64_t pad_of(uint64_t n)
{
    return (GGUF_ALIGN_DEFAULT - n % GGUF_ALIGN_DEFAULT) % GGUF_ALIGN_DEFAULT;
}

static void put_le(struct sl_buf *b, uint64_t v, unsigned n_bytes)
{
    uint8_t bytes[8];
    for (unsigned i = 0; i < n_bytes; i++)
        bytes[i] = (uint8_t)(v >> 8 * i);
    sl_buf_append(b, bytes, n_bytes);
}

static void put_str(struct sl_buf *b, struct sl_str s)
{
    put_le(b, s.len, 8);
    sl_buf_append(b, s.data, s.len);
}

static void begin_key(struct sl_gguf_writer *w, struct sl_str name, enum sl_gguf_type type)
{
    put_str(&w->keys, name);
    put_le(&w->keys, (uint64_t)type, 4);
    w->n_keys++;
}

static void begin_array(struct sl_gguf_writer *w, const char *name, enum sl_gguf_type elem,
                        uint64_t n)
{
    begin_key(w, sl_str_of(name), SL_GGUF_ARRAY);
    put_le(&w->keys, (uint64_t)elem, 4);
    put_le(&w->keys, n, 8);
}

static uint32_t bits_of(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

struct sl_gguf_writer *sl_gguf_writer_new(void)
{
    struct sl_gguf_writer *w = calloc(1, sizeof *w);
    if (!w)
        return NULL;
    w->keys.cap_bytes = w->entries.cap_bytes = SIZE_MAX / 4;
    return w;
}

void sl_gguf_put_u32(struct sl_gguf_writer *w, const char *name, uint32_t v)
{
    begin_key(w, sl_str_of(name), SL_GGUF_U32);
    put_le(&w->keys, v, 4);
}

void sl_gguf_put_f32(struct sl_gguf_writer *w, const char *name, float v)
{
    begin_key(w, sl_str_of(name), SL_GGUF_F32);
    put_le(&w->keys, bits_of(v), 4);
}

void sl_gguf_put_bool(struct sl_gguf_writer *w, const char *name, bool v)
{
    begin_key(w, sl_str_of(name), SL_GGUF_BOOL);
    put_le(&w->keys, v, 1);
}

void sl_gguf_put_str(struct sl_gguf_writer *w, const char *name, struct sl_str v)
{
    begin_key(w, sl_str_of(name), SL_GGUF_STRING);
    put_str(&w->keys, v);
}

void sl_gguf_put_str_array(struct sl_gguf_writer *w, const char *name, const struct sl_str *v,
                           uint64_t n)
{
    begin_array(w, name, SL_GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++)
        put_str(&w->keys, v[i]);
}

void sl_gguf_put_i32_array(struct sl_gguf_writer *w, const char *name, const int32_t *v, uint64_t n)
{
    begin_array(w, name, SL_GGUF_I32, n);
    for (uint64_t i = 0; i < n; i++)
        put_le(&w->keys, (uint32_t)v[i], 4);
}

void sl_gguf_put_f32_array(struct sl_gguf_writer *w, const char *name, const float *v, uint64_t n)
{
    begin_array(w, name, SL_GGUF_F32, n);
    for (uint64_t i = 0; i < n; i++)
        put_le(&w->keys, bits_of(v[i]), 4);
}

/* Bytes of a parsed key's value, without the head of an array. */
static size_t value_bytes(const struct sl_gguf_key *k)
{
    if (k->elem != SL_GGUF_STRING)
        return (size_t)k->n * gguf_scalar_bytes(k->elem);
    if (k->n == 0)
        return 0;
    struct sl_str last = sl_gguf_array_str(k, k->n - 1);
    return (size_t)(last.data + last.len - (const char *)k->data);
}

void sl_gguf_put_key(struct sl_gguf_writer *w, const struct sl_gguf_key *k)
{
    begin_key(w, k->name, k->type);
    if (k->type == SL_GGUF_ARRAY) {
        put_le(&w->keys, (uint64_t)k->elem, 4);
        put_le(&w->keys, k->n, 8);
    }
    sl_buf_append(&w->keys, k->data, value_bytes(k));
}

void sl_gguf_put_tensor(struct sl_gguf_writer *w, const char *name, uint32_t ggml_type,
                        uint32_t n_dims, const uint64_t *dims, const void *data, uint64_t n_bytes)
{
    if (w->n_tensors == w->pieces_alloc) {
        size_t n = w->pieces_alloc ? 2 * w->pieces_alloc : 64;
        struct piece *more = realloc(w->pieces, n * sizeof *more);
        if (!more) {
            w->failed = true;
            return;
        }
        w->pieces = more;
        w->pieces_alloc = n;
    }
    w->pieces[w->n_tensors++] = (struct piece){data, n_bytes};
    put_str(&w->entries, sl_str_of(name));
    put_le(&w->entries, n_dims, 4);
    for (uint32_t d = 0; d < n_dims; d++)
        put_le(&w->entries, dims[d], 8);
    put_le(&w->entries, ggml_type, 4);
    put_le(&w->entries, w->data_bytes, 8);
    w->data_bytes += n_bytes + pad_of(n_bytes);
}

void sl_gguf_writer_drop(struct sl_gguf_writer *w)
{
    if (!w)
        return;
    sl_buf_free(&w->keys);
    sl_buf_free(&w->entries);
    free(w->pieces);
    free(w);
}

/* Where finished bytes go: a buffer or a file. */
struct sink {
    struct sl_buf *buf;
    FILE *file;
};

static void emit(struct sink *to, const void *data, size_t n)
{
    if (to->buf)
        sl_buf_append(to->buf, data, n);
    else if (n > 0)
        fwrite(data, 1, n, to->file); /* errors stay in ferror */
}

static void emit_all(struct sink *to, const struct sl_gguf_writer *w)
{
    struct sl_buf head = {0};
    put_le(&head, GGUF_MAGIC, 4);
    put_le(&head, 3, 4);
    put_le(&head, w->n_tensors, 8);
    put_le(&head, w->n_keys, 8);
    emit(to, head.data, head.len);
    emit(to, w->keys.data, w->keys.len);
    emit(to, w->entries.data, w->entries.len);
    emit(to, zeros, (size_t)pad_of(head.len + w->keys.len + w->entries.len));
    for (uint64_t i = 0; i < w->n_tensors; i++) {
        emit(to, w->pieces[i].data, (size_t)w->pieces[i].n_bytes);
        emit(to, zeros, (size_t)pad_of(w->pieces[i].n_bytes));
    }
    sl_buf_free(&head);
}

static bool writer_bad(const struct sl_gguf_writer *w)
{
    return w->failed || w->keys.failed || w->entries.failed;
}

/* A name beside `path` that nobody else has: what is half written never carries the real name. */
static char *temp_path(const char *path)
{
    size_t room = strlen(path) + 32;
    char *temp = malloc(room);
    if (temp)
        snprintf(temp, room, "%s.part-%016" PRIx64, path, sl_entropy_u64());
    return temp;
}

static bool write_out(const struct sl_gguf_writer *w, int fd)
{
    FILE *file = fdopen(fd, "wb");
    if (!file) {
        close(fd);
        return false;
    }
    emit_all(&(struct sink){.file = file}, w);
    bool ok = !ferror(file) && fflush(file) == 0 && fsync(fileno(file)) == 0;
    return fclose(file) == 0 && ok;
}

enum sl_status sl_gguf_writer_finish(struct sl_gguf_writer *w, const char *path, struct sl_err *err)
{
    enum sl_status status = SL_OK;
    char *temp = temp_path(path);
    int fd = -1;
    if (!temp || writer_bad(w)) {
        status = sl_fail(err, SL_NO_MEMORY, "gguf: no memory to write the file");
        goto out;
    }
    fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0) {
        status = sl_fail(err, SL_FAILED, "%s: %s", temp, strerror(errno));
        goto out;
    }
    if (!write_out(w, fd) || rename(temp, path) != 0) {
        status = sl_fail(err, SL_FAILED, "%s: %s", path, strerror(errno));
        unlink(temp);
    }
out:
    free(temp);
    sl_gguf_writer_drop(w);
    return status;
}

enum sl_status sl_gguf_writer_finish_buf(struct sl_gguf_writer *w, struct sl_buf *out,
                                         struct sl_err *err)
{
    enum sl_status status = SL_OK;
    if (out->cap_bytes == 0)
        out->cap_bytes = SIZE_MAX / 4;
    if (!writer_bad(w))
        emit_all(&(struct sink){.buf = out}, w);
    if (writer_bad(w) || out->failed)
        status = sl_fail(err, SL_NO_MEMORY, "gguf: no memory to write the file");
    sl_gguf_writer_drop(w);
    return status;
}
