/* Memory: overflow-checked sizes, capped arenas, growable byte buffers. */
#ifndef SLUICE_BASE_MEM_H
#define SLUICE_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* True and *out set when the result fits; otherwise false and *out untouched. */
static inline bool sl_size_add(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

static inline bool sl_size_mul(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/* Bump memory with a cap. Chunks are taken from malloc as needed, never more than cap_bytes of
 * payload in all; allocation past the cap returns NULL. One thread at a time. */
struct sl_arena {
    struct sl_arena_chunk *chunks; /* newest first */
    size_t cap_bytes;
    size_t used_bytes; /* payload handed out since the last reset, padding included */
    size_t high_bytes; /* high-water mark of used_bytes */
};

void sl_arena_init(struct sl_arena *a, size_t cap_bytes);

/* `align` is a power of two <= 4096. Contents are not cleared. */
void *sl_arena_alloc(struct sl_arena *a, size_t size, size_t align);

/* Zeroed array of n elements; NULL on overflow or past the cap. */
void *sl_arena_calloc(struct sl_arena *a, size_t n, size_t elem_size);
#define SL_ARENA_NEW(a, type) ((type *)sl_arena_calloc((a), 1, sizeof(type)))
#define SL_ARENA_ARRAY(a, type, n) ((type *)sl_arena_calloc((a), (n), sizeof(type)))

/* NUL-terminated copy of len bytes. */
char *sl_arena_strndup(struct sl_arena *a, const char *s, size_t len);

/* Forgets everything handed out; keeps one chunk for reuse. */
void sl_arena_reset(struct sl_arena *a);
void sl_arena_free(struct sl_arena *a);

/* A borrowed run of bytes, not NUL-terminated. */
struct sl_str {
    const char *data;
    size_t len;
};
#define SL_STR(lit) ((struct sl_str){(lit), sizeof(lit) - 1})
struct sl_str sl_str_of(const char *z);
bool sl_str_eq(struct sl_str a, struct sl_str b);
bool sl_str_eqz(struct sl_str a, const char *z);

/* Growable bytes with a cap; `failed` is sticky: once set, appends do nothing. data is always
 * NUL-terminated when not NULL (the NUL is not counted in len). Zero-initialise with cap_bytes set;
 * cap_bytes 0 means SL_BUF_DEFAULT_CAP. */
#define SL_BUF_DEFAULT_CAP ((size_t)64 << 20)
struct sl_buf {
    char *data;
    size_t len;
    size_t alloc;
    size_t cap_bytes;
    bool failed;
};
void sl_buf_append(struct sl_buf *b, const void *data, size_t len);
void sl_buf_puts(struct sl_buf *b, const char *z);
void sl_buf_putc(struct sl_buf *b, char c);
void sl_buf_printf(struct sl_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sl_buf_clear(struct sl_buf *b); /* len = 0, failed = false, keeps memory */
void sl_buf_free(struct sl_buf *b);

/* JSON text: a quoted, escaped string (input must be valid UTF-8; invalid bytes become U+FFFD),
 * and the shortest decimal that reads back as the same float32 (non-finite gives null). */
void sl_buf_json_str(struct sl_buf *b, const char *s, size_t len);
void sl_buf_json_f32(struct sl_buf *b, float x);

/* Zeroed anonymous pages, aligned to 2 MiB and advised as huge when size >= 2 MiB; untouched pages
 * cost nothing. NULL when the system refuses. Free with the same size. */
void *sl_pages_alloc(size_t size);
void sl_pages_free(void *p, size_t size);

#endif
