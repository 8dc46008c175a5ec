/* Prompts to send: made up from a seed, or read from a file. */
#ifndef SLUICE_BENCH_DATASET_H
#define SLUICE_BENCH_DATASET_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stdint.h>

struct bench_dataset_spec {
    const char *name;              /* random, prefix_repetition, custom, sharegpt, timed_trace */
    const char *path;              /* of the last three */
    size_t n;                      /* prompts wanted; 0: as many as the file has */
    int64_t input_len, output_len; /* tokens; words stand for tokens where there is no tokenizer */
    double range_ratio;            /* lengths vary by this share to both sides */
    int64_t prefix_len;            /* words shared by all, or by the prompts of a group */
    int64_t n_prefixes;            /* groups of prefix_repetition */
    bool ids;                      /* token ids below vocab_size instead of words */
    int64_t vocab_size;
    uint64_t seed;
};

struct bench_prompt {
    struct sl_str text;
    const uint32_t *ids; /* instead of text when not NULL */
    size_t n_in;         /* words or ids */
    size_t n_out;        /* tokens wanted */
    double at_s;         /* of a trace: send time after its first line; else -1 */
};

/* The prompts live in the arena. SL_USAGE for a bad spec, SL_CONFIG for a bad file (with line). */
enum sl_status bench_dataset_make(const struct bench_dataset_spec *spec, struct sl_arena *arena,
                                  struct bench_prompt **out, size_t *n_out, struct sl_err *err);

#endif
