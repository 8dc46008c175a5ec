/* The engine alone, without doors or links between processes: random prompts, greedy tokens, end
 * tokens ignored, so that the work of a run depends on its sizes alone. */
#ifndef SLUICE_BENCH_OFFLINE_H
#define SLUICE_BENCH_OFFLINE_H

#include <sluice/base/err.h>
#include <sluice/base/mem.h>
#include <stddef.h>
#include <stdint.h>

struct sl_engine;

enum sl_offline_mode {
    SL_OFFLINE_PREFILL, /* n_prompt tokens of every sequence, one sampled token each */
    SL_OFFLINE_DECODE,  /* n_gen tokens of every sequence behind n_prompt tokens not timed */
    SL_OFFLINE_MIXED    /* all of it, from the first submit to the last token */
};

struct sl_offline_case {
    enum sl_offline_mode mode;
    uint32_t n_prompt;  /* tokens a prompt, > 0 */
    uint32_t n_gen;     /* tokens generated a sequence, > 0; PREFILL: not used */
    uint32_t n_batch;   /* sequences in flight at once, > 0 */
    uint32_t n_prompts; /* sequences in all, >= n_batch; DECODE: equal to n_batch */
    uint64_t seed;      /* of the prompts */
};

/* One run. `wall_ns`, by the engine's clock, covers the timed part, in which n_prefill tokens of
 * prompts were read and n_decode tokens generated. `cpu_ns` is the process's, read when this thread
 * sees the first and the last step of that part: of a very short DECODE it may miss some. */
struct sl_offline_sample {
    uint64_t wall_ns, cpu_ns;
    uint64_t first_ns; /* from the first submit until every sequence has a token */
    uint64_t n_prefill, n_decode;
    uint64_t n_steps;  /* engine steps that gave tokens, untimed ones included */
};

/* Runs the case once; `run` keys its prompts, so that no run finds an earlier one's prefix cached.
 * SL_INVALID for sizes as above, otherwise the engine's own errors. */
enum sl_status sl_offline_run(struct sl_engine *e, const struct sl_offline_case *c, uint64_t run,
                              struct sl_offline_sample *out, struct sl_err *err);

/* One JSON object and one line of a table: sizes, every sample, median, mean, deviation, rates. Key
 * names are llama-bench's where it has them (avg_ns, samples_ts, ...); rates are medians too. */
void sl_offline_json(const struct sl_offline_case *c, const struct sl_offline_sample *samples,
                     size_t n, struct sl_buf *out);
void sl_offline_line(const struct sl_offline_case *c, const struct sl_offline_sample *samples,
                     size_t n, struct sl_buf *out);

#endif
