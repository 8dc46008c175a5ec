/* Promised: a file of a known architecture gives its configuration; every key or tensor that is
 * missing, misshapen, of the wrong kind, or asks for what the decoder does not do is refused with a
 * message that names it, and nothing is ever silently replaced by a default. */
#include "tiny_model.h"

#include <sluice/model/file.h>
#include <sluice/model/model.h>

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

/* One change to a valid file: a key dropped, replaced or added, a tensor dropped, renamed, or given
 * other dimensions or type. */
struct edit {
    const char *drop_key;   /* also before put_* of the same name */
    const char *put_str[2]; /* name, value */
    const char *put_u32_name;
    uint32_t put_u32;
    const char *put_f32_name;
    float put_f32;
    const char *drop_tensor;
    const char *rename[2]; /* from, to */
    const char *reshape;   /* tensor whose dims[1] is halved */
    const char *retype;    /* tensor that claims type `type`, with as many elements */
    uint32_t type;
    const char *says;
};

static bool is(const char *wanted, struct sl_str name)
{
    return wanted && sl_str_eqz(name, wanted);
}

static void copy_tensor(struct sl_gguf_writer *w, const struct sl_gguf_tensor *t,
                        const struct edit *e)
{
    static const uint8_t plenty[1 << 20];
    char name[128];
    snprintf(name, sizeof name, "%.*s", (int)t->name.len, t->name.data);
    uint64_t dims[4], bytes = t->n_bytes;
    const void *data = t->data;
    memcpy(dims, t->dims, sizeof dims);
    uint32_t type = t->ggml_type;
    if (is(e->rename[0], t->name))
        snprintf(name, sizeof name, "%s", e->rename[1]);
    if (is(e->reshape, t->name)) {
        dims[1] /= 2;
        bytes /= 2;
    }
    if (is(e->retype, t->name)) {
        struct sl_gguf_type_info info;
        assert_true(sl_gguf_type_info(e->type, &info));
        type = e->type;
        bytes = t->n_elems / info.block_elems * info.block_bytes;
        data = plenty;
        assert_true(bytes <= sizeof plenty);
    }
    sl_gguf_put_tensor(w, name, type, t->n_dims, dims, data, bytes);
}

static void apply(const struct sl_gguf *g, const struct edit *e, struct sl_buf *out)
{
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    assert_non_null(w);
    for (size_t i = 0; i < sl_gguf_n_keys(g); i++) {
        const struct sl_gguf_key *k = sl_gguf_key_at(g, i);
        if (!is(e->drop_key, k->name) && !is(e->put_str[0], k->name) &&
            !is(e->put_u32_name, k->name) && !is(e->put_f32_name, k->name))
            sl_gguf_put_key(w, k);
    }
    if (e->put_str[0])
        sl_gguf_put_str(w, e->put_str[0], sl_str_of(e->put_str[1]));
    if (e->put_u32_name)
        sl_gguf_put_u32(w, e->put_u32_name, e->put_u32);
    if (e->put_f32_name)
        sl_gguf_put_f32(w, e->put_f32_name, e->put_f32);
    for (size_t i = 0; i < sl_gguf_n_tensors(g); i++)
        if (!is(e->drop_tensor, sl_gguf_tensor_at(g, i)->name))
            copy_tensor(w, sl_gguf_tensor_at(g, i), e);
    struct sl_err err = {0};
    assert_int_equal(sl_gguf_writer_finish_buf(w, out, &err), SL_OK);
}

static struct sl_gguf *parse(const struct sl_buf *b)
{
    struct sl_gguf *g = NULL;
    struct sl_err err = {0};
    if (sl_gguf_parse(b->data, b->len, false, &g, &err))
        fail_msg("%s", err.msg);
    return g;
}

static void reads_what_was_written(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    m.dtype = SL_Q4_1;
    m.head_dim = 32;
    m.rope_factors = true;
    m.rope_linear = 4.0f;
    struct sl_buf file = {0};
    struct sl_err err = {0};
    struct sl_model_config c;
    assert_int_equal(tiny_model_buf(&m, &file, &err), SL_OK);
    struct sl_gguf *g = parse(&file);
    if (sl_model_read_config(g, &c, &err))
        fail_msg("%s", err.msg);
    assert_string_equal(c.arch, "llama");
    assert_int_equal(c.n_layers, 2);
    assert_int_equal(c.dim, 64);
    assert_int_equal(c.n_heads, 4);
    assert_int_equal(c.n_kv_heads, 2);
    assert_int_equal(c.head_dim, 32);
    assert_int_equal(c.ffn_dim, 128);
    assert_int_equal(c.n_vocab, tiny_model_n_vocab());
    assert_int_equal(c.ctx_max, 2048);
    assert_int_equal(c.n_rot, 32);
    assert_int_equal(c.rope_kind, SL_ROPE_INTERLEAVED);
    assert_true(c.rope_base == 10000.0 && c.rope_scale == 0.25 && c.rope_factors);
    assert_true(c.rms_eps == 1e-5f && c.attn_scale == 1.0f / sqrtf(32.0f));
    assert_false(c.tied_head);
    struct sl_kv_config kv = sl_model_kv_config(&c, NULL, 16, 10, SL_F16);
    assert_true(kv.n_layers == 2 && kv.n_kv_heads == 2 && kv.head_dim == 32);
    assert_true(kv.page_size == 16 && kv.n_pages == 10 && kv.dtype == SL_F16);
    assert_int_equal(sl_model_kv_token_bytes(&c, NULL, SL_F16), 2 * 2 * 2 * 32 * 2);
    sl_gguf_close(g);
    sl_buf_free(&file);
}

static const struct edit edits[] = {
    {.drop_key = "general.architecture", .says = "'general.architecture' is missing"},
    {.put_str = {"general.architecture", "gpt5"},
     .says = "unsupported architecture 'gpt5' (known: llama)"},
    {.drop_key = "llama.block_count", .says = "key 'llama.block_count' is missing"},
    {.put_u32_name = "llama.block_count", .put_u32 = 0, .says = "block_count is 0"},
    {.put_u32_name = "llama.block_count", .put_u32 = 3, .says = "'blk.2.attn_norm.weight' is mis"},
    {.put_u32_name = "llama.block_count", .put_u32 = 1, .says = "tensor 'blk.1."},
    {.put_u32_name = "llama.block_count", .put_u32 = 1u << 31, .says = "block_count is 2147483648"},
    {.put_str = {"llama.block_count", "2"}, .says = "'llama.block_count' is not one integer"},
    {.put_u32_name = "llama.embedding_length", .put_u32 = 0, .says = "embedding_length is 0"},
    {.put_u32_name = "llama.embedding_length", .put_u32 = 128, .says = "must be [128, 291]"},
    {.put_u32_name = "llama.attention.head_count", .put_u32 = 0, .says = "head_count is 0"},
    {.put_u32_name = "llama.attention.head_count", .put_u32 = 3, .says = "3 heads are no multiple"},
    {.put_u32_name = "llama.attention.head_count", .put_u32 = 8, .says = "must be [64, 128]"},
    {.put_u32_name = "llama.attention.head_count_kv", .put_u32 = 0, .says = "head_count_kv is 0"},
    {.put_str = {"llama.attention.head_count_kv", "x"}, .says = "head_count_kv' is not one int"},
    {.put_u32_name = "llama.attention.key_length", .put_u32 = 0, .says = "key_length is 0"},
    {.put_u32_name = "llama.attention.value_length", .put_u32 = 8, .says = "values of 8 elements"},
    {.drop_key = "llama.attention.layer_norm_rms_epsilon", .says = "rms_epsilon' is missing"},
    {.put_f32_name = "llama.attention.layer_norm_rms_epsilon",
     .put_f32 = NAN,
     .says = "rms_epsilon' is not one finite number"},
    {.put_f32_name = "llama.rope.freq_base", .put_f32 = 0.0f, .says = "freq_base' is 0"},
    {.put_u32_name = "llama.rope.dimension_count", .put_u32 = 15, .says = "15 rotated elements"},
    {.put_u32_name = "llama.rope.dimension_count", .put_u32 = 18, .says = "18 rotated elements"},
    {.put_str = {"llama.rope.scaling.type", "yarn"}, .says = "rope scaling 'yarn' is not supp"},
    {.put_u32_name = "llama.rope.scaling.type", .put_u32 = 1, .says = "'(not a string)'"},
    {.put_str = {"llama.rope.scaling.type", "linear"}, .says = "rope.scaling.factor' is missing"},
    {.put_f32_name = "llama.rope.scaling.factor", .put_f32 = 0, .says = "factor 0 is out of"},
    {.put_u32_name = "llama.expert_count", .put_u32 = 8, .says = "'llama.expert_count' is not"},
    {.put_f32_name = "llama.logit_scale", .put_f32 = 2.0f, .says = "'llama.logit_scale' is not"},
    {.put_u32_name = "llama.attention.sliding_window",
     .put_u32 = 64,
     .says = "sliding window of 64 positions"},
    {.put_u32_name = "llama.vocab_size", .put_u32 = 292, .says = "vocab_size 292 and 291 tokens"},
    {.drop_tensor = "token_embd.weight", .says = "tensor 'token_embd.weight' is missing"},
    {.drop_tensor = "blk.1.ffn_up.weight", .says = "tensor 'blk.1.ffn_up.weight' is missing"},
    {.drop_tensor = "output_norm.weight", .says = "tensor 'output_norm.weight' is missing"},
    {.reshape = "blk.0.attn_k.weight", .says = "'blk.0.attn_k.weight' is [64, 16, 1, 1], must be"},
    {.reshape = "output.weight", .says = "'output.weight' is [64, 145, 1, 1], must be [64, 291]"},
    {.rename = {"blk.0.ffn_up.weight", "blk.0.ffn_up.weigh"}, .says = "ffn_up.weight' is missing"},
    {.rename = {"output.weight", "blk.0.attn_q_norm.weight"},
     .says = "'blk.0.attn_q_norm.weight' is not part of the architecture 'llama'"},
    {.retype = "blk.0.ffn_norm.weight", .type = 8, .says = "ffn_norm.weight' is a vector of type"},
    {.retype = "blk.1.attn_q.weight", .type = 24, .says = "has type I8, which is not supported"},
};

static void faults_are_named(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct sl_buf file = {0};
    struct sl_err err = {0};
    assert_int_equal(tiny_model_buf(&m, &file, &err), SL_OK);
    struct sl_gguf *g = parse(&file);
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        struct sl_buf changed = {0};
        struct sl_model_config c;
        apply(g, &edits[i], &changed);
        struct sl_gguf *h = parse(&changed);
        err = (struct sl_err){0};
        if (sl_model_read_config(h, &c, &err) != SL_MODEL || !strstr(err.msg, edits[i].says))
            fail_msg("row %zu: \"%s\" does not say \"%s\"", i, err.msg, edits[i].says);
        sl_gguf_close(h);
        sl_buf_free(&changed);
    }
    sl_gguf_close(g);
    sl_buf_free(&file);
}

static void harmless_edits_pass(void **state)
{
    (void)state;
    static const struct edit fine[] = {
        {.drop_key = "llama.vocab_size"},
        {.drop_key = "llama.rope.dimension_count"},
        {.drop_key = "llama.attention.key_length"},
        {.put_str = {"llama.rope.scaling.type", "none"}},
        {.put_u32_name = "llama.expert_count", .put_u32 = 0},
        {.drop_tensor = "output.weight"},
        {.retype = "blk.0.attn_v.weight", .type = 3},
    };
    struct tiny_model m = tiny_model_default();
    struct sl_buf file = {0};
    struct sl_err err = {0};
    assert_int_equal(tiny_model_buf(&m, &file, &err), SL_OK);
    struct sl_gguf *g = parse(&file);
    for (size_t i = 0; i < sizeof fine / sizeof *fine; i++) {
        struct sl_buf changed = {0};
        struct sl_model_config c;
        apply(g, &fine[i], &changed);
        struct sl_gguf *h = parse(&changed);
        if (sl_model_read_config(h, &c, &err))
            fail_msg("row %zu: %s", i, err.msg);
        assert_int_equal(c.tied_head, fine[i].drop_tensor != NULL);
        sl_gguf_close(h);
        sl_buf_free(&changed);
    }
    sl_gguf_close(g);
    sl_buf_free(&file);
}

static void metadata_alone_cannot_be_opened(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct sl_buf file = {0};
    struct sl_err err = {0};
    struct sl_gguf *meta = NULL;
    struct sl_model *model = NULL;
    struct sl_backend *b = NULL;
    struct sl_model_config c;
    assert_int_equal(tiny_model_buf(&m, &file, &err), SL_OK);
    struct sl_gguf *g = parse(&file);
    struct sl_str bytes = sl_gguf_meta(g);
    assert_int_equal(sl_gguf_parse(bytes.data, bytes.len, true, &meta, &err), SL_OK);
    assert_int_equal(sl_model_read_config(meta, &c, &err), SL_OK);
    struct sl_cpu_config cpu = {.isa = SL_ISA_SCALAR, .n_threads = 1};
    assert_int_equal(sl_cpu_open(&cpu, &b, &err), SL_OK);
    struct sl_model_options o = {.max_batch_tokens = 8, .max_positions = 8, .max_logit_rows = 8};
    assert_int_equal(sl_model_open(meta, b, &o, &model, &err), SL_MODEL);
    assert_non_null(strstr(err.msg, "without its tensor data"));
    o.max_batch_tokens = 0;
    assert_int_equal(sl_model_open(g, b, &o, &model, &err), SL_CONFIG);
    assert_null(model);
    b->ops->close(b);
    sl_gguf_close(meta);
    sl_gguf_close(g);
    sl_buf_free(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_was_written),
        cmocka_unit_test(faults_are_named),
        cmocka_unit_test(harmless_edits_pass),
        cmocka_unit_test(metadata_alone_cannot_be_opened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
