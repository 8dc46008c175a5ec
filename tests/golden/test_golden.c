/* Promised, on the default model's file: the decoder agrees with an independent float32 reference
 * (logits.json, text.json say how they were made), and its logits are bitwise the same on every
 * instruction set, thread count, chunking and number of ranks. Skipped with a reason when the file
 * is not there. */
#include "rig.h"

#include <sluice/base/json.h>
#include <sluice/base/time.h>
#include <sluice/kernels/cuda.h>

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "ranks.h"

#define GOLDEN_DIR SL_TESTS_DIR "/golden/"
#define MODEL_FILE "SmolLM2-135M-Instruct.Q4_1.gguf"

#define TOP1_LEAST          0.97
#define MARGIN_NATS         0.5 /* steps decided by more than this must all agree */
#define LOGPROB_MEDIAN_MAX  0.03
#define PERPLEXITY_DIFF_MAX 0.005

sl_cuda_entry sl_cuda_plugin; /* linked in: the emulated one */

#define EXIT_SKIPPED 77 /* as tests/golden/CMakeLists.txt tells ctest */

static struct sl_gguf *model;
static char model_path[1024];

static struct sl_json *load_json(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, GOLDEN_DIR "%s", name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    static char text[1 << 20];
    size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    struct sl_json *doc = NULL;
    struct sl_err err = {0};
    rig_must(sl_json_parse(text, n, &doc, &err), &err);
    return doc;
}

static uint32_t *ids_of(const struct sl_json *array, uint32_t *n)
{
    *n = (uint32_t)sl_json_len(array);
    uint32_t *ids = calloc(*n + 1u, sizeof *ids);
    assert_non_null(ids);
    for (uint32_t i = 0; i < *n; i++)
        ids[i] = (uint32_t)sl_json_int(sl_json_at(array, i));
    return ids;
}

/* Prompt and greedy tokens of a case, one behind the other. */
static uint32_t *case_tokens(const struct sl_json *c, uint32_t *n_prompt, uint32_t *n)
{
    uint32_t n_greedy;
    uint32_t *prompt = ids_of(sl_json_get(c, "prompt_tokens"), n_prompt);
    uint32_t *greedy = ids_of(sl_json_get(c, "greedy_tokens"), &n_greedy);
    *n = *n_prompt + n_greedy;
    uint32_t *all = calloc(*n + 1u, sizeof *all);
    assert_non_null(all);
    memcpy(all, prompt, *n_prompt * sizeof *all);
    memcpy(all + *n_prompt, greedy, n_greedy * sizeof *all);
    free(prompt);
    free(greedy);
    return all;
}

struct tally {
    uint32_t n_steps, n_agree, n_clear, n_clear_agree;
    double *diffs;
};

static void count_step(struct rig *r, const struct sl_json *step, const float *logits,
                       struct tally *t)
{
    float max, log_sum;
    uint32_t best;
    r->host->ops->logit_stats(r->host, logits, 1, r->n_vocab, &max, &best, &log_sum);
    const struct sl_json *top = sl_json_get(step, "top"), *lp = sl_json_get(step, "logprob");
    uint32_t want = (uint32_t)sl_json_int(sl_json_at(top, 0));
    double first = sl_json_real(sl_json_at(lp, 0)), second = sl_json_real(sl_json_at(lp, 1));
    t->diffs[t->n_steps++] = fabs((double)logits[want] - (double)max - (double)log_sum - first);
    t->n_agree += best == want;
    if (first - second > MARGIN_NATS) {
        t->n_clear++;
        t->n_clear_agree += best == want;
    }
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void run_case(struct rig *r, const struct sl_json *c, struct tally *t)
{
    uint32_t n_prompt, n;
    uint32_t *tokens = case_tokens(c, &n_prompt, &n);
    const struct sl_json *steps = sl_json_get(c, "steps");
    uint32_t n_steps = (uint32_t)sl_json_len(steps);
    assert_true(n_prompt > 0 && n_steps > 0 && n_prompt + n_steps <= n + 1);
    uint32_t n_run = n_prompt + n_steps - 1; /* the last step's token is not fed */
    float *logits = calloc((size_t)n_steps * r->n_vocab, sizeof *logits);
    assert_non_null(logits);
    rig_run(r, tokens, n_run, r->max_batch, n_prompt - 1, logits);
    for (uint32_t i = 0; i < n_steps; i++)
        count_step(r, sl_json_at(steps, i), logits + (size_t)i * r->n_vocab, t);
    free(logits);
    free(tokens);
}

static const struct rig_config usual = {.isa = SL_ISA_AUTO,
                                        .n_threads = 2,
                                        .max_batch = 64,
                                        .max_pos = 1024,
                                        .max_rows = 64,
                                        .kv_dtype = SL_F16};

static void agrees_with_the_reference(void **state)
{
    (void)state;
    struct sl_json *doc = load_json("logits.json");
    const struct sl_json *cases = sl_json_get(doc, "cases");
    struct rig r;
    rig_open(&r, model, &usual);
    static double diffs[8192];
    struct tally t = {.diffs = diffs};
    for (size_t i = 0; i < sl_json_len(cases); i++)
        run_case(&r, sl_json_at(cases, i), &t);
    qsort(diffs, t.n_steps, sizeof *diffs, by_value);
    double median = diffs[t.n_steps / 2], share = (double)t.n_agree / t.n_steps;
    print_message("top-1 %u of %u (%.2f %%); margin over %.1f nats %u of %u; "
                  "|logprob difference| median %.5f, p99 %.5f, max %.5f; isa %s\n",
                  t.n_agree, t.n_steps, 100 * share, MARGIN_NATS, t.n_clear_agree, t.n_clear,
                  median, diffs[t.n_steps * 99 / 100], diffs[t.n_steps - 1], sl_isa_name(r.b->isa));
    assert_true(t.n_steps > 100 && t.n_clear > 50);
    assert_true(share >= TOP1_LEAST);
    assert_int_equal(t.n_clear_agree, t.n_clear);
    assert_true(median <= LOGPROB_MEDIAN_MAX);
    rig_close(&r);
    sl_json_free(doc);
}

/* Sum of -logprob of tokens[1..n) given what is before them; adds how many to *count. */
static double window_loss(struct rig *r, const uint32_t *tokens, uint32_t n, float *logits,
                          uint32_t *count)
{
    double loss = 0;
    for (uint32_t from = 0; from < n; from += r->max_batch) {
        uint32_t rows = n - from < r->max_batch ? n - from : r->max_batch;
        float max[64], log_sum[64];
        uint32_t best[64];
        rig_chunk(r, tokens, from, rows, from, logits);
        r->host->ops->logit_stats(r->host, logits, rows, r->n_vocab, max, best, log_sum);
        for (uint32_t i = 0; i < rows && from + i + 1 < n; i++) {
            double x = (double)logits[(size_t)i * r->n_vocab + tokens[from + i + 1]];
            loss -= x - (double)max[i] - (double)log_sum[i];
            ++*count;
        }
    }
    return loss;
}

static void perplexity_of_the_text(void **state)
{
    (void)state;
    struct sl_json *doc = load_json("text.json");
    uint32_t n, count = 0, window = (uint32_t)sl_json_int(sl_json_get(doc, "window"));
    uint32_t *tokens = ids_of(sl_json_get(doc, "tokens"), &n);
    double want = sl_json_real(sl_json_get(doc, "perplexity")), loss = 0;
    struct rig r;
    rig_open(&r, model, &usual);
    float *logits = calloc((size_t)r.max_batch * r.n_vocab, sizeof *logits);
    assert_non_null(logits);
    for (uint32_t from = 0; from < n; from += window)
        loss +=
            window_loss(&r, tokens + from, n - from < window ? n - from : window, logits, &count);
    double got = exp(loss / count);
    print_message("perplexity %.4f, reference %.4f (%+.3f %%) over %u tokens\n", got, want,
                  100 * (got / want - 1), count);
    assert_true(fabs(got / want - 1) <= PERPLEXITY_DIFF_MAX);
    free(logits);
    free(tokens);
    rig_close(&r);
    sl_json_free(doc);
}

/* --- the same bits --- */

#define SAME_ROWS 3u /* logits of the last rows are compared */

static float *run_bits(const uint32_t *tokens, uint32_t n, enum sl_isa isa, uint32_t n_threads,
                       uint32_t chunk)
{
    struct rig_config c = usual;
    c.isa = isa;
    c.n_threads = n_threads;
    c.max_batch = chunk;
    struct rig r;
    rig_open(&r, model, &c);
    float *logits = calloc((size_t)SAME_ROWS * r.n_vocab, sizeof *logits);
    assert_non_null(logits);
    rig_run(&r, tokens, n, chunk, n - SAME_ROWS, logits);
    rig_close(&r);
    return logits;
}

static void the_same_bits(void **state)
{
    (void)state;
    static const struct {
        enum sl_isa isa;
        uint32_t n_threads, chunk, n_tok;
    } table[] = {
        /* over a border of attention segments */
        {SL_ISA_AVX2, 2, 256, 300},
        {SL_ISA_AVX2, 1, 64, 300},
        {SL_ISA_AVX2, 2, 7, 300},
        {SL_ISA_AVX512, 2, 256, 300},
        {SL_ISA_AVX512, 1, 64, 300},
        {SL_ISA_AVX512, 2, 7, 300},
        {SL_ISA_AVX512, 1, 7, 300},
        /* the slow ones on a beginning of it */
        {SL_ISA_SCALAR, 2, 64, 40},
        {SL_ISA_SCALAR, 1, 7, 40},
        {SL_ISA_SCALAR, 2, 1, 40},
        {SL_ISA_AVX2, 1, 1, 40},
        {SL_ISA_AVX2, 2, 64, 40},
        {SL_ISA_AVX512, 1, 1, 40},
        {SL_ISA_AVX512, 2, 64, 40},
    };
    struct sl_json *doc = load_json("text.json");
    uint32_t n;
    uint32_t *tokens = ids_of(sl_json_get(doc, "tokens"), &n);

    struct sl_model_config cfg;
    struct sl_err err = {0};
    rig_must(sl_model_read_config(model, &cfg, &err), &err);
    size_t n_bytes = (size_t)SAME_ROWS * cfg.n_vocab * sizeof(float);
    float *first = NULL;
    uint32_t first_n = 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (!sl_cpu_has_isa(table[i].isa)) {
            print_message("row %zu skipped: no %s here\n", i, sl_isa_name(table[i].isa));
            continue;
        }
        float *logits =
            run_bits(tokens, table[i].n_tok, table[i].isa, table[i].n_threads, table[i].chunk);
        if (first && first_n == table[i].n_tok) {
            if (memcmp(first, logits, n_bytes) != 0)
                fail_msg("row %zu: %s, %u threads, chunks of %u: other bits", i,
                         sl_isa_name(table[i].isa), table[i].n_threads, table[i].chunk);
            free(logits);
        } else {
            free(first);
            first = logits;
            first_n = table[i].n_tok;
        }
    }
    free(first);
    free(tokens);
    sl_json_free(doc);
}

struct golden_rank {
    struct net *net;
    struct sl_shard shard;
    const uint32_t *tokens;
    uint32_t n;
    float *logits; /* [SAME_ROWS, n_vocab], written by rank 0 */
    pthread_t thread;
};

static void *golden_rank(void *ctx)
{
    struct golden_rank *g = ctx;
    struct rank_end end = {.net = g->net, .shard = g->shard};
    struct sl_exchange x = ranks_exchange(&end);
    struct rig_config c = usual;
    c.n_threads = 1;
    c.max_batch = 48;
    c.shard = g->shard;
    c.x = &x;
    struct rig r;
    rig_open(&r, model, &c);
    rig_run(&r, g->tokens, g->n, c.max_batch, g->n - SAME_ROWS, g->logits);
    rig_close(&r);
    return NULL;
}

/* 9 query heads on 3 KV heads over groups that do not divide them, in stages or not. */
static void ranks_have_the_same_bits(void **state)
{
    (void)state;
    static const uint32_t layouts[][2] = {{1, 1}, {2, 1}, {3, 1}, {2, 2}, {1, 3}, {4, 1}};
    enum { N_TOK = 60 };
    struct sl_json *doc = load_json("text.json");
    uint32_t n;
    uint32_t *tokens = ids_of(sl_json_get(doc, "tokens"), &n);
    float *want = run_bits(tokens, N_TOK, SL_ISA_AUTO, 2, 64);
    struct sl_model_config cfg;
    struct sl_err err = {0};
    rig_must(sl_model_read_config(model, &cfg, &err), &err);
    float *got = calloc((size_t)SAME_ROWS * cfg.n_vocab, sizeof *got);
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        uint32_t tp = layouts[i][0], pp = layouts[i][1];
        struct golden_rank ranks[RANKS_MAX];
        struct net net;
        net_open(&net);
        for (uint32_t r = 0; r < tp * pp; r++) {
            ranks[r] = (struct golden_rank){
                &net, sl_shard_of_rank(r, tp, pp), tokens, N_TOK, got, .thread = 0};
            assert_int_equal(pthread_create(&ranks[r].thread, NULL, golden_rank, &ranks[r]), 0);
        }
        for (uint32_t r = 0; r < tp * pp; r++)
            pthread_join(ranks[r].thread, NULL);
        net_close(&net);
        if (memcmp(want, got, (size_t)SAME_ROWS * cfg.n_vocab * sizeof *want) != 0)
            fail_msg("%u x %u ranks: other bits", tp, pp);
        memset(got, 0, (size_t)SAME_ROWS * cfg.n_vocab * sizeof *got);
    }
    free(want);
    free(got);
    free(tokens);
    sl_json_free(doc);
}

/* --- an emulated device --- */

#define DEVICE_CASES  3u
#define DEVICE_DECODE 8u /* steps of one row, which are slow there */

static double seconds(void)
{
    return (double)sl_now_ns() / (double)SL_S_NS;
}

/* Rows [0, n) of a case as a prompt, then DEVICE_DECODE of them step by step: logits of the last
 * ones. */
static float *run_steps(struct rig *r, const uint32_t *tokens, uint32_t n, double *s_per_token)
{
    float *logits = calloc((size_t)(DEVICE_DECODE + 1) * r->n_vocab, sizeof *logits);
    assert_non_null(logits);
    rig_run(r, tokens, n, r->max_batch, n - 1, logits);
    double start = seconds();
    for (uint32_t i = 0; i < DEVICE_DECODE; i++)
        rig_chunk(r, tokens, n + i, 1, n - 1, logits);
    *s_per_token = (seconds() - start) / DEVICE_DECODE;
    return logits;
}

/* Teacher-forced as above, and bit for bit what the CPU gives. */
static void an_emulated_device_follows_the_reference(void **state)
{
    (void)state;
    struct sl_json *doc = load_json("logits.json");
    const struct sl_json *cases = sl_json_get(doc, "cases");
    struct rig_config c = usual;
    struct sl_cuda_config cuda = {0, 2};
    struct rig dev, cpu;
    struct sl_err err;
    static double diffs[1024];
    struct tally t = {.diffs = diffs};
    rig_open(&cpu, model, &usual);
    rig_must(sl_cuda_plugin()->open(&cuda, &c.device, &err), &err);
    rig_open(&dev, model, &c);
    for (size_t i = 0; i < DEVICE_CASES; i++)
        run_case(&dev, sl_json_at(cases, i), &t);
    assert_int_equal(t.n_clear_agree, t.n_clear);
    assert_true((double)t.n_agree / t.n_steps >= TOP1_LEAST);

    uint32_t n_prompt, n;
    double cpu_s, dev_s;
    uint32_t *tokens = case_tokens(sl_json_at(cases, 0), &n_prompt, &n);
    float *want = run_steps(&cpu, tokens, n_prompt, &cpu_s);
    float *got = run_steps(&dev, tokens, n_prompt, &dev_s);
    assert_memory_equal(want, got, (size_t)(DEVICE_DECODE + 1) * cpu.n_vocab * sizeof *want);
    print_message("%u steps, top-1 %u; margin over %.1f nats %u of %u; %u decoded, %.2f s each\n",
                  t.n_steps, t.n_agree, MARGIN_NATS, t.n_clear_agree, t.n_clear, DEVICE_DECODE,
                  dev_s);
    free(want);
    free(got);
    free(tokens);
    rig_close(&cpu);
    rig_close(&dev);
    sl_json_free(doc);
}

static void find_model(void)
{
    const char *named = getenv("SLUICE_MODEL"), *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    if (named && *named)
        snprintf(model_path, sizeof model_path, "%s", named);
    else if (cache && *cache)
        snprintf(model_path, sizeof model_path, "%s/sluice/models/" MODEL_FILE, cache);
    else
        snprintf(model_path, sizeof model_path, "%s/.cache/sluice/models/" MODEL_FILE,
                 home ? home : "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_reference),
        cmocka_unit_test(perplexity_of_the_text),
        cmocka_unit_test(the_same_bits),
        cmocka_unit_test(ranks_have_the_same_bits),
        cmocka_unit_test(an_emulated_device_follows_the_reference),
    };
    find_model();
    struct sl_err err = {0};
    if (access(model_path, R_OK) != 0) {
        printf("skipped: no default model at %s (any verb of the launcher fetches it)\n",
               model_path);
        return EXIT_SKIPPED;
    }
    if (sl_gguf_open(model_path, &model, &err)) {
        printf("%s\n", err.msg);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    sl_gguf_close(model);
    return failed;
}
