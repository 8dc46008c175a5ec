/* Key files: text to keys (pure), and a node's folder read as a whole. */
#ifndef SLUICE_BUS_CURVE_KEYS_H
#define SLUICE_BUS_CURVE_KEYS_H

#include <sluice/base/err.h>
#include <sluice/base/limits.h>
#include <sluice/base/mem.h>
#include <sluice/transport/keys.h>

#include <stdbool.h>
#include <stdint.h>

#define CURVE_KEY_BYTES  32
#define CURVE_TEXT_BYTES 41 /* Z85 of a key and a NUL */

struct curve_key {
    uint8_t bytes[CURVE_KEY_BYTES];
    char text[CURVE_TEXT_BYTES];
    char name[SL_KEY_NAME_BYTES];
    unsigned role; /* one of enum sl_key_role */
    bool secret;
};

/* All that a folder says. Large: lives on the heap. */
struct curve_folder {
    struct curve_key own; /* secret */
    char own_public[CURVE_TEXT_BYTES];
    struct curve_key keys[SL_LIMIT_curve_keys];
    uint32_t n_keys;
};

/* Pure: appends the keys of a file's text to keys[*n], at most `max` in all. SL_CONFIG names
 * `file` and the line; *n is then as before. */
enum sl_status curve_keys_parse(struct sl_str text, const char *file, struct curve_key *keys,
                                uint32_t *n, uint32_t max, struct sl_err *err);

/* Reads the folder. With `strict` any file at fault is an error; without, a malformed or too widely
 * writable file of `allowed` is logged and its keys are out, while a folder or a file that cannot
 * be read at all (no descriptors, say) is still an error, so that nobody is cut off by that. */
enum sl_status curve_folder_read(const char *dir, bool strict, struct curve_folder *out,
                                 struct sl_err *err);
/* A hash over what stat(2) says of the folder's files: changes when any of them did. */
uint64_t curve_folder_stamp(const char *dir);

#endif
