/* What the GGUF reader's and writer's files share. */
#ifndef SLUICE_FILES_GGUF_PRIV_H
#define SLUICE_FILES_GGUF_PRIV_H

#include <sluice/files/gguf.h>

#define GGUF_MAGIC           0x46554747u /* "GGUF" read little-endian */
#define GGUF_ALIGN_DEFAULT   32u
#define GGUF_ALIGN_MIN       8u /* the format: a multiple of 8 */
#define GGUF_ALIGN_MAX       (1u << 20)
#define GGUF_KEY_NAME_MAX    65535u
#define GGUF_TENSOR_NAME_MAX 255u

/* Names to indices: open addressing under a seed drawn per file, so that a file cannot choose its
 * own collisions. Slot 0 is empty, otherwise index + 1. */
struct gguf_index {
    uint32_t *slots;
    size_t mask;
    uint64_t seed;
};

struct sl_gguf {
    const uint8_t *data;
    uint64_t size;
    bool mapped, meta_only;
    uint32_t version;
    uint32_t alignment;
    uint64_t data_start; /* aligned; may lie past the end of a file without tensors */
    struct sl_gguf_key *keys;
    size_t n_keys;
    struct sl_gguf_tensor *tensors;
    size_t n_tensors;
    struct gguf_index key_index, tensor_index;
};

struct gguf_type_row {
    uint32_t number;
    const char *name;
    uint32_t block_elems, block_bytes;
};

/* NULL for numbers nobody uses, among them those removed from the format (4, 5, 31-33, 36-38). */
const struct gguf_type_row *gguf_type_row(uint32_t number);

/* Bytes of one scalar value; 0 for strings and arrays. */
uint32_t gguf_scalar_bytes(enum sl_gguf_type type);

/* Little-endian reads from unaligned bytes. */
uint32_t gguf_le32(const uint8_t *p);
uint64_t gguf_le64(const uint8_t *p);

#endif
