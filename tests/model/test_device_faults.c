/* Promised, on the emulated device: a model's steps do nothing in an order that no stream gives
 * them, whatever the schedule; built once more with all accesses of kernels watched, that holds for
 * the kernels too. And whatever call of the runtime fails, and however, a model either has its
 * logits or an error; nothing crashes, hangs, is used after its end or while in use, and after an
 * error that a device survives nothing is left behind. */
#include "rig.h"
#include "tiny_model.h"

#include <sluice/base/mem.h>
#include <sluice/kernels/cuda.h>

#include "emu/control.h"

sl_cuda_entry sl_cuda_plugin; /* linked in: the emulated one */

enum { SEQS = 3, N_PROMPT = 9 };

static const struct rig_config config = {.isa = SL_ISA_AUTO,
                                         .n_threads = 1,
                                         .max_batch = 16,
                                         .max_pos = 4 * RIG_PAGE,
                                         .max_rows = 16,
                                         .kv_dtype = SL_F16};

/* A prompt, op by op, then two recorded steps; the last logits. */
static enum sl_status steps(struct rig *r, float *logits, struct sl_err *err)
{
    static const uint32_t tokens[N_PROMPT] = {3, 1, 4, 1, 5, 9, 2, 6, 5};
    static const uint32_t rows[SEQS] = {0, 1, 2}, pages[SEQS] = {2, 0, 1};
    uint32_t q_start[SEQS + 1] = {0, N_PROMPT}, page_start[SEQS + 1] = {0, 1}, pos[N_PROMPT];
    for (uint32_t i = 0; i < N_PROMPT; i++)
        pos[i] = i;
    struct sl_batch batch = {.n_seq = 1,
                             .n_tok = N_PROMPT,
                             .q_start = q_start,
                             .pos = pos,
                             .page_start = page_start,
                             .pages = pages};
    enum sl_status s = rig_forward(r, &batch, tokens, NULL, 0, NULL, err);
    batch.n_seq = batch.n_tok = SEQS;
    for (uint32_t i = 0; i <= SEQS; i++)
        q_start[i] = page_start[i] = i;
    for (uint32_t at = 0; at < 2 && !s; at++) {
        for (uint32_t i = 0; i < SEQS; i++)
            pos[i] = i ? at : N_PROMPT + at;
        s = rig_forward(r, &batch, tokens + at, rows, SEQS, logits, err);
    }
    return s;
}

/* All of a model's life on a device, up to the first error. */
static enum sl_status live(const struct sl_gguf *g, float *logits, struct sl_err *err)
{
    struct rig r = {.max_batch = config.max_batch};
    struct sl_cuda_config cuda = {0, 1};
    struct sl_model_options o = {.max_batch_tokens = config.max_batch,
                                 .max_positions = config.max_pos,
                                 .max_logit_rows = config.max_rows};
    enum sl_status s = sl_cuda_plugin()->open(&cuda, &r.b, err);
    if (s)
        return s;
    s = sl_model_open(g, r.b, &o, &r.m, err);
    if (s)
        goto out;
    struct sl_kv_config kc =
        sl_model_kv_config(sl_model_config(r.m), &config.shard, RIG_PAGE, 4, config.kv_dtype);
    s = r.b->ops->kv_open(r.b, &kc, &r.kv, err);
    if (s)
        goto out;
    r.n_vocab = sl_model_config(r.m)->n_vocab;
    r.logits_bytes = (size_t)config.max_rows * r.n_vocab * sizeof *r.logits;
    r.logits = r.b->ops->alloc(r.b, r.logits_bytes);
    s = r.logits ? steps(&r, logits, err) : sl_fail(err, SL_FAILED, "no logits");
out:
    if (r.m)
        sl_model_close(r.m);
    if (r.kv.data)
        r.b->ops->kv_close(r.b, &r.kv);
    if (r.logits)
        r.b->ops->free(r.b, r.logits, r.logits_bytes);
    r.b->ops->close(r.b);
    return s;
}

static uint32_t restart(uint64_t seed)
{
    struct emu_config c = emu_config_default();
    c.seed = seed;
    c.memory = 64 << 20;
    c.keep_reports = true;
    return emu_restart(&c, NULL);
}

static void nothing_lacks_an_order(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct sl_buf file = {0};
    struct sl_gguf *g = NULL;
    struct sl_err err = {0};
    rig_must(tiny_model_buf(&m, &file, &err), &err);
    rig_must(sl_gguf_parse(file.data, file.len, false, &g, &err), &err);
    size_t bytes = SEQS * tiny_model_n_vocab() * sizeof(float);
    float *want = calloc(1, bytes), *got = calloc(1, bytes);
    for (uint64_t seed = 0; seed < 6; seed++) {
        restart(seed);
        rig_must(live(g, seed ? got : want, &err), &err);
        if (emu_report_count())
            fail_msg("seed %u: %s", (unsigned)seed, emu_report_text(0));
        assert_true(!seed || !memcmp(want, got, bytes));
        assert_int_equal(restart(0), 0);
    }
    free(want);
    free(got);
    sl_gguf_close(g);
    sl_buf_free(&file);
}

#ifndef DEVICE_WATCHED
enum { CALLS_MAX = 256, NTHS_MAX = 8 };

struct fault {
    const char *name;
    uint64_t nth, seed;
    cudaError_t error;
    bool late;
};

static void check(const struct sl_gguf *g, const struct fault *f, const float *want, float *got,
                  size_t bytes)
{
    struct sl_err err = {0};
    restart(f->seed);
    assert_true(emu_fault(f->name, f->nth, f->error, f->late));
    enum sl_status s = live(g, got, &err);
    bool sticky = f->error == cudaErrorECCUncorrectable;
    const char *wrong = NULL;
    if (!s && memcmp(want, got, bytes) != 0)
        wrong = "other logits";
    else if (emu_report_count())
        wrong = emu_report_text(0);
    if (wrong)
        fail_msg("%s, call %u%s, %s, seed %u: %s (%s)", f->name, (unsigned)f->nth,
                 f->late ? ", late" : "", cudaGetErrorName(f->error), (unsigned)f->seed, wrong,
                 s ? err.msg : "no error");
    uint32_t n_left = restart(0);
    bool was_free = !strncmp(f->name, "cudaFree", 8) || strstr(f->name, "Destroy");
    if (n_left && !sticky && !was_free)
        fail_msg("%s, call %u, seed %u: %u objects left", f->name, (unsigned)f->nth,
                 (unsigned)f->seed, n_left);
}

static void every_fault_has_an_end(void **state)
{
    (void)state;
    static const char *names[CALLS_MAX];
    static uint64_t counts[CALLS_MAX];
    static const struct {
        cudaError_t error;
        bool late;
    } kinds[] = {{cudaErrorMemoryAllocation, false},
                 {cudaErrorECCUncorrectable, false},
                 {cudaErrorECCUncorrectable, true}};
    struct tiny_model m = tiny_model_default();
    struct sl_buf file = {0};
    struct sl_gguf *g = NULL;
    struct sl_err err = {0};
    rig_must(tiny_model_buf(&m, &file, &err), &err);
    rig_must(sl_gguf_parse(file.data, file.len, false, &g, &err), &err);
    size_t bytes = SEQS * tiny_model_n_vocab() * sizeof(float);
    float *want = calloc(1, bytes), *got = calloc(1, bytes);
    restart(0);
    rig_must(live(g, want, &err), &err);
    uint32_t n = 0, n_faults = 0;
    while (n < CALLS_MAX && (names[n] = emu_call_count(n, &counts[n])))
        n++;
    assert_int_equal(restart(0), 0);
    for (uint32_t i = 0; i < n; i++)
        for (uint64_t k = 0; k < NTHS_MAX && k < counts[i]; k++)
            for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
                uint64_t nth = counts[i] <= NTHS_MAX ? k + 1 : 1 + k * (counts[i] - 1) / 7;
                struct fault f = {names[i], nth, n_faults++ % 3, kinds[kind].error,
                                  kinds[kind].late};
                check(g, &f, want, got, bytes);
            }
    print_message("%u faults\n", n_faults);
    assert_true(n_faults > 200);
    free(want);
    free(got);
    sl_gguf_close(g);
    sl_buf_free(&file);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_lacks_an_order),
#ifndef DEVICE_WATCHED
        cmocka_unit_test(every_fault_has_an_end),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
