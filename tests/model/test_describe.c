/* Promised: the JSON description of any file that parses is valid JSON with the stated members,
 * also for a model that cannot be served; nothing of a file's strings reaches the terminal raw. */
#include "tiny_model.h"

#include <sluice/base/json.h>
#include <sluice/model/file.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

static void describe(const struct sl_buf *file, bool json, bool all, struct sl_buf *out)
{
    struct sl_gguf *g = NULL;
    struct sl_err err = {0};
    if (sl_gguf_parse(file->data, file->len, false, &g, &err))
        fail_msg("%s", err.msg);
    struct sl_model_describe how = {.path = "/models/a \"b\".gguf", .json = json, .all = all};
    sl_model_describe(g, &how, out);
    assert_false(out->failed);
    sl_gguf_close(g);
}

static int64_t int_of(const struct sl_json *o, const char *a, const char *b)
{
    const struct sl_json *v = sl_json_get(o, a);
    v = v && b ? sl_json_get(v, b) : v;
    assert_non_null(v);
    return sl_json_int(v);
}

static void json_has_the_members(void **state)
{
    (void)state;
    struct tiny_model m = tiny_model_default();
    struct sl_buf file = {0}, text = {0};
    struct sl_err err = {0};
    struct sl_json *doc = NULL;
    assert_int_equal(tiny_model_buf(&m, &file, &err), SL_OK);
    describe(&file, true, false, &text);
    if (sl_json_parse(text.data, text.len, &doc, &err))
        fail_msg("%s", err.msg);
    assert_true(sl_json_bool(sl_json_get(doc, "supported")));
    assert_true(sl_str_eqz(sl_json_str(sl_json_get(doc, "path")), "/models/a \"b\".gguf"));
    assert_int_equal(int_of(doc, "bytes", NULL), file.len);
    assert_int_equal(int_of(doc, "gguf_version", NULL), 3);
    assert_int_equal(int_of(doc, "config", "n_layers"), 2);
    assert_int_equal(int_of(doc, "config", "n_vocab"), tiny_model_n_vocab());
    assert_int_equal(int_of(doc, "memory", "kv_bytes_per_token"), 2 * 2 * 2 * 16 * 2);
    assert_true(int_of(doc, "memory", "weight_bytes") > 0);
    assert_int_equal(sl_json_len(sl_json_get(doc, "tensors")), 2 * 9 + 3);
    const struct sl_json *keys = sl_json_get(doc, "keys");
    assert_int_equal(int_of(keys, "llama.block_count", NULL), 2);
    const struct sl_json *tokens = sl_json_get(keys, "tokenizer.ggml.tokens");
    assert_int_equal(int_of(tokens, "n", NULL), tiny_model_n_vocab());
    sl_json_free(doc);
    sl_buf_free(&text);
    sl_buf_free(&file);
}

/* A file that is no model, with strings meant for a terminal. */
static void build_hostile(struct sl_buf *out)
{
    struct sl_gguf_writer *w = sl_gguf_writer_new();
    struct sl_err err = {0};
    float one = 1.0f;
    uint64_t dims[] = {1};
    assert_non_null(w);
    sl_gguf_put_str(w, "general.architecture", SL_STR("x\x1b[2J\ny\xc2\x9bz"));
    sl_gguf_put_str(w, "a",
                    SL_STR("\x1b]0;title\x07 \xff\xfe \xc2\x9b"
                           "31m \x7f \r\n"));
    sl_gguf_put_f32(w, "b", __builtin_nanf(""));
    sl_gguf_put_tensor(w, "t\xc2\x9b", 0, 1, dims, &one, sizeof one);
    assert_int_equal(sl_gguf_writer_finish_buf(w, out, &err), SL_OK);
}

static void nothing_raw_passes(void **state)
{
    (void)state;
    struct sl_buf file = {0};
    build_hostile(&file);
    for (int form = 0; form < 3; form++) {
        struct sl_buf text = {0};
        struct sl_json *doc = NULL;
        struct sl_err err = {0};
        describe(&file, form == 0, form == 1, &text);
        for (size_t i = 0; i < text.len; i++) {
            unsigned char c = (unsigned char)text.data[i];
            assert_true(c >= 0x20 || c == '\n');
            assert_true(c != 0x7f);
            assert_false(c == 0xc2 && (unsigned char)text.data[i + 1] < 0xa0);
        }
        assert_non_null(strstr(text.data, "unsupported architecture 'x?[2J?y??z'"));
        if (form == 0) {
            if (sl_json_parse(text.data, text.len, &doc, &err))
                fail_msg("%s", err.msg);
            assert_false(sl_json_bool(sl_json_get(doc, "supported")));
            sl_json_free(doc);
        }
        sl_buf_free(&text);
    }
    sl_buf_free(&file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_has_the_members),
        cmocka_unit_test(nothing_raw_passes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
