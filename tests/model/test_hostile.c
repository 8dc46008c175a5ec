/* Promised: a model file whose keys are replaced by extreme values, or whose weights are arbitrary
 * bits, is refused with a clean SL_MODEL error or opens and runs: no crash, no hang, and a row that
 * is not finite shows as NaN. Run it with AddressSanitizer. */
#include "rig.h"
#include "tiny_model.h"

#include <sluice/base/time.h>

#include <inttypes.h>
#include <math.h>

static const uint64_t values[] = {0,
                                  1,
                                  2,
                                  3,
                                  63,
                                  65,
                                  0x7fffffff,
                                  0x80000000,
                                  0x80000001,
                                  0xfffffffe,
                                  0xffffffff,
                                  0x7f800000 /* +inf */,
                                  0x7fc00000 /* NaN */,
                                  0x00000001 /* least float */};
#define N_VALUES (sizeof values / sizeof *values)

/* Runs four tokens; true when the file was accepted. */
static bool try_file(const struct sl_buf *file, struct sl_backend *b)
{
    struct sl_gguf *g = NULL;
    struct sl_model *m = NULL;
    struct sl_err err = {0};
    enum sl_status status = sl_gguf_parse(file->data, file->len, false, &g, &err);
    struct sl_model_options o = {.max_batch_tokens = 4, .max_positions = 16, .max_logit_rows = 4};
    if (!status)
        status = sl_model_open(g, b, &o, &m, &err);
    if (status) {
        assert_int_equal(status, SL_MODEL);
        assert_true(err.msg[0] != '\0');
        sl_gguf_close(g);
        return false;
    }
    const struct sl_model_config *c = sl_model_config(m);
    struct sl_kv kv;
    struct sl_kv_config kc = sl_model_kv_config(c, NULL, 16, 1, SL_F16);
    uint32_t tokens[4] = {3, 70, 71, 290}, pos[4] = {0, 1, 2, 3}, rows[4] = {0, 1, 2, 3};
    uint32_t q_start[2] = {0, 4}, page_start[2] = {0, 1}, page = 0;
    struct sl_batch batch = {.n_seq = 1,
                             .n_tok = 4,
                             .q_start = q_start,
                             .pos = pos,
                             .page_start = page_start,
                             .pages = &page};
    float *logits = calloc((size_t)4 * c->n_vocab, sizeof *logits);
    assert_non_null(logits);
    if (!b->ops->kv_open(b, &kc, &kv, &err)) {
        struct sl_model_step step = {.batch = &batch,
                                     .tokens = tokens,
                                     .logit_rows = rows,
                                     .n_logit_rows = 4,
                                     .logits = logits};
        rig_must(sl_model_forward(m, &kv, &step, NULL, &err), &err);
        float max[4], log_sum[4];
        uint32_t best[4];
        b->ops->logit_stats(b, logits, 4, c->n_vocab, max, best, log_sum);
        for (int i = 0; i < 4; i++)
            assert_true(isnan(max[i]) || best[i] < c->n_vocab);
        b->ops->kv_close(b, &kv);
    }
    free(logits);
    sl_model_close(m);
    sl_gguf_close(g);
    return true;
}

static struct sl_backend *open_cpu(void)
{
    struct sl_backend *b = NULL;
    struct sl_err err = {0};
    struct sl_cpu_config cpu = {.isa = SL_ISA_AUTO, .n_threads = 1};
    rig_must(sl_cpu_open(&cpu, &b, &err), &err);
    return b;
}

static void keys_with_extreme_values(void **state)
{
    (void)state;
    struct tiny_model t = tiny_model_default();
    struct sl_buf file = {0};
    struct sl_err err = {0};
    struct sl_gguf *g = NULL;
    struct sl_backend *b = open_cpu();
    uint32_t n_tried = 0, n_accepted = 0;
    t.rope_linear = 2.0f;
    t.rope_factors = true;
    rig_must(tiny_model_buf(&t, &file, &err), &err);
    rig_must(sl_gguf_parse(file.data, file.len, false, &g, &err), &err);
    for (size_t i = 0; i < sl_gguf_n_keys(g); i++) {
        const struct sl_gguf_key *k = sl_gguf_key_at(g, i);
        if (k->type != SL_GGUF_U32 && k->type != SL_GGUF_F32)
            continue;
        char *at = file.data + ((const char *)k->data - file.data), was[4];
        memcpy(was, at, 4);
        for (size_t v = 0; v < N_VALUES; v++, n_tried++) {
            uint32_t value = (uint32_t)values[v];
            memcpy(at, &value, 4);
            n_accepted += try_file(&file, b);
        }
        memcpy(at, was, 4);
    }
    print_message("%u files, %u accepted\n", n_tried, n_accepted);
    assert_true(n_tried > 150 && n_accepted > 20);
    sl_gguf_close(g);
    sl_buf_free(&file);
    b->ops->close(b);
}

static void weights_of_arbitrary_bits(void **state)
{
    (void)state;
    static const enum sl_dtype dtypes[] = {SL_F32, SL_F16, SL_BF16, SL_Q8_0, SL_Q4_0, SL_Q4_1};
    struct sl_backend *b = open_cpu();
    struct sl_rng rng = {.seed = 33};
    print_message("seed %" PRIu64 "\n", rng.seed);
    for (size_t d = 0; d < 6; d++) {
        struct tiny_model t = tiny_model_default();
        struct sl_buf file = {0};
        struct sl_err err = {0};
        struct sl_gguf *g = NULL;
        t.dtype = dtypes[d];
        rig_must(tiny_model_buf(&t, &file, &err), &err);
        rig_must(sl_gguf_parse(file.data, file.len, false, &g, &err), &err);
        for (size_t i = sl_gguf_meta(g).len; i < file.len; i++)
            file.data[i] = (char)sl_rng_u64(&rng);
        assert_true(try_file(&file, b));
        sl_gguf_close(g);
        sl_buf_free(&file);
    }
    b->ops->close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keys_with_extreme_values),
        cmocka_unit_test(weights_of_arbitrary_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
