/* Promised, on the emulated device: logits have the CPU's bits for every format but 16-bit weights,
 * whatever the chunks, the cache's format and the order of scheduling; steps that only decode are
 * recorded once per size and replayed, padded, with the bits that they have when run op by op; and
 * then cost one copy in, one copy out, one wait and no allocation. */
#include "tiny_file.h"

#include <sluice/base/mem.h>
#include <sluice/base/time.h>
#include <sluice/kernels/cuda.h>

#include "emu/control.h"

sl_cuda_entry sl_cuda_plugin; /* linked in: the emulated one */

static const struct rig_config usual = {.isa = SL_ISA_AUTO,
                                        .n_threads = 1,
                                        .max_batch = 64,
                                        .max_pos = 512,
                                        .max_rows = 64,
                                        .kv_dtype = SL_F16};

static void open_device(struct rig *r, const struct sl_gguf *g, const struct rig_config *like,
                        uint64_t seed)
{
    struct rig_config c = *like;
    struct sl_cuda_config cuda = {0, 1};
    struct sl_err err;
    emu_seed(seed);
    rig_must(sl_cuda_plugin()->open(&cuda, &c.device, &err), &err);
    rig_open(r, g, &c);
}

/* --- the CPU's bits --- */

enum { N_TOK = 270, N_LAST = 16 }; /* over a border of attention segments */

/* A prompt in chunks, then row by row: logits of the last rows. */
static float *last_logits(struct rig *r, const uint32_t *tokens, uint32_t chunk, uint32_t n_decode)
{
    float *logits = calloc((size_t)N_LAST * r->n_vocab, sizeof *logits);
    assert_non_null(logits);
    uint32_t n = N_TOK - n_decode;
    for (uint32_t at = 0; at < n; at += chunk)
        rig_chunk(r, tokens, at, n - at < chunk ? n - at : chunk, N_TOK - N_LAST, logits);
    for (uint32_t at = n; at < N_TOK; at++)
        rig_chunk(r, tokens, at, 1, N_TOK - N_LAST, logits);
    return logits;
}

static void logits_have_the_cpus_bits(void **state)
{
    (void)state;
    static const struct {
        enum sl_dtype dtype, kv;
        uint32_t chunk, n_decode;
        bool bias, rope_factors, tied;
    } rows[] = {
        {SL_Q8_0, SL_F16, 64, 14, false, false, false},
        {SL_Q4_0, SL_I8, 19, 20, true, false, false},
        {SL_Q4_1, SL_BF16, 64, 3, false, true, true},
        {SL_F32, SL_F32, 50, 14, true, true, false},
    };
    uint32_t tokens[N_TOK];
    struct sl_rng rng = {.seed = 5};
    for (uint32_t i = 0; i < N_TOK; i++)
        tokens[i] = sl_rng_below(&rng, tiny_model_n_vocab());
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct tiny_model m = tiny_model_default();
        struct rig_config c = usual;
        struct opened o;
        struct rig cpu, dev;
        m.dtype = rows[i].dtype;
        m.bias = rows[i].bias;
        m.rope_factors = rows[i].rope_factors;
        m.tied = rows[i].tied;
        c.kv_dtype = rows[i].kv;
        open_tiny(&o, &m);
        rig_open(&cpu, o.g, &c);
        float *want = last_logits(&cpu, tokens, 64, 0);
        for (uint64_t seed = 1; seed <= 4; seed++) {
            open_device(&dev, o.g, &c, seed);
            assert_int_equal(sl_model_weight_bytes(dev.m) % sizeof(float), 0);
            float *got = last_logits(&dev, tokens, rows[i].chunk, rows[i].n_decode);
            if (memcmp(want, got, (size_t)N_LAST * cpu.n_vocab * sizeof *want) != 0)
                fail_msg("row %zu, seed %u: other bits", i, (unsigned)seed);
            free(got);
            rig_close(&dev);
        }
        free(want);
        rig_close(&cpu);
        close_tiny(&o);
    }
}

/* What a plan says before anything is loaded is what the model takes. */
static void the_plan_is_what_it_takes(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct opened o;
    struct rig r;
    struct sl_model_plan plan;
    struct sl_err err;
    struct sl_model_options options = {
        .max_batch_tokens = 64, .max_positions = 512, .max_logit_rows = 64};
    open_tiny(&o, &m);
    open_device(&r, o.g, &usual, 1);
    rig_must(sl_model_plan(o.g, r.b, &options, SL_F16, &plan, &err), &err);
    assert_int_equal(plan.weight_bytes, sl_model_weight_bytes(r.m));
    assert_int_equal(plan.scratch_bytes, sl_model_scratch_bytes(r.m));
    assert_int_equal(plan.mapped_bytes, 0);
    rig_close(&r);
    close_tiny(&o);
}

/* --- recorded steps --- */

enum { SEQS_MAX = 40, STEPS = 6 };

static void nobody(void *ctx, uint32_t layer, uint32_t n_rows)
{
    (void)ctx;
    (void)layer;
    (void)n_rows;
}

/* Token `at` of n sequences, each on a page of its own. One that wants to hear of layers runs op by
 * op. */
static void decode(struct rig *r, uint32_t n, uint32_t at, bool eager, float *logits)
{
    uint32_t q_start[SEQS_MAX + 1], pos[SEQS_MAX], page_start[SEQS_MAX + 1], pages[SEQS_MAX];
    uint32_t tokens[SEQS_MAX], rows[SEQS_MAX];
    for (uint32_t s = 0; s <= n; s++)
        q_start[s] = page_start[s] = s;
    for (uint32_t s = 0; s < n; s++) {
        pages[s] = SEQS_MAX - 1 - s;
        pos[s] = at;
        rows[s] = s;
        tokens[s] = (s * 37 + at * 11 + 5) % 250;
    }
    struct sl_batch batch = {.n_seq = n,
                             .n_tok = n,
                             .q_start = q_start,
                             .pos = pos,
                             .page_start = page_start,
                             .pages = pages};
    struct sl_model_step step = {.batch = &batch,
                                 .tokens = tokens,
                                 .logit_rows = rows,
                                 .n_logit_rows = n,
                                 .logits = r->logits,
                                 .on_layer = eager ? nobody : NULL};
    struct sl_err err;
    rig_must(sl_model_forward(r->m, &r->kv, &step, NULL, &err), &err);
    r->b->ops->read(r->b, logits, r->logits, (size_t)n * r->n_vocab * sizeof *logits);
    rig_must(r->b->ops->finish(r->b, &err), &err);
}

static uint64_t calls(const char *name)
{
    uint64_t n;
    const char *at;
    for (uint32_t i = 0; (at = emu_call_count(i, &n)); i++)
        if (!strcmp(at, name))
            return n;
    fail_msg("no call %s", name);
    return 0;
}

static uint64_t launches(struct rig *r)
{
    struct sl_launches all[SL_LAUNCHES_MAX];
    uint32_t n = r->b->ops->launches(r->b, all);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += all[i].n;
    return sum;
}

static const struct rig_config many = {.isa = SL_ISA_AUTO,
                                       .n_threads = 1,
                                       .max_batch = 64,
                                       .max_pos = SEQS_MAX * RIG_PAGE, /* so many pages */
                                       .max_rows = 64,
                                       .kv_dtype = SL_F16};

static void recorded_steps_have_the_bits_of_eager_ones(void **state)
{
    (void)state;
    static const uint32_t sizes[] = {1, 2, 3, 5, 8, 17, 33, 40};
    struct tiny_model m = tiny_model_default();
    struct opened o;
    open_tiny(&o, &m);
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct rig eager, recorded;
        open_device(&eager, o.g, &many, seed);
        open_device(&recorded, o.g, &many, seed);
        size_t n_floats = (size_t)SEQS_MAX * eager.n_vocab;
        float *want = calloc(n_floats, sizeof *want), *got = calloc(n_floats, sizeof *got);
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (uint32_t at = 0; at < STEPS; at++) {
                uint64_t before = launches(&eager), graphs = calls("cudaGraphLaunch");
                decode(&eager, sizes[i], at, true, want);
                uint64_t n_eager = launches(&eager) - before;
                assert_int_equal(calls("cudaGraphLaunch"), graphs);
                decode(&recorded, sizes[i], at, false, got);
                assert_int_equal(calls("cudaGraphLaunch"), graphs + 1);
                assert_int_equal(launches(&eager) - before, 2 * n_eager);
                if (memcmp(want, got, sizes[i] * eager.n_vocab * sizeof *want) != 0)
                    fail_msg("%u sequences, seed %u: other bits", sizes[i], (unsigned)seed);
            }
        free(want);
        free(got);
        rig_close(&eager);
        rig_close(&recorded);
    }
    close_tiny(&o);
}

static void a_warm_step_copies_and_waits_once(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t n;
    } cost[] = {{"cudaMemcpyAsync", 2},
                {"cudaStreamSynchronize", 1},
                {"cudaGraphLaunch", 1},
                {"cudaMalloc", 0},
                {"cudaFree", 0},
                {"cudaHostAlloc", 0},
                {"cudaFreeHost", 0},
                {"cudaEventSynchronize", 0},
                {"cudaDeviceSynchronize", 0},
                {"cudaMemcpy", 0},
                {"cudaGraphInstantiate", 0},
                {"emu_enqueue", 0}};
    struct tiny_model m = tiny_model_default();
    struct opened o;
    struct rig r;
    uint64_t before[sizeof cost / sizeof *cost];
    open_tiny(&o, &m);
    open_device(&r, o.g, &many, 2);
    float *logits = r.b->ops->mirror(r.b, r.logits, r.logits_bytes);
    for (uint32_t at = 0; at < 3; at++) { /* 5 to 8 sequences are one size */
        for (size_t i = 0; i < sizeof cost / sizeof *cost; i++)
            before[i] = calls(cost[i].name);
        decode(&r, 5 + at, at, false, logits);
    }
    for (size_t i = 0; i < sizeof cost / sizeof *cost; i++)
        if (calls(cost[i].name) - before[i] != cost[i].n)
            fail_msg("%s: %u times", cost[i].name, (unsigned)(calls(cost[i].name) - before[i]));
    r.b->ops->mirror_free(r.b, logits, r.logits, r.logits_bytes);
    rig_close(&r);
    close_tiny(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_have_the_cpus_bits),
        cmocka_unit_test(the_plan_is_what_it_takes),
        cmocka_unit_test(recorded_steps_have_the_bits_of_eager_ones),
        cmocka_unit_test(a_warm_step_copies_and_waits_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
