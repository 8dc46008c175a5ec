/* Promised: the bits of the exact backend do not change unnoticed. The logits of small models are
 * hashed and compared with the hashes that belong to SL_NUMERICS_REVISION. When this test fails
 * after an intended change of numerics, raise the revision and put the printed hashes here; when no
 * change was intended, the change is a defect. */
#include "rig.h"
#include "tiny_model.h"

#include <sluice/base/containers.h>
#include <sluice/base/time.h>

#include <stdio.h>

#define REVISION 1    /* the one the hashes below belong to */
#define N_TOK    300u /* over a border of attention segments */

static const struct {
    enum sl_dtype dtype, kv_dtype;
    const char *sha256; /* its first 16 digits */
} table[] = {
    {SL_F32, SL_F32, "0000a8e64f5aa1b7"},   {SL_F16, SL_F16, "870b914acf5b4dc7"},
    {SL_BF16, SL_BF16, "66b64411305693f8"}, {SL_Q8_0, SL_F16, "d3201a7a4768925f"},
    {SL_Q4_0, SL_F16, "07d366043b818efd"},  {SL_Q4_1, SL_F16, "08fbf38623c4853b"},
    {SL_Q8_0, SL_I8, "e9519f8d3166c0ed"},
};

static void hash_of(size_t row, char hex[65])
{
    struct tiny_model t = tiny_model_default();
    struct sl_buf file = {0};
    struct sl_err err = {0};
    struct sl_gguf *g = NULL;
    struct rig r;
    uint32_t tokens[N_TOK];
    uint8_t digest[32];
    struct sl_rng rng = {.seed = 9};
    struct rig_config c = {.isa = SL_ISA_AUTO,
                           .n_threads = 2,
                           .max_batch = 64,
                           .max_pos = 320,
                           .max_rows = 64,
                           .kv_dtype = table[row].kv_dtype};
    t.dtype = table[row].dtype;
    t.bias = true;
    t.rope_factors = true;
    rig_must(tiny_model_buf(&t, &file, &err), &err);
    rig_must(sl_gguf_parse(file.data, file.len, false, &g, &err), &err);
    rig_open(&r, g, &c);
    for (uint32_t i = 0; i < N_TOK; i++)
        tokens[i] = sl_rng_below(&rng, r.n_vocab);
    size_t n = (size_t)N_TOK * r.n_vocab;
    float *logits = calloc(n, sizeof *logits);
    assert_non_null(logits);
    rig_run(&r, tokens, N_TOK, 64, 0, logits);
    sl_sha256(logits, n * sizeof *logits, digest);
    sl_hex(digest, sizeof digest, hex);
    free(logits);
    rig_close(&r);
    sl_gguf_close(g);
    sl_buf_free(&file);
}

static void hashes_belong_to_the_revision(void **state)
{
    (void)state;
    size_t n_other = 0;
    assert_int_equal(SL_NUMERICS_REVISION, REVISION);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        char hex[65];
        hash_of(i, hex);
        hex[16] = '\0';
        bool same = strcmp(hex, table[i].sha256) == 0;
        n_other += !same;
        if (!same)
            print_message("weights %s, KV %s: %s, was %s\n", sl_dtype_row(table[i].dtype)->text,
                          sl_dtype_row(table[i].kv_dtype)->text, hex, table[i].sha256);
    }
    assert_int_equal(n_other, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(hashes_belong_to_the_revision)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
