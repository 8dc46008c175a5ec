/* GGUF v2 and v3 model files (little-endian): keys, tensor directory, mapping.
 *
 * Pure over (data, size): every count, length, dimension, offset and alignment is checked against
 * the file by subtraction before it is used, and nothing is allocated in proportion to a number the
 * file merely claims. Keys and strings are borrowed from the mapping.
 * Format: the GGUF page of the ggml project's documentation. */
#ifndef SLUICE_FILES_GGUF_H
#define SLUICE_FILES_GGUF_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdbool.h>
#include <stdint.h>

enum sl_gguf_type {
    SL_GGUF_U8, SL_GGUF_I8, SL_GGUF_U16, SL_GGUF_I16, SL_GGUF_U32, SL_GGUF_I32, SL_GGUF_F32,
    SL_GGUF_BOOL, SL_GGUF_STRING, SL_GGUF_ARRAY, SL_GGUF_U64, SL_GGUF_I64, SL_GGUF_F64,
    SL_GGUF_N_TYPE
};

struct sl_gguf_key {
    struct sl_str name;
    enum sl_gguf_type type;
    enum sl_gguf_type elem;   /* of an array */
    uint64_t n;               /* elements of an array, otherwise 1 */
    const uint8_t *data;      /* the value's bytes; unaligned */
    const uint64_t *str_at;   /* array of strings: offset of each from `data` (its u64 length) */
};

#define SL_GGUF_DIMS_MAX 4
struct sl_gguf_tensor {
    struct sl_str name;
    uint32_t ggml_type;      /* the file's number */
    const char *type_name;   /* "Q4_1"; known types only pass the parser */
    uint32_t n_dims;
    uint64_t dims[SL_GGUF_DIMS_MAX]; /* dims[0] is contiguous; unused are 1 */
    uint64_t n_elems, n_bytes;
    uint64_t offset;         /* from the start of the file */
    const void *data;        /* NULL when only the metadata was given */
};

/* Name and block of a tensor type number; false for numbers nobody uses. */
struct sl_gguf_type_info {
    const char *name;
    uint32_t block_elems, block_bytes;
};
bool sl_gguf_type_info(uint32_t ggml_type, struct sl_gguf_type_info *out);

struct sl_gguf;

/* Maps a file read-only and parses it. SL_MODEL on any fault, naming file, thing and numbers. */
enum sl_status sl_gguf_open(const char *path, struct sl_gguf **out, struct sl_err *err);

/* The same over memory that outlives the object. With meta_only the bytes end where the tensor
 * data would begin, and tensors' data is NULL: what a router gets from a worker. */
enum sl_status sl_gguf_parse(const void *data, size_t size, bool meta_only, struct sl_gguf **out,
                             struct sl_err *err);
void sl_gguf_close(struct sl_gguf *g);

uint32_t sl_gguf_version(const struct sl_gguf *g);
uint64_t sl_gguf_size(const struct sl_gguf *g);
/* The leading bytes up to the tensor data, enough for sl_gguf_parse(meta_only). */
struct sl_str sl_gguf_meta(const struct sl_gguf *g);
/* Tells the system that the tensor data is not needed any more (it was repacked). */
void sl_gguf_release(const struct sl_gguf *g, const void *data, size_t bytes);

size_t sl_gguf_n_keys(const struct sl_gguf *g);
const struct sl_gguf_key *sl_gguf_key_at(const struct sl_gguf *g, size_t i);
const struct sl_gguf_key *sl_gguf_find(const struct sl_gguf *g, const char *name);
size_t sl_gguf_n_tensors(const struct sl_gguf *g);
const struct sl_gguf_tensor *sl_gguf_tensor_at(const struct sl_gguf *g, size_t i);
const struct sl_gguf_tensor *sl_gguf_tensor(const struct sl_gguf *g, const char *name);

/* Typed reads: false when absent, of another kind or out of range; *out untouched then. */
bool sl_gguf_u32(const struct sl_gguf *g, const char *name, uint32_t *out);
bool sl_gguf_f32(const struct sl_gguf *g, const char *name, float *out);
bool sl_gguf_bool(const struct sl_gguf *g, const char *name, bool *out);
bool sl_gguf_str(const struct sl_gguf *g, const char *name, struct sl_str *out);
/* Element i of an array key. */
struct sl_str sl_gguf_array_str(const struct sl_gguf_key *k, uint64_t i);
float sl_gguf_array_f32(const struct sl_gguf_key *k, uint64_t i);
int64_t sl_gguf_array_int(const struct sl_gguf_key *k, uint64_t i);

/* Writes a v3 file: tests, benchmarks and conversions make their models with it. Keys and tensors
 * are appended in order; finish writes path atomically (temporary file, fsync, rename). */
struct sl_gguf_writer;
struct sl_gguf_writer *sl_gguf_writer_new(void);
void sl_gguf_put_u32(struct sl_gguf_writer *w, const char *name, uint32_t v);
void sl_gguf_put_f32(struct sl_gguf_writer *w, const char *name, float v);
void sl_gguf_put_bool(struct sl_gguf_writer *w, const char *name, bool v);
void sl_gguf_put_str(struct sl_gguf_writer *w, const char *name, struct sl_str v);
void sl_gguf_put_str_array(struct sl_gguf_writer *w, const char *name, const struct sl_str *v,
                           uint64_t n);
void sl_gguf_put_i32_array(struct sl_gguf_writer *w, const char *name, const int32_t *v,
                           uint64_t n);
void sl_gguf_put_f32_array(struct sl_gguf_writer *w, const char *name, const float *v, uint64_t n);
/* Copies a key of another file, arrays included. */
void sl_gguf_put_key(struct sl_gguf_writer *w, const struct sl_gguf_key *k);
/* `data` is borrowed until finish. */
void sl_gguf_put_tensor(struct sl_gguf_writer *w, const char *name, uint32_t ggml_type,
                        uint32_t n_dims, const uint64_t *dims, const void *data, uint64_t n_bytes);
enum sl_status sl_gguf_writer_finish(struct sl_gguf_writer *w, const char *path,
                                     struct sl_err *err); /* frees w */
/* To memory instead, for tests; frees w too. A cap_bytes of 0 is raised to what the file needs. */
enum sl_status sl_gguf_writer_finish_buf(struct sl_gguf_writer *w, struct sl_buf *out,
                                         struct sl_err *err);
void sl_gguf_writer_drop(struct sl_gguf_writer *w); /* without writing anything */

#endif
